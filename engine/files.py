"""Results on the disk: JSON and arrays, and lists of numbers that a user writes."""

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
"""Arrays of a file that a message names."""


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file; numbers that are not finite are refused."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_npz(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """These arrays of a file, whole.

    Raises: DataError.
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
    """The numbers of a text file, one a line; empty lines and what follows a # do not count.

    Raises: DataError for a missing file; ValueError naming the line that is no number.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(f"{path} cannot be read as text ({reason}): check the path") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line:
            try:
                found.append(float(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {line[:40]!r} is no number; give one a line") from error
    return found


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays to a compressed .npz."""
    replace(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]  # none is called allow_pickle
