"""How a command that fails says so: one line with what to do, and an exit status.

A class of ours carries its own status, so that naming it here needs no import:

    selftest.FailedChecks               1     a check that measured too much
    CheckpointError, data.DataError     3     missing or damaged
    OutOfMemory                         3     too large for the device
    sde_lib.NonFiniteError              4     numbers that are not finite
    sde_lib.NotConvergedError           5     a solver that gave up
"""

import difflib
import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

from score_sde.storage.naming import printable

EXIT_STATUS = {ValueError: 2, BrokenPipeError: 141, OSError: 3, KeyboardInterrupt: 130}
"""Exceptions of Python that users meet, and their status; any other exception is a defect and ends with 1."""

AGAIN = "; it may pass: run the same command again"
"""The remedy for errors of a disk or a machine that are no damage."""

REMEDIES = {
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT), AGAIN),
    errno.ENOSPC: "; free some space and run the same command to go on",
    errno.EDQUOT: "; free some space and run the same command to go on",
    errno.EPIPE: ": the reader closed it, as head does; a run keeps its last checkpoint",
    errno.EACCES: "; choose a place that you may write to with --workdir",
    errno.EPERM: "; choose a place that you may write to with --workdir",
    errno.EROFS: "; choose a place that you may write to with --workdir",
    errno.EEXIST: "; choose another --workdir",
    errno.ENOTDIR: "; choose another --workdir",
}

MOST_LISTED, SHOWN = 16, 8
"""Names that a line lists whole, and how many it shows of more."""


class OutOfMemory(Exception):
    """What does not fit into the memory of a device. The message says what does."""

    exit_status = 3


class CheckpointError(Exception):
    """A run or checkpoint that is missing, damaged or of another network. The message names it and what to do."""

    exit_status = 3


class UnknownName(ValueError):
    """A name that is in no table.

    Args:
        name: that name.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that is in no table, with the names that are near, or else the first ones and a count.

    Example: unknown("mode", "trian", MODES) says: unknown mode 'trian'; did you mean 'train'?
    """
    known = sorted(known)
    close = near(name, known)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {listed(known)}"
    return UnknownName(f"unknown {what} {name!r}; {hint}", name)


def near(name: str, known: Sequence[str]) -> list[str]:
    """The known names near this one; of dotted keys those with the same last part, if there are any."""
    last = name.rpartition(".")[2]
    alike = [key for key in known if "." in key and key.rpartition(".")[2] == last]
    return alike[:SHOWN] or difflib.get_close_matches(name, known, n=3, cutoff=0.7)


def looked_at(path: Path) -> str:
    """Where a relative path was looked for, in brackets after a space; empty for an absolute one."""
    return "" if path.is_absolute() else f" (looked at {path.absolute()})"


def listed(names: Sequence[str], between: str = ", ") -> str:
    """The names in one line: all of a few; of many the first ones that extend no other, and a count of the rest.

    Example: cifar10, classifier, clip, ... and 37 more; cifar10_ncsn extends cifar10.
    """
    if len(names) <= MOST_LISTED:
        return between.join(names)
    heads = [name for name in names if not any(name.startswith(f"{other}_") for other in names)][:SHOWN]
    return f"{between.join(heads)} and {len(names) - len(heads)} more"


def exit_status(error: BaseException) -> int:
    """The status a command ends with when ``error`` stops it."""
    if hasattr(error, "exit_status"):
        return error.exit_status
    return next((status for kind, status in EXIT_STATUS.items() if isinstance(error, kind)), 1)


def describe(error: BaseException) -> str:
    """What stopped the command, in one line without control characters."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the last checkpoint is kept, run the same command to go on"
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}{REMEDIES.get(error.errno, '')}"
    if exit_status(error) == 1 and not hasattr(error, "exit_status"):
        message = f"{type(error).__name__}: {message}; run with --debug for the traceback"
    return printable(f"error: {message}")
