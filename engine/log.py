"""Output of a command: printed lines, a progress bar, metrics.jsonl and TensorBoard."""

import json
import math
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from score_sde.engine import ranks
from score_sde.storage.naming import printable
from score_sde.storage.reading import LINES, read_bytes, read_text
from score_sde.storage.writing import append, flush, make_folder, write_bytes, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect results."""
    found = {"python": sys.version.split()[0]}
    for package in ("torch", "numpy", "scipy", "torchdiffeq"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def say(*lines: str) -> None:
    """Prints lines with control characters escaped, in the first process only."""
    if ranks.rank() == 0:
        for line in lines:
            print(printable(line), flush=True)


def check_name(workdir: Path) -> None:
    """Raises: ValueError for a folder whose name is not UTF-8, since TensorBoard cannot write there."""
    try:
        str(workdir).encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name of --workdir {workdir} is not UTF-8, as TensorBoard needs it; rename it") from None


class Metrics:
    """Lines of metrics.jsonl, and the same numbers as TensorBoard scalars; only the first process writes.

    Args:
        folder: folder of the run.
        step: the step at which training resumes; later lines of the interrupted run are dropped.
        lines: number of lines up to that step, from its checkpoint; None if unknown.

    Attributes:
        lines: number of lines in the file.
    """

    def __init__(self, folder: Path, step: int, lines: int | None = None) -> None:
        self.folder, self.path, self.step, self.lines = folder, folder / "metrics.jsonl", step, 0
        self._board: SummaryWriter | None = None
        if ranks.rank() > 0:
            return
        if self.path.exists():
            self._resume()
        if self.lines < (lines or 0):
            say(f"{self.path} has {self.lines} of the {lines} lines up to step {step}; the others are lost")

    def _resume(self) -> None:
        """Keeps the lines up to the step. If the file has other lines than metrics, a copy keeps it unchanged."""
        text = read_text(self.path, LINES, errors="replace")
        *whole, last = text.split("\n")
        if _step_of(last) is not None:  # else it was cut off and will be written again
            whole.append(last)
        found = [(_step_of(line), line) for line in whole if line]
        kept = [line for step, line in found if step is not None and step <= self.step]
        if odd := sum(step is None for step, _ in found):
            aside = self.path.with_name(f"damaged_{self.path.name}")
            write_bytes(aside, read_bytes(self.path, LINES))
            say(f"{self.path}: lines that are no metrics are left out ({odd}); the file as it was is {aside.name}")
        self.lines = len(kept)
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def flush(self) -> None:
        """Flushes all lines to the disk, before a checkpoint that counts them."""
        if self.lines:
            flush(self.path)

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends one line and writes its numbers to TensorBoard."""
        append(self.path, json.dumps({key: _finite(value) for key, value in values.items()}) + "\n")
        self.lines += 1
        if self._board is None:  # late: the import takes longer than the first training step
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(make_folder(self.folder / "tensorboard")), purge_step=self.step + 1)
        for key, value in values.items():
            if isinstance(value, (int, float)) and key != "step":
                self._board.add_scalar(key, value, values["step"])
        self._board.flush()


class Progress:
    """Progress of a long job: a bar with rate and remaining time on a terminal, else a line every few seconds.

    Only the first process prints, with the progress of its own part.

    Args:
        total: amount of work.
        done: amount done before.
        unit: unit of the work, plural.
        every: seconds between two lines.
    """

    def __init__(self, total: int, unit: str, done: int = 0, every: float = 10.0) -> None:
        from tqdm import tqdm

        self.total, self.unit, self.done, self.every = total, unit, done, every
        self.first, self.start = done, time.perf_counter()
        self._last_line = self.start
        bar = ranks.rank() == 0 and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit=f" {unit}", leave=False) if bar else None

    def advance(self, amount: int, note: str = "") -> None:
        """Adds an amount of work.

        Args:
            note: printed after the remaining time.
        """
        self.done += amount
        now = time.perf_counter()
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif ranks.rank() == 0 and now - self._last_line >= self.every:
            self._last_line = now
            left = _clock((self.total - self.done) / self.rate)
            print(
                f"{self.done}/{self.total} {self.unit}, {self.rate:.3g}/s, {left} left{note and ', ' + note}",
                flush=True,
            )

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.first) / max(time.perf_counter() - self.start, 1e-9)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _step_of(line: str) -> int | None:
    """Returns the step of a line of metrics; None for any other line."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = values.get("step") if isinstance(values, dict) else None
    return step if type(step) is int else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
