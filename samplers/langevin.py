"""Langevin dynamics, which moves a state within one marginal, and annealed Langevin sampling."""

from collections.abc import Callable

from torch import Tensor

from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.process import Draw

Size = Callable[[Tensor, Tensor], Tensor | float]
"""(score, z) -> h."""


def langevin(sde: SDE, denoise: Denoise, x: Tensor, t: float, draw: Draw, num_steps: int, size: Size) -> Tensor:
    """Takes Langevin steps at time t; infinitely small steps would preserve its marginal.

        x <- x + h score + sqrt(2 h) z,    h = size(score, z)

    Args:
        num_steps: number of steps, each of one evaluation; at least 0.
        size: step size from the score and the noise of a step; returns a number or (B, 1, ..., 1).
    """
    for _ in range(num_steps):
        score, z = sde.score(x, denoise(x, t).x0, t), draw(x)
        h = size(score, z)
        x = x + h * score + (2 * h) ** 0.5 * z
    return x


class AnnealedLangevin(Step):
    """Annealed Langevin dynamics: Langevin steps at each time of the grid, including the last, then one denoising.

        h_t = epsilon (sigma_t / r_last)^2,    r = sigma / alpha;    then x_s = alpha_s / alpha_t x

    Between times x / alpha, the noisy data, stays constant, so the sampler is the same on every SDE, and the published
    one where alpha = 1. A grid of N steps costs (N + 1) langevin_steps + 1 evaluations.

    Args:
        epsilon: step size h at the last noisy time, in squared data units, above 0; 0 computes it by
            ``langevin_step_size`` from the mean ratio of neighbouring noise levels.
        langevin_steps: number of Langevin steps at each time, at least 1.
    Raises: ValueError for a value out of range.
    Reference: Song, Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019, algorithm 1,
        arXiv:1907.05600, where h is half of its step size; Song, Ermon, "Improved Techniques for Training Score-Based
        Generative Models", 2020, algorithm 1 and the last denoising. arXiv:2006.09011
    """

    unscaled = True

    def __init__(self, sde: SDE, epsilon: float = 0.0, langevin_steps: int = 5) -> None:
        if not epsilon >= 0:
            raise ValueError(f"epsilon {epsilon}: need a step size above 0, or 0 for NCSNv2's criterion")
        if langevin_steps < 1:
            raise ValueError(f"langevin_steps {langevin_steps}: need at least one at each time")
        self.sde, self.epsilon, self.num_steps = sde, epsilon, langevin_steps

    def reset(self, times: list[float]) -> None:
        first, last = (self.sde.ratio(t) for t in (times[0], times[-1]))
        ratio = (first / last) ** (1 / max(1, len(times) - 1))
        self.size = self.epsilon / last**2 or langevin_step_size(ratio, self.num_steps)

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return self._at(denoise, x, t, draw) / self.sde.transition(s, t)[0]

    def finish(self, denoise: Denoise, x: Tensor, t: float, draw: Draw) -> Tensor:
        return super().finish(denoise, self._at(denoise, x, t, draw), t, draw)

    def _at(self, denoise: Denoise, x: Tensor, t: float, draw: Draw) -> Tensor:
        h = self.size * self.sde.marginal(t).sigma ** 2
        return langevin(self.sde, denoise, x, t, draw, self.num_steps, lambda score, z: h)


def langevin_step_size(ratio: float, num_steps: int) -> float:
    """Step size h / sigma^2 that best turns the noise of one level into the noise of the next.

    For a single data point, num_steps steps take the variance gamma^2 sigma^2 of the previous level to

        (1 - h)^(2 T) (gamma^2 - c) + c,    c = 2 h / (1 - (1 - h)^2),    in units of sigma^2.

    This is above 1 for every h in (0, 1); its minimum, the value closest to 1, determines h. Over many close levels the
    excess accumulates, until the variance is 2 T / (2 T - 1) sigma^2: 10 / 9 for 5 steps, and 2 for one step.

    Args:
        ratio: gamma, ratio of neighbouring noise levels, at least 1.
        num_steps: T, at least 1.
    Returns: h / sigma^2 in [0, 1).
    Reference: Song, Ermon, 2020, proposition 3 and technique 4. arXiv:2006.09011
    """

    from scipy.optimize import minimize_scalar  # slow to import, and used here alone

    def excess(h: float) -> float:
        left = (1 - h) ** (2 * num_steps)
        return left * (ratio**2 - 1) + (1 - left) * h / (2 - h)

    size: float = minimize_scalar(excess, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).x
    return size
