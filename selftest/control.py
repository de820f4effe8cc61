"""Embeddings, thresholds, constraints, posterior sampling and editing, against closed forms."""

import math
from collections.abc import Iterator

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
from score_sde.sde_lib import SDE, SDES, Gaussian, Prediction
from score_sde.sde_lib.denoiser import Denoiser
from score_sde.sde_lib.process import Draw, Time
from score_sde.selftest.rows import Row, Setting, distance, worst


class Normal:
    """Data N(m, C) in the plane: the denoiser, m + G (x - alpha m) with G = alpha C (alpha^2 C + sigma^2)^(-1)."""

    def __init__(self, setting: Setting, sde: SDE, moved: Tensor | float = 0.0) -> None:
        self.mean, self.sde = setting.tensor([0.4, -0.3]) + moved, sde
        self.variances, turn = setting.tensor([0.6, 0.1]), torch.linalg.qr(setting.normals(2, 2, seed=5).double()).Q
        self.turn = turn.to(self.mean)
        self.covariance = (self.turn * self.variances) @ self.turn.mT

    def __call__(self, x: Tensor, t: Time) -> Prediction:
        alpha, sigma, _ = self.sde.marginal(t)
        gain = (self.turn * (alpha * self.variances / (alpha**2 * self.variances + sigma**2))) @ self.turn.mT
        return Prediction(self.mean + (x - alpha * self.mean) @ gain)


class Ask(Step):
    """A step that asks once, and stays."""

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __call__(self, denoise: Denoiser, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        denoise(x, t)
        return x


def check(setting: Setting) -> Iterator[Row]:
    """Guidance and posteriors on every process, the rest by numbers."""
    for of in (embedding_guidance, clean_embedding_guidance, pigdm, moment_matching):
        found = worst(error(of, make(), setting) for make in SDES.values())
        yield Row(f"{of.__name__} of a Gaussian against the exact denoiser", found, allowed(of, setting))
    yield from guidance(setting)
    yield from constraints(setting)
    yield from editing(setting)


def allowed(of: object, setting: Setting) -> float:
    """Iterated solutions have fewer digits."""
    return (1e5 if of in (pigdm, moment_matching) else 1e3) * setting.rounding


def error(of: object, sde: SDE, setting: Setting) -> float:
    """Largest difference from the exact x0, at three levels of noise, over 1 + sigma / alpha."""
    plain, errors = Normal(setting, sde), []
    matrix, e = setting.tensor([[0.8, -0.5], [0.3, 0.6], [0.1, -0.4]]), setting.tensor([[0.9, -0.4, 0.5]])
    pull = 0.7 * (e @ matrix)
    seen, y, std = setting.tensor([[0.6, 0.8]]), setting.tensor([[0.5]]), 0.3
    for l in (-3.0, 0.0, 3.0):
        t = sde.time(torch.tensor(l, dtype=torch.float64)).item()
        alpha, sigma, _ = sde.marginal(t)
        x = (alpha + sigma) * setting.normals(4, 2, seed=7)
        if of is embedding_guidance:
            guided = of(plain, sde, lambda x, t: sde.marginal(t).alpha * x @ matrix.mT, e, 0.7)
            expected = plain(x, t).x0 + sigma**2 * pull
        elif of is clean_embedding_guidance:
            guided = of(plain, sde, lambda x0: x0 @ matrix.mT, e, 0.7)
            expected = Normal(setting, sde, (pull @ plain.covariance)[0])(x, t).x0
        else:
            guess = {"gaussian": Gaussian(plain.mean, 1.0, plain.variances, plain.turn)} if of is pigdm else {}
            guided = of(plain, sde, lambda x: x @ seen.mT, y, std, **guess)
            before, r = plain(x, t).x0, sigma / alpha
            left = (plain.turn * (plain.variances * r**2 / (plain.variances + r**2))) @ plain.turn.mT
            weight = left @ seen.mT / (seen @ left @ seen.mT + std**2)
            expected = before + (y - before @ seen.mT) @ weight.mT
        errors.append(distance(guided(x, t).x0, expected, 1 + sigma / alpha))
    return worst(errors)


def guidance(setting: Setting) -> Iterator[Row]:
    """Weaker models, intervals and thresholds, by hand."""
    sde, x, exact = SDES["vpsde"](), setting.normals(3, 2, seed=3), 20 * setting.rounding
    strong, weak = (lambda x, t, factor=factor: Prediction(factor * x) for factor in (0.5, 0.2))
    found = autoguidance(strong, weak, 2.0)(x, 0.3).x0
    yield Row("autoguidance leans away from the weaker model", distance(found, 0.8 * x), exact)
    column = setting.tensor(sde.time_of_ratio(torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)))[:, None]
    chosen, expected = within(strong, weak, sde, 0.7, 2.0), setting.tensor([[0.2], [0.5], [0.2]]) * x
    alone = torch.cat([chosen(x[k : k + 1], t.item()).x0 for k, t in enumerate(column)])
    found = worst(distance(each, expected) for each in (chosen(x, column).x0, alone))
    yield Row("an interval of guidance is between its two levels of sigma / alpha", found, exact)
    values = setting.tensor([[-0.5, 0.1, 2.0, -4.0], [0.3, -0.2, 0.9, 0.4]])
    given = lambda x, t: Prediction(values)  # noqa: E731
    cut = setting.tensor([[-0.5, 0.1, 1.0, -1.0], [0.3, -0.2, 0.9, 0.4]])
    yield Row("a static threshold cuts", distance(static_threshold(given)(values, 0.3).x0, cut), exact)
    shrunk = setting.tensor([[-0.25, 0.05, 1.0, -1.0], [0.3, -0.2, 0.9, 0.4]])
    found = dynamic_threshold(given, 0.75)(values, 0.3).x0
    yield Row("a dynamic threshold shrinks by the quantile, and never stretches", distance(found, shrunk), exact)


