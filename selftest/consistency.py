"""Consistency models: their boundary, pairs of times and losses at functions whose value is known."""

import math
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from score_sde.sde_lib import (
    SDE,
    SDES,
    ConsistencyDistillation,
    ConsistencyModel,
    ConsistencyTraining,
    GaussianMixture,
    Prediction,
    transport,
)
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative, worst

MEAN, VARIANCE, SIGMA_DATA, STEPS, BEND = 0.5, 0.3, 0.7, 200, 0.00054


def check(setting: Setting) -> Iterator[Row]:
    """On every SDE: coefficients, the loss of differences that are known, and the exact consistency function."""
    found = [of(SDES[name](), setting) for name in SDES]
    rounding = setting.rounding
    yield Row("boundary: distance of f at t_min from the state", worst(f.boundary for f in found), 100 * rounding)
    yield Row("c_skip and c_out against the paper", worst(f.coefficients for f in found), 2000 * rounding)
    yield Row("loss of a difference that is known", worst(f.value for f in found), 2000 * rounding)
    yield Row("distillation: loss of the exact function over that of a wrong one", worst(f.exact for f in found), 0.005)
    yield Row("training on one point: loss of the exact function", worst(f.point for f in found), 1e-6)
    yield Row("a teacher of VP on another process", worst(f.carried for f in found), 5000 * rounding)
    objective = ConsistencyTraining(SDES["edm"](), 10, 80)
    doubled = [objective.num_steps(share) for share in (0.0, 0.24, 0.26, 0.51, 0.76, 1.0)]
    yield Row("steps double at equal shares of the training", distance(doubled, [10, 10, 20, 40, 80, 80]), 0.0)


def of(sde: SDE, setting: Setting) -> SimpleNamespace:
    """The errors on one SDE."""
    t = setting.tensor(sde.time(torch.linspace(4, -4, 9, dtype=torch.float64)))[:, None]
    r, least = sde.marginal(t).ratio, sde.marginal(setting.tensor([sde.t_min])).ratio
    x0, eps = MEAN + math.sqrt(VARIANCE) * setting.normals(9, 2), setting.normals(9, 2, seed=1)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return ConsistencyModel(lambda x, log_snr: torch.full_like(x, 0.3), sde, SIGMA_DATA)(x, t).x0

    start, y = torch.full_like(t, sde.t_min), 0.1 * r * eps
    above = exactly(r) - exactly(least)
    c_skip = SIGMA_DATA**2 / (above**2 + SIGMA_DATA**2)
    c_out = SIGMA_DATA * above / (exactly(r) ** 2 + SIGMA_DATA**2).sqrt()

    def exact(x: Tensor, t: Tensor, tilt: float = 0.0) -> Prediction:
        r = sde.marginal(t).ratio
        gain = ((VARIANCE + least**2) / (VARIANCE + r**2)).sqrt()
        return Prediction(MEAN + (1 + tilt * (r - least) / (1 + r)) * gain * (x / sde.alpha(t) - MEAN))

    mixture = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN, MEAN]]), VARIANCE)
    distillation = ConsistencyDistillation(sde, mixture.denoiser(sde), STEPS, STEPS)
    right, wrong = (
        distillation(lambda x, t, tilt=tilt: exact(x, t, tilt), x0, eps, t, None, 0.0).mean() for tilt in (0.0, 0.1)
    )

    training = ConsistencyTraining(sde, STEPS, STEPS)
    ends = exactly(sde.log_snr(setting.tensor([sde.t_min, sde.t_max])))
    step = (ends[0] - ends[1]) / STEPS
    later = ((ends[0] - exactly(sde.log_snr(t))) / step).ceil()
    gap = ((later * step - ends[0]) / 2).exp() - (((later - 1) * step - ends[0]) / 2).exp()
    value = training(lambda x, t: Prediction(0 * x + sde.marginal(t).ratio), x0, eps, t, None, 0.0)
    point = training(
        lambda x, t: Prediction(MEAN + (x / sde.alpha(t) - MEAN) * least / sde.marginal(t).ratio),
        0 * x0 + MEAN,
        eps,
        t,
        None,
        0,
    )

    vp = SDES["vpsde"]()
    x = sde.perturb(x0, eps, t)
    carried = transport(mixture.denoiser(vp), vp, sde)(x, t).x0
    return SimpleNamespace(
        boundary=distance(sde.alpha(start) * model(eps, start), eps),
        coefficients=distance(model(sde.alpha(t) * y, t), c_skip * exactly(y) + c_out * 0.3),
        value=relative(value, (((gap**2 + BEND**2).sqrt() - BEND) / gap).flatten()),
        exact=(right / wrong).item(),
        point=point.max().item(),
        carried=distance(carried, mixture.denoiser(sde)(x, t).x0),
    )
