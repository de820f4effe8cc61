"""From a network to an estimate of the data: the one place where time meets network.

A denoiser is anything called as ``denoise(x, t, **cond) -> Prediction``; the exact ones of ``sde_lib.exact`` included.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sde_lib.process import SDE, Time


class Prediction(NamedTuple):
    """What a denoiser knows about x_0 given x_t.

    x0: the estimate of E[x_0 | x_t], shaped as x.
    """

    x0: Tensor


Coefficients = tuple[Time, Time]


def _x0(alpha: Time, sigma: Time, sigma_data: float) -> Coefficients:
    """F estimates the data."""
    return 0.0, 1.0


def _eps(alpha: Time, sigma: Time, sigma_data: float) -> Coefficients:
    """F estimates the noise: x0 = (x - sigma F) / alpha. Ho, Jain, Abbeel, 2020, eq. 9. arXiv:2006.11239"""
    return 1 / alpha, -sigma / alpha


def _score(alpha: Time, sigma: Time, sigma_data: float) -> Coefficients:
    """F estimates the score: x0 = (x + sigma^2 F) / alpha. Song, Ermon, 2019. arXiv:1907.05600"""
    return 1 / alpha, sigma**2 / alpha


def _v(alpha: Time, sigma: Time, sigma_data: float) -> Coefficients:
    """F estimates (alpha eps - sigma x0) / r, r^2 = alpha^2 + sigma^2. Salimans, Ho, 2022, app. D. arXiv:2202.00512"""
    radius = (alpha**2 + sigma**2) ** 0.5
    return alpha / radius**2, -sigma / radius


def _edm(alpha: Time, sigma: Time, sigma_data: float) -> Coefficients:
    """F has unit variance, and its error is scaled as little as can be. Karras et al., 2022, table 1, on any SDE."""
    radius = ((alpha * sigma_data) ** 2 + sigma**2) ** 0.5
    return alpha * sigma_data**2 / radius**2, sigma * sigma_data / radius


PARAMETERIZATIONS: dict[str, Callable[[Time, Time, float], Coefficients]] = {
    "x0": _x0,
    "eps": _eps,
    "score": _score,
    "v": _v,
    "edm": _edm,
}
"""(alpha, sigma, sigma_data) -> (c_skip, c_out) of x0 = c_skip x + c_out F."""


class Denoiser(nn.Module):
    """A network as a denoiser of one SDE.

        x0 = c_skip x + c_out F(c_in x, log_snr),    c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2)

    The network is told log-SNR and given input of unit variance, so what it learned does not depend on the SDE: the
    same network wrapped for another SDE gives the same x0 at the same log-SNR and scaled state (but for ``score``, the
    one quantity that changes with the scale of x). Coefficients are float32 or better whatever autocast chooses for the
    network.

    Args:
        network: called as ``network(x, log_snr, **cond)`` with log_snr (B,) float32; returns the shape of x.
        sde: the process that noised the data.
        parameterization: a key of ``PARAMETERIZATIONS``: what the network estimates.
        sigma_data: standard deviation of the data, positive.
    Shapes: x (B, *); t a number, or a tensor that is 0-d or (B, 1, ..., 1).
    Raises: ValueError for an unknown parameterization, a sigma_data that is not positive, a t of another shape.
    """

    def __init__(self, network: nn.Module, sde: SDE, parameterization: str, sigma_data: float) -> None:
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            raise ValueError(
                f"unknown parameterization {parameterization!r}; known: {', '.join(sorted(PARAMETERIZATIONS))}"
            )
        if not sigma_data > 0:
            raise ValueError(f"sigma_data {sigma_data}: need the standard deviation of the data, above 0")
        self.network, self.sde, self.sigma_data = network, sde, sigma_data
        self.coefficients = PARAMETERIZATIONS[parameterization]

    def forward(self, x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        alpha, sigma, log_snr = self.sde.at(t)
        noise_level = conditioning(log_snr, x)
        c_skip, c_out = self.coefficients(alpha, sigma, self.sigma_data)
        c_in = ((alpha * self.sigma_data) ** 2 + sigma**2) ** -0.5
        output = self.network(c_in * x, noise_level, **cond)
        return Prediction(c_skip * x + c_out * output.to(x.dtype))

    def score(self, x: Tensor, t: Time, **cond: Tensor) -> Tensor:
        """Estimate of grad log p_t(x), shaped as x."""
        return self.sde.score(x, self(x, t, **cond).x0, t)


def conditioning(log_snr: Time, x: Tensor) -> Tensor:
    """Log-SNR as networks take it: float32, one for each example of x, on its device; (B,)."""
    if not isinstance(log_snr, Tensor):
        return torch.full((len(x),), log_snr, dtype=torch.float32, device=x.device)
    if log_snr.ndim > 0 and log_snr.shape != (len(x),) + (1,) * (x.ndim - 1):
        shapes = f"time of shape {tuple(log_snr.shape)} for x of shape {tuple(x.shape)}"
        raise ValueError(f"{shapes}: need a number, or a tensor that is 0-d or (B, 1, ..., 1)")
    return log_snr.flatten().to(x.device, torch.float32).expand(len(x))
