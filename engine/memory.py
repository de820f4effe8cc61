"""Training in less memory: recomputed blocks, and the batch size that fits."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from score_sde.configs.default import Config
from score_sde.engine.errors import OutOfMemory
from score_sde.models import BLOCKS


def recompute(network: nn.Module) -> None:
    """Makes each block keep only its input and recompute the rest for the gradient, with the same dropout; in place."""
    for block in outermost(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def outermost(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the blocks of a network that no other block contains."""
    for child in module.children():
        if isinstance(child, BLOCKS):
            yield child
        else:
            yield from outermost(child)


def ran_out(error: BaseException) -> bool:
    """Returns whether an error means that a device or the machine ran out of memory."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator: can't allocate" in str(error)


def largest(attempt: Callable[[int], object], size: int) -> int:
    """Returns the first of size, size // 2, ..., 1 at which ``attempt`` has enough memory; 0 if none has."""
    while size > 0:
        try:
            attempt(size)
            return size
        except RuntimeError as error:
            if not ran_out(error):
                raise
        size //= 2  # after the except clause, which keeps the tensors of the attempt
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return 0


def explained(mode: str, config: Config, error: BaseException) -> OutOfMemory:
    """Returns the error of a mode that ran out of memory outside of training steps."""
    if isinstance(error, MemoryError):  # from numpy or Python: no batch of a network
        return OutOfMemory(f"out of memory: {str(error) or 'an object is too large'}; take fewer or smaller examples")
    size = config[mode].get("batch_size", 1) if mode in config and mode != "train" else 1
    if size > 1:
        return OutOfMemory(f"out of memory with {mode}.batch_size {size}; try --batch_size {size // 2}")
    return OutOfMemory("out of memory; take a smaller network, another --device, or end other programs on it")
