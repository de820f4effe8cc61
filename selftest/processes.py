"""Every process against the papers, a simulation, and the identities that samplers rely on."""

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from score_sde.sde_lib import SDE, SDES, VPSDE, MonotoneSchedule, ladder_ratio
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative, worst
from score_sde.selftest.textbook import INTERVALS, PRIOR_STD, PROCESSES


def check(setting: Setting) -> Iterator[Row]:
    """Checks marginals, drift, diffusion, inverse, transitions, bridges and prior of every SDE, and schedules."""
    for name, make in SDES.items():
        if name in PROCESSES:
            yield from closed_forms(name, make(), setting)
        yield from identities(name, make, setting)
    yield Row("vpsde in 1000 levels: DDPM's betas from 1e-4 to 0.02", ddpm_chain(), 1e-9)
    yield Row("NCSN's noise levels: probability that neighbours overlap, distance from 1/2", ladder_overlap(), 1e-8)
    yield from learned(setting)


def closed_forms(name: str, sde: SDE, setting: Setting) -> Iterator[Row]:
    """Checks an SDE against the textbook process of this name."""
    t = setting.tensor(interval(sde, 61))
    book = PROCESSES[name](exactly(t).numpy())
    found = worst([relative(sde.alpha(t), book.alpha), relative(sde.sigma(t), book.sigma)])
    yield Row(f"{name}: alpha and sigma against the closed forms", found, 500 * setting.rounding)
    found = worst([relative(sde.drift(t), book.f), relative(sde.diffusion(t), book.g)])
    yield Row(f"{name}: drift and diffusion against the closed forms", found, max(1e-11, 500 * setting.rounding))
    ends = (sde.t_min, sde.t_max, sde.prior_std)
    yield Row(f"{name}: interval and prior", distance(ends, (*INTERVALS[name], PRIOR_STD[name])), 0.0)


def identities(name: str, make: Callable[[], SDE], setting: Setting) -> Iterator[Row]:
    """Checks any SDE: marginals against drift and diffusion, the inverse, transitions, bridges and the prior."""
    sde = make()
    times = interval(sde, 61)
    yield Row(f"{name}: marginals against the moment equations", moment_equations(sde), 1e-4)
    yield Row(f"{name}: marginals against a simulation, in standard errors", simulation(sde, setting), 4.0)
    l = sde.log_snr(setting.tensor(times))
    again = distance(sde.log_snr(sde.time(l)), l, 1 + exactly(l).abs())
    yield Row(f"{name}: log-SNR to time and back", again, 500 * setting.rounding)
    yield Row(f"{name}: the time without noise", data_time(sde), 0.0)
    yield Row(f"{name}: times as numbers, in tables and as tensors", time_types(make, times), 1e-12)
    yield Row(f"{name}: transitions compose and carry the marginals", transitions(sde, times), 1e-11)
    yield Row(f"{name}: bridges keep the marginals", bridges(sde, times, setting), 16 * setting.rounding)
    found = posterior(sde, times, setting)
    yield Row(f"{name}: the full bridge is Bayes's posterior", found, max(1e-8, 16 * setting.rounding))
    yield Row(f"{name}: density of the prior", prior(sde, setting), 16 * setting.rounding)


def interval(sde: SDE, num: int) -> Tensor:
    """Returns times over the whole interval, in geometric progression; float64."""
    return sde.t_min * (sde.t_max / sde.t_min) ** torch.linspace(0, 1, num, dtype=torch.float64)


def moment_equations(sde: SDE) -> float:
    """Returns the error of dm/dt = f m and dv/dt = 2 f v + g^2, integrated over the whole interval."""
    first, last = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
    times = sde.time(torch.linspace(first, last, 4001, dtype=torch.float64)).clamp(sde.t_min, sde.t_max)
    # Include whole numbers, where drift and diffusion of a discrete-time process jump.
    times = torch.cat([times, torch.arange(1, math.floor(sde.t_max) + 1, dtype=torch.float64)])
    times = times[times >= sde.t_min].unique()
    alpha, sigma, _ = sde.marginal(times[0].item())
    m, v, marginals = alpha, sigma**2, []
    for a, b in frozen_moves(sde, times):
        m, v = a * m, a**2 * v + b**2
        marginals.append((m, math.sqrt(v)))
    alpha, sigma, _ = sde.marginal(times[1:])
    return relative(marginals, torch.stack([alpha, sigma], 1))


