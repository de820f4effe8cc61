"""Discrete-time processes, such as DDPM's and NCSN's, as a subclass of ``SDE``."""

import math
from typing import overload

import torch
from torch import Tensor

from score_sde.sde_lib.devices import put_like
from score_sde.sde_lib.process import SDE, Time


class Discrete(SDE):
    """Discrete-time process with marginals at the levels 1, ..., N; the time is the level, and level 0 is the data.

    log alpha and log-SNR are linear between two levels, so every time in [1, N] has a marginal, also for networks
    trained at integer levels. From the data to level 1, log alpha and sigma / alpha are linear. ``transition(i - 1,
    i)`` is the kernel of the discrete-time process, a^2 = 1 - beta_i and b^2 = beta_i for DDPM.

    Shapes: both tables (N,), float64, N at least 2.
    Raises: ValueError unless the log-SNR decreases from level to level.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, appendix B. arXiv:2011.13456
    """

    t_min = 1.0

    def __init__(self, log_alpha: Tensor, sigma: Tensor, prior_std: float) -> None:
        self._log_alpha = torch.cat([log_alpha.new_zeros(1), log_alpha])
        self._log_sigma, self._log_snr = torch.log(sigma), 2 * (log_alpha - torch.log(sigma))
        if not (self._log_snr.diff() < 0).all():
            raise ValueError("the log-SNR must decrease from each level to the next; sort the noise levels")
        self.t_max, self.prior_std = float(len(sigma)), prior_std
        self._copies: dict[tuple[str, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def of_betas(cls, betas: Tensor) -> "Discrete":
        """Process x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z; betas (N,) in (0, 1)."""
        if not ((betas > 0) & (betas < 1)).all():
            worst = int(((betas - 0.5).abs()).argmax())
            raise ValueError(f"beta {betas[worst].item():.4g} at level {worst + 1}: need 0 < beta < 1; use more steps")
        log_alpha = 0.5 * torch.log1p(-betas).cumsum(0)
        return cls(log_alpha, torch.sqrt(-torch.expm1(2 * log_alpha)), prior_std=1.0)

    def log_alpha(self, t: Tensor) -> Tensor:
        return _line(*self._table_of("_log_alpha", t), 0, t)

    def sigma(self, t: Tensor) -> Tensor:
        sigma = torch.exp(_line(*self._table_of("_log_sigma", t), 1, t.clamp(min=1)))
        before = t * torch.exp(self.log_alpha(t) - self._log_alpha[1].item())
        return torch.where(t < 1, sigma * before, sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        table, rise = self._table_of("_log_snr", log_snr)
        level = torch.searchsorted(-table, -log_snr.detach().contiguous(), right=True).clamp(1, len(rise))
        between = level + (log_snr - table[level - 1]) / rise[level - 1]
        return torch.where(between < 1, torch.exp(0.5 * (table[0] - log_snr)), between)

    @overload
    def quantile(self, u: float) -> float: ...
    @overload
    def quantile(self, u: Tensor) -> Tensor: ...
    def quantile(self, u: Time) -> Time:
        """Integer level of u in [0, 1); all levels have equal probability for uniform u."""
        return self.t_max * u // 1 + 1

    @overload
    def fraction(self, t: float) -> float: ...
    @overload
    def fraction(self, t: Tensor) -> Tensor: ...
    def fraction(self, t: Time) -> Time:
        """Midpoint of the interval of u that ``quantile`` maps to the level."""
        return (t - 0.5) / self.t_max

    def _table_of(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a table and its differences on the device and in the dtype of ``like``; copies are cached."""
        key = name, like.device, like.dtype
        if key not in self._copies:
            table = getattr(self, name)
            with torch.inference_mode(False):
                self._copies[key] = put_like(table, like), put_like(table.diff(), like)
        return self._copies[key]


def ladder_ratio(dimensions: int) -> float:
    """Ratio of neighbouring noise levels by NCSNv2's criterion: their noise overlaps with probability 1/2.

        Phi(sqrt(2 D) (r - 1) + 3 r) - Phi(sqrt(2 D) (r - 1) - 3 r) = 1/2,    r = sqrt(2 D) / (sqrt(2 D) - 3)

    The first term is 1 to nine digits, so r follows from the second. The resulting number of levels is 5 to 6 % below
    the published numbers.

    Args:
        dimensions: D, entries of an example, at least 5.
    Raises: ValueError for fewer than 5 dimensions, in which all levels overlap.
    Reference: Song, Ermon, "Improved Techniques for Training Score-Based Generative Models", 2020, technique 2.
        arXiv:2006.09011
    """
    if dimensions < 5:
        raise ValueError(
            f"num_levels for {dimensions} dimensions: in fewer than 5 all noise levels overlap; set num_levels"
        )
    width = math.sqrt(2 * dimensions)
    return width / (width - 3)


def ladder_size(sigma_min: float, sigma_max: float, dimensions: int) -> int:
    """Number of geometric levels from sigma_min to sigma_max with a ratio of at most ``ladder_ratio``."""
    return 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(ladder_ratio(dimensions)))


def _line(table: Tensor, rise: Tensor, first: int, t: Tensor) -> Tensor:
    """Linear interpolation and extrapolation of values at the levels first, first + 1, ..."""
    level = t.detach().floor().clamp(first, first + len(table) - 2)
    index = level.long() - first
    return table[index] + (t - level) * rise[index]
