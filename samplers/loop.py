"""The only sampling loop, and what it asks of a step."""

import collections
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat

from torch import Tensor

from samplers.brownian import Brownian
from sde_lib import SDE
from sde_lib.denoiser import Denoiser

Draw = Callable[[Tensor], Tensor]
"""The next standard normals shaped as the argument: a ``samplers.Noise``, or ``torch.randn_like`` for a quick try."""

Constraint = Callable[[Tensor, float, float], Tensor]
"""(x, alpha, sigma) -> x: what is known stays known."""


class Step(ABC):
    """A move of the state from time t to the earlier time s.

    Attributes:
        grid, num_steps: a key of ``GRIDS``, or empty for that of the SDE, and a number of moves, for who names none.
    """

    sde: SDE
    grid = ""
    num_steps = 250

    def reset(self, times: list[float]) -> None:  # noqa: B027, most steps have neither past nor plan
        """Forget the past and see the times ahead, all of them noisy; called before each trajectory."""

    @abstractmethod
    def __call__(self, denoise: Denoiser, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        """The state at time s.

        Shapes: x (B, *); t, s times; returns (B, *).
        """

    def finish(self, denoise: Denoiser, x: Tensor, t: float, draw: Draw) -> Tensor:
        """The data, from the state at the last noisy time t: E[x_0 | x].

        Shapes: x (B, *); returns (B, *).
        """
        return denoise(x, t).x0


def trajectory(
    step: Step, denoise: Denoiser, x: Tensor, times: Tensor, draw: Draw, constrain: Constraint | None = None
) -> Iterator[Tensor]:
    """Yield the state at each noisy time after the first, then the data: the finish at the last noisy time.

    No noise is added after the last step: what is left at t_min, a grey level or more, is taken out by E[x_0 | x]. A
    grid that ends at the data says the same in other words: its last move is the finish.

    Args:
        times: decreasing, (num_steps + 1,) float64 on the CPU; x is the state at the first. The last may be the time of
            the data, where sigma = 0.
        draw: where the noise of stochastic steps comes from; a ``Brownian`` gives each move its part of one path.
        constrain: applied to every state and to the data.
    """
    noisy = times[step.sde.sigma(times) > 0]
    step.sde.tabulate(noisy)
    step.reset(noisy.tolist())
    draws = draw.moves(len(noisy) - 1) if isinstance(draw, Brownian) else repeat(draw)
    for (t, s), noise in zip(pairwise(noisy.tolist()), draws):
        x = step(denoise, x, t, s, noise)
        if constrain is not None:
            x = constrain(x, *step.sde.at(s)[:2])
        yield x
    x0 = step.finish(denoise, x, noisy[-1].item(), draw)
    yield x0 if constrain is None else constrain(x0, 1.0, 0.0)


def sample(
    step: Step, denoise: Denoiser, x: Tensor, times: Tensor, draw: Draw, constrain: Constraint | None = None
) -> Tensor:
    """The data at the end of ``trajectory``."""
    states = trajectory(step, denoise, x, times, draw, constrain)
    return collections.deque(states, maxlen=1).pop()
