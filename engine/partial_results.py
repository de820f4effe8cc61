"""Results of examples that are not lost: kept batch by batch as they are found, and found again by a later command."""

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
    """Rows of numbers, one for each example, in a file of each process: a line of JSON for each batch.

    Whatever else is asked goes to other files, and each command has files of its own. A batch is there as a whole or
    not at all, for a line that was cut off does not count. So a command that was killed goes on with the batches that
    it would have had, to the same bits.

    Args:
        folder: of the files, <name>.rows-<digest of what is asked>-<of the command>-<number of the process>.jsonl; the
            first batch makes it.
        asked: all that the numbers depend on, as JSON values.
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
        ranks.wait_for_all()  # all have to find the same, to share what is missing

    def missing(self, num: int, batch_size: int) -> list[list[int]]:
        """This process's share of the batches of the examples 0, ..., num - 1, less those that have a row."""
        firsts = range(0, num, batch_size)
        batches = ([i for i in range(k, min(k + batch_size, num)) if i not in self.found] for k in firsts)
        return [batch for batch in batches if batch][self.rank :: self.size]

    def append(self, examples: Sequence[int], columns: Mapping[str, np.ndarray]) -> None:
        """Keep the rows of a batch: its examples, and (N,) of each column."""
        batch = {"example": list(examples), **{key: column.tolist() for key, column in columns.items()}}
        self.appended |= _by_example(batch)
        make_folder(self.folder)
        append(self.path, f"\n{json.dumps(batch)}")  # begins a line of its own after one that was cut off
        self.held = self.held or hold(self.path)

    def collect(self, num: int) -> dict[str, np.ndarray]:
        """All rows of the examples 0, ..., num - 1 as columns (num,), for when every process has appended its own.

        Another command with the same question may have deleted its files and ours, so rows once read are kept.

        Raises: OSError if some are not there.
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
        """Files that answer another question."""
        return sorted(set(self.folder.glob(self.all)) - set(self.folder.glob(self.own)))

    def forget(self) -> None:
        """Delete the files whose rows were collected, for these are kept elsewhere now, and those of dead commands."""
        dead = {path for path in self.folder.glob(self.all) if not is_held(path)}
        for path in self.files | dead:
            remove(path)

    def _read(self) -> dict[int, dict[str, float]]:
        """The rows that answer what is asked, by example."""
        found: dict[int, dict[str, float]] = {}
        for path in sorted(self.folder.glob(self.own)):
            try:
                text = read_text(path, LINES, errors="replace")
            except FileNotFoundError:  # another command has collected it since
                continue
            self.files.add(path)
            for batch in map(_whole, text.splitlines()):
                found |= _by_example(batch)
        return found


def _by_example(batch: Mapping[str, Sequence]) -> dict[int, dict[str, float]]:
    """The rows of a batch, whose first column has their examples."""
    columns = zip(*batch.values(), strict=True)
    return {example: dict(zip(list(batch)[1:], row, strict=True)) for example, *row in columns}


def _whole(line: str) -> dict[str, list]:
    """The batch of a line; an empty one if the line was cut off, or is none."""
    try:
        batch = json.loads(line)
        columns = [*batch.values()] if next(iter(batch)) == "example" else []
        whole = all(type(column) is list and len(column) == len(columns[0]) for column in columns)
        return batch if whole and all(type(example) is int for example in batch["example"]) else {}
    except (ValueError, AttributeError, TypeError, LookupError, StopIteration, RecursionError):
        return {}
