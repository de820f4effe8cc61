"""How a trained network is run: in which precision, compiled or not, and how many examples at a time."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from engine.errors import OutOfMemory
from engine.log import say
from engine.memory import ran_out

Rows = TypeVar("Rows", Tensor, list[int])


class Frozen(nn.Module):
    """A network whose weights stay, as the section ``inference`` says it is run.

    The network alone computes in ``precision``: the state, the coefficients of the denoiser and the solver keep their
    own. Compiled is what sees the first shape of a batch, outside of gradients; other shapes, such as a last small
    batch, would each take as long again and run as they are.

    Args:
        precision: float32 or bfloat16.
        compiled: whether it is compiled; on CUDA into a graph that is started as a whole.
    Shapes: as the network's.
    """

    def __init__(self, network: nn.Module, precision: torch.dtype, compiled: bool) -> None:
        super().__init__()
        self.network, self.precision = network, precision
        self.compiled = torch.compile(network, mode="reduce-overhead", dynamic=False) if compiled else None
        self.shape: torch.Size | None = None

    def forward(self, x: Tensor, label: Tensor, **cond: Tensor) -> Tensor:
        network = self.network
        if self.compiled is not None and not torch.is_grad_enabled():
            self.shape = self.shape or x.shape
            network = self.compiled if x.shape == self.shape else network
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            return network(x, label, **cond)


def frozen(network: nn.Module, precision: torch.dtype, compiled: bool) -> nn.Module:
    """The network for use, without gradients of its weights; itself where it is run as it is."""
    network = network.eval().requires_grad_(False)
    if precision == torch.float32 and not compiled:
        return network
    return Frozen(network, precision, compiled)


class Parts:
    """Examples in parts that there is memory for: where a part has none, its halves, and no larger part afterwards.

    Raises: OutOfMemory if a single example is too large.
    """

    def __init__(self) -> None:
        self.most = 1 << 62

    def __call__(self, work: Callable[[Rows], object], examples: Rows) -> Iterator[tuple[Rows, object]]:
        """Each part, and what comes of it."""
        while len(examples):
            part = examples[: self.most]
            try:
                found = work(part)
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
