"""Every loss weight at its optimum and every timestep sampler, against closed forms."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.stats import truncnorm
from torch import Tensor

from score_sde.configs import default
from score_sde.configs.choices import choose
from score_sde.engine.objective import make_timestep_sampler, make_weight
from score_sde.sde_lib import (
    SDE,
    SDES,
    TIMESTEP_SAMPLERS,
    WEIGHTS,
    Discrete,
    GaussianMixture,
    Prediction,
    denoising_loss,
    stratified,
)
from score_sde.sde_lib.process import Time
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative, worst
from score_sde.selftest.textbook import PROCESSES, Process

MEAN, VARIANCE, SIGMA_DATA = 0.5, 0.3, 0.6

WEIGHT_FORMS: dict[str, Callable[[Process], np.ndarray]] = {
    "simple": lambda p: p.alpha**2 / p.sigma**2,
    "sigma2": lambda p: p.alpha**2 / p.sigma**2,
    "x0": lambda p: np.ones_like(p.alpha),
    "v": lambda p: (p.alpha**2 + p.sigma**2) / p.sigma**2,
    "flow": lambda p: ((p.alpha + p.sigma) / p.sigma) ** 2,
    "edm": lambda p: (p.alpha**2 * SIGMA_DATA**2 + p.sigma**2) / (p.sigma * SIGMA_DATA) ** 2,
    "min_snr": lambda p: np.minimum(p.alpha**2 / p.sigma**2, 5),
    "truncated_snr": lambda p: np.maximum(p.alpha**2 / p.sigma**2, 1),
    "likelihood": lambda p: p.g**2 * p.alpha**2 / p.sigma**4,
}
"""Weights on the squared error of x0, from the papers."""


def log_snr_cdf(book: Callable[[np.ndarray], Process], t: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the fraction of the log-SNR interval before t."""
    first, last = book(ends).log_snr
    fraction: np.ndarray = (first - book(t).log_snr) / (first - last)
    return fraction


