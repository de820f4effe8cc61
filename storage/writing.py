"""Writing: no reader finds half a file, and nothing is written or deleted through a link.

A new file gets a temporary name of its own in the folder of its target, and is renamed when it is whole. So a link
that has the name of the target is replaced, and the file that it leads to stays as it is. While its writer lives, it
holds a lock on the temporary file; temporary files without one are leftovers of killed commands and are deleted.
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
except ImportError:  # Windows, where leftovers stay
    fcntl = None  # type: ignore[assignment]  # to mypy a module is of no optional type

LEFTOVER = re.compile(r"\.(.+\.[0-9a-f]{8}|step_\d+)\.partial")
"""Temporary names, and those that checkpoints had in earlier versions."""

_roots: list[Path] = []

Descriptor = TypeVar("Descriptor", int, int | None)


@contextmanager
def confined(root: Path) -> Iterator[None]:
    """While it is entered, refuse to write and delete outside ``root``, and through links to folders below it.

    ``root`` itself may be a link.
    """
    _roots.append(Path(os.path.abspath(root)))
    try:
        yield
    finally:
        _roots.pop()


def make_folder(path: Path) -> Path:
    """Make a folder and those above it, where they are not there yet, down to the disk.

    Raises: Refused where the path leads through a link below the confining root; OSError.
    """
    _check_place(path / "x")
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(new):
        flush_folder(folder.parent)
    return path


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, and rename it once it is on the disk.

    Raises: Refused where the path leads through a link below the confining root; OSError.
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
    """Write a file, as ``replace`` does."""
    replace(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as ``replace`` does."""
    write_bytes(path, text.encode())


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` under a temporary name; it is deleted at the end, unless it was renamed.

    Raises: Refused where the path leads through a link below the confining root; OSError.
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
    """Hold the lock of a folder for a moment, in which others who ask for it wait; without effect where none are."""
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
    """Mark a file as one of a living command, for as long as the returned file is open."""
    file = os.fdopen(os.open(path, _flags("O_RDONLY")), "rb")
    _lock(file.fileno())
    return file


def is_held(path: Path) -> bool:
    """Whether a living command holds a file; True where the system has no locks, and nothing is known."""
    try:
        with hold(path) as file:
            return not fcntl or not _lock(file.fileno())
    except OSError:
        return True


def create(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet, down to the disk.

    Raises: FileExistsError; Refused where the path leads through a link below the confining root; OSError.
    """
    _check_place(path)
    with os.fdopen(_new_file(path), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append(path: Path, text: str) -> None:
    """Append a text to a regular file, which is made if it is not there.

    Raises: Refused for a link, a pipe or a device; OSError.
    """
    with os.fdopen(_own_file(path, "O_WRONLY", "O_APPEND"), "ab") as file:
        file.write(text.encode())


def open_lock(path: Path) -> int:
    """The descriptor of a regular file to be locked, which is made if it is not there.

    Raises: Refused for a link, a pipe or a device; OSError.
    """
    return _own_file(path, "O_RDWR")


def flush(path: Path) -> None:
    """Put a file that was appended to on the disk, and its name."""
    descriptor = os.open(path, _flags("O_RDWR"))  # Windows flushes only what is open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    flush_folder(path.parent)


def remove(path: Path) -> None:
    """Delete a file, a link (and not the file that it leads to) or a whole folder; nothing where there is none.

    Raises: Refused where the path leads through a link below the confining root; OSError.
    """
    _check_place(path)
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def remove_if_empty(folder: Path) -> None:
    """Delete a folder unless it holds something, or is a link."""
    with suppress(OSError):
        _check_place(folder)
        folder.rmdir()


def rename(path: Path, target: Path) -> None:
    """Rename a file or folder; a file, a link or an empty folder of the new name is replaced.

    Raises: Refused where a path leads through a link below the confining root; OSError.
    """
    _check_place(path)
    _check_place(target)
    if target.is_symlink():  # a folder replaces no link by itself
        os.unlink(target)
    os.replace(path, target)


def flush_folder(folder: Path) -> None:
    """Put the names of a folder on the disk.

    Windows has no such call, some file systems refuse it, and a folder that may not be listed cannot be opened.
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
    """Delete the leftovers in a folder of commands that were killed while they wrote there."""
    for path in folder.iterdir():
        if fcntl and is_leftover(path):
            with suppress(OSError):  # a link, or gone by now
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
    """The flags of a file that is opened for writing and of no link."""
    found = 0
    for name in (*names, "O_NOFOLLOW", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
        found |= getattr(os, name, 0)
    return found


def _own_file(path: Path, *flags: str) -> int:
    """The descriptor of a regular file that stays, or is made."""
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
    """A new folder that another command took for a leftover, and deleted, before it was opened and locked."""


@contextmanager
def _temporary(target: Path, make: Callable[[Path], Descriptor]) -> Iterator[tuple[Path, Descriptor]]:
    """A new file or folder under a temporary name, with its descriptor, which the caller closes; it stays locked."""
    sweep(make_folder(target.parent))
    path, descriptor = _claim(target, make)
    lock = None if descriptor is None else os.dup(descriptor)
    try:
        yield path, descriptor
    finally:
        if lock is not None:
            os.close(lock)


def _claim(target: Path, make: Callable[[Path], Descriptor]) -> tuple[Path, Descriptor]:
    """The path and the descriptor of a new file or folder that is locked."""
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            descriptor = make(path)
        except (FileExistsError, _Swept):
            continue
        _lock(descriptor, wait=True)
        if descriptor is None or _is(path, descriptor):
            return path, descriptor
        os.close(descriptor)  # another command swept it before it was locked


def _lock(descriptor: int | None, wait: bool = False) -> bool:
    """Lock a file or folder for as long as its descriptor is open; False if another holds it, or without locks."""
    if descriptor is None or not fcntl:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _is(path: Path, descriptor: int) -> bool:
    """Whether a path leads to the open file or folder of a descriptor."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
