"""Inputs of training steps. A batch is a function of the seed, the step and the number of examples before it."""

import os

import torch
from torch import Tensor

from score_sde.configs.default import Config
from score_sde.data import Dataset, reader
from score_sde.engine import ranks
from score_sde.engine.build import Experiment, conditions
from score_sde.engine.randomness import TRAINING, Ahead, dither, dithers, draw_times, kept, noise, positions
from score_sde.sde_lib import TimestepSampler
from score_sde.sde_lib.devices import put


class Batches:
    """This process's part of each batch.

    Attributes:
        first: index of its first example in a batch.
        num: number of its examples.
    """

    def __init__(
        self, config: Config, experiment: Experiment, dataset: Dataset, timestep_sampler: TimestepSampler
    ) -> None:
        self.config, self.experiment, self.timestep_sampler = config, experiment, timestep_sampler
        batch_size, device, shape = config.train.batch_size, experiment.device, experiment.facts.shape
        self.first, self.num = ranks.part(batch_size)
        sde = experiment.sde
        sde.tabulate(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))  # for the timestep sampler
        self.read = reader(
            dataset,
            device,
            config.seed,
            batch_size=self.num,
            stride=batch_size,
            mirror=config.data.mirror,
            ahead=batches_ahead(device),
        )
        like = torch.empty(1, *shape, device=device)
        self.eps = Ahead(
            lambda where: noise(config.seed, TRAINING, where)(like.expand(len(where), *shape)), self.num, batch_size
        )
        self.dither = None
        if dithers(config.train, experiment.facts):
            self.dither = Ahead(lambda where: dither(config.seed, where, like), self.num, batch_size)

    def inputs(self, step: int, seen: int) -> dict[str, Tensor]:
        """Returns x0, eps, t, the correction of t and the conditions, all with the examples as the first axis.

        An example with values outside the codec's range is NaN, which ``check`` reports.

        Args:
            seen: examples before the step.
        """
        config, device, start = self.config, self.experiment.device, seen + self.first
        batch = self.read(start)
        x0 = self.experiment.codec.encode_unread(self._values(batch.pop("x"), start))
        cond = conditions(config, batch, device)
        if cond:
            cond["keep"] = put(kept(config.seed, positions(start, self.num), config.train.label_dropout), device)
        t, correction = draw_times(
            step, x0, self.experiment.sde, self.timestep_sampler, self.first, config.train.batch_size
        )
        eps = put(batch["eps"], device) if "eps" in batch else self.eps(start)
        return {"x0": x0, "eps": eps, "t": t, "correction": correction, **cond}

    def check(self, seen: int) -> None:
        """Raises: ValueError if the batch after ``seen`` examples has values outside the codec's range."""
        start = seen + self.first
        self.experiment.codec.check(self._values(self.read(start)["x"], start))

    def _values(self, x: Tensor, start: int) -> Tensor:
        """Values to encode; with uniform noise of one level's width if the config dequantizes."""
        x = put(x, self.experiment.device)
        return x + self.dither(start) if self.dither else x


def batches_ahead(device: torch.device) -> int:
    """Number of batches to read ahead: 2 on a CPU; on a GPU, the CPU cores per process, from 2 to 16."""
    return 2 if device.type == "cpu" else max(2, min(16, (os.cpu_count() or 1) // ranks.on_this_machine()))
