"""Inference with a trained network: precision, compilation, and examples at a time."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from score_sde.engine import ranks
from score_sde.engine.errors import OutOfMemory
from score_sde.engine.log import say
from score_sde.engine.memory import largest, ran_out

Batch = TypeVar("Batch", Tensor, list[int])


CALLS = ("forward", "features", "image")
"""Methods of a network that take states and their noise conditioning."""


class InferenceCall:
    """A method of a network with the precision and compilation of the config section ``inference``.

    Only the method computes in ``precision``; the state, the coefficients of the denoiser and the solver keep theirs.
    Only the first batch shape is compiled, and only without gradients. Other shapes, such as a smaller last batch, run
    without compilation, since each would take as long to compile.

    Args:
        call: the method, ``(x, c_noise, **cond) -> Tensor``.
        precision: float32 or bfloat16.
        compiled: whether to compile it; on CUDA into a CUDA graph.
    """

    trying: ClassVar[bool] = False

    def __init__(self, call: Callable[..., Tensor], precision: torch.dtype, compiled: bool) -> None:
        self.call, self.precision = call, precision
        self.compiled = torch.compile(call, mode="reduce-overhead", dynamic=False) if compiled else None
        self.shape: torch.Size | None = None

    def __call__(self, x: Tensor, *args: Tensor, **cond: Tensor) -> Tensor:
        call = self.call
        if self.compiled is not None and not InferenceCall.trying and not torch.is_grad_enabled():
            self.shape = self.shape or x.shape
            call = self.compiled if x.shape == self.shape else call
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            return call(x, *args, **cond)


def frozen(network: nn.Module, precision: torch.dtype, compiled: bool) -> nn.Module:
    """Returns the network for inference, without gradients of its weights.

    In float32 and without compilation it is the network itself, else a shallow copy with its ``CALLS`` wrapped.
    The copy shares weights, attributes and all other methods with the network.
    """
    network = network.eval().requires_grad_(False)
    if precision == torch.float32 and not compiled:
        return network
    used = copy.copy(network)
    for name in filter(partial(hasattr, type(network)), CALLS):
        setattr(used, name, InferenceCall(getattr(network, name), precision, compiled and name == "forward"))
    return used


NUMBERS = 256 * 3 * 32 * 32
"""Default number of entries of the examples at a time: 256 images of CIFAR-10."""

MOST, TRIED = 4096, 16
"""Largest number of examples at a time on a GPU, and the number of the measurement."""


def usual(shape: Sequence[int]) -> int:
    """Default number of examples at a time on any device: 256 up to 3x32x32, fewer for larger shapes."""
    return max(1, min(256, NUMBERS // math.prod(shape)))


def filling(num: int, shape: Sequence[int], device: torch.device, evaluate: Callable[[int], object]) -> int:
    """Returns the number of examples at a time, at most ``num``, that fills the device; equal in all processes.

    On a GPU it is the power of two whose evaluation takes half of the total memory. Memory in use by other programs
    does not count, so a seed always has the same batches and rounding. On a CPU it is the fastest size. It is small
    enough to give each process a part of the examples.

    Args:
        shape: shape of an example.
        evaluate: evaluates so many examples in the same way as the later computation.
    """
    most = _fitting(min(num, TRIED), device, evaluate) if device.type == "cuda" else _fastest(shape)
    least = min(most, -(-num // ranks.size()))
    return max(1, int(ranks.joined(torch.tensor([least])).min()))


def _fastest(shape: Sequence[int]) -> int:
    """Fastest number of examples at a time on a CPU: 32 of 3x32x32 (docs/performance.md), fewer for larger shapes."""
    return min(512, NUMBERS // 8 // math.prod(shape))


def _fitting(num: int, device: torch.device, evaluate: Callable[[int], object]) -> int:
    """Number of examples that take half of a GPU's memory, extrapolated from ``num``; 0 if not even one fits."""
    with _uncompiled():
        num = largest(evaluate, num)  # not measured: it includes one-time allocations
        if num == 0:
            return 0
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        evaluate(num)
    each = (torch.cuda.max_memory_allocated(device) - before) / num
    room = torch.cuda.get_device_properties(device).total_memory / 2
    return min(MOST, 1 << int(math.log2(max(1.0, room / max(each, 1.0)))))


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Context in which compiled networks run without compilation and record no first shape."""
    InferenceCall.trying = True
    try:
        yield
    finally:
        InferenceCall.trying = False


Result = TypeVar("Result")


class FittingBatches:
    """Computes on examples in parts that fit into memory: halves a part that does not, and all parts after it.

    Raises: OutOfMemory if a single example does not fit.
    """

    def __init__(self) -> None:
        self.most = 1 << 62

    def __call__(self, work: Callable[[Batch], Result], examples: Batch) -> Iterator[tuple[Batch, Result]]:
        """Yields each part of the examples with the result of ``work``."""
        while len(examples):
            part = examples[: self.most]
            try:
                found: Result | None = work(part)
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                found = None
            if found is not None:
                yield part, found
                examples = examples[len(part) :]
            else:
                self._halve(len(part))

    def _halve(self, size: int) -> None:
        if size == 1:
            raise OutOfMemory(
                "out of memory with one example at a time; take a smaller network, another --device, or end other "
                "programs on it"
            )
        self.most = size // 2
        say(f"out of memory with {size} examples at a time; going on with {self.most}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
