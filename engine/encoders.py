"""Guidance by a pair of encoders, the one of ``guidance.encoder``, towards a text or an image."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from score_sde.configs.default import Config, Guidance
from score_sde.data import DataError
from score_sde.engine.build import Experiment
from score_sde.engine.commands import training_command
from score_sde.engine.config import Options
from score_sde.engine.examples import read_input
from score_sde.engine.load import load_model
from score_sde.engine.related import check_data, check_noise, recipe_of
from score_sde.models.clip import Clip
from score_sde.samplers import clean_embedding_guidance, embedding_guidance
from score_sde.samplers.guidance import Guided
from score_sde.sde_lib import Pair
from score_sde.storage.reading import read_text

EncoderGuidance = Callable[[Guided], Guided]
"""denoiser -> denoiser guided towards the target."""


def make_encoder_guidance(config: Config, experiment: Experiment) -> EncoderGuidance:
    """Guidance towards ``guidance.text`` or ``guidance.image`` by ``guidance.encoder``.

    Raises: ValueError for an encoder without a target or of other data, or a text that it cannot tokenize;
        CheckpointError, DataError or ForeignError for files that are missing or damaged.
    """
    settings, folder = config.guidance, Path(config.guidance.encoder)
    if bool(settings.text) == bool(settings.image):
        given = "both are" if settings.text else "neither is"
        raise ValueError(f"guidance.encoder needs either guidance.text or guidance.image, and {given} given")
    return (by_clip if is_clip(folder) else by_pair)(config, experiment, folder)


def is_clip(folder: Path) -> bool:
    """Whether transformers wrote a folder: its config.json then holds ``model_type``."""
    try:
        found = json.loads(read_text(folder / "config.json"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "model_type" in found


def by_pair(config: Config, experiment: Experiment, folder: Path) -> EncoderGuidance:
    """Guidance by a run of ``--config clip``, whose image encoder takes noisy states."""
    recipe = recipe_of(folder, config)
    theirs, pair, _ = load_model(recipe, folder, Options())
    if not isinstance(pair, Pair):
        raise ValueError(f"guidance.encoder {folder} is not a pair of encoders; train one with --config clip")
    check_data("guidance.encoder", folder, theirs, experiment)
    another = folder.with_name(f"{folder.name}-{config.sde.name}")
    train = training_command("clip", config, another, experiment.facts.shape, sections=("data", "codec", "sde"))
    check_noise("guidance.encoder", folder, recipe, config, train)
    with torch.no_grad():
        if config.guidance.text:
            target = pair.aim(pair.network.tokens(config.guidance.text))
        else:
            target = pair.network.sharpness() * pair.embed(
                read_target(config.guidance, experiment), experiment.sde.t_min
            )
    return lambda denoise: embedding_guidance(
        denoise, experiment.sde, pair.embed, target, config.guidance.encoder_scale
    )


def by_clip(config: Config, experiment: Experiment, folder: Path) -> EncoderGuidance:
    """Guidance by a CLIPModel of transformers, which encodes the estimate of x_0.

    Raises: ValueError for data other than images.
    """
    facts = experiment.facts
    if not facts.levels or len(facts.shape) != 3 or facts.shape[0] not in (1, 3):
        raise ValueError(f"guidance.encoder {folder} takes images, and the run has examples of shape {facts.shape}")
    clip = Clip.load(folder, experiment.device, experiment.low)
    with torch.no_grad():
        aim = (
            clip.text(config.guidance.text)
            if config.guidance.text
            else clip.image(read_target(config.guidance, experiment))
        )
    target = clip.sharpness * aim
    return lambda denoise: clean_embedding_guidance(
        denoise, experiment.sde, clip.image, target, config.guidance.encoder_scale
    )


def read_target(settings: Guidance, experiment: Experiment) -> torch.Tensor:
    """The example of ``guidance.image``, encoded, (1, *).

    Raises: DataError for a file that is missing, damaged or empty; ValueError for more than one example or another
        shape.
    """
    path = Path(settings.image)
    found = read_input(path, experiment.facts)
    if len(found) == 0:
        raise DataError(f"{path} has no examples: check guidance.image")
    if len(found) > 1:
        raise ValueError(f"guidance.image {path} has {len(found)} examples: give a single one")
    return experiment.codec.encode(found).to(experiment.device)
