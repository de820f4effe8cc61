"""One writer a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from engine import ranks
from engine.errors import CheckpointError

NAME = ".lock"


@contextmanager
def only_writer(workdir: Path) -> Iterator[None]:
    """Be the only command that trains in a folder. The system frees the lock when its owner ends, however that happens.

    Of several processes the first one holds it for all.

    Raises: CheckpointError if another command trains there.
    """
    if ranks.rank() > 0:
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workdir / NAME)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise CheckpointError(
            f"another command trains in {workdir}; wait until it ends, or choose another --workdir"
        ) from None
    try:
        yield
    finally:
        lock.release()
        if [path.name for path in workdir.iterdir()] == [NAME]:  # nothing came of it
            (workdir / NAME).unlink()
            workdir.rmdir()
