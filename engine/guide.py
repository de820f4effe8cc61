"""Labels and guidance of a command: from a run's denoiser to the one that samples are drawn by.

What the section ``guidance`` names is put together in one order: the label and its scale, the weaker run, the
classifier, the pair of encoders, the levels between which all of this acts, the threshold.
"""

import functools
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_sde.engine.build import Experiment
from score_sde.engine.commands import training_command
from score_sde.engine.config import Options
from score_sde.engine.encoders import Lean, make_lean
from score_sde.engine.errors import CheckpointError, looked_at
from score_sde.engine.load import load, load_model
from score_sde.engine.related import check_data, check_noise, recipe_of
from score_sde.samplers import autoguidance, classifier, classifier_free, dynamic_threshold, static_threshold, within
from score_sde.samplers.guidance import Guided
from score_sde.sde_lib import Classifier, Denoise, Each, of_rows, transport
from score_sde.storage.naming import pick

ALL = "all"
"""What ``sample.label`` says to have every class in turn."""

THRESHOLDS: dict[str, Callable[..., Guided]] = {
    "none": lambda guided, quantile, low: guided,
    "static": lambda guided, quantile, low: static_threshold(guided, low),
    "dynamic": lambda guided, quantile, low: dynamic_threshold(guided, quantile, low),
}
"""(denoiser, quantile, where encoded levels begin) -> denoiser."""