def lognormal_cdf(book: Callable[[np.ndarray], Process], t: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns u for times whose first part is uniform in log(sigma / alpha) and whose rest is truncated normal."""
    law = default.get_config().loss.timestep_sampler
    low, high = (-0.5 * book(ends).log_snr - law.mean) / law.std
    normal = truncnorm(low, high).cdf((-0.5 * book(t).log_snr - law.mean) / law.std)
    in_tail = np.arange(len(t)) < law.tail * len(t)  # u is increasing
    tail = law.tail
    u: np.ndarray = np.where(in_tail, tail * log_snr_cdf(book, t, ends), tail + (1 - tail) * normal)
    return u


LAW_FORMS: dict[str, Callable[[Callable[[np.ndarray], Process], np.ndarray, np.ndarray], np.ndarray]] = {
    "uniform": lambda book, t, ends: (t - ends[0]) / (ends[1] - ends[0]),
    "importance": log_snr_cdf,
    "log_snr": log_snr_cdf,
    "lognormal": lognormal_cdf,
    "logit_normal": lognormal_cdf,
}
"""(process, t, ends of the interval) -> probability of an earlier time."""


def check(setting: Setting) -> Iterator[Row]:
    """Checks value and location of each weight's optimum, quantiles and corrections of each sampler, and strata."""
    for name in WEIGHTS:
        values, slopes = zip(*(optimum(name, sde_name, setting) for sde_name in SDES))
        # The diffusion of a discrete-time process is a difference of sums of logarithms, which loses one digit.
        allowed = (1000 if name == "likelihood" else 100) * setting.rounding
        yield Row(f"weight {name}: loss of the exact denoiser against the closed form", worst(values), allowed)
        yield Row(f"weight {name}: slope of the loss at the exact denoiser", worst(slopes), 100 * setting.rounding)
    for name in TIMESTEP_SAMPLERS:
        quantiles, corrections = zip(*(law(name, sde_name, setting) for sde_name in SDES if sde_name in PROCESSES))
        yield Row(f"timestep sampler {name}: quantiles", worst(quantiles), 100 * setting.rounding)
        yield Row(f"timestep sampler {name}: correction", worst(corrections), 2000 * setting.rounding)
    yield Row("stratified times: strata without exactly one number", strata(), 0.0)


def optimum(weight: str, sde_name: str, setting: Setting) -> tuple[float, float]:
    """Returns the relative error of the loss of the exact denoiser of a Gaussian, and its largest slope.

    The squared error of an affine denoiser is quadratic in two normals, and nine quadrature points integrate it
    exactly: E |x0_hat - x0|^2 = v sigma^2 / (alpha^2 v + sigma^2). The loss is convex, so a slope of 0 is its minimum.
    """
    sde = SDES[sde_name]()
    nodes, weights = setting.tensor([-math.sqrt(3), 0.0, math.sqrt(3)]), setting.tensor([1 / 6, 2 / 3, 1 / 6])
    z = torch.cartesian_prod(nodes, nodes)
    mass = torch.cartesian_prod(weights, weights).prod(1)
    times = sde.time(torch.linspace(-6, 6, 7, dtype=torch.float64))
    t = setting.tensor(times).repeat_interleave(9)[:, None]
    x0, eps = (v.repeat(7)[:, None].repeat(1, 2) for v in (MEAN + math.sqrt(VARIANCE) * z[:, 0], z[:, 1]))

    config = default.get_config()
    config.loss.weight = choose("loss.weight", weight)
    book = PROCESSES[sde_name](exactly(t).numpy()[::9, 0]) if sde_name in PROCESSES else textbook_of(sde, t[::9])
    expected = VARIANCE * book.sigma**2 / (book.alpha**2 * VARIANCE + book.sigma**2)
    weigh = make_weight(config.loss.weight, SIGMA_DATA)
    factor = WEIGHT_FORMS[weight](book) if weight in WEIGHT_FORMS else exactly(weigh(sde, t[::9])).flatten().numpy()

    exact = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN, MEAN]]), VARIANCE).denoiser(sde)
    tilt = torch.zeros(2, 7, 1, dtype=setting.dtype, device=setting.device, requires_grad=True)

    def tilted(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        alpha, sigma, _ = sde.marginal(t)
        offset, gain = tilt.repeat_interleave(9, 1)
        return Prediction(exact(x, t).x0 + offset + gain * x / (alpha**2 + sigma**2) ** 0.5)

    loss = denoising_loss(sde, tilted, weigh, x0, eps, t).reshape(7, 9) @ mass
    slope = torch.autograd.grad((loss / setting.tensor(factor)).sum(), tilt)[0]
    return relative(loss, factor * expected), distance(slope, 0.0)


def textbook_of(sde: SDE, t: Tensor) -> Process:
    """Returns the coefficients that an SDE itself reports, for processes without a closed form here."""
    return Process(*(exactly(v).flatten().numpy() for v in (*sde.marginal(t)[:2], sde.drift(t), sde.diffusion(t))))


def law(name: str, sde_name: str, setting: Setting) -> tuple[float, float]:
    """Returns the errors of the distribution function at the quantiles of u, and of the correction."""
    sde, book = SDES[sde_name](), PROCESSES[sde_name]
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    config = default.get_config()
    if name in ("lognormal", "logit_normal"):
        config.loss.timestep_sampler.name = name  # with the mean, the deviation and the tail of the default config
    else:
        config.loss.timestep_sampler = choose("loss.timestep_sampler", name)
    times, correction = make_timestep_sampler(config.loss.timestep_sampler)(sde, setting.tensor(u)[:, None])
    t, ends = exactly(times).flatten().numpy(), np.array([sde.t_min, sde.t_max])
    found = LAW_FORMS[name](book, t, ends) if name in LAW_FORMS else u
    if name == "uniform" and isinstance(sde, Discrete):  # whole levels, equally probable
        u = torch.floor(u * sde.t_max) / (sde.t_max - 1)
    expected = np.ones_like(t)
    if name == "importance":
        first, last = book(ends).log_snr
        expected = (first - last) * (book(t).sigma / book(t).g) ** 2 / (sde.t_max - sde.t_min)
    return distance(found, u), relative(correction.flatten(), expected)


def strata() -> int:
    """Returns the number of 48 strata that do not hold exactly one number, for three offsets and four microbatches."""
    missed = 0
    for offset in (0.0, 0.3, 0.999):
        u = torch.cat([stratified(offset, start, 12, 48) for start in range(0, 48, 12)])
        missed += int((torch.bincount((u * 48).long(), minlength=48) != 1).sum())
    return missed
