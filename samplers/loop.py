"""The sampling loop, and the interface of its steps."""

import collections
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, repeat

import torch
from torch import Tensor

from score_sde.samplers.brownian import Brownian
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise, Estimate, as_denoiser
from score_sde.sde_lib.process import Draw, check_state

Constraint = Callable[[Tensor, float, float], Tensor]
"""(x, alpha, sigma) -> x, with the known part of the state restored."""


class Step(ABC):
    """A step of the state from time t to the earlier time s.

    Attributes:
        grid: a key of ``GRIDS``, used if none is named; empty for the grid of the SDE.
        num_steps: number of steps, used if none is given.
        ends: whether the method assumes estimates of the end of the probability flow in place of E[x_0 | x].
        unscaled: whether the method is derived for processes with alpha = 1 only.
    """

    sde: SDE
    grid = ""
    num_steps = 250
    ends = False
    unscaled = False

    def reset(self, times: list[float]) -> None:  # noqa: B027, most steps have no state
        """Clears the history and prepares for the given noisy times; called before each trajectory."""

    @abstractmethod
    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        """State at time s.

        Shapes: x (B, *); t, s times; returns (B, *).
        """

    def finish(self, denoise: Denoise, x: Tensor, t: float, draw: Draw) -> Tensor:
        """Data from the state at the last noisy time t: E[x_0 | x].

        Shapes: x (B, *); returns (B, *).
        """
        return denoise(x, t).x0


def trajectory(
    step: Step, denoise: Estimate, x: Tensor, times: Tensor, draw: Draw, constrain: Constraint | None = None
) -> Iterator[Tensor]:
    """Yields the state at each noisy time after the first, then the data from the last noisy time.

    Where times rise, as in ``constraints.resampled``, noise takes the state back up, x_s = a x_t + b z. The step treats
    every decreasing stretch as a trajectory of its own and receives its times when it begins.

    No noise is added after the last step: E[x_0 | x] removes the noise that remains at t_min, a grey level or more. If
    a grid ends at the data, its last step is this denoising.

    Args:
        times: (num_steps + 1,) as ``checked``; x is the state at the first.
        draw: source of the noise of stochastic steps; a ``Brownian`` gives each step its increment of one path.
        constrain: applied to the state after each step, and to the data.
    Raises: ValueError for times that are not a grid of the SDE, a denoiser of another SDE, and a state that is not a
        batch of real numbers.
    Reference: Lugmayr et al., "RePaint", 2022, algorithm 1, for times that rise. arXiv:2201.09865
    """
    check_state(x)
    denoise = as_denoiser(denoise, step.sde)
    times = checked(step.sde, times)
    noisy = times[step.sde.sigma(times) > 0]
    step.sde.tabulate(noisy)
    stretches = _stretches(noisy.tolist())
    step.reset(next(stretches))
    draws = draw.moves(len(noisy) - 1) if isinstance(draw, Brownian) else repeat(draw)
    for (t, s), noise in zip(pairwise(noisy.tolist()), draws):
        if s < t:
            x = step(denoise, x, t, s, noise)
            if constrain is not None:
                x = constrain(x, *step.sde.marginal(s)[:2])
        else:
            a, b = step.sde.transition(t, s)
            x = a * x + b * noise(x)
            step.reset(next(stretches))
        yield x
    x0 = step.finish(denoise, x, noisy[-1].item(), draw)
    yield x0 if constrain is None else constrain(x0, 1.0, 0.0)


def sample(
    step: Step, denoise: Estimate, x: Tensor, times: Tensor, draw: Draw, constrain: Constraint | None = None
) -> Tensor:
    """Data at the end of ``trajectory``."""
    states = trajectory(step, denoise, x, times, draw, constrain)
    return collections.deque(states, maxlen=1).pop()


def checked(sde: SDE, times: Tensor | Sequence[float]) -> Tensor:
    """Times of a grid as float64 on the CPU, after validation.

    Times decrease from the first to the last; in between they may rise again, but not above the first. Each lies
    between t_min and t_max, to a relative 1e-6, or is the time of the data, where sigma = 0.

    Shapes: times (N + 1,), and so returned.
    Raises: ValueError naming the first time that is not valid.
    """
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or not len(times):
        raise ValueError(f"times of shape {tuple(times.shape)}: need (N + 1,) for N steps; samplers.GRIDS has grids")
    low, high = sde.t_min * (1 - _ROUNDING), sde.t_max * (1 + _ROUNDING)
    for number, t in enumerate(times.tolist()):
        if not (low <= t <= high or (t < low and sde.sigma(times[number]) == 0)):
            raise ValueError(f"time {number} is {t:g}: need {sde.t_min:g} to {sde.t_max:g} for this SDE, or its data")
    for number, (t, s) in enumerate(pairwise(times.tolist()), 1):
        if s == t or s > times[0]:
            raise ValueError(f"time {number} is {s:g} after {t:g}: times must decrease, without repeats")
    if not times[-1] == times.min() or not sde.sigma(times[:1]) > 0:
        raise ValueError(
            f"times from {times[0]:g} to {times[-1]:g}: the first must have noise, and the last must be the smallest"
        )
    return times


_ROUNDING = 1e-6  # relative, of times in float32


def _stretches(times: list[float]) -> Iterator[list[float]]:
    """Decreasing stretches of the times."""
    starts = [0, *(k for k, (t, s) in enumerate(pairwise(times), 1) if s >= t), len(times)]
    return (times[first:end] for first, end in pairwise(starts))
