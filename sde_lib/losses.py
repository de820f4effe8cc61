"""One loss for all: a weighted squared error of the estimate of the data, at times drawn by a law.

    loss = E_t E_x0,eps [ correction(t) weight(t) |x0_hat(alpha x0 + sigma eps, t) - x0|^2 / D ]

The famous objectives are rows of ``WEIGHTS``; how t is drawn is a row of ``TIME_LAWS``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sde_lib.denoiser import Denoiser
from sde_lib.process import SDE

Weight = Callable[[SDE, Tensor], Tensor]
TimeLaw = Callable[[SDE, Tensor], tuple[Tensor, Tensor]]


def denoising_loss(sde: SDE, denoise: Denoiser, weight: Weight, x0: Tensor, eps: Tensor, t: Tensor, **cond) -> Tensor:
    """Weighted denoising score matching, one value for each example: weight(t) |x0_hat - x0|^2 / D.

    A constant times the squared error of the score, sigma^4 / alpha^2 |score_hat - score|^2 = |x0_hat - x0|^2.

    Shapes: x0, eps (B, *); t (B, 1, ..., 1); returns (B,), float32 or better.
    Reference: Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011.
    """
    error = denoise(sde.perturb(x0, eps, t), t, **cond).x0 - x0
    return weight(sde, t).flatten() * error.flatten(1).square().mean(1)


# --- weights on the squared error of x0 -------------------------------------------------------------------------------


def snr(sde: SDE, t: Tensor) -> Tensor:
    """alpha^2 / sigma^2: the squared error of eps, DDPM's L_simple, and sigma^2 times that of the score, NCSN's.

    Reference: Ho, Jain, Abbeel, 2020, eq. 14; Song, Ermon, 2019, eq. 6 with lambda = sigma^2.
    """
    return torch.exp(sde.log_snr(t))


def uniform(sde: SDE, t: Tensor) -> Tensor:
    """1: the squared error of x0 itself."""
    return torch.ones_like(t)


def velocity(sde: SDE, t: Tensor) -> Tensor:
    """(alpha^2 + sigma^2) / sigma^2: the squared error of v. Salimans, Ho, 2022, eq. 7. arXiv:2202.00512"""
    return 1 + snr(sde, t)


def edm(sde: SDE, t: Tensor, sigma_data: float) -> Tensor:
    """1 / c_out^2 = alpha^2 / sigma^2 + 1 / sigma_data^2: all levels alike at first. Karras et al., 2022, eq. 8."""
    return snr(sde, t) + sigma_data**-2


def min_snr(sde: SDE, t: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma). Hang et al., "Efficient Diffusion Training via Min-SNR Weighting", 2023. arXiv:2303.09556"""
    return snr(sde, t).clamp(max=gamma)


def truncated_snr(sde: SDE, t: Tensor) -> Tensor:
    """max(SNR, 1). Salimans, Ho, "Progressive Distillation for Fast Sampling", 2022, section 4. arXiv:2202.00512"""
    return snr(sde, t).clamp(min=1.0)


def likelihood(sde: SDE, t: Tensor) -> Tensor:
    """g^2 on the squared error of the score, = -d SNR / dt: twice the bound on the negative log-likelihood.

    Reference: Song, Durkan, Murray, Ermon, "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, eq. 7.
    """
    return (sde.diffusion(t) / sde.sigma(t)) ** 2 * snr(sde, t)


WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "simple": snr,
    "sigma2": snr,
    "x0": uniform,
    "v": velocity,
    "edm": edm,
    "min_snr": min_snr,
    "truncated_snr": truncated_snr,
    "likelihood": likelihood,
}


# --- laws of time: numbers in [0, 1) to times, with the correction that keeps the mean over uniform t -----------------


def uniform_time(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """t uniform in [t_min, t_max]."""
    return sde.t_min + (sde.t_max - sde.t_min) * u, torch.ones_like(u)


def importance(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Density of t proportional to g^2 / sigma^2, which is log-SNR uniform; the correction keeps the loss unbiased.

    With the weight ``likelihood`` it takes the whole range of the weight out of the variance of the loss.

        t = time(l),  l uniform over the interval,    correction = |l range| sigma^2 / (g^2 (t_max - t_min))

    Reference: Song, Durkan, Murray, Ermon, 2021, section 4.2; with the inverse of the log-SNR it is exact for all SDEs.
    """
    lowest, highest = _log_snr_range(sde)
    t = sde.time(highest + (lowest - highest) * u).clamp(sde.t_min, sde.t_max)
    rate = (sde.diffusion(t) / sde.sigma(t)) ** 2
    return t, (highest - lowest) / (rate * (sde.t_max - sde.t_min))


def log_snr_uniform(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Log-SNR uniform over the interval, as the objective itself, without correction. Kingma, Gao, 2023."""
    t, _ = importance(sde, u)
    return t, torch.ones_like(u)


def lognormal(sde: SDE, u: Tensor, mean: float = -1.2, std: float = 1.2) -> tuple[Tensor, Tensor]:
    """log(sigma / alpha) normal, cut at the ends of the interval. The objective itself. Karras et al., 2022, table 1.

    Args:
        mean, std: of the logarithm of the noise-to-signal ratio, std positive.
    """
    lowest, highest = (_normal_cdf((-0.5 * l - mean) / std) for l in reversed(_log_snr_range(sde)))
    # A quantile of exactly 0 or 1 is infinitely far out; the clamp of t brings it back to the end of the interval.
    z = torch.special.ndtri(lowest + (highest - lowest) * u.double()).clamp(-38, 38)
    t = sde.time(-2 * (mean + std * z)).to(u.dtype).clamp(sde.t_min, sde.t_max)
    return t, torch.ones_like(u)


TIME_LAWS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "uniform": uniform_time,
    "importance": importance,
    "log_snr": log_snr_uniform,
    "lognormal": lognormal,
}


def stratified(offset: float, start: int, num: int, total: int) -> Tensor:
    """Numbers start, ..., start + num - 1 of ``total`` evenly spaced ones on the circle [0, 1), shifted by offset.

    Drawn over the global batch, one in each stratum, they make the loss vary far less than independent ones.

    Reference: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", 2021, appendix I.1. arXiv:2107.00630
    """
    return (
        torch.remainder(offset + torch.arange(start, start + num, dtype=torch.float64) / total, 1.0)
        .float()
        .clamp(max=1 - 2**-24)
    )


def _log_snr_range(sde: SDE) -> tuple[float, float]:
    return sde.at(sde.t_max).log_snr, sde.at(sde.t_min).log_snr


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
