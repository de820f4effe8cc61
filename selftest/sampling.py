"""Whole trajectories: the law that they end in, and that a sample depends on its seed alone."""

import math
from collections.abc import Callable, Iterator

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
from score_sde.sde_lib import SDE, SDES, Gaussian, GaussianMixture, Prediction
from score_sde.selftest.exact import blobs
from score_sde.selftest.rows import Row, Setting, distance, worst
from score_sde.selftest.steps import IN_COORDINATES, SPOKEN_FOR_ALL
from score_sde.selftest.trajectories import independence, two_bumps

ADAPTING = {"adaptive_sde", "dpm_adaptive"}
"""Steps that choose their moves, in coordinates that all processes share."""

CASES: dict[str, Callable[[SDE], Step]] = {
    **{name: kind for name, kind in STEPS.items() if name != "consistency"},
    **{
        f"pc by {name}": lambda sde, name=name: PredictorCorrector(sde, corrector=name)
        for name in STEP_SIZES
        if name != "langevin"
    },
}


def check(setting: Setting) -> Iterator[Row]:
    """The last step, shapes, batches and precision; the engine's draws; laws."""
    for name, case in STEPS.items():
        some = SPOKEN_FOR_ALL[:1] if name in IN_COORDINATES | ADAPTING else list(SDES)[::3]
        steps = [case(SDES[sde_name]()) for sde_name in some]  # the laws below are those of more
        precise = name != "adaptive_sde"  # whose moves are refused or not by a last digit
        yield from independence(name, steps, setting, precise)
    yield Row("engine: pixels that depend on the batch", engine_batches(setting), 0)
    yield Row("engine: a start that is not prior_std times noise", start(setting), 1e-6)
    yield Row("engine: log-densities of samples, and what the flow makes of latents, Gaussian", scored(setting), 1e-3)
    there, back = there_and_back(setting)
    yield Row("ode: latents of Gaussian data", there, 1e-3)
    yield Row("ode: data from their latents", back, 1e-3)
    for name, case in CASES.items():  # consistency's law is known where the ends of the flow are: steps.py
        for sde_name, make in SDES.items():
            if name in IN_COORDINATES | ADAPTING and sde_name not in SPOKEN_FOR_ALL:
                continue
            yield two_bumps(f"{name}, {sde_name}", case(make()), setting)


def experiment(setting: Setting, sde: SDE) -> Experiment:
    """Two points as images of 17 levels, without a network."""
    facts = DataFacts(shape=(1, 2, 3), levels=17, std=0.6, diameter=4.0)
    gaussian = Gaussian.standard(torch.empty(1, *facts.shape))
    return Experiment(facts, Pixels(17), sde, torch.nn.Identity(), setting.device, gaussian)


def engine_batches(setting: Setting) -> int:
    """Pixels of eight samples that change when they are drawn three at a time."""
    single = Setting(setting.device, torch.float32)
    changed = 0
    for make in SDES.values():
        sde = make()
        step, times = STEPS["ddim"](sde), GRIDS["log_snr"](sde, 8)
        denoise = blobs(single, (1, 2, 3)).denoiser(sde)
        parts = [draw(experiment(single, sde), denoise, step, times, seeds) for seeds in torch.arange(8).split(3)]
        whole = draw(experiment(single, sde), denoise, step, times, torch.arange(8))
        changed += int((torch.cat(parts) != whole).sum())
    return changed


def start(setting: Setting) -> float:
    """What the first step is given, over the noise of its seeds and the prior's deviation, less 1."""
    single, errors = Setting(setting.device, torch.float32), []
    for make in SDES.values():
        sde, given = make(), []

        def remember(x: Tensor, t: float, given: list = given, sde: SDE = sde) -> Prediction:
            given.append(x)
            return blobs(single, (1, 2, 3)).denoiser(sde)(x, t)

        seeds = torch.arange(3, 6)
        draw(experiment(single, sde), remember, STEPS["ddim"](sde), GRIDS["log_snr"](sde, 2), seeds)
        z = Noise(seeds)(torch.empty(3, 1, 2, 3, device=setting.device))
        errors.append(distance(given[0], sde.prior_std * z, sde.prior_std))
    return worst(errors)


def normal(setting: Setting, shape: tuple[int, ...]) -> GaussianMixture:
    """N(0, 1/4)."""
    return GaussianMixture(setting.tensor([1.0]), setting.tensor(torch.zeros(1, *shape)), 0.25)


def growth(sde: SDE) -> float:
    """The deviation of data N(0, 1/4) at t_max, over that at t_min: what the flow makes of a state."""
    late, early = (
        0.25 * marginal.alpha**2 + marginal.sigma**2 for marginal in map(sde.marginal, (sde.t_max, sde.t_min))
    )
    return math.sqrt(late / early)


def there_and_back(setting: Setting) -> tuple[float, float]:
    """Error of the normals that examples become, and of the examples that these become again."""
    latents, backs, x = [], [], 0.5 * setting.normals(4, 2)
    for make in list(SDES.values())[2::3]:
        sde = make()
        flow, denoise = ODE(sde), normal(setting, (2,)).denoiser(sde)
        found = flow.encode(denoise, x)
        latents.append(distance(found, growth(sde) / sde.prior_std * x))
        backs.append(distance(flow.decode(denoise, found), x))
    return worst(latents), worst(backs)


def scored(setting: Setting) -> float:
    """Error of the states that four seeds end at, and of their log-densities a dimension."""
    single, errors, config = Setting(setting.device, torch.float32), [], get_config()
    for make in list(SDES.values())[2::3]:
        sde, seeds = make(), torch.arange(3, 7)
        denoise = normal(single, (1, 2, 3)).denoiser(sde)
        z, x, nats = draw_scored(DensityEstimator.of(config, experiment(single, sde), denoise), seeds)
        expected = sde.prior_log_prob(sde.prior_std * z).cpu() + 6 * math.log(growth(sde) * 2 / 17)
        errors += [distance(x, sde.prior_std / growth(sde) * z), distance(nats, expected) / 6]
    return worst(errors)
