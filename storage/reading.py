"""Opening files for reading: regular files of limited size only, since pipes and devices may block or never end."""

import errno
import functools
import os
import stat
from pathlib import Path
from typing import BinaryIO

TEXT = 2**26
"""Largest size in bytes of a text file that is read completely: JSON, a config, a list of numbers."""

LINES = 2**30
"""Largest size in bytes of a file that grows line by line: metrics, rows of results."""

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
"""Other file types -> description."""


class Refused(OSError):
    """A path that must not be opened: not a regular file, too large, or through a link."""


def open_file(path: str | os.PathLike[str], most: float) -> BinaryIO:
    """Opens a regular file of at most ``most`` bytes for reading; links to files are followed.

    The checks apply to the open descriptor, so the file cannot be exchanged between check and read. Opening a pipe does
    not wait for its writer.

    Raises: Refused for a pipe, a device, a socket, or a larger file; OSError.
    """
    try:
        file = open(path, "rb", opener=_open)  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, which only a connection opens
            raise refused(path, errno.EINVAL, "it is a socket and not a regular file") from None
        raise
    try:
        status = os.fstat(file.fileno())
        check_regular(path, status)
        if status.st_size > most:
            raise refused(path, errno.EFBIG, f"it has {status.st_size:,} bytes, of {int(most):,} allowed")
    except BaseException:
        file.close()
        raise
    return file


def read_bytes(path: str | os.PathLike[str], most: float) -> bytes:
    """The content of a file at the time of opening.

    Raises: as ``open_file``.
    """
    with open_file(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_text(path: str | os.PathLike[str], most: float = TEXT, errors: str = "strict") -> str:
    """The text of a UTF-8 file.

    Args:
        most: largest size in bytes.
        errors: ``strict``, or ``replace`` to replace invalid bytes by a mark.
    Raises: as ``open_file``; UnicodeDecodeError, a ValueError.
    """
    return read_bytes(path, most).decode(errors=errors)


def obstacle(error: BaseException) -> str | None:
    """The reason for a read error that does not depend on the content, memory or disk; None for damaged content.

    For damaged content, decoders raise an OSError without a number, or with EINVAL for an invalid position.
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # message of torch's allocator
        return "it does not fit into the memory of this machine"
    if isinstance(error, Refused) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
        return error.strerror
    return None


@functools.cache
def half_of_memory() -> float:
    """Largest size in bytes of a weight file: half of the machine's memory, since its tensors take as much again.

    Infinite if the system does not report its memory.
    """
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", {})):
        return float("inf")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def check_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    """Raises: Refused unless the status belongs to a regular file."""
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise refused(path, errno.EINVAL, f"it is {kind} and not a regular file")


def _open(path: str, flags: int) -> int:
    """Opens a file descriptor without waiting for the writer of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def refused(path: str | os.PathLike[str], number: int, reason: str) -> Refused:
    """A ``Refused`` error for a path."""
    return Refused(number, reason, str(Path(path)))
