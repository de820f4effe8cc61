"""Every step under every SDE, without a random number: its order, the law that it ends in, and what it is exact for.

Where the data are one Gaussian the denoiser is affine, and so is a sampler: the last state is
a x_T + sum_k b_k z_k + c.
One trajectory of a batch of impulses, each in one of the draws alone, tells a, every b_k and c; so the mean and the
variance at the end are known to rounding, and their error can be seen to fall with the order of the step.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

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
from score_sde.sde_lib import ADAPTIVE, SDE, SDES, Denoiser, GaussianMixture, Prediction
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative, worst
from score_sde.selftest.textbook import PROCESSES, Process

MEAN, VARIANCE, SHARE = 0.8, 0.3, 0.5
FEW = 32

WITHOUT_STEPS = {"ode", "adaptive_sde", "dpm_adaptive"}
"""Steps that keep a tolerance: they have no order."""

OTHER_LAWS = {"ald", "consistency"}
"""Steps that do not end in the law of the data as they become many, but in one that is known."""

ORDERS = {
    **dict.fromkeys(("heun", "edm", "plms", "pndm", "multistep", "dpmpp_2m", "dpm_2s", "dpmpp_2s"), 2),
    **dict.fromkeys(("dpm", "dpmpp_3m", "deis", "dpm_3s"), 3),
    **dict.fromkeys(("ipndm", "vab", "unipc", "rk4"), 4),
    **dict.fromkeys(("adams", "rk45"), 5),
}
"""The order of a step where it is not 1."""

SPOKEN_FOR_ALL = ("vpsde", "vesde")
"""Processes that steps in shared coordinates are tried on."""

IN_COORDINATES = {*ORDERS, "dpmpp_2m_sde", "dpmpp_3m_sde", "sa"} - {"heun", "plms", "pndm"}
"""Steps in coordinates that all processes share: what they do to one they do to all, as the tests say of each."""


def shrinking(sde: SDE, num_steps: int) -> Step:
    """Predictor-corrector whose Langevin moves shrink with the moves of the predictor, and do not see the state's norm.

    With a fixed ratio the corrector does not become exact as the steps become many.
    """
    return PredictorCorrector(sde, corrector="ald", snr=0.16 * math.sqrt(FEW / num_steps))


CASES: dict[str, Callable[[SDE, int], Step]] = {
    **{
        name: lambda sde, num_steps, kind=kind: kind(sde)
        for name, kind in STEPS.items()
        if name not in WITHOUT_STEPS | OTHER_LAWS
    },
    "pc": shrinking,
    "ddim, eta 0.5": lambda sde, num_steps: DDIM(sde, eta=0.5),
    "ancestral, variance 1": lambda sde, num_steps: Ancestral(sde, v=1.0),
}
"""Steps that are affine in the state where the denoiser is."""


def check(setting: Setting) -> Iterator[Row]:
    """Single moves, orders and ends, what some steps are exact for, and predictor-corrector at equal cost."""
    known = [s for s in SDES if s in PROCESSES]
    for name in [name for name in STEPS if name in MOVES]:
        options = OPTIONS.get(name, {})
        found = worst(one_move(STEPS[name](SDES[s](), **options), MOVES[name], PROCESSES[s], setting) for s in known)
        yield Row(f"{name}: one move against the closed form", found, 2000 * setting.rounding)
    for name in [name for name in STEP_SIZES if name in RATIOS]:
        found = worst(corrector(name, s, setting) for s in known)
        yield Row(f"corrector {name}: one move against the closed form", found, 1000 * setting.rounding)
    found = worst(put_in(s, setting) for s in known)
    yield Row("edm: level and state where noise is put in, against the closed form", found, 2000 * setting.rounding)
    for name, options, form in PROPOSALS:
        found = worst(proposal(STEPS[name](SDES[s](), **options), form, s) for s in known)
        title = f"{name}, order {options['order']}" if options else name
        yield Row(f"{title}: both of its proposals against the closed form", found, 1e-10)
    for name, (step, order) in EVEN_ORDERS.items():
        lost = order - even_order(step, setting)
        yield Row(f"{name}, times even in sigma: what its order lacks of {order}", lost, 0.4)
    found = worst(recursion(make(), num_steps, setting) for make in SDES.values() for num_steps in (1, 2))
    yield Row("ald: variance down a ladder where the data are a point", found, 1000 * setting.rounding)
    found = worst(step_size(ratio, num_steps) for ratio in (1.04, 1.5, 10.0) for num_steps in (1, 5))
    yield Row("ald: variance that it leaves, above that of the best of 1000 step sizes", found, 1e-9)
    found = worst(known_ends(ConsistencyStep(make()), setting) for make in SDES.values())
    yield Row("consistency: mean and variance in 3 steps where the ends are known", found, 1000 * setting.rounding)
    for sde_name, make in SDES.items():
        for name, case in CASES.items():
            sde, order, few, precision, allowed = make(), ORDERS.get(name, 1), FEW, setting, 0.15
            if name in IN_COORDINATES:
                if sde_name not in SPOKEN_FOR_ALL:
                    continue
                few, precision, allowed = 2 * FEW, Setting(torch.device("cpu"), torch.float64), 0.4
            yield from convergence(f"{name}, {sde_name}", partial(case, sde), sde, order, few, precision, allowed)
        for solver in ADAPTIVE if sde_name == "vpsde" else ("dopri5",):  # what differs between SDEs is the flow
            yield Row(f"ode by {solver}, {sde_name}: its error over its tolerance", flow(make(), solver, setting), 250)
    for name, case in EXACT_FOR_A_POINT.items():
        found = worst(end_at_a_point(case, make(), setting) for make in SDES.values())
        yield Row(f"{name}: mean and variance in 3 steps where the data are a point", found, 5000 * setting.rounding)
    yield Row("ancestral, variance 1: variance in 3 steps where the data are N(0, 1)", unit_ending(setting), 1e-4)
    for sde_name, make in SDES.items():
        yield Row(f"pc, {sde_name}: its divergence over that of twice the predictor", equal_cost(make(), setting), 1.0)


def convergence(
    name: str, step: Callable[[int], Step], sde: SDE, order: int, few: int, setting: Setting, allowed: float
) -> Iterator[Row]:
    """Rows of the order of a step, and of the law that it ends in, from ``few`` and twice as many moves."""
    coarse, fine = (ending(step(n), log_snr_grid(sde, n), setting) for n in (few, 2 * few))
    lost = order - math.log2(math.hypot(*coarse) / math.hypot(*fine))
    yield Row(f"{name}: what its order lacks of {order}", lost, allowed)
    limit = [(2**order * f - c) / (2**order - 1) for c, f in zip(coarse, fine)]
    yield Row(f"{name}: mean and variance in the limit of many steps", math.hypot(*limit), 0.02)


class Impulses:
    """Draws of which number k is 1 for example 2 + k, and 0 for all others."""

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
    """From log-SNR -6 to 7, within the interval."""
    start, end = sde.time(torch.tensor([-6.0, 7.0], dtype=torch.float64)).clamp(sde.t_min, sde.t_max).tolist()
    return GRIDS["log_snr"](sde, num_steps, start, end)


def ending(
    step: Step,
    times: Tensor,
    setting: Setting,
    mean: float = MEAN,
    variance: float = VARIANCE,
    denoise: Denoiser | None = None,
) -> tuple[float, float]:
    """Errors of the mean, in standard deviations, and of the variance, relative, where N(mean, variance) should be.

    The start is the exact law at the first time, not the prior: what is measured is the step's error alone. Without
    a denoiser it is the exact one.
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
    """Draws that are 0, z and 2 z for three examples."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, like: Tensor) -> Tensor:
        self.drawn += 1
        generator = torch.Generator().manual_seed(self.drawn)
        z = torch.randn(like.shape[1:], dtype=torch.float64, generator=generator).to(like)
        return torch.stack([0 * z, z, 2 * z])


def superposition(step: Step, setting: Setting) -> float:
    """|f(2 w) - 2 f(w) + f(0)| / |f(2 w) - f(0)| of the last state, w the first one and all draws, Gaussian data."""
    denoise = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN]]), VARIANCE).denoiser(step.sde, SHARE)
    x = step.sde.prior_std * setting.tensor([[0.0], [1.0], [2.0]])
    *_, end, _ = trajectory(step, denoise, x, log_snr_grid(step.sde, 8), Scaled())
    zero, once, twice = end.flatten().tolist()
    return abs(twice - 2 * once + zero) / abs(twice - zero)


def flow(sde: SDE, solver: str, setting: Setting) -> float:
    """Error of x_s = alpha_s m + sqrt((alpha_s^2 v + sigma_s^2) / (alpha_t^2 v + sigma_t^2)) (x_t - alpha_t m).

    Relative, over the tolerance of the solver.
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
"""The order of a step where times and their middles are even in sigma / alpha."""


