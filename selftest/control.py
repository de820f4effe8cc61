"""Embeddings, thresholds, constraints, posterior sampling and editing, against closed forms."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from score_sde.samplers.constraints import enlarge, lowpass, masked, replacement, resampled
from score_sde.samplers.editing import depth_time, sdedit, slerp
from score_sde.samplers.guidance import (
    autoguidance,
    clean_embedding_guidance,
    dynamic_threshold,
    embedding_guidance,
    static_threshold,
    within,
)
from score_sde.samplers.loop import Step
from score_sde.samplers.posterior import DPS, moment_matching, pigdm
from score_sde.sde_lib import SDE, SDES, Denoise, Draw, Gaussian, Prediction
from score_sde.sde_lib.process import Time
from score_sde.selftest.rows import Row, Setting, distance, worst


class Normal:
    """Exact denoiser of N(m, C) in the plane: m + G (x - alpha m), G = alpha C (alpha^2 C + sigma^2)^(-1)."""

    def __init__(self, setting: Setting, sde: SDE, moved: Tensor | float = 0.0) -> None:
        self.mean, self.sde = setting.tensor([0.4, -0.3]) + moved, sde
        self.variances, turn = setting.tensor([0.6, 0.1]), torch.linalg.qr(setting.normals(2, 2, seed=5).double()).Q
        self.turn = turn.to(self.mean)
        self.covariance = (self.turn * self.variances) @ self.turn.mT

    def __call__(self, x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        alpha, sigma, _ = self.sde.marginal(t)
        gain = (self.turn * (alpha * self.variances / (alpha**2 * self.variances + sigma**2))) @ self.turn.mT
        return Prediction(self.mean + (x - alpha * self.mean) @ gain)


class Still(Step):
    """A step that evaluates the denoiser once and returns the state unchanged."""

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        denoise(x, t)
        return x


def check(setting: Setting) -> Iterator[Row]:
    """Checks guidance and posteriors on every process, the rest on examples."""
    for name, (case, allowed) in CASES.items():
        found = worst(error(case, make(), setting) for make in SDES.values())
        yield Row(f"{name} of a Gaussian against the exact denoiser", found, allowed * setting.rounding)
    yield from guidance(setting)
    yield from constraints(setting)
    yield from editing(setting)


def encoder(setting: Setting) -> tuple[Tensor, Tensor]:
    """Returns the matrix (3, 2) of a linear encoder, and a target embedding (1, 3)."""
    return setting.tensor([[0.8, -0.5], [0.3, 0.6], [0.1, -0.4]]), setting.tensor([[0.9, -0.4, 0.5]])


def embedding(plain: Normal, setting: Setting, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Returns x0 of ``embedding_guidance`` and the exact x0 + sigma^2 scale grad_x <e, W x0>."""
    sde, (matrix, e) = plain.sde, encoder(setting)
    guided = embedding_guidance(plain, sde, lambda x, t: sde.marginal(t).alpha * x @ matrix.mT, e, 0.7)
    return guided(x, t).x0, plain(x, t).x0 + sde.marginal(t).sigma ** 2 * (0.7 * (e @ matrix))


