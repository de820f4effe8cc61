"""Every step under every SDE, without random numbers: order, limit distribution and exact cases.

For Gaussian data the denoiser is affine, and so is a sampler: the last state is a x_T + sum_k b_k z_k + c. One
trajectory of a batch of impulses, each nonzero in a single draw, gives a, every b_k and c. Mean and variance at the end
are therefore exact up to rounding, and their error falls with the order of the step.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde.samplers import (
    DDIM,
    GRIDS,
    ODE,
    PLMS,
    PNDM,
    STEPS,
    Ancestral,
    AnnealedLangevin,
    Churn,
    ConsistencyStep,
    PredictorCorrector,
    Step,
    langevin_step_size,
    trajectory,
)
from score_sde.samplers.adaptive import StepControl
from score_sde.samplers.predictor_corrector import STEP_SIZES, Corrector
from score_sde.sde_lib import ADAPTIVE, SDE, SDES, Denoise, GaussianMixture, Prediction
from score_sde.sde_lib.process import Time
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative, worst
from score_sde.selftest.textbook import PROCESSES, Process

MEAN, VARIANCE, SHARE = 0.8, 0.3, 0.5
FEW = 32

WITHOUT_STEPS = {"ode", "adaptive_sde", "dpm_adaptive"}
"""Adaptive steps, which have no order."""

OTHER_LAWS = {"ald", "consistency"}
"""Steps whose limit of many moves is not the data distribution, but another one in closed form."""

ORDERS = {
    **dict.fromkeys(("heun", "edm", "plms", "pndm", "multistep", "dpmpp_2m", "dpm_2s", "dpmpp_2s"), 2),
    **dict.fromkeys(("dpm", "dpmpp_3m", "deis", "dpm_3s"), 3),
    **dict.fromkeys(("ipndm", "vab", "unipc", "rk4"), 4),
    **dict.fromkeys(("adams", "rk45"), 5),
}
"""Orders of the steps; 1 by default."""

REPRESENTATIVE = ("vpsde", "vesde")
"""Processes on which ``PROCESS_FREE`` steps are checked."""

PROCESS_FREE = {*ORDERS, "dpmpp_2m_sde", "dpmpp_3m_sde", "sa"} - {"heun", "plms", "pndm"}
"""Steps that depend on x / alpha and log-SNR only: they act equally on every process, as the tests show for each."""


def make_step(name: str, sde: SDE, **options: float) -> Step:
    """Returns the step of this name in ``STEPS``."""
    kind: Callable[..., Step] = STEPS[name]
    return kind(sde, **options)


def default_step(name: str) -> Callable[[SDE, int], Step]:
    """Returns (sde, num_steps) -> the step of this name with default options."""
    return lambda sde, num_steps: make_step(name, sde)


def shrinking(sde: SDE, num_steps: int) -> Step:
    """Returns a predictor-corrector whose Langevin step size shrinks with the predictor's moves.

    The step size does not depend on the state's norm. With a fixed ratio the corrector would not become exact in the
    limit of many steps.
    """
    return PredictorCorrector(sde, corrector="ald", snr=0.16 * math.sqrt(FEW / num_steps))


CASES: dict[str, Callable[[SDE, int], Step]] = {
    **{name: default_step(name) for name in STEPS if name not in WITHOUT_STEPS | OTHER_LAWS},
    "pc": shrinking,
    "ddim, eta 0.5": lambda sde, num_steps: DDIM(sde, eta=0.5),
    "ancestral, variance 1": lambda sde, num_steps: Ancestral(sde, v=1.0),
}
"""Steps that are affine in the state if the denoiser is."""


def check(setting: Setting) -> Iterator[Row]:
    """Checks single moves, orders, exact cases, and predictor-corrector at equal cost."""
    yield from moves(setting)
    yield from fixed_orders(setting)
    for sde_name, make in SDES.items():
        for name, case in CASES.items():
            sde, order, few, precision, allowed = make(), ORDERS.get(name, 1), FEW, setting, 0.15
            if name in PROCESS_FREE:
                if sde_name not in REPRESENTATIVE:
                    continue
                few, precision, allowed = 2 * FEW, Setting(torch.device("cpu"), torch.float64), 0.4
            yield from convergence(f"{name}, {sde_name}", partial(case, sde), sde, order, few, precision, allowed)
        for solver in ADAPTIVE if sde_name == "vpsde" else ("dopri5",):  # only the flow differs between SDEs
            yield Row(f"ode by {solver}, {sde_name}: error over tolerance", flow(make(), solver, setting), 250)
    for name, exact_case in EXACT_FOR_A_POINT.items():
        found = worst(end_at_a_point(exact_case, make(), setting) for make in SDES.values())
        yield Row(f"{name}: mean and variance in 3 steps, one-point data", found, 5000 * setting.rounding)
    yield Row("ancestral, variance 1: variance in 3 steps, data N(0, 1)", unit_ending(setting), 1e-4)
    for sde_name, make in SDES.items():
        found = equal_cost(make(), setting)
        yield Row(f"pc, {sde_name}: KL divergence relative to the predictor in twice the steps", found, 1.0)


def moves(setting: Setting) -> Iterator[Row]:
    """Checks single moves of steps, correctors and churn, and the proposals of adaptive steps."""
    known = [s for s in SDES if s in PROCESSES]
    for name in [name for name in STEPS if name in MOVES]:
        options = OPTIONS.get(name, {})
        found = worst(
            one_move(make_step(name, SDES[s](), **options), MOVES[name], PROCESSES[s], setting) for s in known
        )
        yield Row(f"{name}: one move against the closed form", found, 2000 * setting.rounding)
    for name in [name for name in STEP_SIZES if name in RATIOS]:
        found = worst(corrector(name, s, setting) for s in known)
        yield Row(f"corrector {name}: one move against the closed form", found, 1000 * setting.rounding)
    found = worst(added_noise(s, setting) for s in known)
    yield Row("edm: noise level and state after churn, against the closed form", found, 2000 * setting.rounding)
    for name, options, form in PROPOSALS:
        found = worst(proposal(make_step(name, SDES[s](), **options), form, s) for s in known)
        title = f"{name}, order {options['order']}" if options else name
        yield Row(f"{title}: both proposals against the closed form", found, 1e-10)


def fixed_orders(setting: Setting) -> Iterator[Row]:
    """Checks orders on times even in sigma, annealed Langevin dynamics, and consistency sampling."""
    for name, (case, order) in EVEN_ORDERS.items():
        lost = order - even_order(case, setting)
        yield Row(f"{name}, times even in sigma: shortfall from order {order}", lost, 0.4)
    found = worst(recursion(make(), num_steps, setting) for make in SDES.values() for num_steps in (1, 2))
    yield Row("ald: variance over the noise levels, one-point data", found, 1000 * setting.rounding)
    found = worst(step_size(ratio, num_steps) for ratio in (1.04, 1.5, 10.0) for num_steps in (1, 5))
    yield Row("ald: remaining variance, above the best of 1000 step sizes", found, 1e-9)
    found = worst(known_ends(ConsistencyStep(make()), setting) for make in SDES.values())
    yield Row("consistency: mean and variance in 3 steps, exact consistency model", found, 1000 * setting.rounding)


def convergence(
    name: str, step: Callable[[int], Step], sde: SDE, order: int, few: int, setting: Setting, allowed: float
) -> Iterator[Row]:
    """Checks the order of a step and its limit distribution, from ``few`` and twice as many moves."""
    coarse, fine = (ending(step(n), log_snr_grid(sde, n), setting) for n in (few, 2 * few))
    lost = order - math.log2(math.hypot(*coarse) / math.hypot(*fine))
    yield Row(f"{name}: shortfall from order {order}", lost, allowed)
    limit = [(2**order * f - c) / (2**order - 1) for c, f in zip(coarse, fine)]
    yield Row(f"{name}: mean and variance in the limit of many steps", math.hypot(*limit), 0.02)


class Impulses:
    """Noise whose draw number k is 1 for example 2 + k, and 0 for all others."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, like: Tensor) -> Tensor:
        if 2 + self.drawn == len(like):
            raise ValueError(f"draw number {self.drawn + 1}: a sampler may draw three times a move")
        z = torch.zeros_like(like)
        z[2 + self.drawn] = 1
        self.drawn += 1
        return z