def even_order(case: Callable[[SDE], Step], setting: Setting) -> float:
    """Order from the errors of mean and variance from sigma 0.6 to 0.1, in so few steps that float32 sees them fall."""
    sde = SDES["edm"]()
    few, many = (ending(case(sde), GRIDS["uniform"](sde, n, 0.6, 0.1), setting) for n in (10, 20))
    return math.log2(math.hypot(*few) / math.hypot(*many))


def recursion(sde: SDE, num_steps: int, setting: Setting) -> float:
    """Error of the variance that Langevin steps of a tenth of sigma^2 leave of the level before, level by level."""
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
    """The variance that a level leaves of the level before, over the least that some other step size leaves of it."""

    def left(h: float) -> float:
        variance = ratio**2
        for _ in range(num_steps):
            variance = (1 - h) ** 2 * variance + 2 * h
        return variance

    return left(langevin_step_size(ratio, num_steps)) - min(left(i / 1000) for i in range(1000))


def known_ends(step: Step, setting: Setting) -> float:
    """Error of the law where the denoiser tells where the flow ends: as many deviations from the mean as it began."""

    def end(x: Tensor, t: float) -> Prediction:
        alpha, sigma, _ = step.sde.marginal(t)
        return Prediction(MEAN + math.sqrt(VARIANCE / (alpha**2 * VARIANCE + sigma**2)) * (x - alpha * MEAN))

    return math.hypot(*ending(step, log_snr_grid(step.sde, 3), setting, denoise=end))


