"""Score matching losses of an affine score on Gaussian data; values and slopes have closed forms."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from score_sde.sde_lib import (
    OBJECTIVES,
    SDE,
    SDES,
    WEIGHTS,
    Denoise,
    GaussianMixture,
    Objective,
    Prediction,
    explicit,
)
from score_sde.sde_lib.process import Time
from score_sde.selftest.losses import textbook_of
from score_sde.selftest.rows import Row, Setting, distance, exactly, worst
from score_sde.selftest.textbook import PROCESSES

MEAN, VARIANCE, OFFSET, GAIN = 0.5, 0.3, 0.3, -0.2


def check(setting: Setting) -> Iterator[Row]:
    """Checks value and slopes of each objective, and the explicit squared error."""
    for name in ("implicit", "sliced", "sliced_vr"):
        values, slopes = zip(*(errors(name, sde_name, setting) for sde_name in SDES))
        yield Row(f"{name}: loss of an affine score on Gaussian data", worst(values), 1000 * setting.rounding)
        yield Row(f"{name}: slopes, equal to the explicit loss's", worst(slopes), 1000 * setting.rounding)
    found = worst(explicit_error(sde_name, setting) for sde_name in SDES)
    yield Row("explicit: squared error of the same score", found, 1000 * setting.rounding)


class Affine:
    """Exact denoiser of N(MEAN, VARIANCE) with (offset + gain x / sqrt(V)) / sigma added to its score, V = Var[x]."""

    def __init__(self, sde: SDE, setting: Setting) -> None:
        self.sde = sde
        self.exact = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN, MEAN]]), VARIANCE).denoiser(sde)
        self.tilt = setting.tensor([OFFSET, GAIN]).repeat(7 * 9, 1).requires_grad_()

    def __call__(self, x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        alpha, sigma, _ = self.sde.marginal(t)
        offset, gain = self.tilt.split(1, 1)
        change = offset + gain * x / (alpha**2 * VARIANCE + sigma**2) ** 0.5
        return Prediction(self.exact(x, t).x0 + sigma / alpha * change)


def states(sde: SDE, setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns x0, eps, t and weights of nine quadrature points at seven noise levels, exact up to degree 5."""
    nodes, weights = setting.tensor([-math.sqrt(3), 0.0, math.sqrt(3)]), setting.tensor([1 / 6, 2 / 3, 1 / 6])
    z = torch.cartesian_prod(nodes, nodes).repeat(7, 1)
    x0, eps = (v[:, None].repeat(1, 2) for v in (MEAN + math.sqrt(VARIANCE) * z[:, 0], z[:, 1]))
    times = sde.time(torch.linspace(-4, 4, 7, dtype=torch.float64))
    return x0, eps, setting.tensor(times).repeat_interleave(9)[:, None], torch.cartesian_prod(weights, weights).prod(1)


def moments(sde_name: str, sde: SDE, t: Tensor) -> tuple[np.ndarray, ...]:
    """Returns sigma, the standard deviation of x, and mean over standard deviation, at each noise level."""
    book = PROCESSES[sde_name](exactly(t).numpy()[::9, 0]) if sde_name in PROCESSES else textbook_of(sde, t[::9])
    deviation = np.sqrt(book.alpha**2 * VARIANCE + book.sigma**2)
    return book.sigma, deviation, book.alpha * MEAN / deviation


def errors(name: str, sde_name: str, setting: Setting) -> tuple[float, float]:
    """Returns the errors of the loss weighted by sigma^2, and of its slopes in offset and gain.

    The mean over projections is exact: both sign patterns are used.

        loss = sigma^2 (2 q + r^2 + q^2 V),    q = slope of s_hat,    r = E s_hat
    """
    sde = SDES[sde_name]()
    x0, eps, t, mass = states(sde, setting)
    denoise, signs = Affine(sde, setting), iter(setting.tensor([[1.0, 1.0], [1.0, -1.0]]))
    kind: Callable[..., Objective[Denoise]] = OBJECTIVES[name]
    objective = kind(sde, WEIGHTS["sigma2"], **({} if name == "implicit" else {"projections": 2}))
    losses = objective(denoise, x0, eps, t, lambda like: next(signs).expand_as(like), 0.0)
    loss = losses.reshape(7, 9) @ mass
    slopes = torch.autograd.grad(losses.sum(), denoise.tilt)[0].reshape(7, 9, 2).mT @ mass

    sigma, deviation, mean = moments(sde_name, sde, t)
    level, stretch = OFFSET + GAIN * mean, GAIN - sigma / deviation  # sigma r and sigma q sqrt(V)
    value = 2 * sigma / deviation * stretch + level**2 + stretch**2
    expected = np.stack([2 * level, 2 * (sigma / deviation + level * mean + stretch)], 1)
    return distance(loss, value), distance(slopes, expected)


def explicit_error(sde_name: str, setting: Setting) -> float:
    """Returns the error of sigma^2 E|s_hat - s|^2 / D = (offset + gain E[x] / sqrt(V))^2 + gain^2."""
    sde = SDES[sde_name]()
    x0, eps, t, mass = states(sde, setting)
    x, denoise = sde.perturb(x0, eps, t), Affine(sde, setting)
    losses = explicit(sde.score(x, denoise(x, t).x0, t), denoise.exact.score(x, t))
    sigma, _, mean = moments(sde_name, sde, t)
    return distance(sigma**2 * exactly(losses.reshape(7, 9) @ mass).numpy(), (OFFSET + GAIN * mean) ** 2 + GAIN**2)
