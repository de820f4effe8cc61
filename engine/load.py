"""Loading of a trained run: its experiment, and the denoiser with the weights of a checkpoint."""

import shlex
from pathlib import Path

from torch import nn

from score_sde.configs.default import Config
from score_sde.engine import checkpoint, prior
from score_sde.engine.build import Experiment, build
from score_sde.engine.commands import training_command
from score_sde.engine.config import Options, names, read_run, stored
from score_sde.engine.errors import CheckpointError, looked_at
from score_sde.engine.facts import DataFacts
from score_sde.engine.inference import frozen
from score_sde.engine.precision import PRECISIONS, check_precision
from score_sde.engine.recipe import MODEL
from score_sde.engine.training import posthoc
from score_sde.sde_lib import OBJECTIVES, Denoiser
from score_sde.sde_lib.consistency import ConsistencyModel
from score_sde.storage.naming import pick


def load(config: Config, workdir: Path, options: Options) -> tuple[Experiment, Denoiser, Path]:
    """Returns the experiment of a trained run, its denoiser with the weights of the options, and their checkpoint.

    Warns of a process whose last level is not noise.

    Raises: CheckpointError for a checkpoint that is missing, damaged or of another network; ValueError for a
        classifier.
    """
    if not pick(OBJECTIVES, "objective", config.loss.objective.name).trains_denoiser():
        raise ValueError(
            f"{workdir} is a classifier, which draws nothing and has no density; another run is measured by it, with "
            f"--mode evaluate --config.evaluate.features={shlex.quote(str(workdir))}"
        )
    experiment, denoiser, found = load_model(config, workdir, options)
    assert isinstance(denoiser, Denoiser)  # the model of an objective that trains a denoiser
    prior.warn(config.sde.name, experiment.sde, experiment.gaussian)
    return experiment, denoiser, found


def load_model(config: Config, workdir: Path, options: Options) -> tuple[Experiment, nn.Module, Path]:
    """Returns the same as ``load``, also for classifiers.

    Raises: CheckpointError for a checkpoint that is missing, damaged or of another network.
    """
    found = checkpoint.find(workdir / "checkpoints", options.checkpoint)
    meta = checkpoint.read_meta(found)
    facts = DataFacts.from_dict(meta["data"])
    experiment = build(config, facts, checkpoint.load_gaussian(found, facts.shape))
    posthoc.load_weights(found, options.weights, experiment.network)
    if not options.allow_changes and (workdir / "config.json").is_file():
        read_run(workdir).check_digest(meta.get("model_sha256"), MODEL, found)
    precision = pick(PRECISIONS, "precision", config.inference.precision)
    check_precision(precision, experiment.device, "inference")
    network = frozen(experiment.network, precision, config.inference.compile)
    return experiment, experiment.denoiser(network, config), found


def check_flow(denoiser: nn.Module, workdir: Path) -> None:
    """Raises: ValueError for a run without a probability flow."""
    if isinstance(denoiser, ConsistencyModel):
        raise ValueError(
            f"{workdir} is a consistency model: it has no density and no latents, only the end of the flow; take "
            "its teacher, or another run"
        )


def check_there(key: str, folder: Path, config: Config, shape: tuple[int, ...]) -> None:
    """Raises: CheckpointError if the run of ``key`` is missing, with the command that trains it on these data."""
    if folder.name in names() and not (folder / "config.json").is_file():
        command = training_command(folder.name, config, folder, shape)
        raise CheckpointError(f"no run in {folder}{looked_at(folder)}, which {key} names: train one with {command}")


def load_average(folder: Path, network: nn.Module) -> None:
    """Loads the averaged weights of the run in ``folder`` into a network.

    Raises: CheckpointError for a checkpoint that is missing, damaged or of another network.
    """
    stored(folder)
    found = checkpoint.find(folder / "checkpoints")
    checkpoint.load_network(found, checkpoint.read_meta(found)["ema"][0], network)