EXACT_FOR_A_POINT: dict[str, Callable[[SDE], Step]] = {
    "ddim": lambda sde: DDIM(sde),
    "ddim, eta 0.5": lambda sde: DDIM(sde, eta=0.5),
    "ddim, eta 1": lambda sde: DDIM(sde, eta=1.0),
    "ancestral": lambda sde: Ancestral(sde),
    **{name: STEPS[name] for name in ("heun", "plms", "pndm", "consistency")},
}


def end_at_a_point(case: Callable[[SDE], Step], sde: SDE, setting: Setting) -> float:
    """Error of the law at the end where the denoiser always knows the one data point."""
    return math.hypot(*ending(case(sde), log_snr_grid(sde, 3), setting, variance=0.0))


def unit_ending(setting: Setting) -> float:
    """The larger variance makes no error where alpha^2 + sigma^2 = 1 and the data are as wide as the noise."""
    sde = SDES["vpsde"]()
    return abs(ending(Ancestral(sde, v=1.0), GRIDS["log_snr"](sde, 3), setting, 0.0, 1.0)[1])


def x0_of(x: Tensor, p: Process) -> Tensor:
    """E[x_0 | x] of N(MEAN, VARIANCE)."""
    return MEAN + p.alpha * VARIANCE * (x - p.alpha * MEAN) / (p.alpha**2 * VARIANCE + p.sigma**2)


