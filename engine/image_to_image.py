"""Image-to-image: SDEdit, and translation between two runs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from score_sde.configs.default import Config
from score_sde.engine.build import Experiment
from score_sde.engine.config import Options
from score_sde.engine.examples import Denoisers, Edited, check_finite, read_given
from score_sde.engine.inverse_problems import read_mask
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import Progress
from score_sde.engine.related import check_data, recipe_of
from score_sde.engine.sampler import GRID_FILE, chosen, make_flow, make_step, make_times
from score_sde.samplers import Noise, masked, replacement, sdedit, translate
from score_sde.samplers.draw import numbered
from score_sde.samplers.editing import depth_time


def noise_and_denoise(experiment: Experiment, denoisers: Denoisers, config: Config, split: str) -> Edited:
    """SDEdit: adds noise of ``edit.strength`` to examples and denoises them; keeps the known pixels of ``edit.mask``.

    Raises: ValueError for a strength outside the SDE's range, or a grid that does not start at it.
    """
    settings, sde = config.edit, experiment.sde
    if (name := chosen(config, sde)[0]).endswith(GRID_FILE):
        raise ValueError(f"--task sdedit starts at edit.strength, and {name} elsewhere; name another sample.grid")
    x = experiment.codec.encode(read_given(config, experiment, split)).to(experiment.device)
    start = depth_time(sde, settings.strength, experiment.sigma_data(config))
    if not start > config.sample.t_min:
        raise ValueError(
            f"edit.strength {settings.strength} is less noise than at the last time; raise it, or lower sample.t_min "
            f"{config.sample.t_min}"
        )
    times = make_times(config, experiment, start)
    mask = read_mask(settings.mask, experiment.facts.shape).to(x.device) if settings.mask else None
    parts = []
    for rows in _batches(len(x), config):
        draw = Noise(rows + config.seed)
        constrain = None if mask is None else replacement(x[rows], masked(mask), draw)
        step = make_step(config, experiment, constrain=constrain)
        with torch.no_grad(), numbered(rows):
            parts.append(sdedit(step, denoisers(rows), x[rows], times, draw, constrain))
        check_finite(parts[-1], rows)
    edited = torch.cat(parts)
    return Edited(edited, {"input": x, "edited": edited}, {"strength": settings.strength})


def translate_examples(experiment: Experiment, denoisers: Denoisers, config: Config, split: str) -> Edited:
    """Encodes examples by this run's probability flow and decodes them by the flow of ``edit.other``; and back.

    Raises: ValueError if no other run is named, or its data differ; CheckpointError if it is missing or damaged.
    """
    if not config.edit.other:
        raise ValueError("edit.other is empty: give the folder of the run to translate to")
    folder = Path(config.edit.other)
    theirs, other, _ = load(recipe_of(folder, config), folder, Options())
    check_flow(other, folder)
    check_data("edit.other", folder, theirs, experiment)
    x = experiment.codec.encode(read_given(config, experiment, split)).to(experiment.device)
    here, there = make_flow(config, experiment), make_flow(config, theirs)
    parts = []
    for rows in _batches(len(x), config):
        with torch.no_grad(), numbered(rows):
            moved = translate(here, denoisers(rows), there, other, x[rows])
            parts.append((moved, translate(there, other, here, denoisers(rows), moved)))
        check_finite(moved, rows)
    moved, back = (torch.cat(part) for part in zip(*parts, strict=True))
    error = experiment.codec.values(back.double()) - experiment.codec.values(x.double())
    shown = {"input": x, "translated": moved, "and back": back}
    return Edited(moved, shown, {"back_rms": error.square().mean().sqrt().item()})


def _batches(num: int, config: Config) -> Iterator[Tensor]:
    """Yields the numbers of the examples, one batch at a time, with a progress bar."""
    progress = Progress(num, "examples")
    for rows in torch.arange(num).split(config.edit.batch_size):
        yield rows
        progress.advance(len(rows))
    progress.close()


IMAGE_TO_IMAGE: dict[str, Callable[..., Edited]] = {"sdedit": noise_and_denoise, "translate": translate_examples}
"""(experiment, denoisers, config, split) -> edited examples."""