def simulation(sde: SDE, setting: Setting) -> float:
    """Returns the error of mean and deviation of 4000 simulated particles at mid-interval, in standard errors."""
    num, point, generator = 4000, 1.5, torch.Generator().manual_seed(0)
    times = torch.linspace(sde.t_min, 0.5 * (sde.t_min + sde.t_max), 401, dtype=torch.float64)
    first, last = sde.marginal(times[0].item()), sde.marginal(times[-1].item())
    x = setting.tensor(first.alpha * point + first.sigma * torch.randn(num, generator=generator))
    for a, b in frozen_moves(sde, times):
        x = a * x + b * setting.tensor(torch.randn(num, generator=generator))
    x = exactly(x)
    mean = abs(x.mean().item() - last.alpha * point) / (last.sigma / math.sqrt(num))
    std = abs(x.std().item() - last.sigma) / (last.sigma / math.sqrt(2 * num))
    return worst([mean, std])


def frozen_moves(sde: SDE, times: Tensor) -> list[tuple[float, float]]:
    """Returns (a, b) of x -> a x + b z between neighbouring times, by the midpoint rule (second order)."""
    h, middle = times.diff(), 0.5 * (times[1:] + times[:-1])
    growth = torch.exp(h * sde.drift(middle))
    return list(zip(growth.tolist(), ((growth * h).sqrt() * sde.diffusion(middle)).tolist()))


def data_time(sde: SDE) -> float:
    """Returns the distance of (alpha, sigma) at infinite log-SNR from (1, 0)."""
    alpha, sigma, _ = sde.marginal(sde.time(torch.tensor(math.inf, dtype=torch.float64)).item())
    return distance([alpha, sigma], [1.0, 0.0])


def time_types(make: Callable[[], SDE], times: Tensor) -> float:
    """Returns the difference in alpha, sigma, log-SNR, drift and diffusion between numbers, tables and tensors."""
    alone, table = make(), make()
    table.tabulate(times)
    expected = torch.stack([*alone.marginal(times), alone.drift(times), alone.diffusion(times)], 1)
    results = [[[*sde.marginal(t), sde.drift(t), sde.diffusion(t)] for t in times.tolist()] for sde in (alone, table)]
    return worst(relative(found, expected) for found in results)


def triples(times: Tensor) -> list[tuple[float, float, float]]:
    """Returns (early, middle, late) times, near one another and far apart."""
    return [tuple(times[list(rows)].tolist()) for rows in [(0, 1, 2), (0, 30, 60), (20, 40, 41), (50, 58, 60)]]


def transitions(sde: SDE, times: Tensor) -> float:
    """Returns the error of r -> s -> t against r -> t, and of the marginal at t obtained from the marginal at r."""
    errors = []
    for r, s, t in triples(times):
        (a1, b1), (a2, b2), (a, b) = sde.transition(r, s), sde.transition(s, t), sde.transition(r, t)
        early, late = sde.marginal(r), sde.marginal(t)
        errors += [
            relative([a1 * a2, (a2 * b1) ** 2 + b2**2], [a, b**2]),
            relative([a * early.alpha, (a * early.sigma) ** 2 + b**2], [late.alpha, late.sigma**2]),
        ]
    return worst(errors)


def bridge(sde: SDE, t: float, s: float, eta: float, setting: Setting) -> tuple[float, float, float]:
    """Returns the factors of x and x0 in the mean of the bridge, and its standard deviation."""
    x, x0 = setting.tensor([[1.0], [0.0]]), setting.tensor([[0.0], [1.0]])
    mean, std = sde.bridge(x, x0, t, s, eta)
    return *mean.flatten().tolist(), std