def score_of(x: Tensor, p: Process) -> Tensor:
    """grad log p_t(x)."""
    return -(x - p.alpha * MEAN) / (p.alpha**2 * VARIANCE + p.sigma**2)


def euler_maruyama(x: Tensor, p: Process, q: Process, h: float, draw: Callable[[], Tensor]) -> Tensor:
    """Song et al., 2021, section 4.1."""
    return x - h * (p.f * x - p.g**2 * score_of(x, p)) + p.g * math.sqrt(h) * draw()


def reverse_diffusion(x: Tensor, p: Process, q: Process, h: float, draw: Callable[[], Tensor]) -> Tensor:
    """Song et al., 2021, eq. 46, with the exact forward move x_t = a x_s + b z."""
    a = p.alpha / q.alpha
    b2 = p.sigma**2 - a**2 * q.sigma**2
    return 2 * x - a * x + b2 * score_of(x, p) + math.sqrt(b2) * draw()


def ancestral(x: Tensor, p: Process, q: Process, h: float, draw: Callable[[], Tensor]) -> Tensor:
    """Mean and variance of q(x_s | x_t, x_0). Ho et al., 2020, eq. 6, 7."""
    return posterior(x, x0_of(x, p), p, q, draw())


def posterior(x: Tensor, x0: Tensor, p: Process, q: Process, z: Tensor) -> Tensor:
    """A draw of q(x_s | x_t, x_0) by the noise z. Ho et al., 2020, eq. 6, 7."""
    a = p.alpha / q.alpha
    b2 = p.sigma**2 - a**2 * q.sigma**2
    mean = q.alpha * b2 / p.sigma**2 * x0 + a * q.sigma**2 / p.sigma**2 * x
    return mean + math.sqrt(b2) * q.sigma / p.sigma * z


def ddim(x: Tensor, p: Process, q: Process, h: float, draw: Callable[[], Tensor]) -> Tensor:
    """Song, Meng, Ermon, 2021, eq. 12 without noise."""
    x0 = x0_of(x, p)
    return q.alpha * x0 + q.sigma * (x - p.alpha * x0) / p.sigma


def heun(x: Tensor, p: Process, q: Process, h: float, draw: Callable[[], Tensor]) -> Tensor:
    """The trapezoidal rule for d(x / alpha) / d(sigma / alpha) = eps. Karras et al., 2022, algorithm 1."""
    eps = (x - p.alpha * x0_of(x, p)) / p.sigma
    dr = q.sigma / q.alpha - p.sigma / p.alpha
    y = q.alpha * (x / p.alpha + dr * eps)
    return q.alpha * (x / p.alpha + dr * (eps + (y - q.alpha * x0_of(y, q)) / q.sigma) / 2)


def pc(x: Tensor, p: Process, q: Process, h: float, draw: Callable[[], Tensor]) -> Tensor:
    """Song et al., 2021, algorithm 1 in the order of the released code: Langevin at t, then the predictor to s."""
    return reverse_diffusion(langevin("langevin", x, p, q, draw), p, q, h, draw)


def ald(x: Tensor, p: Process, q: Process, h: float, draw: Callable[[], Tensor]) -> Tensor:
    """Song, Ermon, 2020, algorithm 1, for the noisy data x / alpha: two steps, of which the last would be EPSILON."""
    size = EPSILON * p.sigma**2 * (q.alpha / q.sigma) ** 2
    for _ in range(2):
        x = x + size * score_of(x, p) + math.sqrt(2 * size) * draw()
    return q.alpha * x / p.alpha


def consistency(x: Tensor, p: Process, q: Process, h: float, draw: Callable[[], Tensor]) -> Tensor:
    """Song et al., 2023, algorithm 1."""
    return q.alpha * x0_of(x, p) + q.sigma * draw()


def ancestral_learned(x: Tensor, p: Process, q: Process, h: float, draw: Callable[[], Tensor]) -> Tensor:
    """Nichol, Dhariwal, 2021, eq. 15, with the mean of the two logarithms."""
    a = p.alpha / q.alpha
    b2 = p.sigma**2 - a**2 * q.sigma**2
    noise = draw()
    return ancestral(x, p, q, h, lambda: torch.zeros_like(x)) + math.sqrt(b2 * q.sigma / p.sigma) * noise


