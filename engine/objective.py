"""The training objective of a config: loss, weight, timestep sampler and teacher."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path

from score_sde.configs.default import Config
from score_sde.configs.sections import Choice
from score_sde.engine.build import Experiment
from score_sde.engine.config import Options
from score_sde.engine.load import check_there, load
from score_sde.engine.related import recipe_of
from score_sde.sde_lib import (
    LEARNING_TIMESTEP_SAMPLERS,
    OBJECTIVES,
    TIMESTEP_SAMPLERS,
    WEIGHTS,
    Denoiser,
    Objective,
    TimestepSampler,
    transport,
)
from score_sde.sde_lib.timestep_samplers import Fixed
from score_sde.storage.naming import options, pick


def make_teacher(config: Config, experiment: Experiment) -> Callable:
    """The averaged weights of the run ``loss.teacher``, frozen, as a denoiser on the SDE of the experiment.

    Raises: CheckpointError if there is none, or it is damaged; ValueError if none is named, or its data are others.
    """
    if not config.loss.teacher:
        raise ValueError("loss.teacher is empty: give the folder of a trained run, such as runs/edm")
    folder, facts = Path(config.loss.teacher), experiment.facts
    check_there("loss.teacher", folder, config, facts.shape)
    recipe = recipe_of(folder, config)
    theirs, denoiser, _ = load(recipe, folder, Options())
    if type(denoiser) is not Denoiser:
        raise ValueError(
            f"loss.teacher {folder} is no denoiser but {recipe.loss.objective.name}; give a run such as runs/edm"
        )
    if (theirs.facts.shape, theirs.facts.levels) != (facts.shape, facts.levels):
        raise ValueError(
            f"loss.teacher {folder} has data of shape {theirs.facts.shape} and {theirs.facts.levels} levels, not of "
            f"{facts.shape} and {facts.levels}; train one on these data"
        )
    return transport(denoiser, theirs.sde, experiment.sde)


def make_weight(chosen: Choice, sigma_data: float) -> Callable:
    """The weight of the loss, ``(sde, t) -> weight``."""
    weight = pick(WEIGHTS, "weight", chosen.name)
    return functools.partial(weight, **options(weight, {**chosen, "sigma_data": sigma_data}))


def make_timestep_sampler(chosen: Choice) -> TimestepSampler:
    """The timestep sampler, ``(sde, u) -> (t, correction)``."""
    make = pick({**TIMESTEP_SAMPLERS, **LEARNING_TIMESTEP_SAMPLERS}, "timestep sampler", chosen.name)
    taken = options(make, chosen)
    return make(**taken) if chosen.name in LEARNING_TIMESTEP_SAMPLERS else Fixed(functools.partial(make, **taken))


def make_objective(config: Config, experiment: Experiment) -> Objective:
    """The objective that training minimises."""
    kind = pick(OBJECTIVES, "objective", config.loss.objective.name)
    sigma_data = experiment.sigma_data(config)
    known = {
        "weight": make_weight(config.loss.weight, sigma_data),
        "sigma_data": sigma_data,
        "bin_width": experiment.bin_width,
        "low": experiment.low,
    }
    if "teacher" in inspect.signature(kind).parameters:
        known["teacher"] = make_teacher(config, experiment)
    return kind(experiment.sde, **options(kind, {**config.loss.objective, **known}))
