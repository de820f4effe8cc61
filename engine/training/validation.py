"""Validation: the loss on the test split."""

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from score_sde.configs.default import Config
from score_sde.data import Dataset, batch_at
from score_sde.engine.build import Experiment, conditions
from score_sde.engine.objective import make_objective, make_timestep_sampler
from score_sde.engine.randomness import HELD_OUT, OBJECTIVE, dither, dithers, draw_times, noise, positions
from score_sde.sde_lib import Denoise

HELD_OUT_EXAMPLES = 512


HELD_OUT_ENTRIES = 2**27
"""Largest number of entries of these examples: 512 images of 3 x 256 x 256, or fewer larger ones."""


NOISE_BINS = (-20.0, -8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0, 20.0)
"""Edges of the log-SNR bins of the validation loss; the outer two bins are unbounded."""


class Validation:
    """Loss on fixed draws of (x, t, eps) from the test split, comparable between steps and between runs."""

    def __init__(self, config: Config, experiment: Experiment, dataset: Dataset) -> None:
        num = min(HELD_OUT_EXAMPLES, len(dataset), max(1, HELD_OUT_ENTRIES // math.prod(dataset.shape)))
        batch = batch_at(dataset, config.seed, 0, num)
        device = experiment.device
        where = positions(0, num)
        x = batch.pop("x").to(device)
        self.x0 = experiment.codec.encode(
            x + dither(config.seed, where, x[:1]) if dithers(config.train, experiment.facts) else x
        )
        self.eps = batch["eps"].to(device) if "eps" in batch else noise(config.seed, HELD_OUT, where)(self.x0)
        self.cond = conditions(config, batch, device)
        self.t, self.correction = draw_times(
            0, self.x0, experiment.sde, make_timestep_sampler(config.loss.timestep_sampler)
        )
        self.objective, self.where = make_objective(config, experiment), where
        self.experiment, self.config = experiment, config

    @torch.no_grad()
    def losses(self, network: torch.nn.Module) -> dict[str, float]:
        """Returns the validation loss, the loss of a network with output zero, and the loss per log-SNR bin."""
        denoise, silent = (self.experiment.denoiser(n, self.config) for n in (network, _zero(network)))
        loss, zero = (self.correction.flatten() * self._losses(d) for d in (denoise, silent))
        borders = torch.tensor(NOISE_BINS[1:-1], device=loss.device)
        bins = torch.bucketize(self.experiment.sde.log_snr(self.t).flatten(), borders)
        found = {"validation_loss": loss.mean().item(), "validation_loss_of_zero": zero.mean().item()}
        for k, (low, high) in enumerate(pairwise(NOISE_BINS)):
            if (bins == k).any():
                found[f"validation_loss/log_snr_{low:g}_to_{high:g}"] = loss[bins == k].mean().item()
        report = self.objective.report(denoise, self.x0, self.eps, **self.cond)
        if self.cond and self.objective.trains_denoiser():
            report = {**report, "label_effect": self._label_effect(denoise)}
        return found | {f"validation_{key}": value for key, value in report.items()}

    def _label_effect(self, denoise: Denoise) -> float:
        """Relative change of the x0 estimate when the label is dropped: rms(x0 - x0 without) / rms(x0 - data).

        It is 0 for a network that ignores its label.
        """
        x = self.experiment.sde.perturb(self.x0, self.eps, self.t)
        dropped = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        with_label, without = denoise(x, self.t, **self.cond).x0, denoise(x, self.t, keep=dropped, **self.cond).x0
        return ((with_label - without).square().mean() / (with_label - self.x0).square().mean()).sqrt().item()

    def _losses(self, denoise: Denoise) -> Tensor:
        draw = noise(self.config.seed, OBJECTIVE, self.where)
        return self.objective(denoise, self.x0, self.eps, self.t, draw, 1.0, **self.cond)


def _zero(network: nn.Module) -> nn.Module:
    """Returns a shallow copy of the network with output zero; shared hooks run once per call."""
    silent = copy.copy(network)
    silent.forward = lambda *args, **cond: torch.zeros_like(network.forward(*args, **cond))
    return silent
