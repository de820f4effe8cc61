"""Base classes of editing tasks: a task is a class whose options are its arguments."""

from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import torch

from score_sde.configs.default import Config
from score_sde.engine.build import Experiment
from score_sde.engine.drawing import Counted, write_samples
from score_sde.engine.examples import Denoisers, Edited, spaced
from score_sde.engine.guidance import Guidance
from score_sde.engine.pictures import compared, num_shown, save

SHOWN = 16
"""Most examples in a picture."""


class Task(ABC):
    """A task of ``--mode edit``.

    Attributes:
        guided: whether the task takes a label and guidance.
        uses_flow: whether the task solves the probability flow.
    """

    guided, uses_flow = False, False

    @abstractmethod
    def run(
        self, folder: Path, experiment: Experiment, denoise: Counted, guidance: Guidance, config: Config, split: str
    ) -> dict[str, Any]:
        """Writes the files of the task to a folder, and returns its entries of the manifest."""


class FlowTask(Task):
    """A task that follows the probability flow of the run without guidance."""

    uses_flow = True

    def run(
        self, folder: Path, experiment: Experiment, denoise: Counted, guidance: Guidance, config: Config, split: str
    ) -> dict[str, Any]:
        with torch.no_grad():
            return self.follow(folder, experiment, denoise, config, split)

    @abstractmethod
    def follow(
        self, folder: Path, experiment: Experiment, denoise: Counted, config: Config, split: str
    ) -> dict[str, Any]:
        """Writes the files of the task to a folder, and returns its entries of the manifest."""


class GuidedTask(Task):
    """A task that edits examples with guided denoisers; writes samples.npz, and grid.png with inputs and results."""

    guided = True

    def run(
        self, folder: Path, experiment: Experiment, denoise: Counted, guidance: Guidance, config: Config, split: str
    ) -> dict[str, Any]:
        result, shown, record = self.edit(experiment, partial(guidance, denoise), config, split)
        facts = experiment.facts
        write_samples(folder, experiment.codec.decode(result).cpu(), facts)
        which = spaced(len(result), SHOWN if len(facts.shape) > 1 else num_shown(facts))
        decoded = {name: list(experiment.codec.decode(x[which]).cpu()) for name, x in shown.items()}
        save(folder / "grid.png", compared(decoded, [list(map(str, which))], facts))
        edit, sampler = config.edit, config.sample.sampler
        options = {key: value for key, value in edit.items() if key not in ("task", "method")}
        options |= {**edit.task.options, "method": edit.method.name, "method_options": edit.method.options}
        options |= {"sampler": sampler.name, "sampler_options": sampler.options}
        options |= {key: config.sample[key] for key in ("steps", "grid", "t_min")}
        entries = {"options": options, "split": split, "num_examples": len(result)}
        return {**entries, **record, "guidance": guidance.record()}

    @abstractmethod
    def edit(self, experiment: Experiment, denoisers: Denoisers, config: Config, split: str) -> Edited:
        """The edited examples.

        Args:
            denoisers: numbers (B,) -> guided denoiser of these examples.
        """
