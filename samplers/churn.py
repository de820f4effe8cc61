"""Karras's stochastic sampler: noise is added before each step, and the step removes it again."""

import math

import torch
from torch import Tensor

from score_sde.samplers.singlestep import Heun
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.process import Draw


class Churn(Heun):
    """Karras's stochastic sampler for every SDE: adds noise up to a higher level, then takes Heun's step down to s.

        x' = a x + noise b z from t to t',    r' = r (1 + gamma),    gamma = min(churn / N, sqrt(2) - 1)

    Noise is added where churn_min <= r <= churn_max, with r = sigma / alpha, and never above the level of t_max, where
    no network was trained. N is the number of noisy times in the grid. With churn = 0 it equals ``Heun``.

    Args:
        churn: amount of noise added over the whole grid, 0 or more; 30 to 80 in the paper.
        churn_min: lowest sigma / alpha at which noise is added, 0 or more.
        churn_max: highest sigma / alpha at which noise is added, above churn_min.
        churn_noise: standard deviation of the noise z, above 0; slightly above 1 if the network smooths too much.
    Raises: ValueError for a value out of range.
    Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithm 2.
        arXiv:2206.00364
    """

    def __init__(
        self,
        sde: SDE,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float = 1e9,
        churn_noise: float = 1.0,
    ) -> None:
        if not churn >= 0:
            raise ValueError(f"churn {churn}: need 0 or more, 30 to 80 is usual")
        if not 0 <= churn_min < churn_max:
            raise ValueError(f"churn_min {churn_min} and churn_max {churn_max}: need 0 <= churn_min < churn_max")
        if not churn_noise > 0:
            raise ValueError(f"churn_noise {churn_noise}: need a standard deviation above 0, usually 1 to 1.01")
        super().__init__(sde)
        self.churn, self.levels, self.noise = churn, (churn_min, churn_max), churn_noise
        self.raised: dict[float, float] = {}

    def reset(self, times: list[float]) -> None:
        grid = torch.tensor(times, dtype=torch.float64)
        log_snr, gamma = self.sde.log_snr(grid), min(self.churn / len(times), math.sqrt(2) - 1)
        low, high = (-2 * math.log(level) if level else math.inf for level in self.levels)
        later = self.sde.time(log_snr - 2 * math.log1p(gamma)).clamp(max=self.sde.t_max)
        moved = (high <= log_snr) & (log_snr <= low) & (later > grid) & (self.churn > 0)
        self.raised = dict(zip(grid[moved].tolist(), later[moved].tolist(), strict=True))
        self.sde.tabulate(later[moved])

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return super().__call__(denoise, *self.add_noise(x, t, draw), s, draw)

    def finish(self, denoise: Denoise, x: Tensor, t: float, draw: Draw) -> Tensor:
        return super().finish(denoise, *self.add_noise(x, t, draw), draw)

    def add_noise(self, x: Tensor, t: float, draw: Draw) -> tuple[Tensor, float]:
        """State with added noise, and its time."""
        later = self.raised.get(t)
        if later is None:
            return x, t
        a, b = self.sde.transition(t, later)
        return a * x + self.noise * b * draw(x), later
