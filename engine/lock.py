"""A lock that gives each folder one writer."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from score_sde.engine import ranks
from score_sde.engine.errors import CheckpointError
from score_sde.engine.log import say
from score_sde.storage.writing import make_folder, open_lock, remove

NAME = ".lock"

WITHOUT_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
"""Errors of file systems without locks."""


class Writer:
    """Lock of a folder, held by its only writer.

    Args:
        workdir: the folder.
        descriptor: file descriptor of the lock file; None in processes without the lock.
    """

    def __init__(self, workdir: Path, descriptor: int | None) -> None:
        self.workdir, self.descriptor = workdir, descriptor

    def check(self) -> None:
        """Raises: CheckpointError if the folder was moved or deleted; another command may now train at its path."""
        if self.descriptor is not None and not leads_to(self.workdir / NAME, self.descriptor):
            raise CheckpointError(
                f"{self.workdir} was moved or deleted during training; to go on from the last checkpoint, give its new "
                "path by --workdir"
            )


@contextmanager
def only_writer(workdir: Path) -> Iterator[Writer]:
    """Context of the only command that trains or imports in a folder.

    The system releases the lock when its owner ends for any reason. The first process holds it for all of a command.

    Raises: CheckpointError if another command trains or imports there.
    """
    if ranks.rank() > 0:
        yield Writer(workdir, None)
        return
    descriptor = acquired(workdir)
    try:
        yield Writer(workdir, descriptor)
    finally:
        if leads_to(workdir / NAME, descriptor) and [path.name for path in workdir.iterdir()] == [NAME]:
            with suppress(PermissionError):  # Windows deletes no open file
                remove(workdir / NAME)  # the command has written nothing
                workdir.rmdir()
        os.close(descriptor)


def acquired(workdir: Path) -> int:
    """Returns the file descriptor of the folder's lock file, locked.

    If its last owner has deleted the file, or the folder was moved, before the lock succeeds, the new file is tried.

    Raises: CheckpointError if another command holds the lock.
    """
    while True:
        make_folder(workdir)
        try:
            descriptor = open_lock(workdir / NAME)
        except FileNotFoundError:  # the folder was deleted meanwhile
            continue
        if not locked(descriptor, workdir):
            os.close(descriptor)
            raise CheckpointError(
                f"another command writes in {workdir}; wait until it ends, or choose another --workdir"
            )
        if leads_to(workdir / NAME, descriptor):
            return descriptor
        os.close(descriptor)


def locked(descriptor: int, workdir: Path) -> bool:
    """Locks a file and returns whether it succeeded; prints a note on a file system without locks."""
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        say(f"the file system of {workdir} has no locks: start no other command that trains there")
        return True


def leads_to(path: Path, descriptor: int) -> bool:
    """Returns whether a path leads to the open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False
