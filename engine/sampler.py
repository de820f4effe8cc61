"""The sampler of a config: its step and its grid of times."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde.configs.choices import options_of
from score_sde.configs.default import Config, Sample
from score_sde.engine import tuned
from score_sde.engine.build import Experiment
from score_sde.engine.errors import CheckpointError
from score_sde.engine.files import read_numbers
from score_sde.engine.guidance import Guidance
from score_sde.engine.log import say
from score_sde.samplers import ODE, Step
from score_sde.samplers.calibration import Tuned
from score_sde.samplers.draw import named_step, named_times, suited
from score_sde.samplers.grids import of_ratios
from score_sde.sde_lib import SDE

GRID_FILE = ".txt"
"""How the name of a grid ends that is a file: of noise levels sigma / alpha, one a line, from the noise to the data."""


def make_step(settings: Sample, experiment: Experiment, **more: Any) -> Step:
    """The step that ``sample.sampler`` names, with its options and the matching ones of ``more``."""
    chosen = settings.sampler
    return named_step(experiment.sde, chosen.name, experiment.gaussian, {**chosen, **more})


def make_flow(settings: Sample, experiment: Experiment) -> ODE:
    """The probability flow, which can be solved in both directions, with ``flow_options``."""
    return ODE(experiment.sde, **flow_options(settings), gaussian=experiment.gaussian.isotropic())


def flow_options(settings: Sample) -> dict[str, Any]:
    """The options of the sampler ``ode``: from the config where it chose that sampler, else the defaults."""
    return options_of("sample.sampler", "ode", settings.sampler)


def make_times(settings: Sample, experiment: Experiment, start: float | None = None) -> Tensor:
    """The grid of ``sample.grid`` down to ``sample.t_min``, 0 being the earliest of the SDE; a file is taken whole.

    Args:
        start: where it begins; default t_max.
    """
    name, steps = chosen(settings, experiment.sde)
    if name.endswith(GRID_FILE):
        try:
            return of_ratios(experiment.sde, read_numbers(Path(name)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return named_times(experiment.sde, name, steps, experiment.gaussian, start, settings.t_min or None)


def planned(
    settings: Sample, workdir: Path, experiment: Experiment, found: Path, weights: str, guidance: Guidance
) -> tuple[Step, Tensor, str]:
    """Step, times and name of the grid: by a calibration of these weights if no grid is named, or ``tuned`` is.

    Raises: CheckpointError or ValueError for ``tuned`` without a calibration, or with one for something else.
    """
    step, (name, steps) = make_step(settings, experiment), chosen(settings, experiment.sde)
    path, demanded = tuned.plan_path(workdir, settings.sampler.name, steps), name == tuned.GRID
    if demanded and guidance.is_active:
        raise ValueError("a calibration is of the flow without label and guidance; name another sample.grid")
    if demanded or (path.exists() and not settings.grid and not guidance.is_active):
        try:
            multistep = tuned.tunable(step)
            plan = tuned.read(path, tuned.conditions(settings, multistep, found, weights))
        except (CheckpointError, ValueError) as error:
            if demanded:
                raise
            say(f"not tuned: {error}")
        else:
            say(f"tuned by {path}")
            return Tuned(multistep, plan), torch.tensor(plan.times, dtype=torch.float64), tuned.GRID
    return step, make_times(settings, experiment), name


def by_plan(config: Config) -> Config:
    """The config with the calibration in place of its grid, in as many steps as that grid has.

    Raises: DataError for a file of noise levels that cannot be read.
    """
    settings = config.sample
    steps = len(read_numbers(Path(settings.grid))) - 1 if settings.grid.endswith(GRID_FILE) else settings.steps
    return replace(config, sample=replace(settings, grid=tuned.GRID, steps=steps))


def chosen(settings: Sample, sde: SDE) -> tuple[str, int]:
    """Name of the grid and number of steps: from the section ``sample``, from a file, or the sampler's own.

    Raises: DataError for a file that cannot be read; ValueError where its number of steps is not ``sample.steps``.
    """
    name, steps = suited(sde, settings.sampler.name, settings.grid, settings.steps or None)
    if name.endswith(GRID_FILE):
        found = len(read_numbers(Path(name))) - 1
        if settings.steps not in (0, found):
            raise ValueError(f"{name} has {found} steps, not {settings.steps}; leave --steps out")
        return name, found
    return name, steps
