"""Consistency models: boundary condition, coefficients and losses at functions of known value."""

import math
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from score_sde.sde_lib import (
    SDE,
    SDES,
    ConsistencyDistillation,
    ConsistencyModel,
    ConsistencyTraining,
    Denoise,
    GaussianMixture,
    Prediction,
    transport,
)
from score_sde.sde_lib.process import Time
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative, worst

MEAN, VARIANCE, SIGMA_DATA, STEPS, BEND = 0.5, 0.3, 0.7, 200, 0.00054


class Constant(nn.Module):
    """A network that returns 0.3 everywhere."""

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return torch.full_like(x, 0.3)


def check(setting: Setting) -> Iterator[Row]:
    """Checks, on every SDE, coefficients, losses of known differences, and the exact consistency function."""
    found = [of(SDES[name](), setting) for name in SDES]
    rounding = setting.rounding
    yield Row("boundary: distance of f at t_min from the state", worst(f.boundary for f in found), 100 * rounding)
    yield Row("c_skip and c_out against the paper", worst(f.coefficients for f in found), 2000 * rounding)
    yield Row("loss of a known difference", worst(f.value for f in found), 2000 * rounding)
    yield Row("distillation: loss of the exact function over a wrong one's", worst(f.exact for f in found), 0.005)
    yield Row("training on one point: loss of the exact function", worst(f.point for f in found), 1e-6)
    yield Row("a teacher of VP on another process", worst(f.carried for f in found), 5000 * rounding)
    objective = ConsistencyTraining(SDES["edm"](), 10, 80)
    doubled = [objective.num_steps(progress) for progress in (0.0, 0.24, 0.26, 0.51, 0.76, 1.0)]
    yield Row("steps double at equal fractions of the training", distance(doubled, [10, 10, 20, 40, 80, 80]), 0.0)


def of(sde: SDE, setting: Setting) -> SimpleNamespace:
    """Returns the errors on one SDE."""
    t = setting.tensor(sde.time(torch.linspace(4, -4, 9, dtype=torch.float64)))[:, None]
    r, least = exactly(ratio(sde, t)), exactly(ratio(sde, setting.tensor([sde.t_min])))
    x0, eps = MEAN + math.sqrt(VARIANCE) * setting.normals(9, 2), setting.normals(9, 2, seed=1)
    model = ConsistencyModel(Constant(), sde, SIGMA_DATA)
    start, y = torch.full_like(t, sde.t_min), 0.1 * ratio(sde, t) * eps
    c_skip = SIGMA_DATA**2 / ((r - least) ** 2 + SIGMA_DATA**2)
    c_out = SIGMA_DATA * (r - least) / (r**2 + SIGMA_DATA**2).sqrt()

    mixture = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN, MEAN]]), VARIANCE)
    distillation = ConsistencyDistillation(sde, mixture.denoiser(sde), STEPS, STEPS)
    right, wrong = (
        distillation(flow_end(sde, setting, tilt), x0, eps, t, torch.zeros_like, 0.0).mean() for tilt in (0.0, 0.1)
    )
    known, point = known_losses(sde, setting, x0, eps, t)

    vp = SDES["vpsde"]()
    x = sde.perturb(x0, eps, t)
    carried = transport(mixture.denoiser(vp), vp, sde)(x, t).x0
    return SimpleNamespace(
        boundary=distance(sde.alpha(start) * model(eps, start).x0, eps),
        coefficients=distance(model(sde.alpha(t) * y, t).x0, c_skip * exactly(y) + c_out * 0.3),
        value=known,
        exact=(right / wrong).item(),
        point=point,
        carried=distance(carried, mixture.denoiser(sde)(x, t).x0),
    )


def flow_end(sde: SDE, setting: Setting, tilt: float) -> Denoise:
    """Returns the exact consistency function of N(MEAN, VARIANCE), multiplied by 1 + tilt (r - r_min) / (1 + r)."""
    least = ratio(sde, setting.tensor([sde.t_min]))

    def end(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        r = ratio(sde, t)
        gain = ((VARIANCE + least**2) / (VARIANCE + r**2)).sqrt()
        return Prediction(MEAN + (1 + tilt * (r - least) / (1 + r)) * gain * (x / sde.marginal(t).alpha - MEAN))

    return end


def known_losses(sde: SDE, setting: Setting, x0: Tensor, eps: Tensor, t: Tensor) -> tuple[float, float]:
    """Returns the error of the training loss of f = sigma / alpha, and the loss of the exact function for one point."""
    training, least = ConsistencyTraining(sde, STEPS, STEPS), ratio(sde, setting.tensor([sde.t_min]))
    ends = exactly(sde.log_snr(setting.tensor([sde.t_min, sde.t_max])))
    step = (ends[0] - ends[1]) / STEPS
    later = ((ends[0] - exactly(sde.log_snr(t))) / step).ceil()
    gap = ((later * step - ends[0]) / 2).exp() - (((later - 1) * step - ends[0]) / 2).exp()

    def level(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        return Prediction(0 * x + ratio(sde, t))

    def end(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        return Prediction(MEAN + (x / sde.marginal(t).alpha - MEAN) * least / ratio(sde, t))

    known = training(level, x0, eps, t, torch.zeros_like, 0.0)
    point = training(end, 0 * x0 + MEAN, eps, t, torch.zeros_like, 0.0)
    return relative(known, (((gap**2 + BEND**2).sqrt() - BEND) / gap).flatten()), point.max().item()


def ratio(sde: SDE, t: Time) -> Tensor:
    """Returns sigma / alpha as a tensor."""
    return torch.as_tensor(sde.marginal(t).ratio)
