"""Weighted denoising score matching: a weighted squared error of the estimate of the data.

    loss = E_t E_x0,eps [ weight(t) |x0_hat(alpha x0 + sigma eps, t) - x0|^2 / D ]

Published objectives are entries of ``WEIGHTS``; ``sde_lib.timestep_samplers`` has the distributions of t.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.process import SDE

Weight = Callable[[SDE, Tensor], Tensor]


def denoising_loss(
    sde: SDE, denoise: Denoise, weight: Weight, x0: Tensor, eps: Tensor, t: Tensor, **cond: Tensor
) -> Tensor:
    """Weighted denoising score matching loss of each example, weight(t) |x0_hat - x0|^2 / D.

    It is a weighted squared error of the score: sigma^4 / alpha^2 |score_hat - score|^2 = |x0_hat - x0|^2.

    Shapes: x0, eps (B, *); t (B, 1, ..., 1); returns (B,), float32 or better.
    Reference: Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011.
    """
    error = denoise(sde.perturb(x0, eps, t), t, **cond).x0 - x0
    return weight(sde, t).flatten() * error.flatten(1).square().mean(1)


# --- weights on the squared error of x0 -------------------------------------------------------------------------------


def snr(sde: SDE, t: Tensor) -> Tensor:
    """alpha^2 / sigma^2: squared error of eps (DDPM's L_simple), or of the score times sigma^2 (NCSN's).

    Reference: Ho, Jain, Abbeel, 2020, eq. 14; Song, Ermon, 2019, eq. 6 with lambda = sigma^2.
    """
    return torch.exp(sde.log_snr(t))


def uniform(sde: SDE, t: Tensor) -> Tensor:
    """1: squared error of x0."""
    return torch.ones_like(t)


def velocity(sde: SDE, t: Tensor) -> Tensor:
    """(alpha^2 + sigma^2) / sigma^2: squared error of v. Salimans, Ho, 2022, eq. 7. arXiv:2202.00512"""
    return 1 + snr(sde, t)


def flow(sde: SDE, t: Tensor) -> Tensor:
    """(alpha + sigma)^2 / sigma^2: squared error of eps - x0, the flow-matching loss. Lipman et al., 2022, eq. 23."""
    return (1 + sde.alpha(t) / sde.sigma(t)) ** 2


def edm(sde: SDE, t: Tensor, sigma_data: float) -> Tensor:
    """1 / c_out^2 = alpha^2 / sigma^2 + 1 / sigma_data^2: equal initial loss at all levels.

    Reference: Karras et al., 2022, eq. 8.
    """
    return snr(sde, t) + sigma_data**-2


def min_snr(sde: SDE, t: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma). Hang et al., "Efficient Diffusion Training via Min-SNR Weighting", 2023. arXiv:2303.09556"""
    return snr(sde, t).clamp(max=gamma)


def truncated_snr(sde: SDE, t: Tensor) -> Tensor:
    """max(SNR, 1). Salimans, Ho, "Progressive Distillation for Fast Sampling", 2022, section 4. arXiv:2202.00512"""
    return snr(sde, t).clamp(min=1.0)


def likelihood(sde: SDE, t: Tensor) -> Tensor:
    """g^2 on the squared error of the score, equal to -d SNR / dt: twice the bound on the negative log-likelihood.

    Reference: Song, Durkan, Murray, Ermon, "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, eq. 7.
    """
    return (sde.diffusion(t) / sde.sigma(t)) ** 2 * snr(sde, t)


WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "simple": snr,
    "sigma2": snr,
    "x0": uniform,
    "v": velocity,
    "flow": flow,
    "edm": edm,
    "min_snr": min_snr,
    "truncated_snr": truncated_snr,
    "likelihood": likelihood,
}
