"""The moment-matched Gaussian against dense matrices, and the distribution of its noise-to-signal ratios."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from score_sde.data import Dataset, Pixels
from score_sde.engine.codecs import moment_matched
from score_sde.sde_lib import Gaussian
from score_sde.sde_lib.nodes import CENTRE, WEIGHT, logistic_uniform
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative

RATIO, EXTRA = 0.3, 0.01


def check(setting: Setting) -> Iterator[Row]:
    """Checks measured moments, matrix operations and quantiles of the ratios."""
    yield from measured()
    yield from matrices(setting)
    yield from ratios()


def measured() -> Iterator[Row]:
    """Checks mean and covariance of examples with a mean far from 0 and a different variance in each direction."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 80, dtype=torch.float64, generator=generator) + 3
    x[:, :16] *= torch.logspace(1.5, 0, 16)
    few, many = Gaussian.of(x[:, :16].reshape(700, 2, 8), EXTRA), Gaussian.of(x, EXTRA)
    expected = np.cov(x[:, :16].numpy().T, bias=True) + EXTRA * np.eye(16)
    error = distance(dense(few), expected) + distance(few.mean.flatten(), x[:, :16].mean(0))
    yield Row("mean and covariance of 700 examples", error, 1e-10)
    leading = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[-64:] + EXTRA
    error = relative(many.variances, leading) + relative(
        many.trace(lambda v: v), np.var(x.numpy(), 0).sum() + 80 * EXTRA
    )
    yield Row("leading variances, and their sum with the rest", error, 1e-10)
    images = Dataset(np.full((8, 1, 4, 4), 5, dtype=np.uint8), np.arange(8), levels=17)
    found = moment_matched(images, Pixels(17)).std
    yield Row("identical images: standard deviation within a bin", abs(found * 17 * math.sqrt(3) - 1), 1e-5)


def matrices(setting: Setting) -> Iterator[Row]:
    """Checks a Gaussian in 6 dimensions with 2 separate directions, with noise added, against dense matrices."""
    directions = torch.linalg.qr(setting.normals(6, 2, seed=1).cpu().double()).Q
    mean = setting.normals(1, 2, 3, seed=2).cpu().double()[0]
    exact = Gaussian(mean, 0.2, torch.tensor([0.5, 3.0], dtype=torch.float64), directions)
    gaussian, y = exact.like(setting.normals(1)), setting.normals(4, 2, 3, seed=3)
    noisy = dense(exact) + RATIO**2 * np.eye(6)
    axes = gaussian.mean + setting.tensor(np.eye(6)).reshape(6, 2, 3)
    whiten = exactly(gaussian.whiten(axes, RATIO)).reshape(6, 6).numpy()
    allowed = 1000 * setting.rounding
    yield Row("covariance of whitened data, less I", distance(whiten @ noisy @ whiten.T, np.eye(6)), allowed)
    error = distance(gaussian.colour(gaussian.whiten(y, RATIO), RATIO), y)
    yield Row("colour undoes whiten", error, allowed)
    offset = (exactly(y) - mean).reshape(4, 6).numpy()
    expected = mean.flatten().numpy() + offset @ np.linalg.solve(noisy, dense(exact))
    posterior_mean = gaussian.posterior_mean(y, setting.tensor([[RATIO]] * 4))
    yield Row("posterior mean against dense matrices", distance(posterior_mean.reshape(4, 6), expected), allowed)
    error = distance(gaussian.log_volume(RATIO), 0.5 * np.linalg.slogdet(noisy)[1])
    yield Row("logarithm of the volume against the determinant", error, allowed)


def ratios() -> Iterator[Row]:
    """Checks quantiles of log r: a mixture of a logistic density, 1 / (4 cosh^2(x / 2)), and a uniform one."""
    low, high, std = 2e-3, 80.0, 0.5
    grid = np.linspace(math.log(low), math.log(high), 40_001)
    density = 0.25 / np.cosh(0.5 * (grid - math.log(CENTRE * std))) ** 2
    logistic = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    below = WEIGHT * logistic / logistic[-1] + (1 - WEIGHT) * np.linspace(0, 1, len(grid))
    u = np.linspace(0, 1, 101)
    ratio, slope = logistic_uniform(low, high, u, std)
    yield Row("ratios at the ends", distance(ratio[[0, -1]], [low, high]), 0.0)
    yield Row("ratios: distribution function", distance(np.interp(np.log(ratio), grid, below), u), 1e-7)
    right, left = (np.log(logistic_uniform(low, high, u[1:-1] + h, std)[0]) for h in (1e-6, -1e-6))
    yield Row("ratios: slope against differences", relative(slope[1:-1], (right - left) / 2e-6), 1e-6)


def dense(gaussian: Gaussian) -> np.ndarray:
    """Returns the covariance as a dense matrix (D, D)."""
    directions = gaussian.directions.numpy()
    along = directions @ directions.T
    spread = directions @ np.diag(gaussian.variances.numpy()) @ directions.T
    covariance: np.ndarray = spread + gaussian.rest * (np.eye(len(along)) - along)
    return covariance
