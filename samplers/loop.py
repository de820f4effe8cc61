"""The only sampling loop, and what it asks of a step."""

import collections
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor

from sde_lib import SDE
from sde_lib.denoiser import Denoiser

Draw = Callable[[Tensor], Tensor]
"""The next standard normals shaped as the argument: a ``samplers.Noise``, or ``torch.randn_like`` for a quick try."""

Constraint = Callable[[Tensor, float, float], Tensor]
"""(x, alpha, sigma) -> x: what is known stays known."""


class Step(ABC):
    """A move of the state from time t to the earlier time s."""

    sde: SDE

    def reset(self) -> None:  # noqa: B027, most steps have no past
        """Forget the past; called before each trajectory."""

    @abstractmethod
    def __call__(self, denoise: Denoiser, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        """The state at time s.

        Shapes: x (B, *); t, s times; returns (B, *).
        """


def trajectory(
    step: Step, denoise: Denoiser, x: Tensor, times: Tensor, draw: Draw, constrain: Constraint | None = None
) -> Iterator[Tensor]:
    """Yield the state at each time after the first, then the data: one last denoising at the earliest time.

    No noise is added after the last step: what is left at t_min, a grey level or more, is taken out by E[x_0 | x].

    Args:
        times: decreasing, (num_steps + 1,) float64 on the CPU; x is the state at the first.
        draw: where the noise of stochastic steps comes from.
        constrain: applied to every state and to the data.
    """
    step.reset()
    step.sde.tabulate(times)
    for t, s in pairwise(times.tolist()):
        x = step(denoise, x, t, s, draw)
        if constrain is not None:
            x = constrain(x, *step.sde.at(s)[:2])
        yield x
    x0 = denoise(x, times[-1].item()).x0
    yield x0 if constrain is None else constrain(x0, 1.0, 0.0)


def sample(
    step: Step, denoise: Denoiser, x: Tensor, times: Tensor, draw: Draw, constrain: Constraint | None = None
) -> Tensor:
    """The data at the end of ``trajectory``."""
    states = trajectory(step, denoise, x, times, draw, constrain)
    return collections.deque(states, maxlen=1).pop()
