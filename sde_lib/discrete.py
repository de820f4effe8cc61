"""A chain of discrete noise levels, seen as one more process: DDPM's betas, NCSN's ladder."""

import torch
from torch import Tensor

from sde_lib.process import SDE


class Discrete(SDE):
    """Marginals given at the levels 1, ..., N; level 0 is the data, and the time is the level.

    Between two levels log alpha and log-SNR are linear, so a chain trained at whole levels can be asked anywhere in
    [1, N]. ``transition(i - 1, i)`` is the chain's own kernel, a^2 = 1 - beta_i and b^2 = beta_i for DDPM.

    Shapes: both tables (N,), float64.
    Raises: ValueError unless the log-SNR falls from level to level.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, appendix B. arXiv:2011.13456
    """

    t_min = 1.0

    def __init__(self, log_alpha: Tensor, sigma: Tensor, prior_std: float) -> None:
        self._log_alpha, self._sigma, self.prior_std = log_alpha, sigma, prior_std
        self._log_snr = 2 * (log_alpha - torch.log(sigma))
        if not (self._log_snr.diff() < 0).all():
            raise ValueError("the log-SNR of a chain must fall from each level to the next; sort the noise levels")
        self.t_max = float(len(sigma))

    @classmethod
    def of_betas(cls, betas: Tensor) -> "Discrete":
        """The chain x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z; betas (N,) in (0, 1)."""
        if not ((betas > 0) & (betas < 1)).all():
            worst = int(((betas - 0.5).abs()).argmax())
            raise ValueError(f"beta {betas[worst].item():.4g} at level {worst + 1}: need 0 < beta < 1; use more steps")
        log_alpha = 0.5 * torch.log1p(-betas).cumsum(0)
        return cls(log_alpha, torch.sqrt(-torch.expm1(2 * log_alpha)), prior_std=1.0)

    @classmethod
    def of_marginals(cls, log_alpha: Tensor, sigma: Tensor) -> "Discrete":
        """The chain through these marginals, from the least noise to the most."""
        return cls(log_alpha, sigma, prior_std=sigma[-1].item())

    def log_alpha(self, t: Tensor) -> Tensor:
        level, share = self._locate(t)
        return _between(self._log_alpha.to(t), level, share) * (t > 0)

    def sigma(self, t: Tensor) -> Tensor:
        level, share = self._locate(t)
        log_sigma = _between((self._log_alpha - 0.5 * self._log_snr).to(t), level, share)
        return torch.exp(log_sigma) * (t > 0)

    def time(self, log_snr: Tensor) -> Tensor:
        table = self._log_snr.to(log_snr)
        level = torch.searchsorted(-table, -log_snr.detach().contiguous(), right=True).clamp(1, len(table) - 1)
        share = (log_snr - table[level - 1]) / (table[level] - table[level - 1])
        return level + share

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the level at or below t in the tables, and the share of the way to the next one."""
        level = t.detach().floor().clamp(1, len(self._sigma) - 1)
        return level.long() - 1, t - level


def _between(table: Tensor, level: Tensor, share: Tensor) -> Tensor:
    return table[level] + share * (table[level + 1] - table[level])
