"""Calibrations on the disk: a plan, all that it was made for, and whether that is what is asked for now."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_sde.engine.errors import CheckpointError
from score_sde.engine.training import posthoc
from score_sde.samplers import Multistep, Step
from score_sde.samplers.calibration import Plan
from score_sde.samplers.multistep import Move
from score_sde.storage.naming import options
from score_sde.storage.reading import read_text

GRID = "tuned"
"""What ``sample.grid`` says to have a calibration, or an error where there is none."""


def place(workdir: Path, sampler: str, steps: int) -> Path:
    """The file of a calibration."""
    return workdir / GRID / f"{sampler}-{steps}.json"


def asked(config: ConfigDict, step: Step, found: Path, weights: str) -> dict[str, Any]:
    """All that a plan depends on but the number of moves, as JSON values.

    Args:
        found: the checkpoint.
        weights: as --weights names them.
    Raises: ValueError for a step that has no coefficients, or adds noise.
    """
    if not isinstance(step, Multistep) or step.coordinates.eta:
        raise ValueError(f"{type(step).__name__} has no coefficients to tune, or adds noise; use --sampler adams")
    return {
        **options(type(step), config.sample),
        "t_min": config.sample.t_min,
        "std": step.coordinates.std,
        "weights": weights,
        "weights_sha256": posthoc.digest(found, weights),
    }


def read(path: Path, wanted: Mapping[str, Any]) -> Plan:
    """The plan of a file, if it was made for what is wanted.

    Raises: CheckpointError if it is missing or damaged; ValueError if it was made for something else.
    """
    sampler, _, steps = path.stem.rpartition("-")
    remedy = f"make it with --mode tune --sampler {sampler} --steps {steps}"
    if not path.is_file():
        raise CheckpointError(f"there is no {path}; {remedy}, or leave sample.grid empty")
    try:
        kept = json.loads(read_text(path))
        made, numbers = kept["made_for"], kept["plan"]
        plan = Plan(**{**numbers, "moves": [Move(**move) for move in numbers["moves"]]})
        if not len(plan.times) == len(plan.seen) == len(plan.moves) > 1:
            raise ValueError("not as many moves as times")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged; {remedy} anew") from error
    for key, value in wanted.items():
        if made.get(key) != value:
            raise ValueError(f"{path} was made for {key} {made.get(key)}, not {value}; {remedy}, or name another grid")
    return plan