EPSILON = 0.05

OPTIONS = {"ald": {"epsilon": EPSILON, "langevin_steps": 2}, "pndm": {"order": 2}}
"""Of the steps below, where they are not the defaults."""

MOVES = {
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
"""One move from t to s = t - h on N(MEAN, VARIANCE), from the moments p at t and q at s."""

SNR = 0.16

RATIOS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "ald": lambda score, z, sigma: exactly(sigma**2),
    "langevin": lambda score, z, sigma: 68 / (score.square().sum(1, keepdim=True) + 64 / sigma**2),
    "langevin_batch": lambda score, z, sigma: (z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2,
}
"""Square of the noise over the score for examples of four dimensions: as Song et al., 2021, algorithms 4 and 5."""


def langevin(name: str, x: Tensor, p: Process, q: Process, draw: Callable[[], Tensor]) -> Tensor:
    """x + h score + sqrt(2 h) z at time t, h = 2 (alpha_t / alpha_s snr)^2 times the ratio."""
    score, z = score_of(x, p), draw()
    h = 2 * (p.alpha / q.alpha * SNR) ** 2 * RATIOS[name](score, z, p.sigma)
    return x + h * score + torch.sqrt(2 * h) * z


def one_move(
    step: Step | Corrector, form: Callable, process: Callable[[np.ndarray], Process], setting: Setting
) -> float:
    """Difference of one call of a step from a closed form, on two examples of four dimensions and given draws.

    Relative to the largest entry: an entry may be the small difference of large terms.
    """
    t, s = step.sde.time(torch.tensor([-1.0, 0.0], dtype=torch.float64)).tolist()
    p, q = (Process(*map(float, process(exactly(v).numpy()))) for v in (t, s))
    mixture = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN] * 4]), VARIANCE)
    x, draws = p.sigma * setting.normals(2, 4), [setting.normals(2, 4, seed=seed) for seed in (1, 2)]
    given, used = iter(draws), iter(draws)
    if isinstance(step, Step):
        step.reset([t, s])
    found = step(mixture.denoiser(step.sde, SHARE), x, t, s, lambda like: next(given))
    expected = form(exactly(x), p, q, t - s, lambda: exactly(next(used)))
    return distance(found, expected, expected.abs().max())


def put_in(sde_name: str, setting: Setting) -> float:
    """Karras et al., 2022, algorithm 2, lines 4 to 6: r (1 + 40 / 200), and the forward noise that this takes."""
    step, x = Churn(SDES[sde_name](), churn=40.0, churn_noise=1.5), setting.normals(3, 2)
    times = step.sde.time(torch.linspace(-4.0, 4.0, 200, dtype=torch.float64)).tolist()
    step.reset(times)
    state, later = step.put_in(x, times[20], torch.ones_like)
    p, q = (Process(*map(float, PROCESSES[sde_name](exactly(v).numpy()))) for v in (times[20], later))
    a = q.alpha / p.alpha
    form = a * exactly(x) + 1.5 * math.sqrt(q.sigma**2 - (a * p.sigma) ** 2)
    return max(relative(state, form), abs(q.sigma / q.alpha / (p.sigma / p.alpha) / 1.2 - 1))


def proposal(step: StepControl, form: Callable, sde_name: str) -> float:
    """Both states that a step with control proposes, from the closed form's, in float64."""
    setting = Setting(torch.device("cpu"), torch.float64)
    shares = torch.tensor([0, 1, 1 / 3, 1 / 2, 2 / 3], dtype=torch.float64)
    times = step.sde.time(shares - 1).tolist()  # log-SNR -1 to 0
    p, q, *between = (Process(*map(float, PROCESSES[sde_name](exactly(v).numpy()))) for v in times)
    mixture = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN] * 4]), VARIANCE).denoiser(step.sde, SHARE)
    x, z = p.sigma * setting.normals(2, 4), setting.normals(2, 4, seed=1)
    t, s = (torch.full((2, 1), time, dtype=torch.float64) for time in times[:2])
    found = step.propose(lambda x, t: mixture(x, t).x0, x, t, s, lambda: z)
    return worst(relative(state, exact) for state, exact in zip(found, form(exactly(x), p, q, between, exactly(z))))


