"""Making examples anew, more or less like those that are given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from engine.build import Experiment, check_flow, load
from engine.config import Options, stored
from engine.examples import read_given
from engine.log import Progress
from engine.restore import read_mask
from engine.sample import make_step, make_times, numbered
from samplers import Noise, masked, replacement, sdedit, translate
from samplers.editing import depth_time
from samplers.guidance import Guided

Guide = Callable[[Tensor], Guided]
"""From numbers (B,) to the denoiser of those examples."""


def renew(experiment: Experiment, guided: Guide, config: ConfigDict, split: str) -> tuple[dict, dict[str, Any]]:
    """Examples noised to ``edit.strength`` and denoised; with ``edit.mask``, what it knows stays."""
    settings, sde = config.edit, experiment.sde
    x = experiment.codec.encode(read_given(config, experiment, split)).to(experiment.device)
    start = depth_time(sde, settings.strength, experiment.sigma_data(config))
    times = make_times(config, experiment, start)
    mask = read_mask(settings.mask, experiment.facts.shape).to(x.device) if settings.mask else None
    parts = []
    for rows in _batches(len(x), config):
        draw, constrain = Noise(rows + config.seed), None
        if mask is not None:
            constrain = replacement(x[rows], masked(mask), draw)
        with torch.no_grad(), numbered(rows):
            parts.append(sdedit(make_step(config, experiment), guided(rows), x[rows], times, draw, constrain))
    return {"input": x, "edited": torch.cat(parts)}, {"strength": settings.strength}


def bridge(experiment: Experiment, guided: Guide, config: ConfigDict, split: str) -> tuple[dict, dict[str, Any]]:
    """Examples encoded by this run's flow and decoded by that of ``edit.other``, and back again.

    Raises: ValueError where no other run is named, or it knows other data; CheckpointError.
    """
    if not config.edit.other:
        raise ValueError("edit.other is empty: give the folder of the run to translate to")
    folder = Path(config.edit.other)
    recipe = stored(folder)
    recipe.device, recipe.threads = config.device, config.threads
    theirs, other, _ = load(recipe, folder, Options())
    check_flow(other, folder)
    ours = experiment.facts
    if (theirs.facts.shape, theirs.facts.levels) != (ours.shape, ours.levels):
        raise ValueError(
            f"edit.other {folder} knows data of shape {theirs.facts.shape} and {theirs.facts.levels} levels, not of "
            f"{ours.shape} and {ours.levels}"
        )
    x = experiment.codec.encode(read_given(config, experiment, split)).to(experiment.device)
    here, there = make_step(config, experiment, "ode"), make_step(config, theirs, "ode")
    parts = []
    for rows in _batches(len(x), config):
        with torch.no_grad(), numbered(rows):
            moved = translate(here, guided(rows), there, other, x[rows])
            parts.append((moved, translate(there, other, here, guided(rows), moved)))
    moved, back = (torch.cat(part) for part in zip(*parts, strict=True))
    error = experiment.codec.values(back.double()) - experiment.codec.values(x.double())
    return {"input": x, "translated": moved, "and back": back}, {"back_rms": error.square().mean().sqrt().item()}


def _batches(num: int, config: ConfigDict):
    """The numbers of the examples, a batch at a time, with a bar."""
    progress = Progress(num, "examples")
    for rows in torch.arange(num).split(config.edit.batch_size):
        yield rows
        progress.advance(len(rows))
    progress.close()


REMAKES = {"sdedit": renew, "translate": bridge}
"""(experiment, guided, config, split) -> rows of examples to look at, and what is to tell of them."""
