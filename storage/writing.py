"""Atomic writing: readers find complete files only, and nothing is written or deleted through a link.

A new file has a unique temporary name in the folder of its target and is renamed once it is complete. A link with the
name of the target is therefore replaced, and the file that it points to does not change. The writing process holds a
lock on the temporary file; temporary files without a lock are leftovers of killed commands and are deleted.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from score_sde.storage.reading import check_regular, refused

try:
    import fcntl
except ImportError:  # Windows, where leftovers remain
    fcntl = None  # type: ignore[assignment]  # mypy has no optional module type

LEFTOVER = re.compile(r"\.(.+\.[0-9a-f]{8}|step_\d+)\.partial")
"""Temporary names, including checkpoints' temporary names of earlier versions."""

_roots: list[Path] = []

Descriptor = TypeVar("Descriptor", int, int | None)


@contextmanager
def confined(root: Path) -> Iterator[None]:
    """Context in which writing and deleting outside ``root``, or through links to folders below it, is refused.

    ``root`` itself may be a link.
    """
    _roots.append(Path(os.path.abspath(root)))
    try:
        yield
    finally:
        _roots.pop()


def make_folder(path: Path) -> Path:
    """Creates a folder and its missing parents, and flushes them to the disk.

    Raises: Refused if the path leads through a link below the confining root; OSError.
    """
    _check_place(path / "x")
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(new):
        flush_folder(folder.parent)
    return path


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a temporary file with ``write``, flushes it to the disk, and renames it to ``path``.

    Raises: Refused if the path leads through a link below the confining root; OSError.
    """
    with _temporary(path, _new_file) as (partial, descriptor):
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    flush_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file as ``replace`` does."""
    replace(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file as ``replace`` does."""
    write_bytes(path, text.encode())


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Creates a folder with a temporary name next to ``target``; it is deleted on exit unless it was renamed.

    Raises: Refused if the path leads through a link below the confining root; OSError.
    """
    with _temporary(target, _new_folder) as (partial, descriptor):
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if descriptor is not None:
                os.close(descriptor)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Context that holds the exclusive lock of a folder; without effect on systems without locks."""
    descriptor = os.open(make_folder(folder), os.O_RDONLY) if fcntl else None
    try:
        if descriptor is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def hold(path: Path) -> BinaryIO:
    """Locks a file as in use by a running command, for as long as the returned file is open."""
    file = os.fdopen(os.open(path, _flags("O_RDONLY")), "rb")
    _lock(file.fileno())
    return file


def is_held(path: Path) -> bool:
    """Whether a running command holds a file; True if this cannot be determined, as on systems without locks."""
    try:
        with hold(path) as file:
            return not fcntl or not _lock(file.fileno())
    except OSError:
        return True


def create(path: Path, content: bytes) -> None:
    """Writes a new file and flushes it to the disk.

    Raises: FileExistsError; Refused if the path leads through a link below the confining root; OSError.
    """
    _check_place(path)
    with os.fdopen(_new_file(path), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append(path: Path, text: str) -> None:
    """Appends text to a regular file, which is created if missing.

    Raises: Refused for a link, a pipe or a device; OSError.
    """
    with os.fdopen(_own_file(path, "O_WRONLY", "O_APPEND"), "ab") as file:
        file.write(text.encode())


def open_lock(path: Path) -> int:
    """The descriptor of a regular file to lock, which is created if missing.

    Raises: Refused for a link, a pipe or a device; OSError.
    """
    return _own_file(path, "O_RDWR")


def flush(path: Path) -> None:
    """Flushes an appended file and its folder entry to the disk."""
    descriptor = os.open(path, _flags("O_RDWR"))  # Windows flushes only files that are open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    flush_folder(path.parent)


def remove(path: Path) -> None:
    """Deletes a file, a link (not its target) or a whole folder; does nothing if the path does not exist.

    Raises: Refused if the path leads through a link below the confining root; OSError.
    """
    _check_place(path)
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def remove_if_empty(folder: Path) -> None:
    """Deletes an empty folder; does nothing for other folders and for links."""
    with suppress(OSError):
        _check_place(folder)
        folder.rmdir()


def rename(path: Path, target: Path) -> None:
    """Renames a file or folder; an existing file, link or empty folder of the new name is replaced.

    Raises: Refused if a path leads through a link below the confining root; OSError.
    """
    _check_place(path)
    _check_place(target)
    if target.is_symlink():  # os.replace cannot replace a link by a folder
        os.unlink(target)
    os.replace(path, target)


def flush_folder(folder: Path) -> None:
    """Flushes the entries of a folder to the disk.

    It has no effect on Windows, which lacks the call, on file systems that refuse it, and for unreadable folders.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def is_leftover(path: Path) -> bool:
    """Whether a path has the name of a temporary file or folder."""
    return LEFTOVER.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Deletes temporary files and folders in a folder that killed commands left there."""
    for path in folder.iterdir():
        if fcntl and is_leftover(path):
            with suppress(OSError):  # a link, or already deleted
                descriptor = os.open(path, _flags("O_RDONLY", "O_NONBLOCK"))
                try:
                    if _lock(descriptor) and _is(path, descriptor):
                        remove(path)
                finally:
                    os.close(descriptor)


def _check_place(path: Path) -> None:
    """Raises: Refused if the path is outside the confining root, or leads through a link below it."""
    if not _roots:
        return
    root, place = _roots[-1], Path(os.path.abspath(path))
    if not place.is_relative_to(root):
        raise refused(path, errno.EINVAL, f"it is outside {root}, and this command writes nowhere else")
    for folder in place.parents:
        if root in (place, folder):
            return
        if folder.is_symlink():
            raise refused(
                folder,
                errno.EINVAL,
                "it is a link inside the run, and nothing is written or deleted through it: put a folder in its "
                "place, or link the whole run",
            )


def _flags(*names: str) -> int:
    """Flags for opening a file that is not a link."""
    found = 0
    for name in (*names, "O_NOFOLLOW", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
        found |= getattr(os, name, 0)
    return found


def _own_file(path: Path, *flags: str) -> int:
    """The descriptor of a regular file, which is created if missing."""
    _check_place(path)
    try:
        descriptor = os.open(path, _flags(*flags, "O_CREAT", "O_NONBLOCK"), 0o666)
    except OSError as error:
        reasons = {errno.ELOOP: "it is a link, and nothing is written through links", errno.ENXIO: "it is a pipe"}
        if error.errno in reasons:
            raise refused(path, errno.EINVAL, f"{reasons[error.errno]}: remove it") from None
        raise
    try:
        check_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _new_file(path: Path) -> int:
    return os.open(path, _flags("O_WRONLY", "O_CREAT", "O_EXCL"), 0o666)


def _new_folder(path: Path) -> int | None:
    path.mkdir()
    if not fcntl:
        return None
    try:
        return os.open(path, _flags("O_RDONLY", "O_DIRECTORY"))
    except FileNotFoundError:
        raise _Swept(errno.ENOENT, "deleted before it was opened", str(path)) from None


class _Swept(OSError):
    """A new folder that another command deleted as a leftover before it was opened and locked."""


@contextmanager
def _temporary(target: Path, make: Callable[[Path], Descriptor]) -> Iterator[tuple[Path, Descriptor]]:
    """Creates a locked file or folder with a temporary name; the caller closes the descriptor."""
    sweep(make_folder(target.parent))
    path, descriptor = _claim(target, make)
    lock = None if descriptor is None else os.dup(descriptor)
    try:
        yield path, descriptor
    finally:
        if lock is not None:
            os.close(lock)


def _claim(target: Path, make: Callable[[Path], Descriptor]) -> tuple[Path, Descriptor]:
    """Path and descriptor of a new, locked file or folder."""
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            descriptor = make(path)
        except (FileExistsError, _Swept):
            continue
        _lock(descriptor, wait=True)
        if descriptor is None or _is(path, descriptor):
            return path, descriptor
        os.close(descriptor)  # another command deleted it before it was locked


def _lock(descriptor: int | None, wait: bool = False) -> bool:
    """Locks a file or folder until its descriptor is closed.

    Returns: whether it is locked; False if another process holds the lock, or on systems without locks.
    """
    if descriptor is None or not fcntl:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _is(path: Path, descriptor: int) -> bool:
    """Whether a path is the open file or folder of a descriptor."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