class Guide:
    """What a command asks of a run's denoiser beside x.

    Args:
        workdir: of the run, for messages.
    Raises: ValueError for a label or guidance that this run cannot have; CheckpointError for a run it needs that is
        missing or damaged.
    """

    def __init__(self, config: ConfigDict, workdir: Path, experiment: Experiment) -> None:
        self.config, self.settings, self.experiment = config, config.guidance, experiment
        self.conditional = config.network.get("num_classes", 0) > 0
        self.classes = experiment.facts.classes
        self.weaker = self._weaker(Path(self.settings.autoguidance)) if self.settings.autoguidance else None
        self.classify = self._classifier(Path(self.settings.classifier)) if self.settings.classifier else None
        self.towards = self._towards()
        self.num_classes = self.classify.num_classes if self.classify else config.network.get("num_classes", 0)
        self.label = self._label(config.sample.label or (ALL if self.classify else ""), workdir)
        self._check_scale(workdir)
        limit = pick(THRESHOLDS, "threshold", self.settings.threshold)
        if self.settings.threshold != "none" and not experiment.facts.levels:
            raise ValueError(
                f"guidance.threshold {self.settings.threshold} keeps estimates among levels, and the data of {workdir} "
                "are real numbers of any size; leave it out"
            )
        self.limit = functools.partial(limit, quantile=self.settings.quantile, low=experiment.low)

    @property
    def acts(self) -> bool:
        """Whether the denoiser is another than the run's own without a label."""
        return bool(self.told())

    def told(self) -> dict[str, Any]:
        """What acts, for a manifest."""
        settings = self.settings
        keys = {
            "scale": settings.scale != 1,
            "autoguidance_scale": self.weaker,
            "autoguidance": self.weaker,
            "classifier_scale": self.classify,
            "classifier": self.classify,
            "encoder_scale": self.towards,
            "encoder": self.towards,
            "text": self.towards and settings.text,
            "image": self.towards and settings.image,
            "quantile": settings.threshold == "dynamic",
            "threshold": settings.threshold != "none",
        }
        found = {key: settings[key] for key, acts in keys.items() if acts}
        if self.label is not None:
            found["label"] = self.label
            if self.classes:
                found["class"] = self.classes[self.label] if isinstance(self.label, int) else self.label
        if self.leans:
            found |= {"low": settings.low, "high": settings.high}
        return found

    @property
    def leans(self) -> bool:
        """Whether anything but the label moves the estimates."""
        return self.settings.scale != 1 or any((self.weaker, self.classify, self.towards))

    def labels(self, numbers: Tensor) -> Tensor | None:
        """The labels of the examples of these numbers (B,), int64; None without any."""
        if self.label is None:
            return None
        labels = torch.full_like(numbers, self.label) if isinstance(self.label, int) else numbers % self.num_classes
        return labels.to(self.experiment.device)

    def __call__(self, denoise: Denoise, numbers: Tensor) -> Each:
        """The guided denoiser for the examples of these numbers (B,)."""
        numbers = numbers.to(self.experiment.device)
        return Each(lambda rows: self._lean(of_rows(denoise, rows), numbers[rows]))

    def _lean(self, denoise: Denoise, numbers: Tensor) -> Guided:
        settings, labels, sde = self.settings, self.labels(numbers), self.experiment.sde
        cond = {"label": labels} if self.conditional and labels is not None else {}
        plain: Denoise = functools.partial(denoise, **cond)
        guided = plain
        if settings.scale != 1:
            guided = functools.partial(classifier_free(denoise, settings.scale), **cond)
        if self.weaker:
            guided = autoguidance(guided, functools.partial(self.weaker, **cond), settings.autoguidance_scale)
        if self.classify and labels is not None:
            guided = classifier(guided, sde, self.classify.log_prob(labels), settings.classifier_scale)
        if self.towards:
            guided = self.towards(guided)
        if self.leans:
            guided = within(guided, plain, sde, settings.low, settings.high)
        return self.limit(guided)

    def _towards(self) -> Lean | None:
        """Towards a text or an image.

        Raises: ValueError for one of them without an encoder.
        """
        settings = self.settings
        if settings.encoder:
            return make_lean(self.config, self.experiment)
        for key in ("text", "image"):
            if settings[key]:
                raise ValueError(
                    f"guidance.{key} {settings[key]!r} needs a guidance.encoder: train one with --config clip, or give "
                    "the folder of a CLIPModel"
                )
        return None

    def _label(self, text: str, workdir: Path) -> int | str | None:
        """The label of a text: ``ALL``, a number, or None for an empty one. A name goes before a number."""
        if not text:
            return None
        if self.num_classes == 0:
            raise ValueError(
                f"--label {text}: {workdir} was trained without labels; train with --config conditional, or name a "
                "guidance.classifier"
            )
        if text == ALL:
            return ALL
        if text in self.classes:
            return self.classes.index(text)
        if text.isdecimal() and int(text) < self.num_classes:
            return int(text)
        near = get_close_matches(text, self.classes)
        names = f", the name of a class{f', such as {near[0]}' if near else ''}" if self.classes else ""
        raise ValueError(f"--label {text}: need 0 to {self.num_classes - 1}{names}, or {ALL}")

    def _check_scale(self, workdir: Path) -> None:
        """Raises: ValueError where the run cannot be without its label, or there is none to scale."""
        scale = self.settings.scale
        if self.conditional and self.label is None and not self.config.train.label_dropout:
            raise ValueError(
                f"{workdir} was trained with train.label_dropout 0 and knows no image without its label: add --label 0 "
                f"or --label {ALL}"
            )
        if scale == 1:
            return
        if self.label is None or not self.conditional:
            raise ValueError(
                f"guidance.scale {scale} scales a label of a run with labels: add --label 0 or --label {ALL}"
            )
        if not self.config.train.label_dropout:
            raise ValueError(
                f"guidance.scale {scale} needs a network that knows images without their label, and {workdir} was "
                "trained with train.label_dropout 0; train with 0.1"
            )

    def _weaker(self, folder: Path) -> Guided:
        """The run that the own one leans away from, on the SDE of this one."""
        recipe = recipe_of(folder, self.config)
        theirs, denoise, _ = load(recipe, folder, Options())
        check_data("guidance.autoguidance", folder, theirs, self.experiment)
        classes, ours = (config.network.get("num_classes", 0) for config in (recipe, self.config))
        if classes != ours:
            raise ValueError(f"guidance.autoguidance {folder} knows {classes} classes, this run {ours}: need as many")
        return transport(denoise, theirs.sde, self.experiment.sde)

    def _classifier(self, folder: Path) -> Classifier:
        """The classifier of noisy states, of the same noise."""
        classes, facts = self.config.network.get("num_classes", 0), self.experiment.facts
        missing = not (folder / "config.json").is_file()
        train = training_command(
            "classifier",
            self.config,
            folder if missing else folder.with_name(f"{folder.name}-{self.config.sde.name}"),
            facts.shape,
            classes or len(facts.classes) or None,
            ("data", "codec", "sde"),
        )
        if missing:
            raise CheckpointError(f"no classifier in {folder}{looked_at(folder)}: train one with {train}")
        recipe = recipe_of(folder, self.config)
        theirs, classify, _ = load_model(recipe, folder, Options())
        if not isinstance(classify, Classifier):
            raise ValueError(f"guidance.classifier {folder} is no classifier: train one with {train}")
        check_data("guidance.classifier", folder, theirs, self.experiment)
        check_noise("guidance.classifier", folder, recipe, self.config, train)
        if classes not in (0, classify.num_classes):
            raise ValueError(f"guidance.classifier {folder} knows {classify.num_classes} classes, this run {classes}")
        if classes and self.classes and theirs.facts.classes not in ((), self.classes):
            raise ValueError(f"guidance.classifier {folder} numbers its classes otherwise: train one on the same data")
        self.classes = theirs.facts.classes or self.classes
        return classify
