"""The processes of one command: ``torchrun --nproc_per_node=N run.py ...`` starts N of them, numbered from 0.

The first one speaks and writes results; the others do a share of the work.
"""

import functools
import os
from datetime import timedelta

from torch import distributed


def rank() -> int:
    """The number of this process."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Its number among those on the same machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def size() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def wait_for_all() -> None:
    """Go on when all have come here, however long it takes: where one fails, torchrun ends the others."""
    if size() > 1:
        distributed.barrier(_everyone())


@functools.cache
def _everyone() -> "distributed.ProcessGroup":
    """All of them, who meet within half an hour of their start or not at all."""
    distributed.init_process_group("gloo")
    return distributed.new_group(timeout=timedelta(days=365))
