"""Other runs that a command uses: checks for the same data and the same noise."""

import dataclasses
from pathlib import Path

import torch

from score_sde.configs.default import Config
from score_sde.configs.sections import frozen
from score_sde.engine.build import Experiment
from score_sde.engine.config import stored


def recipe_of(folder: Path, config: Config) -> Config:
    """Returns the config of another run, with the device and threads of this command.

    Raises: CheckpointError if the folder has no run.
    """
    theirs = frozen(Config, stored(folder))
    return dataclasses.replace(theirs, device=config.device, threads=torch.get_num_threads())


def check_data(key: str, folder: Path, theirs: Experiment, ours: Experiment) -> None:
    """Raises: ValueError if the run in ``folder``, the value of ``key``, has other shapes, levels or encodings."""
    have, needed = (
        f"data of shape {e.facts.shape} in {e.facts.levels} levels from {e.low:g} up" for e in (theirs, ours)
    )
    if have != needed:
        raise ValueError(f"{key} {folder} has {have}, this run {needed}; train one on these data")


def check_noise(key: str, folder: Path, theirs: Config, ours: Config, command: str) -> None:
    """Raises: ValueError if the run in ``folder``, the value of ``key``, has another SDE.

    Args:
        command: command that trains a run with the same SDE.
    """
    if theirs.sde.to_dict() != ours.sde.to_dict():
        raise ValueError(
            f"{key} {folder} has the noise of {theirs.sde.name}, not of this run's {ours.sde.name}; train one "
            f"with {command}"
        )
