"""Training in less memory: blocks that are computed twice, and the size that fits where a batch does not."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from ml_collections import ConfigDict
from torch import nn
from torch.utils.checkpoint import checkpoint

from score_sde.engine.errors import OutOfMemory
from score_sde.models import BLOCKS


def recompute(network: nn.Module) -> None:
    """Let each block keep its input alone, and compute the rest again, dropout alike, for the gradient; in place."""
    for block in outermost(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def outermost(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks in a network that are in no other block."""
    for child in module.children():
        if isinstance(child, BLOCKS):
            yield child
        else:
            yield from outermost(child)


def ran_out(error: BaseException) -> bool:
    """Whether the memory of a device, or of the machine, was too small."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator: can't allocate" in str(error)


def largest(attempt: Callable[[int], object], size: int) -> int:
    """The first of size, size // 2, ..., 1 for which ``attempt`` does not run out of memory; 0 if there is none."""
    while size > 0:
        try:
            attempt(size)
            return size
        except RuntimeError as error:
            if not ran_out(error):
                raise
        size //= 2  # after the except clause, which keeps what had been allocated
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return 0


def explained(mode: str, config: ConfigDict, error: BaseException) -> OutOfMemory:
    """The error of a command that ran out of memory in this mode, beside its steps of training."""
    if isinstance(error, MemoryError):  # of numpy or of Python, whose arrays are no batches of a network
        return OutOfMemory(f"out of memory: {str(error) or 'an object is too large'}; take fewer or smaller examples")
    size = config[mode].get("batch_size", 1) if mode in config and mode != "train" else 1
    if size > 1:
        return OutOfMemory(f"out of memory with {mode}.batch_size {size}; try --batch_size {size // 2}")
    return OutOfMemory("out of memory; take a smaller network, another --device, or end what else is on it")
