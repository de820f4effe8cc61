"""Every weight at its optimum, and every timestep sampler, against closed forms."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.stats import truncnorm
from torch import Tensor

from score_sde.configs import default
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
"""Weights on the squared error of x0, as the papers have them."""


def share_of_log_snr(book: Callable[[np.ndarray], Process], t: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Share of the interval in log-SNR that lies before t."""
    first, last = book(ends).log_snr
    return (first - book(t).log_snr) / (first - last)


def share_of_lognormal(book: Callable[[np.ndarray], Process], t: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """u of a law whose first part is uniform in log(sigma / alpha), and whose rest is normal in it, cut at the ends."""
    loss = default.get_config().loss
    low, high = (-0.5 * book(ends).log_snr - loss.time_mean) / loss.time_std
    normal = truncnorm(low, high).cdf((-0.5 * book(t).log_snr - loss.time_mean) / loss.time_std)
    in_tail = np.arange(len(t)) < loss.time_tail * len(t)  # of u in rising order
    tail = loss.time_tail
    return np.where(in_tail, tail * share_of_log_snr(book, t, ends), tail + (1 - tail) * normal)


LAW_FORMS: dict[str, Callable] = {
    "uniform": lambda book, t, ends: (t - ends[0]) / (ends[1] - ends[0]),
    "importance": share_of_log_snr,
    "log_snr": share_of_log_snr,
    "lognormal": share_of_lognormal,
    "logit_normal": share_of_lognormal,
}
"""(process, t, ends of the interval) -> probability of an earlier time."""


def check(setting: Setting) -> Iterator[Row]:
    """Value and place of each weight's optimum; quantiles and corrections of each law; strata."""
    for name in WEIGHTS:
        values, slopes = zip(*(optimum(name, sde_name, setting) for sde_name in SDES))
        # The rates of a chain are differences of sums of logarithms, which cost a digit.
        closed = 1000 if name == "likelihood" else 100
        yield Row(
            f"weight {name}: the loss of the exact denoiser is the closed form",
            worst(values),
            closed * setting.rounding,
        )
        yield Row(
            f"weight {name}: the exact denoiser is where the loss is least", worst(slopes), 100 * setting.rounding
        )
    for name in TIMESTEP_SAMPLERS:
        quantiles, corrections = zip(*(law(name, sde_name, setting) for sde_name in SDES if sde_name in PROCESSES))
        yield Row(f"timestep sampler {name}: quantiles", worst(quantiles), 100 * setting.rounding)
        yield Row(f"timestep sampler {name}: correction", worst(corrections), 2000 * setting.rounding)
    yield Row("stratified times: strata without their one number", strata(), 0.0)


def optimum(weight: str, sde_name: str, setting: Setting) -> tuple[float, float]:
    """The loss of the exact denoiser of a Gaussian over its closed form, less 1; and its largest slope.

    The squared error of an affine denoiser is a square of two normals, for which nine points are the whole integral:
    E |x0_hat - x0|^2 = v sigma^2 / (alpha^2 v + sigma^2). The loss is convex, so that a slope of 0 is its minimum.
    """
    sde = SDES[sde_name]()
    nodes, shares = setting.tensor([-math.sqrt(3), 0.0, math.sqrt(3)]), setting.tensor([1 / 6, 2 / 3, 1 / 6])
    z = torch.cartesian_prod(nodes, nodes)
    share = torch.cartesian_prod(shares, shares).prod(1)
    times = sde.time(torch.linspace(-6, 6, 7, dtype=torch.float64))
    t = setting.tensor(times).repeat_interleave(9)[:, None]
    x0, eps = (v.repeat(7)[:, None].repeat(1, 2) for v in (MEAN + math.sqrt(VARIANCE) * z[:, 0], z[:, 1]))

    config = default.get_config()
    config.loss.weight = weight
    book = PROCESSES[sde_name](exactly(t).numpy()[::9, 0]) if sde_name in PROCESSES else textbook_of(sde, t[::9])
    expected = VARIANCE * book.sigma**2 / (book.alpha**2 * VARIANCE + book.sigma**2)
    weigh = make_weight(config, SIGMA_DATA)
    factor = WEIGHT_FORMS[weight](book) if weight in WEIGHT_FORMS else exactly(weigh(sde, t[::9])).flatten().numpy()

    exact = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN, MEAN]]), VARIANCE).denoiser(sde)
    tilt = torch.zeros(2, 7, 1, dtype=setting.dtype, device=setting.device, requires_grad=True)

    def tilted(x: Tensor, t: Tensor) -> Prediction:
        offset, gain = tilt.repeat_interleave(9, 1)
        return Prediction(exact(x, t).x0 + offset + gain * x / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt())

    loss = denoising_loss(sde, tilted, weigh, x0, eps, t).reshape(7, 9) @ share
    slope = torch.autograd.grad((loss / setting.tensor(factor)).sum(), tilt)[0]
    return relative(loss, factor * expected), distance(slope, 0.0)


def textbook_of(sde: SDE, t: Tensor) -> Process:
    """A process of which no closed form is known here, as it tells itself."""
    return Process(*(exactly(v).flatten().numpy() for v in (*sde.marginal(t)[:2], sde.drift(t), sde.diffusion(t))))


def law(name: str, sde_name: str, setting: Setting) -> tuple[float, float]:
    """Errors of the probability of an earlier time than the quantile of u, which is u, and of the correction."""
    sde, book = SDES[sde_name](), PROCESSES[sde_name]
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    config = default.get_config()
    config.loss.timestep_sampler = name
    t, correction = make_timestep_sampler(config)(sde, setting.tensor(u)[:, None])
    t, ends = exactly(t).flatten().numpy(), np.array([sde.t_min, sde.t_max])
    found = LAW_FORMS[name](book, t, ends) if name in LAW_FORMS else u
    if name == "uniform" and isinstance(sde, Discrete):  # whole levels, each with one share of u
        u = torch.floor(u * sde.t_max) / (sde.t_max - 1)
    expected = np.ones_like(t)
    if name == "importance":
        first, last = book(ends).log_snr
        expected = (first - last) * (book(t).sigma / book(t).g) ** 2 / (sde.t_max - sde.t_min)
    return distance(found, u), relative(correction.flatten(), expected)


def strata() -> int:
    """How many of 48 strata hold another count than one, over several offsets and four shares of the batch."""
    missed = 0
    for offset in (0.0, 0.3, 0.999):
        u = torch.cat([stratified(offset, start, 12, 48) for start in range(0, 48, 12)])
        missed += int((torch.bincount((u * 48).long(), minlength=48) != 1).sum())
    return missed
