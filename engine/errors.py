"""Errors of commands: one line with a remedy, and an exit status.

The project's own exceptions have an attribute ``exit_status``, so this module imports none of them:

    selftest.FailedChecks               1     a check above its bound
    CheckpointError, data.DataError     3     missing or damaged
    OutOfMemory                         3     too large for the device
    sde_lib.NonFiniteError              4     numbers that are not finite
    sde_lib.NotConvergedError           5     a solver that did not converge
"""

import errno
from pathlib import Path

from score_sde.storage.naming import printable

EXIT_STATUS = {ValueError: 2, BrokenPipeError: 141, OSError: 3, KeyboardInterrupt: 130}
"""Status of Python's exceptions with a user's cause; any other exception is a defect, with status 1."""

AGAIN = "; it may pass: run the same command again"
"""Remedy for transient errors of a disk or a machine."""

REMEDIES = {
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT), AGAIN),
    errno.ENOSPC: "; free some space and run the same command to go on",
    errno.EDQUOT: "; free some space and run the same command to go on",
    errno.EPIPE: ": the reader closed it, as head does; a run keeps its last checkpoint",
    errno.EACCES: "; choose a folder that you may write to with --workdir",
    errno.EPERM: "; choose a folder that you may write to with --workdir",
    errno.EROFS: "; choose a folder that you may write to with --workdir",
    errno.EEXIST: "; choose another --workdir",
    errno.ENOTDIR: "; choose another --workdir",
}


class OutOfMemory(Exception):
    """The memory of a device is too small. The message has the size that fits."""

    exit_status = 3


class CheckpointError(Exception):
    """A run or checkpoint is missing, damaged or of another network. The message has its path and the remedy."""

    exit_status = 3


def looked_at(path: Path) -> str:
    """Returns the absolute form of a relative path, in brackets after a space; empty for an absolute path."""
    return "" if path.is_absolute() else f" (looked at {path.absolute()})"


def exit_status(error: BaseException) -> int:
    """Returns the exit status of a command that ``error`` ends."""
    if hasattr(error, "exit_status"):
        return error.exit_status
    return next((status for kind, status in EXIT_STATUS.items() if isinstance(error, kind)), 1)


def describe(error: BaseException) -> str:
    """Returns the message of an error, in one line without control characters."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the last checkpoint is kept, run the same command to go on"
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}{REMEDIES.get(error.errno or 0, '')}"
    if exit_status(error) == 1 and not hasattr(error, "exit_status"):
        message = f"{type(error).__name__}: {message}; run with --debug for the traceback"
    return printable(f"error: {message}")
