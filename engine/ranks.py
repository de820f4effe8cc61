"""The processes of one command: ``torchrun --nproc_per_node=N run.py ...`` starts N of them, numbered from 0.

The first one speaks and writes results; the others do a share of the work.
"""

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
from torch import Tensor, distributed


def rank() -> int:
    """The number of this process."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Its number among those on the same machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def size() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def on_this_machine() -> int:
    """How many of them are on the same machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size()))


def wait_for_all() -> None:
    """Go on when all have come here, however long it takes: where one fails, torchrun ends the others."""
    if size() > 1:
        distributed.barrier(_everyone())


def share(num: int) -> tuple[int, int]:
    """First and number of this process's equal share of ``num`` things, a multiple of the number of processes."""
    return rank() * (num // size()), num // size()


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process. The processes meet, their devices do not wait."""
    if size() == 1:
        return flag
    found = torch.tensor([flag], dtype=torch.uint8)
    distributed.all_reduce(found, distributed.ReduceOp.MAX, group=_everyone())
    return bool(found)


def sum_over(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes, in place."""
    if size() > 1:
        distributed.all_reduce(values, group=_everyone())
    return values


def joined(rows: Tensor) -> Tensor:
    """The rows (N, *) of all processes, in their order."""
    if size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(size())]
    distributed.all_gather(parts, rows.contiguous(), group=_everyone())
    return torch.cat(parts)


def all_rows(parts: Mapping[int, Sequence[Tensor]], num: int) -> list[Tensor]:
    """Columns of ``num`` rows from the parts that the processes made, each under the number of its first row.

    Rows are added to those of the others, which are zero: nothing is rounded.
    """
    if size() == 1:
        return [torch.cat(column) for column in zip(*parts.values(), strict=True)]
    forms = [None] * size()
    own = [(column.shape[1:], column.dtype) for column in next(iter(parts.values()))] if parts else None
    distributed.all_gather_object(forms, own, group=_everyone())
    columns = [torch.zeros(num, *shape, dtype=dtype) for shape, dtype in next(filter(None, forms))]
    for first, part in parts.items():
        for column, rows in zip(columns, part, strict=True):
            column[first : first + len(rows)] = rows
    return [sum_over(column) for column in columns]


def leave_to_first() -> bool:
    """For work that is not shared: the first process goes on alone; whether this is another one, which has no work."""
    number = rank()
    if distributed.is_initialized():
        wait_for_all()
        distributed.destroy_process_group()  # torchmetrics would ask the others
        _everyone.cache_clear()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    return number > 0


def digests(content: bytes) -> list[str]:
    """A digest of what each process has."""
    own = torch.frombuffer(bytearray(hashlib.sha256(content).digest()), dtype=torch.uint8)
    return [bytes(row.tolist()).hex() for row in joined(own[None])]


def check_alike(what: str, content: bytes) -> None:
    """Raises: ValueError in each process, if they do not all have the same content."""
    if len(set(digests(content))) > 1:
        raise ValueError(f"the processes of this command have different {what}; give all the same flags and files")


def parallel(network: torch.nn.Module) -> torch.nn.Module:
    """The network, with gradients that are the mean over all processes."""
    if size() == 1:
        return network
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(network, process_group=_everyone(), broadcast_buffers=False)


def apart(network: torch.nn.Module) -> AbstractContextManager:
    """Let gradients of a ``parallel`` network add up in each process, without a word to the others."""
    return network.no_sync() if size() > 1 else nullcontext()


@functools.cache
def _everyone() -> "distributed.ProcessGroup":
    """All of them, who meet within half an hour of their start or not at all."""
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return distributed.new_group(timeout=timedelta(days=365))
