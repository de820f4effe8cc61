"""The processes of one command: ``torchrun --nproc_per_node=N run.py ...`` starts N of them, numbered from 0.

The first one speaks and writes results; the others do a share of the work.
"""

import copy
import functools
import hashlib
import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from score_sde.engine.memory import outermost

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


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


def check_environment() -> None:
    """Raises: ValueError where the variables of torchrun contradict each other, or some are missing."""
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    remedy = "start the processes with torchrun, or unset RANK and WORLD_SIZE to run one"
    for name, text in given.items():
        if text is not None and not text.isdecimal():
            raise ValueError(f"the environment has {name}={text!r}, which is no number; {remedy}")
    if size() < 1 or rank() >= size():
        told = ", ".join(f"{name} {given[name] or 'not set'}" for name in ("RANK", "WORLD_SIZE"))
        raise ValueError(f"the environment has {told}: RANK runs from 0 to WORLD_SIZE - 1; {remedy}")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size() > 1 and missing:
        raise ValueError(f"the environment has WORLD_SIZE {size()} and lacks {', '.join(missing)}; {remedy}")


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
    forms: list[list[tuple[torch.Size, torch.dtype]] | None] = [None] * size()
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


def parallel(network: nn.Module) -> nn.Module:
    """The network, with gradients that are the mean over all processes."""
    if size() == 1:
        return network
    from torch.nn.parallel import DistributedDataParallel

    class Parallel(DistributedDataParallel):
        """Its attributes and methods are those of the network."""

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("module"), name)

    names = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # before PyTorch 2.13
    buffers: dict[str, Any] = {name: False}
    return Parallel(network, process_group=_everyone(), **buffers)


def sharded(network: nn.Module) -> nn.Module:
    """As ``parallel``, with parameters and gradients spread over the processes: each keeps its rows of every tensor.

    Block by block they are gathered to be computed with, and let go again. The network that is given keeps the same
    rows, as DTensors; what is made of these, averages and moments, is spread too.
    """
    if size() == 1:
        return network
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    device = next(network.parameters()).device
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)  # fully_shard asks for the present one
    shard = functools.partial(
        fully_shard, mesh=DeviceMesh.from_group(_everyone(), device.type), reshard_after_forward=True
    )
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # into which nobody writes
    tensors = [*network.parameters(), *network.buffers()]
    working = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})  # other modules, the same tensors
    for block in outermost(working):
        shard(block)
    shard(working)
    for own, module in zip(network.modules(), working.modules(), strict=True):
        for name, rows in module.named_parameters(recurse=False):
            setattr(own, name, rows)
    return working


def apart(network: nn.Module) -> AbstractContextManager:
    """Let gradients of a ``parallel`` network add up in each process, without a word to the others.

    Those of a ``sharded`` one are spread at once: whole ones would take the memory that it is there to save.
    """
    no_sync = getattr(network, "no_sync", nullcontext)
    return no_sync()


def is_spread(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process keeps only its rows of a tensor."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What this process keeps of a tensor: its rows, or all."""
    return tensor.to_local() if is_spread(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The rows of all processes, who all take part; a tensor that is not spread as it is."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def to_first(tensor: Tensor, device: torch.device | str) -> Tensor:
    """As ``whole``, on a device of the first process alone: nothing is left of it in the others."""
    if not is_spread(tensor):
        return tensor
    found = tensor.full_tensor()
    return found.to(device) if rank() == 0 else found.new_empty(0)


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that all processes have whole, kept as ``like`` is: the inverse of ``whole``."""
    if not is_spread(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_network(network: nn.Module, get: Callable[[Tensor], Tensor] = whole) -> nn.Module:
    """A copy of a network that is spread, with whole parameters; one that is not, itself. All processes take part.

    Args:
        get: makes one whole, ``whole`` or ``to_first``.
    """
    found = [p for p in network.parameters() if is_spread(p)]
    if not found:
        return network
    return copy.deepcopy(network, {id(p): nn.Parameter(get(p.detach()), p.requires_grad) for p in found})


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all tensors together, 0-d; of those that are spread, over the rows of all processes."""
    own = nn.utils.get_total_norm([local(tensor) for tensor in tensors])
    return sum_over(own.square()).sqrt() if any(map(is_spread, tensors)) else own


@functools.cache
def _everyone() -> "distributed.ProcessGroup":
    """All of them, who meet within half an hour of their start or not at all."""
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return distributed.new_group(timeout=timedelta(days=365))