def log_snr_grid(sde: SDE, num_steps: int) -> Tensor:
    """Returns times from log-SNR -6 to 7, clamped to the interval of the SDE."""
    start, end = sde.time(torch.tensor([-6.0, 7.0], dtype=torch.float64)).clamp(sde.t_min, sde.t_max).tolist()
    return GRIDS["log_snr"](sde, num_steps, start, end)


def ending(
    step: Step,
    times: Tensor,
    setting: Setting,
    mean: float = MEAN,
    variance: float = VARIANCE,
    denoise: Denoise | None = None,
) -> tuple[float, float]:
    """Returns the errors at the last time for data N(mean, variance).

    The error of the mean is in standard deviations; the error of the variance is relative. The start is the exact
    marginal at the first time, not the prior, so the errors are the step's alone.

    Args:
        denoise: defaults to the exact denoiser.
    """
    sde = step.sde
    exact = GaussianMixture(setting.tensor([1.0]), setting.tensor([[mean]]), variance).denoiser(sde, SHARE)
    x = setting.tensor(torch.zeros(2 + 3 * len(times), 1))
    x[1] = 1
    *_, end, _ = trajectory(step, denoise or exact, x, times, Impulses())
    c, *responses = exactly(end).flatten().tolist()
    a, *b = (response - c for response in responses)
    first, last = sde.marginal(times[0].item()), sde.marginal(times[-1].item())
    found_mean = a * first.alpha * mean + c
    found_variance = a**2 * (first.alpha**2 * variance + first.sigma**2) + sum(response**2 for response in b)
    expected = last.alpha**2 * variance + last.sigma**2
    return (found_mean - last.alpha * mean) / math.sqrt(expected), found_variance / expected - 1


