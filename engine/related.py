"""Other runs that a command asks: of the same data, on the same noise."""

from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_sde.engine.build import Experiment
from score_sde.engine.config import stored


def recipe_of(folder: Path, config: ConfigDict) -> ConfigDict:
    """The config of another run, to be computed where this command is.

    Raises: CheckpointError if there is no run.
    """
    recipe = stored(folder)
    recipe.device, recipe.threads = config.device, torch.get_num_threads()
    return recipe


def check_data(key: str, folder: Path, theirs: Experiment, ours: Experiment) -> None:
    """Raises: ValueError if the run in ``folder``, which ``key`` names, does not know examples encoded as ours are."""
    known, needed = (
        f"data of shape {e.facts.shape} in {e.facts.levels} levels from {e.low:g} up" for e in (theirs, ours)
    )
    if known != needed:
        raise ValueError(f"{key} {folder} knows {known}, this run {needed}; train one on these data")


def check_noise(key: str, folder: Path, theirs: ConfigDict, ours: ConfigDict, command: str) -> None:
    """Raises: ValueError if the run in ``folder``, which ``key`` names, knows the states of another SDE.

    Args:
        command: that trains such a run.
    """
    if theirs.sde.to_dict() != ours.sde.to_dict():
        raise ValueError(
            f"{key} {folder} knows the noise of {theirs.sde.name}, not that of this run's {ours.sde.name}; train one "
            f"with {command}"
        )
