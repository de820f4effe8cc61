"""Every step under every SDE, without a random number: its order, the law that it ends in, and what it is exact for.

Where the data are one Gaussian the denoiser is affine, and so is a sampler: the last state is a x_T + sum_k b_k z_k + c.
One trajectory of a batch of impulses, each in one of the draws alone, tells a, every b_k and c; so the mean and the
variance at the end are known to rounding, and their error can be seen to fall with the order of the step.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from engine.checks.rows import Row, Setting, exactly, relative, worst
from engine.checks.textbook import PROCESSES
from samplers import DDIM, GRIDS, ODE, STEPS, Ancestral, PredictorCorrector, Step, trajectory
from samplers.predictor_corrector import STEP_SIZES, Corrector
from sde_lib import SDE, SDES, SOLVERS, GaussianMixture

MEAN, VARIANCE = 0.8, 0.3
FEW = 48

ADAPTIVE = {"ode"}
"""Steps that keep a tolerance: they have no order."""

ORDERS = {"heun": 2}
"""The order of a step where it is not 1."""


def shrinking(sde: SDE, num_steps: int) -> Step:
    """Predictor-corrector whose Langevin moves shrink with the moves of the predictor, and do not see the state's norm.

    With a fixed ratio the corrector does not become exact as the steps become many.
    """
    return PredictorCorrector(sde, corrector="ald", snr=0.16 * math.sqrt(FEW / num_steps))


CASES: dict[str, Callable[[SDE, int], Step]] = {
    **{name: lambda sde, num_steps, kind=kind: kind(sde) for name, kind in STEPS.items() if name not in ADAPTIVE},
    "pc": shrinking,
    "ddim, eta 0.5": lambda sde, num_steps: DDIM(sde, eta=0.5),
    "ancestral, variance 1": lambda sde, num_steps: Ancestral(sde, variance=1.0),
}
"""Steps that are affine in the state where the denoiser is."""


def check(setting: Setting) -> Iterator[Row]:
    """Orders and ends of all steps, what some are exact for, correctors, and predictor-corrector at equal cost."""
    for sde_name, make in SDES.items():
        for name, case in CASES.items():
            sde, order = make(), ORDERS.get(name, 1)
            few, many = (ending(case(sde, n), log_snr_grid(sde, n), setting) for n in (FEW, 2 * FEW))
            lost = order - math.log2(math.hypot(*few) / math.hypot(*many))
            yield Row(f"{name}, {sde_name}: what its order lacks of {order}", lost, 0.1)
            limit = [(2**order * m - f) / (2**order - 1) for f, m in zip(few, many)]
            yield Row(f"{name}, {sde_name}: mean and variance in the limit of many steps", math.hypot(*limit), 0.01)
        for solver in SOLVERS:
            yield Row(
                f"ode by {solver}, {sde_name}: against the closed flow", flow_error(make(), solver, setting), 1e-4
            )
    for name, case in EXACT_FOR_A_POINT.items():
        found = worst(end_at_a_point(case, make(), setting) for make in SDES.values())
        yield Row(f"{name}: mean and variance in 3 steps where the data are a point", found, 1000 * setting.rounding)
    yield Row("ancestral, variance 1: variance in 3 steps where the data are N(0, 1)", unit_ending(setting), 1e-4)
    for name in STEP_SIZES:
        if name in RATIOS:
            found = worst(langevin(name, sde_name, setting) for sde_name in SDES.keys() & PROCESSES.keys())
            yield Row(f"corrector {name}: one move against the closed form", found, 1000 * setting.rounding)
    for sde_name, make in SDES.items():
        yield Row(f"pc, {sde_name}: its divergence over that of twice the predictor", equal_cost(make(), setting), 1.0)


class Impulses:
    """Draws of which number k is 1 for example 2 + k, and 0 for all others."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, like: Tensor) -> Tensor:
        z = torch.zeros_like(like)
        z[2 + self.drawn] = 1
        self.drawn += 1
        return z


def log_snr_grid(sde: SDE, num_steps: int) -> Tensor:
    """From log-SNR -6 to 7, within the interval."""
    start, end = sde.time(torch.tensor([-6.0, 7.0], dtype=torch.float64)).clamp(sde.t_min, sde.t_max).tolist()
    return GRIDS["log_snr"](sde, num_steps, start, end)