class Scaled:
    """Noise that is 0, z and 2 z for three examples."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, like: Tensor) -> Tensor:
        self.drawn += 1
        generator = torch.Generator().manual_seed(self.drawn)
        z = torch.randn(like.shape[1:], dtype=torch.float64, generator=generator).to(like)
        return torch.stack([0 * z, z, 2 * z])


def superposition(step: Step, setting: Setting) -> float:
    """Returns |f(2 w) - 2 f(w) + f(0)| / |f(2 w) - f(0)| for Gaussian data.

    f is the last state as a function of w, the first state and all draws.
    """
    denoise = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN]]), VARIANCE).denoiser(step.sde, SHARE)
    x = step.sde.prior_std * setting.tensor([[0.0], [1.0], [2.0]])
    *_, end, _ = trajectory(step, denoise, x, log_snr_grid(step.sde, 8), Scaled())
    zero, once, twice = map(float, end.flatten())
    return abs(twice - 2 * once + zero) / abs(twice - zero)


def flow(sde: SDE, solver: str, setting: Setting) -> float:
    """Returns the relative error of the flow from x_t to x_s, divided by the solver's tolerance.

    x_s = alpha_s m + sqrt((alpha_s^2 v + sigma_s^2) / (alpha_t^2 v + sigma_t^2)) (x_t - alpha_t m)
    """
    t, s = log_snr_grid(sde, 1).tolist()
    late, early = sde.marginal(t), sde.marginal(s)
    denoise = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN]]), VARIANCE).denoiser(sde)
    widths = [math.sqrt(m.alpha**2 * VARIANCE + m.sigma**2) for m in (late, early)]
    x = setting.tensor([[-1.5], [0.0], [2.0]]) * widths[0] + late.alpha * MEAN
    expected = early.alpha * MEAN + widths[1] / widths[0] * (exactly(x) - late.alpha * MEAN)
    found = ODE(sde, solver, rtol=1e-5, atol=1e-5)(denoise, x, t, s, torch.zeros_like)
    return relative(found, expected) / 1e-5


EVEN_ORDERS: dict[str, tuple[Callable[[SDE], Step], int]] = {
    "plms, order 2": (lambda sde: PLMS(sde, 2), 2),
    "plms, order 3": (lambda sde: PLMS(sde, 3), 3),
    "plms, order 4": (PLMS, 3),
    "pndm": (PNDM, 4),
}
"""Step and order on times that are even in sigma / alpha, midpoints included."""


def even_order(case: Callable[[SDE], Step], setting: Setting) -> float:
    """Returns the order measured from sigma 0.6 to 0.1, in few enough steps for float32 to resolve the errors."""
    sde = SDES["edm"]()
    few, many = (ending(case(sde), GRIDS["uniform"](sde, n, 0.6, 0.1), setting) for n in (10, 20))
    return math.log2(math.hypot(*few) / math.hypot(*many))


def recursion(sde: SDE, num_steps: int, setting: Setting) -> float:
    """Returns the relative error of the variance after Langevin steps of size 0.1 sigma^2 at each level.

    The expected variance follows a recursion over the levels.
    """
    times = log_snr_grid(sde, 8)
    ratios = [sde.ratio(t) for t in times.tolist()]
    step = AnnealedLangevin(sde, 0.1 * ratios[-1] ** 2, num_steps)
    variance = 1.0
    for late, early in pairwise(ratios):
        for _ in range(num_steps):
            variance = (1 - 0.1) ** 2 * variance + 2 * 0.1
        variance *= (late / early) ** 2
    return abs(1 + ending(step, times, setting, variance=0.0)[1] - variance) / variance


def step_size(ratio: float, num_steps: int) -> float:
    """Returns the variance left of the previous level, minus the least that any of 1000 step sizes leaves."""

    def left(h: float) -> float:
        variance = ratio**2
        for _ in range(num_steps):
            variance = (1 - h) ** 2 * variance + 2 * h
        return variance

    return left(langevin_step_size(ratio, num_steps)) - min(left(i / 1000) for i in range(1000))


def known_ends(step: Step, setting: Setting) -> float:
    """Returns the error of the end distribution for a denoiser that returns the end point of the flow.

    The flow keeps the distance from the mean in standard deviations.
    """

    def end(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        alpha, sigma, _ = step.sde.marginal(t)
        return Prediction(MEAN + math.sqrt(VARIANCE / (alpha**2 * VARIANCE + sigma**2)) * (x - alpha * MEAN))

    return math.hypot(*ending(step, log_snr_grid(step.sde, 3), setting, denoise=end))


EXACT_FOR_A_POINT: dict[str, Callable[[SDE], Step]] = {
    "ddim": lambda sde: DDIM(sde),
    "ddim, eta 0.5": lambda sde: DDIM(sde, eta=0.5),
    "ddim, eta 1": lambda sde: DDIM(sde, eta=1.0),
    "ancestral": lambda sde: Ancestral(sde),
    **{name: partial(make_step, name) for name in ("heun", "plms", "pndm", "consistency")},
}
"""Steps that are exact if the denoiser returns a constant."""


def end_at_a_point(case: Callable[[SDE], Step], sde: SDE, setting: Setting) -> float:
    """Returns the error of the end distribution for one-point data, whose denoiser is constant."""
    return math.hypot(*ending(case(sde), log_snr_grid(sde, 3), setting, variance=0.0))


def unit_ending(setting: Setting) -> float:
    """Returns the error of the larger variance, which is exact for alpha^2 + sigma^2 = 1 and data N(0, 1)."""
    sde = SDES["vpsde"]()
    return abs(ending(Ancestral(sde, v=1.0), GRIDS["log_snr"](sde, 3), setting, 0.0, 1.0)[1])


class Coefficients(NamedTuple):
    """A ``Process`` at one time."""

    alpha: float
    sigma: float
    f: float
    g: float


def coefficients(process: Callable[[np.ndarray], Process], t: float | Tensor) -> Coefficients:
    """Returns the coefficients of a process at time t."""
    return Coefficients(*map(float, process(exactly(t).numpy())))


Noises = Callable[[], Tensor]
"""Returns the next draw."""

Form = Callable[[Tensor, Coefficients, Coefficients, float, Noises], Tensor]
"""(x, coefficients at t, coefficients at s, t - s, draw) -> x at s."""


def x0_of(x: Tensor, p: Coefficients) -> Tensor:
    """Returns E[x_0 | x] of N(MEAN, VARIANCE)."""
    return MEAN + p.alpha * VARIANCE * (x - p.alpha * MEAN) / (p.alpha**2 * VARIANCE + p.sigma**2)


def score_of(x: Tensor, p: Coefficients) -> Tensor:
    """Returns grad log p_t(x)."""
    return -(x - p.alpha * MEAN) / (p.alpha**2 * VARIANCE + p.sigma**2)


def euler_maruyama(x: Tensor, p: Coefficients, q: Coefficients, h: float, draw: Noises) -> Tensor:
    """Song et al., 2021, section 4.1."""
    return x - h * (p.f * x - p.g**2 * score_of(x, p)) + p.g * math.sqrt(h) * draw()


def reverse_diffusion(x: Tensor, p: Coefficients, q: Coefficients, h: float, draw: Noises) -> Tensor:
    """Song et al., 2021, eq. 46, with the exact forward move x_t = a x_s + b z."""
    a = p.alpha / q.alpha
    b2 = p.sigma**2 - a**2 * q.sigma**2
    return 2 * x - a * x + b2 * score_of(x, p) + math.sqrt(b2) * draw()


def ancestral(x: Tensor, p: Coefficients, q: Coefficients, h: float, draw: Noises) -> Tensor:
    """A draw of q(x_s | x_t, x_0) at the estimated x_0. Ho et al., 2020, eq. 6, 7."""
    return posterior(x, x0_of(x, p), p, q, draw())


def posterior(x: Tensor, x0: Tensor, p: Coefficients, q: Coefficients, z: Tensor) -> Tensor:
    """A draw of q(x_s | x_t, x_0) with the noise z. Ho et al., 2020, eq. 6, 7."""
    a = p.alpha / q.alpha
    b2 = p.sigma**2 - a**2 * q.sigma**2
    mean = q.alpha * b2 / p.sigma**2 * x0 + a * q.sigma**2 / p.sigma**2 * x
    return mean + math.sqrt(b2) * q.sigma / p.sigma * z


def ddim(x: Tensor, p: Coefficients, q: Coefficients, h: float, draw: Noises) -> Tensor:
    """Song, Meng, Ermon, 2021, eq. 12 without noise."""
    x0 = x0_of(x, p)
    return q.alpha * x0 + q.sigma * (x - p.alpha * x0) / p.sigma


def heun(x: Tensor, p: Coefficients, q: Coefficients, h: float, draw: Noises) -> Tensor:
    """The trapezoidal rule for d(x / alpha) / d(sigma / alpha) = eps. Karras et al., 2022, algorithm 1."""
    eps = (x - p.alpha * x0_of(x, p)) / p.sigma
    dr = q.sigma / q.alpha - p.sigma / p.alpha
    y = q.alpha * (x / p.alpha + dr * eps)
    return q.alpha * (x / p.alpha + dr * (eps + (y - q.alpha * x0_of(y, q)) / q.sigma) / 2)


def pc(x: Tensor, p: Coefficients, q: Coefficients, h: float, draw: Noises) -> Tensor:
    """Song et al., 2021, algorithm 1 in the order of the released code: Langevin at t, then the predictor to s."""
    return reverse_diffusion(langevin("langevin", x, p, q, draw), p, q, h, draw)


def ald(x: Tensor, p: Coefficients, q: Coefficients, h: float, draw: Noises) -> Tensor:
    """Song, Ermon, 2020, algorithm 1, for the noisy data x / alpha; two steps, of size EPSILON at the last level."""
    size = EPSILON * p.sigma**2 * (q.alpha / q.sigma) ** 2
    for _ in range(2):
        x = x + size * score_of(x, p) + math.sqrt(2 * size) * draw()
    return q.alpha * x / p.alpha


def consistency(x: Tensor, p: Coefficients, q: Coefficients, h: float, draw: Noises) -> Tensor:
    """Song et al., 2023, algorithm 1."""
    return q.alpha * x0_of(x, p) + q.sigma * draw()


def ancestral_learned(x: Tensor, p: Coefficients, q: Coefficients, h: float, draw: Noises) -> Tensor:
    """Nichol, Dhariwal, 2021, eq. 15, with v = 1/2."""
    a = p.alpha / q.alpha
    b2 = p.sigma**2 - a**2 * q.sigma**2
    noise = draw()
    return ancestral(x, p, q, h, lambda: torch.zeros_like(x)) + math.sqrt(b2 * q.sigma / p.sigma) * noise


EPSILON = 0.05

OPTIONS: dict[str, dict[str, float]] = {"ald": {"epsilon": EPSILON, "langevin_steps": 2}, "pndm": {"order": 2}}
"""Options of the steps below that differ from the defaults."""

MOVES: dict[str, Form] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "ancestral_learned": ancestral_learned,
    "ddim": ddim,
    "heun": heun,
    "plms": heun,
    "pndm": heun,
    "pc": pc,
    "ald": ald,
    "consistency": consistency,
}
"""One move from t to s = t - h on N(MEAN, VARIANCE), with the coefficients p at t and q at s."""

SNR = 0.16

RATIOS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "ald": lambda score, z, sigma: exactly(sigma**2),
    "langevin": lambda score, z, sigma: 68 / (score.square().sum(1, keepdim=True) + 64 / sigma**2),
    "langevin_batch": lambda score, z, sigma: (z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2,
}
"""Square of noise over score, for examples of four dimensions. Song et al., 2021, algorithms 4 and 5."""


def langevin(name: str, x: Tensor, p: Coefficients, q: Coefficients, draw: Noises) -> Tensor:
    """Returns x + h score + sqrt(2 h) z at time t, with h = 2 (alpha_t / alpha_s snr)^2 times the ratio."""
    score, z = score_of(x, p), draw()
    h = 2 * (p.alpha / q.alpha * SNR) ** 2 * RATIOS[name](score, z, p.sigma)
    return x + h * score + torch.sqrt(2 * h) * z


def one_move(step: Step | Corrector, form: Form, process: Callable[[np.ndarray], Process], setting: Setting) -> float:
    """Returns the error of one move against a closed form, for two examples of four dimensions and fixed draws.

    The error is relative to the largest entry, because an entry may be a small difference of large terms.
    """
    t, s = step.sde.time(torch.tensor([-1.0, 0.0], dtype=torch.float64)).tolist()
    p, q = coefficients(process, t), coefficients(process, s)
    mixture = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN] * 4]), VARIANCE)
    x, draws = p.sigma * setting.normals(2, 4), [setting.normals(2, 4, seed=seed) for seed in (1, 2)]
    given, used = iter(draws), iter(draws)
    if isinstance(step, Step):
        step.reset([t, s])
    found = step(mixture.denoiser(step.sde, SHARE), x, t, s, lambda like: next(given))
    expected = form(exactly(x), p, q, t - s, lambda: exactly(next(used)))
    return distance(found, expected, expected.abs().max())


def added_noise(sde_name: str, setting: Setting) -> float:
    """Returns the error of churn: level r (1 + 40 / 200), and the forward noise up to it.

    Reference: Karras et al., 2022, algorithm 2, lines 4 to 6.
    """
    step, x = Churn(SDES[sde_name](), churn=40.0, churn_noise=1.5), setting.normals(3, 2)
    times = step.sde.time(torch.linspace(-4.0, 4.0, 200, dtype=torch.float64)).tolist()
    step.reset(times)
    state, later = step.add_noise(x, times[20], torch.ones_like)
    p, q = (coefficients(PROCESSES[sde_name], v) for v in (times[20], later))
    a = q.alpha / p.alpha
    form = a * exactly(x) + 1.5 * math.sqrt(q.sigma**2 - (a * p.sigma) ** 2)
    return max(relative(state, form), abs(q.sigma / q.alpha / (p.sigma / p.alpha) / 1.2 - 1))


Between = list[Coefficients]

Proposals = Callable[[Tensor, Coefficients, Coefficients, Between, Tensor], tuple[Tensor, Tensor]]
"""(x, coefficients at t, at s, in between, z) -> both states at s."""


def proposal(step: Step, form: Proposals, sde_name: str) -> float:
    """Returns the error of both states that an adaptive step proposes, in float64."""
    assert isinstance(step, StepControl)
    setting = Setting(torch.device("cpu"), torch.float64)
    fractions = torch.tensor([0, 1, 1 / 3, 1 / 2, 2 / 3], dtype=torch.float64)
    times = step.sde.time(fractions - 1).tolist()  # log-SNR -1 to 0
    p, q, *between = (coefficients(PROCESSES[sde_name], v) for v in times)
    mixture = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN] * 4]), VARIANCE).denoiser(step.sde, SHARE)
    x, z = p.sigma * setting.normals(2, 4), setting.normals(2, 4, seed=1)
    t, s = (torch.full((2, 1), time, dtype=torch.float64) for time in times[:2])
    found = step.propose(lambda x, t: mixture(x, t).x0, x, t, s, lambda: z)
    return worst(relative(state, exact) for state, exact in zip(found, form(exactly(x), p, q, between, exactly(z))))


def by_sde(x: Tensor, p: Coefficients, q: Coefficients, between: Between, z: Tensor) -> tuple[Tensor, Tensor]:
    """Ancestral moves with the first estimate, and with the mean of it and the estimate at the first result."""
    low = posterior(x, x0_of(x, p), p, q, z)
    return low, posterior(x, 0.5 * (x0_of(x, p) + x0_of(low, q)), p, q, z)


def eps_of(x: Tensor, p: Coefficients) -> Tensor:
    """Returns (x - alpha x0) / sigma."""
    return (x - p.alpha * x0_of(x, p)) / p.sigma


def by_dpm_12(x: Tensor, p: Coefficients, q: Coefficients, between: Between, z: Tensor) -> tuple[Tensor, Tensor]:
    """DDIM's moves with eps at t, and with eps halfway in log-SNR."""

    def move(to: Coefficients, eps: Tensor) -> Tensor:
        return to.alpha * (x - p.sigma * eps) / p.alpha + to.sigma * eps

    return move(q, eps_of(x, p)), move(q, eps_of(move(between[1], eps_of(x, p)), between[1]))


