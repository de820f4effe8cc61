"""How a trained network is run: in which precision, compiled or not, and how many examples at a time."""

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
    """A method of a network as the section ``inference`` says it is run.

    It alone computes in ``precision``: the state, the coefficients of the denoiser and the solver keep their own. Only
    the first shape of a batch is compiled, outside of gradients; other shapes, such as a last small batch, would each
    take as long again and run as they are.

    Args:
        call: the method, ``(x, c_noise, **cond) -> Tensor``.
        precision: float32 or bfloat16.
        compiled: whether it is compiled; on CUDA into a graph that is started as a whole.
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
    """The network for use, without gradients of its weights; itself where it is run as it is.

    Otherwise a shallow copy with other ``CALLS``: weights, attributes and all other methods are those of the network.
    """
    network = network.eval().requires_grad_(False)
    if precision == torch.float32 and not compiled:
        return network
    used = copy.copy(network)
    for name in filter(partial(hasattr, type(network)), CALLS):
        setattr(used, name, InferenceCall(getattr(network, name), precision, compiled and name == "forward"))
    return used


NUMBERS = 256 * 3 * 32 * 32
"""In the examples that are taken at a time where nobody says how many: 256 of CIFAR-10's images."""

MOST, TRIED = 4096, 16
"""Examples at a time on a GPU at most, and those that are tried."""


def usual(shape: Sequence[int]) -> int:
    """How many examples of a shape to take at a time, for work on any device: 256 up to 32x32, fewer of larger ones."""
    return max(1, min(256, NUMBERS // math.prod(shape)))


def filling(num: int, shape: Sequence[int], device: torch.device, evaluate: Callable[[int], object]) -> int:
    """How many of ``num`` examples to take at a time, so that they fill the device; the same in all processes.

    On a GPU as many as have half of its memory in an evaluation, a power of two. It is all of its memory that counts,
    whatever else has some of it, so that a seed has the same batches, and the same rounding, each time. On a CPU as
    many as it is fast with. Several processes have a share each, however few examples there are.

    Args:
        shape: of an example.
        evaluate: makes one evaluation of so many examples, as the work will make it.
    """
    most = _fitting(min(num, TRIED), device, evaluate) if device.type == "cuda" else _fastest(shape)
    least = min(most, -(-num // ranks.size()))
    return max(1, int(ranks.joined(torch.tensor([least])).min()))


def _fastest(shape: Sequence[int]) -> int:
    """How many examples a CPU is fast with: 32 of size 3x32x32 (docs/performance.md), fewer of larger ones."""
    return min(512, NUMBERS // 8 // math.prod(shape))


def _fitting(num: int, device: torch.device, evaluate: Callable[[int], object]) -> int:
    """How many examples have half of a GPU's memory, by what ``num`` of them take; 0 for less than one."""
    with _as_it_is():
        num = largest(evaluate, num)  # once without measuring, for what is allocated once
        if num == 0:
            return 0
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        evaluate(num)
    each = (torch.cuda.max_memory_allocated(device) - before) / num
    room = torch.cuda.get_device_properties(device).total_memory / 2
    return min(MOST, 1 << int(math.log2(max(1.0, room / max(each, 1.0)))))


@contextmanager
def _as_it_is() -> Iterator[None]:
    """Within, networks that are compiled run without, and what they see does not count as a first shape."""
    InferenceCall.trying = True
    try:
        yield
    finally:
        InferenceCall.trying = False


Result = TypeVar("Result")


class FittingBatches:
    """Examples in parts that there is memory for: where a part has none, its halves, and no larger part afterwards.

    Raises: OutOfMemory if a single example is too large.
    """

    def __init__(self) -> None:
        self.most = 1 << 62

    def __call__(self, work: Callable[[Batch], Result], examples: Batch) -> Iterator[tuple[Batch, Result]]:
        """Each part, and what comes of it."""
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
                "out of memory with one example at a time; take a smaller network, another --device, or end what else "
                "is on it"
            )
        self.most = size // 2
        say(f"out of memory with {size} examples at a time; going on with {self.most}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