def ending(
    step: Step, times: Tensor, setting: Setting, mean: float = MEAN, variance: float = VARIANCE
) -> tuple[float, float]:
    """Errors of the mean, in standard deviations, and of the variance, relative, where N(mean, variance) should be.

    The start is the exact law at the first time, not the prior: what is measured is the step's error alone.
    """
    sde = step.sde
    denoise = GaussianMixture(setting.tensor([1.0]), setting.tensor([[mean]]), variance).denoiser(sde)
    x = setting.tensor(torch.zeros(2 + 3 * len(times), 1))
    x[1] = 1
    *_, end, _ = trajectory(step, denoise, x, times, Impulses())
    c, *responses = exactly(end).flatten().tolist()
    a, *b = (response - c for response in responses)
    first, last = sde.at(times[0].item()), sde.at(times[-1].item())
    found_mean = a * first.alpha * mean + c
    found_variance = a**2 * (first.alpha**2 * variance + first.sigma**2) + sum(response**2 for response in b)
    expected = last.alpha**2 * variance + last.sigma**2
    return (found_mean - last.alpha * mean) / math.sqrt(expected), found_variance / expected - 1


def flow(sde: SDE, solver: str, setting: Setting) -> float:
    """Error of x_s = alpha_s m + sqrt((alpha_s^2 v + sigma_s^2) / (alpha_t^2 v + sigma_t^2)) (x_t - alpha_t m).

    Relative, over the tolerance of the solver.
    """
    t, s = log_snr_grid(sde, 1).tolist()
    late, early = sde.at(t), sde.at(s)
    denoise = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN]]), VARIANCE).denoiser(sde)
    widths = [math.sqrt(m.alpha**2 * VARIANCE + m.sigma**2) for m in (late, early)]
    x = setting.tensor([[-1.5], [0.0], [2.0]]) * widths[0] + late.alpha * MEAN
    expected = early.alpha * MEAN + widths[1] / widths[0] * (exactly(x) - late.alpha * MEAN)
    found = ODE(sde, solver, rtol=1e-5, atol=1e-5)(denoise, x, t, s, torch.zeros_like)
    return relative(found, expected) / 1e-5


EXACT_FOR_A_POINT: dict[str, Callable[[SDE], Step]] = {
    "ddim": lambda sde: DDIM(sde),
    "ddim, eta 0.5": lambda sde: DDIM(sde, eta=0.5),
    "ddim, eta 1": lambda sde: DDIM(sde, eta=1.0),
    "ancestral": lambda sde: Ancestral(sde),
    "heun": lambda sde: STEPS["heun"](sde),
}


def end_at_a_point(case: Callable[[SDE], Step], sde: SDE, setting: Setting) -> float:
    """Error of the law at the end where the denoiser always knows the one data point."""
    return math.hypot(*ending(case(sde), log_snr_grid(sde, 3), setting, variance=0.0))


def unit_ending(setting: Setting) -> float:
    """The larger variance makes no error where alpha^2 + sigma^2 = 1 and the data are as wide as the noise."""
    sde = SDES["vpsde"]()
    return abs(ending(Ancestral(sde, variance=1.0), GRIDS["log_snr"](sde, 3), setting, 0.0, 1.0)[1])


RATIOS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "ald": lambda score, z, sigma: exactly(sigma**2),
    "langevin": lambda score, z, sigma: 20 / (score.square().sum(1, keepdim=True) + 16 / sigma**2),
    "langevin_batch": lambda score, z, sigma: (z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2,
}
"""Square of the noise over the score for examples of four dimensions: as Song et al., 2021, algorithms 4 and 5."""


def langevin(name: str, sde_name: str, setting: Setting) -> float:
    """One move of a corrector, x + h score + sqrt(2 h) z, with the alphas and sigmas of the papers."""
    sde, snr = SDES[sde_name](), 0.2
    s, t = sde.time(torch.tensor([0.0, -1.0], dtype=torch.float64)).tolist()
    early, late = (PROCESSES[sde_name](exactly(v).numpy()) for v in (s, t))
    alpha, sigma = float(late.alpha), float(late.sigma)
    mixture = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN] * 4]), VARIANCE)
    x, z = sigma * setting.normals(2, 4), setting.normals(2, 4, seed=1)
    score = (alpha * MEAN - exactly(x)) / (alpha**2 * VARIANCE + sigma**2)
    h = 2 * (alpha / float(early.alpha) * snr) ** 2 * RATIOS[name](score, exactly(z), sigma)
    found = Corrector(sde, name, snr, 1)(mixture.denoiser(sde), x, t, s, lambda like: z)
    return relative(found, exactly(x) + h * score + torch.sqrt(2 * h) * exactly(z))


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
