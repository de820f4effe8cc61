"""Processes of one command: ``torchrun --nproc_per_node=N run.py ...`` starts N of them, with indices from 0.

The first one prints and writes results; the work is divided among all.
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
    """Index of this process."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Index of this process among those on the same machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def on_this_machine() -> int:
    """Number of processes on the same machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size()))


def check_environment() -> None:
    """Raises: ValueError if variables of torchrun contradict each other or are missing."""
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    remedy = "start the processes with torchrun, or unset RANK and WORLD_SIZE to run one"
    for name, text in given.items():
        if text is not None and not text.isdecimal():
            raise ValueError(f"the environment has {name}={text!r}, which is no number; {remedy}")
    if size() < 1 or rank() >= size():
        values = ", ".join(f"{name} {given[name] or 'not set'}" for name in ("RANK", "WORLD_SIZE"))
        raise ValueError(f"the environment has {values}: RANK runs from 0 to WORLD_SIZE - 1; {remedy}")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size() > 1 and missing:
        raise ValueError(f"the environment has WORLD_SIZE {size()} and lacks {', '.join(missing)}; {remedy}")


def wait_for_all() -> None:
    """Waits for all processes, without a timeout: if one fails, torchrun ends the others."""
    if size() > 1:
        distributed.barrier(_everyone())


def part(num: int) -> tuple[int, int]:
    """Returns the first index and the number of this process's part of ``num`` items, a multiple of ``size()``."""
    return rank() * (num // size()), num // size()


def any_of(flag: bool) -> bool:
    """Returns whether the flag is set in any process. The processes synchronize on the CPU; devices do not wait."""
    if size() == 1:
        return flag
    found = torch.tensor([flag], dtype=torch.uint8)
    distributed.all_reduce(found, distributed.ReduceOp.MAX, group=_everyone())
    return bool(found)


def sum_over(values: Tensor) -> Tensor:
    """Sums a tensor over the processes, in place, and returns it."""
    if size() > 1:
        distributed.all_reduce(values, group=_everyone())
    return values


def joined(rows: Tensor) -> Tensor:
    """Concatenates the rows (N, *) of all processes, in the order of their indices."""
    if size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(size())]
    distributed.all_gather(parts, rows.contiguous(), group=_everyone())
    return torch.cat(parts)


def all_rows(parts: Mapping[int, Sequence[Tensor]], num: int) -> list[Tensor]:
    """Returns columns of ``num`` rows, collected from the parts of all processes.

    Each process adds its rows to zeros of the others, so nothing is rounded.

    Args:
        parts: columns of consecutive rows, by the index of the first row.
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
    """Leaves the rest of the command to the first process; returns True in the others, which have no more work."""
    number = rank()
    if distributed.is_initialized():
        wait_for_all()
        distributed.destroy_process_group()  # torchmetrics would synchronize with the others
        _everyone.cache_clear()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    return number > 0


def digests(content: bytes) -> list[str]:
    """Returns the SHA-256 of the content of each process."""
    own = torch.frombuffer(bytearray(hashlib.sha256(content).digest()), dtype=torch.uint8)
    return [bytes(row.tolist()).hex() for row in joined(own[None])]


def check_alike(name: str, content: bytes) -> None:
    """Raises: ValueError in each process, if their contents differ.

    Args:
        name: of the content, for the message.
    """
    if len(set(digests(content))) > 1:
        raise ValueError(f"the processes of this command have different {name}; give all the same flags and files")


def parallel(network: nn.Module) -> nn.Module:
    """Returns the network with gradients averaged over the processes."""
    if size() == 1:
        return network
    from torch.nn.parallel import DistributedDataParallel

    class Parallel(DistributedDataParallel):
        """Forwards attributes and methods to the network."""

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
    """Returns the network with parameters and gradients sharded: each process keeps its rows of every tensor.

    Each block gathers its parameters for its computation and drops them afterwards. The argument keeps the same shards,
    as DTensors; averages and moments derived from them are sharded too.
    """
    if size() == 1:
        return network
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    device = next(network.parameters()).device
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)  # fully_shard uses the current device
    shard = functools.partial(
        fully_shard, mesh=DeviceMesh.from_group(_everyone(), device.type), reshard_after_forward=True
    )
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # no code writes into the view
    tensors = [*network.parameters(), *network.buffers()]
    working = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})  # new modules, the same tensors
    for block in outermost(working):
        shard(block)
    shard(working)
    for own, module in zip(network.modules(), working.modules(), strict=True):
        for name, rows in module.named_parameters(recurse=False):
            setattr(own, name, rows)
    return working


def apart(network: nn.Module) -> AbstractContextManager:
    """Context in which each process accumulates its own gradients of a ``parallel`` network, without communication.

    Gradients of a ``sharded`` network are sharded at once: whole ones would take the memory that sharding saves.
    """
    no_sync = getattr(network, "no_sync", nullcontext)
    return no_sync()


def is_spread(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is sharded, so that this process keeps only its rows."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """Returns the rows of this process of a sharded tensor, or the whole of any other."""
    return tensor.to_local() if is_spread(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns the rows of all processes of a sharded tensor, or any other unchanged; all processes take part."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def to_first(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Returns ``whole`` on a device of the first process, and an empty tensor in the others."""
    if not is_spread(tensor):
        return tensor
    found = tensor.full_tensor()
    return found.to(device) if rank() == 0 else found.new_empty(0)


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """Shards a tensor as ``like`` is sharded: the inverse of ``whole``."""
    if not is_spread(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_network(network: nn.Module, get: Callable[[Tensor], Tensor] = whole) -> nn.Module:
    """Returns a copy of a sharded network with whole parameters, or any other network itself; all processes take part.

    Args:
        get: ``whole`` or ``to_first``.
    """
    shards = [p for p in network.parameters() if is_spread(p)]
    if not shards:
        return network
    return copy.deepcopy(network, {id(p): nn.Parameter(get(p.detach()), p.requires_grad) for p in shards})


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the norm of all tensors together, 0-d; for sharded tensors over the rows of all processes."""
    own = nn.utils.get_total_norm([local(tensor) for tensor in tensors])
    return sum_over(own.square()).sqrt() if any(map(is_spread, tensors)) else own


@functools.cache
def _everyone() -> "distributed.ProcessGroup":
    """Returns the group of all processes. They have to join within half an hour; later operations have no timeout."""
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return distributed.new_group(timeout=timedelta(days=365))