def constraints(setting: Setting) -> Iterator[Row]:
    """What is known stays known; grids that go over their levels again; moves against a misfit."""
    exact, x, known, z = 20 * setting.rounding, *(setting.normals(2, 1, 4, 4, seed=k) for k in (1, 2, 3))
    mask = setting.normals(1, 4, 4, seed=4) > 0
    found = replacement(known, masked(mask), lambda x: z)(x, 0.8, 0.6)
    yield Row("replacement by a mask", distance(found, torch.where(mask, 0.8 * known + 0.6 * z, x)), exact)
    blocks = torch.kron(torch.eye(2), torch.ones(2, 2) / 2).to(x)
    means = lambda x: blocks @ x @ blocks  # noqa: E731
    found = replacement(known, lowpass(2), lambda x: z)(x, 0.8, 0.6)
    yield Row("replacement of block means", distance(found, x - means(x) + means(0.8 * known + 0.6 * z)), exact)
    corner = setting.tensor([[[[1.0, 2.0]]]])
    yield Row(
        "pixels are repeated", distance(enlarge(corner, 2), setting.tensor([[[[1, 1, 2, 2], [1, 1, 2, 2]]]])), 0.0
    )
    again = resampled(torch.tensor([5.0, 4.0, 3.0, 2.0]), 2, 2)
    gone = [5, 4, 3, 5, 4, 3, 2, 3, 2]
    yield Row("a grid goes over its levels again", distance(again, gone) if len(again) == 9 else math.inf, 0.0)
    sde, y = SDES["vpsde"](), setting.tensor([[1.0, -1.0]])
    normal, state = Normal(setting, sde), setting.normals(3, 2, seed=8)
    jacobian = normal(torch.eye(2).to(state), 0.4).x0 - normal(torch.zeros(2, 2).to(state), 0.4).x0
    misfit = y - normal(state, 0.4).x0
    expected = state + 0.3 * misfit / misfit.norm(dim=1, keepdim=True) @ jacobian.mT
    found = DPS(Ask(sde), lambda x: x, y, 0.3)(normal, state, 0.4, 0.3, torch.zeros_like)
    yield Row("DPS goes against the gradient of the misfit", distance(found, expected), 50 * exact)


def editing(setting: Setting) -> Iterator[Row]:
    """Depth of noise, spherical paths, and noise before denoising."""
    shares = []
    for make in SDES.values():
        sde = make()
        alpha, sigma, _ = sde.marginal(depth_time(sde, 0.4, 0.5))
        shares.append(distance(sigma**2 / (alpha**2 * 0.25 + sigma**2), 0.4))
    yield Row("the depth of an edit is a share of the variance", worst(shares), 1e-6)
    first, second = setting.tensor([[2.0, 0.0]]), setting.tensor([[0.0, 4.0]])
    weights = setting.tensor([[0.0], [1 / 3], [1.0]])
    third = (8 / 3) * setting.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]])
    expected = torch.cat([first, third, second])
    found = slerp(first.expand(3, 2), second.expand(3, 2), weights)
    yield Row("a spherical path turns evenly", distance(found, expected), 50 * setting.rounding)
    sde, x, z = SDES["vpsde"](), setting.normals(3, 2, seed=1), setting.normals(3, 2, seed=2)
    start = depth_time(sde, 0.4, 0.5)
    alpha, sigma, _ = sde.marginal(start)
    identity = lambda x, t: Prediction(x)  # noqa: E731
    found = sdedit(Ask(sde), identity, x, torch.tensor([start], dtype=torch.float64), lambda x: z)
    yield Row("an edit begins at the noised example", distance(found, alpha * x + sigma * z), 50 * setting.rounding)
