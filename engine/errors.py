"""How a command that fails says so: one line with what to do, and an exit status.

A class of ours carries its own status, so that naming it here needs no import:

    selftest.FailedChecks               1     a check that measured too much
    CheckpointError, data.DataError     3     missing or damaged
    OutOfMemory                         3     too large for the device
    sde_lib.NonFiniteError              4     numbers that are not finite
    sde_lib.NotConvergedError           5     a solver that gave up
"""

import errno
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


class OutOfMemory(Exception):
    """What does not fit into the memory of a device. The message says what does."""

    exit_status = 3


class CheckpointError(Exception):
    """A run or checkpoint that is missing, damaged or of another network. The message names it and what to do."""

    exit_status = 3


def looked_at(path: Path) -> str:
    """Where a relative path was looked for, in brackets after a space; empty for an absolute one."""
    return "" if path.is_absolute() else f" (looked at {path.absolute()})"


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
        message = f"{error.filename}: {error.strerror}{REMEDIES.get(error.errno or 0, '')}"
    if exit_status(error) == 1 and not hasattr(error, "exit_status"):
        message = f"{type(error).__name__}: {message}; run with --debug for the traceback"
    return printable(f"error: {message}")
