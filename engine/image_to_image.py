"""Image-to-image: SDEdit, and translation between two runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from score_sde.configs.default import Config
from score_sde.engine.build import Experiment
from score_sde.engine.config import Options
from score_sde.engine.edit_task import GuidedTask
from score_sde.engine.examples import Denoisers, Edited, check_finite, read_given
from score_sde.engine.inverse_problems import read_mask
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import Progress
from score_sde.engine.related import check_data, recipe_of
from score_sde.engine.sampler import GRID_FILE, chosen, make_flow, make_step, make_times
from score_sde.samplers import Noise, masked, replacement, sdedit, translate
from score_sde.samplers.draw import numbered
from score_sde.samplers.editing import depth_time


@dataclass(frozen=True)
class SDEdit(GuidedTask):
    """Adds noise to examples and denoises them. Meng et al., 2021. arXiv:2108.01073

    Args:
        strength: noise fraction of the variance, in (0, 1).
        mask: known pixels, which are kept, as of the task inpaint; empty: none.
    """

    strength: float = 0.5
    mask: str = ""

    def edit(self, experiment: Experiment, denoisers: Denoisers, config: Config, split: str) -> Edited:
        """Edited examples.

        Raises: ValueError for a strength that the SDE does not reach, or a grid that does not begin there.
        """
        sde = experiment.sde
        if (name := chosen(config.sample, sde)[0]).endswith(GRID_FILE):
            raise ValueError(f"--task sdedit starts at its strength, and {name} elsewhere; name another sample.grid")
        x = experiment.codec.encode(read_given(config, experiment, split)).to(experiment.device)
        start = depth_time(sde, self.strength, experiment.sigma_data(config))
        if not start > config.sample.t_min:
            raise ValueError(
                f"edit.task.strength {self.strength} is less noise than at the end; raise it, or lower sample.t_min "
                f"{config.sample.t_min}"
            )
        times = make_times(config.sample, experiment, start)
        mask = read_mask(self.mask, experiment.facts.shape).to(x.device) if self.mask else None
        parts = []
        for rows in _batches(len(x), config):
            draw = Noise(rows + config.seed)
            constrain = None if mask is None else replacement(x[rows], masked(mask), draw)
            step = make_step(config.sample, experiment, constrain=constrain)
            with torch.no_grad(), numbered(rows):
                parts.append(sdedit(step, denoisers(rows), x[rows], times, draw, constrain))
            check_finite(parts[-1], rows)
        edited = torch.cat(parts)
        return Edited(edited, {"input": x, "edited": edited}, {"strength": self.strength})


@dataclass(frozen=True)
class Translate(GuidedTask):
    """Encodes examples by this run's probability flow, and decodes them by the flow of another run; and back.

    Su, Song, Meng, Ermon, "Dual Diffusion Implicit Bridges", 2022. arXiv:2203.08382

    Args:
        other: folder of the run to translate to.
    """

    uses_flow = True
    other: str = ""

    def edit(self, experiment: Experiment, denoisers: Denoisers, config: Config, split: str) -> Edited:
        """Translated examples.

        Raises: ValueError if no other run is named, or its data differ; CheckpointError if it is missing or damaged.
        """
        if not self.other:
            raise ValueError("edit.task.other is empty: give the folder of the run to translate to")
        folder = Path(self.other)
        theirs, other, _ = load(recipe_of(folder, config), folder, Options())
        check_flow(other, folder)
        check_data("edit.task.other", folder, theirs, experiment)
        x = experiment.codec.encode(read_given(config, experiment, split)).to(experiment.device)
        here, there = make_flow(config.sample, experiment), make_flow(config.sample, theirs)
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