def clean_embedding(plain: Normal, setting: Setting, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Returns x0 of ``clean_embedding_guidance`` and the exact x0, which is that of a shifted Gaussian."""
    matrix, e = encoder(setting)
    guided = clean_embedding_guidance(plain, plain.sde, lambda x0: x0 @ matrix.mT, e, 0.7)
    shift = (0.7 * (e @ matrix) @ plain.covariance)[0]
    return guided(x, t).x0, Normal(setting, plain.sde, shift)(x, t).x0


def measurement(setting: Setting) -> tuple[Tensor, Tensor, float]:
    """Returns A (1, 2), y (1, 1) and the noise's standard deviation of a linear measurement y = A x0 + noise."""
    return setting.tensor([[0.6, 0.8]]), setting.tensor([[0.5]]), 0.3


def by_pigdm(plain: Normal, setting: Setting, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Returns x0 of ``pigdm`` and the exact posterior mean."""
    a, y, std = measurement(setting)
    gaussian = Gaussian(plain.mean, 1.0, plain.variances, plain.turn)
    return pigdm(plain, plain.sde, lambda x: x @ a.mT, y, std, gaussian)(x, t).x0, measured_mean(plain, setting, x, t)


def by_moment_matching(plain: Normal, setting: Setting, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Returns x0 of ``moment_matching`` and the exact posterior mean."""
    a, y, std = measurement(setting)
    return moment_matching(plain, plain.sde, lambda x: x @ a.mT, y, std)(x, t).x0, measured_mean(plain, setting, x, t)


def measured_mean(plain: Normal, setting: Setting, x: Tensor, t: float) -> Tensor:
    """Returns E[x0 | x_t, y] of the Gaussian."""
    a, y, std = measurement(setting)
    before, r = plain(x, t).x0, plain.sde.marginal(t).ratio
    left = (plain.turn * (plain.variances * r**2 / (plain.variances + r**2))) @ plain.turn.mT
    weight: Tensor = left @ a.mT / (a @ left @ a.mT + std**2)
    return before + (y - before @ a.mT) @ weight.mT


Case = Callable[[Normal, Setting, Tensor, float], tuple[Tensor, Tensor]]
"""(plain denoiser, setting, x, t) -> (guided x0, exact x0)."""

CASES: dict[str, tuple[Case, float]] = {
    "embedding_guidance": (embedding, 1e3),
    "clean_embedding_guidance": (clean_embedding, 1e3),
    "pigdm": (by_pigdm, 1e5),
    "moment_matching": (by_moment_matching, 1e5),
}
"""Case, and allowed error in units of rounding; iterative solutions are less precise."""


def error(case: Case, sde: SDE, setting: Setting) -> float:
    """Returns the largest error of x0 at three noise levels, relative to 1 + sigma / alpha."""
    plain, errors = Normal(setting, sde), []
    for l in (-3.0, 0.0, 3.0):
        t = sde.time(torch.tensor(l, dtype=torch.float64)).item()
        alpha, sigma, _ = sde.marginal(t)
        found, expected = case(plain, setting, (alpha + sigma) * setting.normals(4, 2, seed=7), t)
        errors.append(distance(found, expected, 1 + sigma / alpha))
    return worst(errors)


def linear(factor: float) -> Denoise:
    """Returns a denoiser with x0 = factor x."""

    def denoise(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        return Prediction(factor * x)

    return denoise


def guidance(setting: Setting) -> Iterator[Row]:
    """Checks autoguidance, intervals and thresholds on small examples."""
    sde, x, exact = SDES["vpsde"](), setting.normals(3, 2, seed=3), 20 * setting.rounding
    strong, weak = linear(0.5), linear(0.2)
    leaned = autoguidance(strong, weak, 2.0)(x, 0.3).x0
    yield Row("autoguidance moves away from the weaker model", distance(leaned, 0.8 * x), exact)
    column = setting.tensor(sde.time_of_ratio(torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)))[:, None]
    chosen, expected = within(strong, weak, sde, 0.7, 2.0), setting.tensor([[0.2], [0.5], [0.2]]) * x
    alone = torch.cat([chosen(x[k : k + 1], t.item()).x0 for k, t in enumerate(column)])
    found = worst(distance(each, expected) for each in (chosen(x, column).x0, alone))
    yield Row("guidance within an interval of sigma / alpha", found, exact)
    values = setting.tensor([[-0.5, 0.1, 2.0, -4.0], [0.3, -0.2, 0.9, 0.4]])
    clipped = setting.tensor([[-0.5, 0.1, 1.0, -1.0], [0.3, -0.2, 0.9, 0.4]])
    yield Row("static threshold clips", distance(static_threshold(linear(1.0))(values, 0.3).x0, clipped), exact)
    shrunk = setting.tensor([[-0.25, 0.05, 1.0, -1.0], [0.3, -0.2, 0.9, 0.4]])
    dynamic = dynamic_threshold(linear(1.0), 0.75)(values, 0.3).x0
    yield Row("dynamic threshold divides by the quantile where it exceeds 1", distance(dynamic, shrunk), exact)


def constraints(setting: Setting) -> Iterator[Row]:
    """Checks replacement of known pixels, grids with repeated levels, and DPS."""
    exact, x, known, z = 20 * setting.rounding, *(setting.normals(2, 1, 4, 4, seed=k) for k in (1, 2, 3))
    mask = setting.normals(1, 4, 4, seed=4) > 0
    found = replacement(known, masked(mask), lambda x: z)(x, 0.8, 0.6)
    yield Row("replacement by a mask", distance(found, torch.where(mask, 0.8 * known + 0.6 * z, x)), exact)
    blocks = torch.kron(torch.eye(2), torch.ones(2, 2) / 2).to(x)
    found = replacement(known, lowpass(2), lambda x: z)(x, 0.8, 0.6)
    means, noisy = blocks @ x @ blocks, 0.8 * known + 0.6 * z
    yield Row("replacement of block means", distance(found, x - means + blocks @ noisy @ blocks), exact)
    corner = setting.tensor([[[[1.0, 2.0]]]])
    yield Row(
        "enlarge repeats pixels", distance(enlarge(corner, 2), setting.tensor([[[[1, 1, 2, 2], [1, 1, 2, 2]]]])), 0.0
    )
    again = resampled(torch.tensor([5.0, 4.0, 3.0, 2.0]), 2, 2)
    gone = [5, 4, 3, 5, 4, 3, 2, 3, 2]
    yield Row("resampled repeats levels of a grid", distance(again, gone) if len(again) == 9 else math.inf, 0.0)
    sde, y = SDES["vpsde"](), setting.tensor([[1.0, -1.0]])
    normal, state = Normal(setting, sde), setting.normals(3, 2, seed=8)
    jacobian = normal(torch.eye(2).to(state), 0.4).x0 - normal(torch.zeros(2, 2).to(state), 0.4).x0
    misfit = y - normal(state, 0.4).x0
    expected = state + 0.3 * misfit / misfit.norm(dim=1, keepdim=True) @ jacobian.mT
    found = DPS(Still(sde), lambda x: x, y, 0.3)(normal, state, 0.4, 0.3, torch.zeros_like)
    yield Row("DPS moves against the gradient of the residual's norm", distance(found, expected), 50 * exact)


def editing(setting: Setting) -> Iterator[Row]:
    """Checks the noise level of an edit, spherical interpolation, and SDEdit's start."""
    errors = []
    for make in SDES.values():
        sde = make()
        alpha, sigma, _ = sde.marginal(depth_time(sde, 0.4, 0.5))
        errors.append(distance(sigma**2 / (alpha**2 * 0.25 + sigma**2), 0.4))
    yield Row("depth of an edit: noise as a fraction of the variance", worst(errors), 1e-6)
    first, second = setting.tensor([[2.0, 0.0]]), setting.tensor([[0.0, 4.0]])
    weights = setting.tensor([[0.0], [1 / 3], [1.0]])
    third = (8 / 3) * setting.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]])
    expected = torch.cat([first, third, second])
    found = slerp(first.expand(3, 2), second.expand(3, 2), weights)
    yield Row("spherical interpolation", distance(found, expected), 50 * setting.rounding)
    sde, x, z = SDES["vpsde"](), setting.normals(3, 2, seed=1), setting.normals(3, 2, seed=2)
    start = depth_time(sde, 0.4, 0.5)
    alpha, sigma, _ = sde.marginal(start)
    found = sdedit(Still(sde), linear(1.0), x, torch.tensor([start], dtype=torch.float64), lambda x: z)
    yield Row("sdedit starts at the noised example", distance(found, alpha * x + sigma * z), 50 * setting.rounding)
