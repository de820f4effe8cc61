"""Import: weights of other projects become a run for all modes.

    runs/NAME/  config.json  checkpoints/step_00000000/

The config is the recipe of --config, by default ``cifar10``, with the sections sde, network, denoiser and codec from
the reader. The weights determine only shape and levels of the data. Mean and standard deviation are set to the middle
and a quarter of the range, approximately as for CIFAR-10.
"""

import math
from dataclasses import asdict
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import nn

from score_sde.configs import choices
from score_sde.configs.choices import choose
from score_sde.engine import checkpoint
from score_sde.engine.build import Experiment
from score_sde.engine.config import conform, run_json
from score_sde.engine.errors import CheckpointError
from score_sde.engine.facts import DataFacts
from score_sde.engine.inference import usual
from score_sde.engine.lock import NAME
from score_sde.engine.log import versions
from score_sde.engine.training.adam import make_optimizer
from score_sde.models.checkpoints import Foreign
from score_sde.sde_lib import Gaussian
from score_sde.storage.writing import is_leftover, remove, write_text


def check_place(workdir: Path) -> None:
    """Raises: ValueError for a folder with more than an import that ended before it wrote config.json."""
    if workdir.exists() and not is_unfinished(workdir):
        raise ValueError(f"{workdir} holds something already; choose another --workdir")


def is_unfinished(workdir: Path) -> bool:
    """Returns whether a folder is empty, or has only an import that was killed before it wrote config.json."""
    folder = workdir / "checkpoints"
    others = [path for path in workdir.iterdir() if path != folder and path.name != NAME and not is_leftover(path)]
    steps = [path for path in folder.iterdir() if not is_leftover(path)] if folder.is_dir() else []
    try:
        return not others and all("imported" in checkpoint.read_meta(path) for path in steps)
    except CheckpointError:
        return False


def resolved(recipe: ConfigDict, foreign: Foreign) -> ConfigDict:
    """Returns the recipe with the sections of the reader, and settings for them.

    NCSN networks are sampled by a thousand Langevin steps at their discrete levels, all others by the sampler of the
    recipe. All labels are sampled and none is dropped, since the network may lack an unconditional mode.
    """
    values = recipe.to_dict()
    for section, read in foreign.config.items():
        values[section] = read if section in choices.TABLES else {**values[section], **read}
    config = conform(values)
    config.data.path = config.data.test_path = ""
    if config.sde.name != "edm":
        config.loss.weight = choose("loss.weight", "simple")
        config.loss.timestep_sampler = choose("loss.timestep_sampler", "uniform")
    config.train.label_dropout = 0.0
    sample, network = config.sample, config.network
    sample.t_min = 1e-3 if config.sde.name in ("vpsde", "subvpsde") else 0.0
    sample.label = "all" if network.get("num_classes", 0) and config.loss.objective.name != "classification" else ""
    if network.name in ("ncsn", "ncsnv2"):
        langevin_steps = max(5, 1_000 // config.sde.num_levels)
        sample.sampler = choose("sample.sampler", "ald", langevin_steps=langevin_steps)
        sample.grid, sample.steps = "levels", config.sde.num_levels
    config.edit.batch_size = config.bound.batch_size = usual(foreign.shape)
    return config


def facts_of(foreign: Foreign, low: float) -> DataFacts:
    """Returns shape and levels of the weights, the standard deviation of CIFAR-10, and the diagonal of the range."""
    return DataFacts(foreign.shape, foreign.levels, 0.25 * (1 - low), (1 - low) * math.prod(foreign.shape) ** 0.5)


def fill(network: nn.Module, foreign: Foreign, config: ConfigDict) -> None:
    """Loads the weights into the network of the config.

    Raises: ValueError if an override has changed the network.
    """
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    read = {name: tensor.shape for name, tensor in foreign.weights.items()}
    odd = sorted(name for name in own | read if own.get(name) != read.get(name))
    if odd:
        raise ValueError(
            f"the weights are not of the network {config.network.name} with these options, {odd[0]} and {len(odd) - 1} "
            "more differ; leave --config.network out"
        )
    network.load_state_dict(foreign.weights)


def save(
    config: ConfigDict, workdir: Path, experiment: Experiment, step: int, sigma_data: float, origin: dict[str, str]
) -> None:
    """Writes the checkpoint, then config.json, which completes the run."""
    network, facts = experiment.network, experiment.facts
    average = checkpoint.ema_file(config.ema.rates[0])
    middle = torch.full(facts.shape, 0.5 * (1 + experiment.low), dtype=torch.float64)
    parts: dict[str, nn.Module | Gaussian] = {
        checkpoint.RAW: network,
        average: network,
        checkpoint.GAUSSIAN: Gaussian(middle, facts.std**2),
    }
    config.ema.rates = config.ema.rates[:1]
    state = {
        "optimizer": make_optimizer(config.optim, network.parameters()).state_dict(),
        "ema_updates": step,
        "timestep_sampler": {},
    }
    text = run_json(config, versions())
    meta = {"data": asdict(facts), "sigma_data": sigma_data, "ema": [average], "imported": origin, "config_json": text}
    remove(workdir / "checkpoints")  # from a killed import, possibly of another source
    checkpoint.save(workdir / "checkpoints", step, parts, state, {**meta, "versions": versions()})
    write_text(workdir / "config.json", text)


def describe(config: ConfigDict, experiment: Experiment, origin: dict[str, str]) -> list[str]:
    """Returns lines on the weights, the process and the data."""
    parameters = sum(p.numel() for p in experiment.network.parameters())
    which = {"ema": "averaged weights", "raw": "raw weights", "only": "weights"}[origin["weights"]]
    process = ", ".join(f"{key} {value:g}" for key, value in config.sde.items() if key != "name")
    facts, denoiser = experiment.facts, config.denoiser
    return [
        f"{origin['format']}: {config.network.name} with {parameters:,} parameters, {which} of {origin['source']}",
        f"{config.sde.name} with {process}; "
        f"the network estimates {denoiser.parameterization}, conditioned on {denoiser.c_noise}",
        f"data of shape {facts.shape} in {facts.levels} levels from {experiment.low:g} to 1, "
        f"taken to have standard deviation {facts.std:g}",
    ]
