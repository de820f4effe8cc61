"""Calibrations on disk: plans of times and coefficients, with the conditions of their fit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_sde.configs.default import Sample
from score_sde.engine.errors import CheckpointError
from score_sde.engine.training import posthoc
from score_sde.samplers import Multistep, Step
from score_sde.samplers.calibration import Plan
from score_sde.samplers.multistep import Move
from score_sde.storage.reading import read_text

GRID = "tuned"
"""Value of ``sample.grid`` that requires a calibration."""


def plan_path(workdir: Path, sampler: str, steps: int) -> Path:
    """File of a calibration."""
    return workdir / GRID / f"{sampler}-{steps}.json"


def tunable(step: Step) -> Multistep:
    """Returns the step, if calibration supports it: a multistep method without noise.

    Raises: ValueError for any other step.
    """
    if not isinstance(step, Multistep) or step.coordinates.eta:
        raise ValueError(f"{type(step).__name__} has no coefficients to tune, or adds noise; use --sampler adams")
    return step


def conditions(settings: Sample, step: Multistep, found: Path, weights: str) -> dict[str, Any]:
    """Everything that a plan depends on except the number of moves, as JSON values.

    Args:
        found: folder of the checkpoint.
        weights: value of --weights.
    """
    return {
        **{key: value for key, value in settings.sampler.items() if key != "name"},
        "t_min": settings.t_min,
        "std": step.coordinates.std,
        "weights": weights,
        "weights_sha256": posthoc.digest(found, weights),
    }


def read(path: Path, wanted: Mapping[str, Any]) -> Plan:
    """Reads a plan that was fitted under the conditions ``wanted``.

    Raises: CheckpointError for a file that is missing or damaged; ValueError for other conditions.
    """
    sampler, _, steps = path.stem.rpartition("-")
    remedy = f"make it with --mode tune --sampler {sampler} --steps {steps}"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {remedy}, or leave sample.grid empty")
    try:
        stored = json.loads(read_text(path))
        made_for, numbers = stored["made_for"], stored["plan"]
        plan = Plan(**{**numbers, "moves": [Move(**move) for move in numbers["moves"]]})
        if not len(plan.times) == len(plan.seen) == len(plan.moves) > 1:
            raise ValueError("the numbers of moves and times differ")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged; {remedy}") from error
    for key, value in wanted.items():
        if made_for.get(key) != value:
            found = made_for.get(key)
            raise ValueError(f"{path} was made for {key} {found}, not {value}; {remedy}, or name another grid")
    return plan