def by_sde(x: Tensor, p: Process, q: Process, between: list[Process], z: Tensor) -> tuple[Tensor, Tensor]:
    """Ancestral moves by the first estimate, and by its mean with the one that this leads to."""
    low = posterior(x, x0_of(x, p), p, q, z)
    return low, posterior(x, 0.5 * (x0_of(x, p) + x0_of(low, q)), p, q, z)


def eps_of(x: Tensor, p: Process) -> Tensor:
    """(x - alpha x0) / sigma."""
    return (x - p.alpha * x0_of(x, p)) / p.sigma


def by_dpm_12(x: Tensor, p: Process, q: Process, between: list[Process], z: Tensor) -> tuple[Tensor, Tensor]:
    """DDIM's moves by the first noise, and by that half of the way in log-SNR."""

    def move(to: Process, eps: Tensor) -> Tensor:
        return to.alpha * (x - p.sigma * eps) / p.alpha + to.sigma * eps

    return move(q, eps_of(x, p)), move(q, eps_of(move(between[1], eps_of(x, p)), between[1]))


def by_dpm_23(x: Tensor, p: Process, q: Process, between: list[Process], z: Tensor) -> tuple[Tensor, Tensor]:
    """DPM-Solver-2 with its look at a third, and DPM-Solver-3, as the paper's algorithms have them; h = 1 / 2."""
    (third, _, last), r1, r2, h, eps = between, 1 / 3, 2 / 3, 0.5, eps_of(x, p)
    u1 = third.alpha / p.alpha * x - third.sigma * math.expm1(r1 * h) * eps
    d1 = eps_of(u1, third) - eps
    u2 = last.alpha / p.alpha * x - last.sigma * math.expm1(r2 * h) * eps
    u2 = u2 - last.sigma * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = eps_of(u2, last) - eps
    plain = q.alpha / p.alpha * x - q.sigma * math.expm1(h) * eps
    low = plain - q.sigma / (2 * r1) * math.expm1(h) * d1
    return low, plain - q.sigma / r2 * (math.expm1(h) / h - 1) * d2


PROPOSALS: list[tuple[str, dict[str, int], Callable]] = [
    ("adaptive_sde", {}, by_sde),
    ("dpm_adaptive", {"order": 2}, by_dpm_12),
    ("dpm_adaptive", {"order": 3}, by_dpm_23),
]
"""Closed forms of what a step with control proposes."""


def corrector(name: str, sde_name: str, setting: Setting) -> float:
    """One Langevin move against the closed form."""

    def form(x: Tensor, p: Process, q: Process, h: float, draw: Callable[[], Tensor]) -> Tensor:
        return langevin(name, x, p, q, draw)

    return one_move(Corrector(SDES[sde_name](), name, SNR, 1), form, PROCESSES[sde_name], setting)


def equal_cost(sde: SDE, setting: Setting) -> float:
    """Divergence of predictor-corrector's last law from the truth, over that of the predictor with twice the steps.

    KL(N(m', v') || N(m, v)), without a step size that sees the state. (With fewer steps, or a smaller ratio than 0.3,
    a predictor alone does better on a single Gaussian.)
    """

    def divergence(step: Step, num_steps: int) -> float:
        mean, variance = ending(step, log_snr_grid(sde, num_steps), setting)
        return 0.5 * (variance + mean**2 - math.log1p(variance))

    corrected = PredictorCorrector(sde, "ancestral", "ald", snr=0.3)
    return divergence(corrected, 2 * FEW) / divergence(Ancestral(sde), 4 * FEW)
