"""Files of results, JSON and arrays, and lists of numbers that a user writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.data import DataError
from score_sde.data.archives import unpack_arrays
from score_sde.storage.reading import obstacle, read_text
from score_sde.storage.writing import replace, write_text

MOST_NAMED = 8
"""Largest number of arrays that a message lists."""


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file.

    Raises: ValueError for numbers that are not finite.
    """
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_npz(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """Returns the arrays ``keys`` of an .npz file.

    Raises: DataError if the file or an array is missing, or the file is damaged.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path")
    try:
        names, arrays = unpack_arrays(path, keys.__contains__)
    except DataError:
        raise
    except Exception as error:  # numpy raises errors of many kinds on damaged files
        if reason := obstacle(error):
            raise DataError(f"{path} cannot be read: {reason}") from error
        raise DataError(
            f"{path} is damaged, no .npz or of Python objects: restore it from a copy, or make it again"
        ) from error
    if missing := [key for key in keys if key not in arrays]:
        held = ", ".join(names[:MOST_NAMED]) + ", ..." * (len(names) > MOST_NAMED) or "nothing"
        raise DataError(
            f"{path} holds {held} and no array {' or '.join(missing)}: give a file of this program, or rename the array"
        )
    return {key: arrays[key] for key in keys}


def read_numbers(path: Path) -> list[float]:
    """Returns the numbers of a text file with one per line; empty lines and comments after # are skipped.

    Raises: DataError for a missing file; ValueError for a line that is no number.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(f"{path} cannot be read as text ({reason}): check the path") from error
    numbers = []
    for number, line in enumerate(lines, 1):
        if line:
            try:
                numbers.append(float(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {line[:40]!r} is no number; give one a line") from error
    return numbers


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes arrays to a compressed .npz."""
    replace(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]  # no array is named allow_pickle
