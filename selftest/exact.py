"""The exact mixtures, which other checks rely on, against integrals and gradients."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from score_sde.sde_lib import SDE, SDES, GaussianMixture, Prediction
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative

WEIGHTS, MEANS, STDS = (0.3, 0.7), (-1.0, 0.8), (0.2, 0.4)


def bumps(setting: Setting) -> GaussianMixture:
    """Returns a mixture of two unequal Gaussians in one dimension."""
    means, stds = setting.tensor(MEANS)[:, None], setting.tensor(STDS)[:, None]
    return GaussianMixture(setting.tensor(WEIGHTS), means, stds**2)


def blobs(setting: Setting, shape: tuple[int, ...] = (2, 2)) -> GaussianMixture:
    """Returns a mixture of three Gaussians with full covariances, over examples of this shape."""
    num = math.prod(shape)
    roots = 0.3 * setting.normals(3, num, num, seed=1)
    covariances = roots @ roots.mT + 0.1 * torch.eye(num, dtype=setting.dtype, device=setting.device)
    return GaussianMixture.of_covariances(setting.tensor([0.2, 0.3, 0.5]), setting.normals(3, *shape), covariances)


def score_error(denoise: Callable[..., Prediction], mixture: GaussianMixture, sde: SDE, x: Tensor, t: float) -> float:
    """Returns the distance between a denoiser's score and the gradient of the exact log-density; x (B, *)."""
    x = x.detach().requires_grad_()
    gradient = torch.autograd.grad(mixture.log_prob(x, *sde.marginal(t)[:2]).sum(), x)[0]
    return distance(sde.score(x.detach(), denoise(x.detach(), t).x0, t), gradient)


def check(setting: Setting) -> Iterator[Row]:
    """Checks density, posterior mean, score and moments."""
    x0 = np.linspace(-4, 4, 8001)
    density = sum(
        w * np.exp(-0.5 * ((x0 - m) / s) ** 2) / (s * math.sqrt(2 * math.pi)) for w, m, s in zip(WEIGHTS, MEANS, STDS)
    )
    mixture, x = bumps(setting), setting.tensor(np.linspace(-2, 2, 9))[:, None]
    alpha, sigma = 0.8, 0.5
    kernel = np.exp(-0.5 * ((exactly(x).numpy() - alpha * x0) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    evidence = (kernel * density).sum(1) * (x0[1] - x0[0])
    mean = (kernel * density * x0).sum(1) * (x0[1] - x0[0]) / evidence
    found = distance(mixture.log_prob(x, alpha, sigma), np.log(evidence))
    yield Row("density of a mixture against an integral", found, 1000 * setting.rounding)
    found = distance(mixture.posterior_mean(x, alpha, sigma).flatten(), mean)
    yield Row("posterior mean of a mixture against an integral", found, 1000 * setting.rounding)

    mixture, sde = blobs(setting), SDES["vpsde"]()
    found = score_error(mixture.denoiser(sde), mixture, sde, setting.normals(8, 2, 2), 0.3)
    yield Row("score of a mixture against the gradient", found, 1000 * setting.rounding)
    mixture = blobs(Setting(torch.device("cpu"), setting.dtype))
    x = exactly(mixture.sample(20_000, torch.Generator().manual_seed(0))).flatten(1)
    error = (x.mean(0) - exactly(mixture.mean)).abs() / (x.std(0) / math.sqrt(len(x)))
    yield Row("samples of a mixture: mean, in standard errors", error.max().item(), 4.0)
    found = relative(x.T.cov().trace(), exactly(mixture.covariance).trace())
    yield Row("samples of a mixture: variance", found, 0.05)