def by_dpm_23(x: Tensor, p: Coefficients, q: Coefficients, between: Between, z: Tensor) -> tuple[Tensor, Tensor]:
    """DPM-Solver-2 with its intermediate point at one third, and DPM-Solver-3, as in the paper; h = 1 / 2."""
    (third, _, last), r1, r2, h, eps = between, 1 / 3, 2 / 3, 0.5, eps_of(x, p)
    u1 = third.alpha / p.alpha * x - third.sigma * math.expm1(r1 * h) * eps
    d1 = eps_of(u1, third) - eps
    u2 = last.alpha / p.alpha * x - last.sigma * math.expm1(r2 * h) * eps
    u2 = u2 - last.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = eps_of(u2, last) - eps
    plain = q.alpha / p.alpha * x - q.sigma * math.expm1(h) * eps
    low = plain - q.sigma / (2 * r1) * math.expm1(h) * d1
    return low, plain - q.sigma / r2 * (math.expm1(h) / h - 1) * d2


PROPOSALS: list[tuple[str, dict[str, float], Proposals]] = [
    ("adaptive_sde", {}, by_sde),
    ("dpm_adaptive", {"order": 2}, by_dpm_12),
    ("dpm_adaptive", {"order": 3}, by_dpm_23),
]
"""Name, options and closed form of the proposals of adaptive steps."""


def corrector(name: str, sde_name: str, setting: Setting) -> float:
    """Returns the error of one Langevin move against the closed form."""

    def form(x: Tensor, p: Coefficients, q: Coefficients, h: float, draw: Noises) -> Tensor:
        return langevin(name, x, p, q, draw)

    return one_move(Corrector(SDES[sde_name](), name, SNR, 1), form, PROCESSES[sde_name], setting)


def equal_cost(sde: SDE, setting: Setting) -> float:
    """Returns KL(N(m', v') || N(m, v)) of predictor-corrector, relative to the predictor's with twice the steps.

    The corrector's step size does not depend on the state. (With fewer steps, or a ratio below 0.3, a predictor alone
    is better on a single Gaussian.)
    """

    def divergence(step: Step, num_steps: int) -> float:
        mean, variance = ending(step, log_snr_grid(sde, num_steps), setting)
        return 0.5 * (variance + mean**2 - math.log1p(variance))

    corrected = PredictorCorrector(sde, "ancestral", "ald", snr=0.3)
    return divergence(corrected, 2 * FEW) / divergence(Ancestral(sde), 4 * FEW)
