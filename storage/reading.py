"""The gate of all readers: a regular file of at most so many bytes. Pipes and devices would block, or never end."""

import errno
import functools
import os
import stat
from pathlib import Path
from typing import BinaryIO

TEXT = 2**26
"""Most bytes of a text that is read whole: JSON, a config, a list of numbers."""

LINES = 2**30
"""Most bytes of a file that grows by a line at a time: metrics, rows of results."""

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
"""Other kinds of files, in words."""


class Refused(OSError):
    """A path that must not be opened: it leads to no regular file, to one that is too large, or through a link."""


def open_file(path: str | os.PathLike, most: float) -> BinaryIO:
    """Open a regular file of at most ``most`` bytes for reading; links to one are followed.

    The descriptor itself is examined, so that nobody can exchange the file between the examination and the reading. A
    pipe is opened without waiting for its writer.

    Raises: Refused for a pipe, a device, a socket, or a file of more bytes; OSError.
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


def read_bytes(path: str | os.PathLike, most: float) -> bytes:
    """The bytes that a file had when it was opened.

    Raises: as ``open_file``.
    """
    with open_file(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_text(path: str | os.PathLike, most: float = TEXT, errors: str = "strict") -> str:
    """The text of a file in UTF-8.

    Args:
        errors: ``strict``, or ``replace`` for a mark in place of each byte that is no text.
    Raises: as ``open_file``; UnicodeDecodeError, a ValueError.
    """
    return read_bytes(path, most).decode(errors=errors)


def obstacle(error: BaseException) -> str | None:
    """Why a file cannot be read whatever its content: too little memory, or the disk; None for damaged content.

    Decoders raise an OSError without a number, or for an invalid position in the file, where the content is damaged.
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the words of torch's allocator
        return "it does not fit into the memory of this machine"
    if isinstance(error, Refused) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
        return error.strerror
    return None


@functools.cache
def half_of_memory() -> float:
    """Most bytes of a file of weights that is read whole: half of this machine's memory, for its tensors take as much.

    Infinite where the system does not give its memory.
    """
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", {})):
        return float("inf")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def check_regular(path: str | os.PathLike, status: os.stat_result) -> None:
    """Raises: Refused unless the status is that of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise refused(path, errno.EINVAL, f"it is {kind} and not a regular file")


def _open(path: str, flags: int) -> int:
    """The descriptor of a file, without waiting for the writer of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def refused(path: str | os.PathLike, number: int, reason: str) -> Refused:
    """The error for a path."""
    return Refused(number, reason, str(Path(path)))