def bridges(sde: SDE, times: Tensor, setting: Setting) -> float:
    """Returns the error of the bridge for three values of eta.

    With the true x0 its result has the marginal at s; its standard deviation is eta sigma_s b / sigma_t.
    """
    errors = []
    for _, s, t in triples(times):
        for eta in (0.0, 0.4, 1.0):
            of_x, of_x0, std = bridge(sde, t, s, eta, setting)
            early, late = sde.marginal(s), sde.marginal(t)
            errors += [
                abs(of_x * late.alpha + of_x0 - early.alpha) / early.alpha,
                abs((of_x * late.sigma) ** 2 + std**2 - early.sigma**2) / early.sigma**2,
                abs(std - eta * early.sigma * sde.transition(s, t)[1] / late.sigma) / early.sigma,
            ]
    return worst(errors)


def posterior(sde: SDE, times: Tensor, setting: Setting) -> float:
    """Returns the error at eta = 1 against N(alpha_s x0, sigma_s^2) N(x_t; a x_s, b^2), whose precisions add."""
    errors = []
    for _, s, t in triples(times):
        early, late = sde.marginal(s), sde.marginal(t)
        a = late.alpha / early.alpha
        gain = a / (late.sigma**2 - (a * early.sigma) ** 2)
        variance = 1 / (early.sigma**-2 + a * gain)
        of_x, of_x0, std = bridge(sde, t, s, 1.0, setting)
        errors += [
            abs(of_x - variance * gain) * late.sigma / early.sigma,
            abs(of_x0 - variance * early.alpha / early.sigma**2) / early.alpha,
            relative(std, math.sqrt(variance)),
        ]
    return worst(errors)


def prior(sde: SDE, setting: Setting) -> float:
    """Returns the error of the density of N(0, prior_std^2) in six dimensions, against torch's."""
    x = 2 * sde.prior_std * setting.normals(5, 2, 3)
    law = torch.distributions.Normal(exactly(0.0), exactly(sde.prior_std))
    return relative(sde.prior_log_prob(x), law.log_prob(exactly(x)).flatten(1).sum(1))


def ddpm_chain() -> float:
    """Returns the error of x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z, with beta linear in i."""
    chain, betas = VPSDE().discretize(1000), np.linspace(1e-4, 0.02, 1000)
    kernels = [chain.transition(float(i - 1), float(i)) for i in range(2, 1001, 7)]
    return relative([(a**2, b**2) for a, b in kernels], np.stack([1 - betas, betas], 1)[1::7])


def ladder_overlap() -> float:
    """Returns the error of Phi(sqrt(2 D) (r - 1) + 3 r) - Phi(sqrt(2 D) (r - 1) - 3 r) = 1/2.

    Reference: Song, Ermon, 2020, technique 2.
    """
    normal, errors = NormalDist(), []
    for dimensions in (5, 64, 3072, 196_608):
        r, width = ladder_ratio(dimensions), math.sqrt(2 * dimensions)
        overlap = normal.cdf(width * (r - 1) + 3 * r) - normal.cdf(width * (r - 1) - 3 * r)
        errors.append(abs(overlap - 0.5))
    return worst(errors)


def learned(setting: Setting) -> Iterator[Row]:
    """Checks a learned schedule with perturbed parameters: end points, inverse, and density against differences."""
    schedule = MonotoneSchedule(-8.0, 9.0, 6).to(setting.device)
    for seed, parameter in enumerate(schedule.parameters()):
        parameter.data += 0.5 * setting.normals(*parameter.shape, seed=seed).to(parameter)
    ends = schedule(setting.tensor([9.0, -8.0]))
    yield Row("learned schedule: times of the end points", distance(ends, [0.0, 1.0]), 4 * setting.rounding)
    l = setting.tensor(np.linspace(-8, 9, 35))
    again = distance(schedule.log_snr(schedule(l)), l, 1 / exactly(schedule.density(l)))
    yield Row("learned schedule: log-SNR to time and back", again, 16 * setting.rounding)
    fine = torch.linspace(-8, 9, 3401, dtype=torch.float64, device=setting.device)
    found = distance(-schedule(fine).diff() / fine.diff(), schedule.density(0.5 * (fine[1:] + fine[:-1])))
    yield Row("learned schedule: density against the slope of the time", found, 1e-4)
