"""Results per example, stored after each batch, so that a later command resumes from them."""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from score_sde.engine import ranks
from score_sde.storage.reading import LINES, read_text
from score_sde.storage.writing import append, hold, is_held, make_folder, remove


class PartialResults:
    """A row of numbers per example, in one file per process with a line of JSON per batch.

    Each setting and each command has its own files. A line that was cut off is skipped, so a batch is complete or
    missing. A killed command therefore resumes with the batches that it would have had, bit for bit.

    Args:
        folder: folder of the files <name>.rows-<digest of asked>-<command>-<index of the process>.jsonl; the first
            batch creates it.
        asked: all settings that the numbers depend on, as JSON values.
    """

    def __init__(self, folder: Path, name: str, asked: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        self.folder, self.own, self.all = folder, f"{name}.rows-{digest}-*.jsonl", f"{name}.rows-*.jsonl"
        self.rank, self.size = ranks.rank(), ranks.size()
        self.path = folder / self.own.replace("*", f"{secrets.token_hex(4)}-{self.rank}")
        self.files: set[Path] = set()
        self.found = self._read()
        self.appended: dict[int, dict[str, float]] = {}
        self.held: BinaryIO | None = None
        ranks.wait_for_all()  # all processes must read the same rows, to divide the missing ones

    def missing(self, num: int, batch_size: int) -> list[list[int]]:
        """Returns this process's part of the batches of the examples 0, ..., num - 1 that have no row."""
        firsts = range(0, num, batch_size)
        batches = ([i for i in range(k, min(k + batch_size, num)) if i not in self.found] for k in firsts)
        return [batch for batch in batches if batch][self.rank :: self.size]

    def append(self, examples: Sequence[int], columns: Mapping[str, np.ndarray]) -> None:
        """Stores the rows of a batch.

        Args:
            examples: their indices.
            columns: arrays (N,).
        """
        batch = {"example": list(examples), **{key: column.tolist() for key, column in columns.items()}}
        self.appended |= _by_example(batch)
        make_folder(self.folder)
        append(self.path, f"\n{json.dumps(batch)}")  # starts a new line after one that was cut off
        self.held = self.held or hold(self.path)

    def collect(self, num: int) -> dict[str, np.ndarray]:
        """Returns the rows of the examples 0, ..., num - 1 as columns (num,), after all processes have stored theirs.

        Rows once read are kept, since another command with the same settings may delete the files.

        Raises: OSError if rows are missing.
        """
        found = {**self.found, **self._read(), **self.appended}
        lost = [i for i in range(num) if i not in found]
        if lost:
            raise OSError(
                f"{len(lost)} of {num} rows, the first of example {lost[0]}, are not in {self.folder}: all processes "
                "of a command need the same folder; run the same command to go on"
            )
        return {key: np.array([found[i][key] for i in range(num)]) for key in found[0]}

    def others(self) -> list[Path]:
        """Returns the files with other settings."""
        return sorted(set(self.folder.glob(self.all)) - set(self.folder.glob(self.own)))

    def forget(self) -> None:
        """Deletes the files whose rows are now in a result, and the files of ended commands."""
        dead = {path for path in self.folder.glob(self.all) if not is_held(path)}
        for path in self.files | dead:
            remove(path)

    def _read(self) -> dict[int, dict[str, float]]:
        """Returns the stored rows with these settings, by example."""
        found: dict[int, dict[str, float]] = {}
        for path in sorted(self.folder.glob(self.own)):
            try:
                text = read_text(path, LINES, errors="replace")
            except FileNotFoundError:  # another command has deleted it
                continue
            self.files.add(path)
            for batch in map(_whole, text.splitlines()):
                found |= _by_example(batch)
        return found


def _by_example(batch: Mapping[str, Sequence]) -> dict[int, dict[str, float]]:
    """Returns the rows of a batch by example; the first column holds the examples."""
    columns = zip(*batch.values(), strict=True)
    return {example: dict(zip(list(batch)[1:], row, strict=True)) for example, *row in columns}


def _whole(line: str) -> dict[str, list]:
    """Returns the batch of a line; empty if the line was cut off or is malformed."""
    try:
        batch = json.loads(line)
        columns = [*batch.values()] if next(iter(batch)) == "example" else []
        whole = all(type(column) is list and len(column) == len(columns[0]) for column in columns)
        return batch if whole and all(type(example) is int for example in batch["example"]) else {}
    except (ValueError, AttributeError, TypeError, LookupError, StopIteration, RecursionError):
        return {}
