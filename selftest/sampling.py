"""Trajectories: their end distribution, and dependence of a sample on its seed alone."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from score_sde.configs.default import get_config
from score_sde.data import Pixels
from score_sde.engine.build import Experiment
from score_sde.engine.density import DensityEstimator
from score_sde.engine.drawing import draw, draw_scored
from score_sde.engine.facts import DataFacts
from score_sde.samplers import GRIDS, ODE, STEPS, Noise, PredictorCorrector, Step
from score_sde.samplers.predictor_corrector import STEP_SIZES
from score_sde.sde_lib import SDE, SDES, Denoise, Gaussian, GaussianMixture, Prediction
from score_sde.sde_lib.process import Time
from score_sde.selftest.exact import blobs
from score_sde.selftest.rows import Row, Setting, distance, worst
from score_sde.selftest.steps import PROCESS_FREE, REPRESENTATIVE, make_step
from score_sde.selftest.trajectories import independence, two_bumps

ADAPTING = {"adaptive_sde", "dpm_adaptive"}
"""Adaptive steps that depend on x / alpha and log-SNR only."""


def with_corrector(name: str) -> Callable[[SDE], Step]:
    """Returns the predictor-corrector step with this corrector."""
    return lambda sde: PredictorCorrector(sde, corrector=name)


CASES: dict[str, Callable[[SDE], Step]] = {
    **{name: partial(make_step, name) for name in STEPS if name != "consistency"},
    **{f"pc by {name}": with_corrector(name) for name in STEP_SIZES if name != "langevin"},
}
"""All steps but consistency sampling, whose end distribution steps.py checks."""


def check(setting: Setting) -> Iterator[Row]:
    """Checks the last step, shapes, batches and precision, the engine's draws, and end distributions."""
    for name in STEPS:
        some = REPRESENTATIVE[:1] if name in PROCESS_FREE | ADAPTING else list(SDES)[::3]
        steps = [make_step(name, SDES[sde_name]()) for sde_name in some]  # end distributions, below, use more processes
        precise = name != "adaptive_sde"  # rounding may decide whether a move is accepted
        yield from independence(name, steps, setting, precise)
    yield Row("engine: pixels that depend on the batch", engine_batches(setting), 0)
    yield Row("engine: start against prior_std times noise", start(setting), 1e-6)
    yield Row("engine: samples and their log-densities, Gaussian data", scored(setting), 1e-3)
    there, back = there_and_back(setting)
    yield Row("ode: latents of Gaussian data", there, 1e-3)
    yield Row("ode: data from their latents", back, 1e-3)
    for name, case in CASES.items():
        for sde_name, make in SDES.items():
            if name in PROCESS_FREE | ADAPTING and sde_name not in REPRESENTATIVE:
                continue
            yield two_bumps(f"{name}, {sde_name}", case(make()), setting)


def experiment(setting: Setting, sde: SDE) -> Experiment:
    """Returns an experiment for images of shape (1, 2, 3) with 17 levels, without a network."""
    facts = DataFacts(shape=(1, 2, 3), levels=17, std=0.6, diameter=4.0)
    gaussian = Gaussian.standard(torch.empty(1, *facts.shape))
    return Experiment(facts, Pixels(17), sde, torch.nn.Identity(), setting.device, gaussian)


def engine_batches(setting: Setting) -> int:
    """Returns the number of pixels of eight samples that change when drawn three at a time."""
    single = Setting(setting.device, torch.float32)
    changed = 0
    for make in SDES.values():
        sde = make()
        step, times = make_step("ddim", sde), GRIDS["log_snr"](sde, 8)
        denoise = blobs(single, (1, 2, 3)).denoiser(sde)
        parts = [draw(experiment(single, sde), denoise, step, times, seeds) for seeds in torch.arange(8).split(3)]
        whole = draw(experiment(single, sde), denoise, step, times, torch.arange(8))
        changed += int((torch.cat(parts) != whole).sum())
    return changed


def start(setting: Setting) -> float:
    """Returns the error of the first state against prior_std times the seeds' noise, relative to prior_std."""
    single, errors = Setting(setting.device, torch.float32), []
    for make in SDES.values():
        sde = make()
        denoise, seeds = Recorded(blobs(single, (1, 2, 3)).denoiser(sde)), torch.arange(3, 6)
        draw(experiment(single, sde), denoise, make_step("ddim", sde), GRIDS["log_snr"](sde, 2), seeds)
        z = Noise(seeds)(torch.empty(3, 1, 2, 3, device=setting.device))
        errors.append(distance(denoise.states[0], sde.prior_std * z, sde.prior_std))
    return worst(errors)


class Recorded:
    """A denoiser that records the states of its calls."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self.states: list[Tensor] = []

    def __call__(self, x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        self.states.append(x)
        return self.denoise(x, t)


def normal(setting: Setting, shape: tuple[int, ...]) -> GaussianMixture:
    """Returns N(0, 1/4) for examples of this shape."""
    return GaussianMixture(setting.tensor([1.0]), setting.tensor(torch.zeros(1, *shape)), 0.25)


def growth(sde: SDE) -> float:
    """Returns the factor by which the flow scales states of data N(0, 1/4) from t_min to t_max."""
    late, early = (
        0.25 * marginal.alpha**2 + marginal.sigma**2 for marginal in map(sde.marginal, (sde.t_max, sde.t_min))
    )
    return math.sqrt(late / early)


def there_and_back(setting: Setting) -> tuple[float, float]:
    """Returns the errors of the latents of examples, and of the examples decoded from them."""
    latents, backs, x = [], [], 0.5 * setting.normals(4, 2)
    for make in list(SDES.values())[2::3]:
        sde = make()
        flow, denoise = ODE(sde), normal(setting, (2,)).denoiser(sde)
        found = flow.encode(denoise, x)
        latents.append(distance(found, growth(sde) / sde.prior_std * x))
        backs.append(distance(flow.decode(denoise, found), x))
    return worst(latents), worst(backs)


def scored(setting: Setting) -> float:
    """Returns the error of samples for four seeds, and of their log-densities per dimension."""
    single, errors, config = Setting(setting.device, torch.float32), [], get_config()
    for make in list(SDES.values())[2::3]:
        sde, seeds = make(), torch.arange(3, 7)
        denoise = normal(single, (1, 2, 3)).denoiser(sde)
        z, x, nats = draw_scored(DensityEstimator.of(config, experiment(single, sde), denoise), seeds)
        expected = sde.prior_log_prob(sde.prior_std * z).cpu() + 6 * math.log(growth(sde) * 2 / 17)
        errors += [distance(x, sde.prior_std / growth(sde) * z), distance(nats, expected) / 6]
    return worst(errors)
