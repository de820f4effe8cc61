"""Class labels and guidance of a command, by the section ``guidance``.

The terms are applied in one order: classifier-free guidance, autoguidance, classifier guidance, guidance by encoders,
the interval of noise levels, the threshold.
"""

import functools
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from score_sde.configs.default import Config
from score_sde.engine.build import Experiment
from score_sde.engine.commands import training_command
from score_sde.engine.config import Options
from score_sde.engine.encoders import EncoderGuidance, make_encoder_guidance
from score_sde.engine.errors import CheckpointError, looked_at
from score_sde.engine.load import load, load_model
from score_sde.engine.related import check_data, check_noise, recipe_of
from score_sde.samplers import autoguidance, classifier, classifier_free, dynamic_threshold, static_threshold, within
from score_sde.samplers.guidance import Guided
from score_sde.sde_lib import Classifier, Denoise, PerExample, for_examples, transport
from score_sde.storage.naming import pick

ALL = "all"
"""Value of ``sample.label`` that assigns all classes in turn."""

THRESHOLDS: dict[str, Callable[..., Guided]] = {
    "none": lambda guided, quantile, low: guided,
    "static": lambda guided, quantile, low: static_threshold(guided, low),
    "dynamic": lambda guided, quantile, low: dynamic_threshold(guided, quantile, low),
}
"""(denoiser, quantile, lower end of the encoded levels) -> denoiser with thresholded estimates."""


class Guidance:
    """The class label and the guidance that a command applies to the denoiser of a run.

    Args:
        workdir: folder of the run, for error messages.
    Raises: ValueError for a label or guidance that does not fit the run; CheckpointError if another run that the
        guidance needs is missing or damaged.
    """

    def __init__(self, config: Config, workdir: Path, experiment: Experiment) -> None:
        self.config, self.settings, self.experiment = config, config.guidance, experiment
        self.conditional = config.network.get("num_classes", 0) > 0
        self.classes = experiment.facts.classes
        self.weaker = self._weaker_run(Path(self.settings.autoguidance)) if self.settings.autoguidance else None
        self.classify = self._classifier(Path(self.settings.classifier)) if self.settings.classifier else None
        self.encoder = self._encoder()
        self.num_classes = self.classify.num_classes if self.classify else config.network.get("num_classes", 0)
        self.label = self._parse_label(config.sample.label or (ALL if self.classify else ""), workdir)
        self._check_scale(workdir)
        threshold = pick(THRESHOLDS, "threshold", self.settings.threshold)
        if self.settings.threshold != "none" and not experiment.facts.levels:
            raise ValueError(
                f"guidance.threshold {self.settings.threshold} clips to the range of levels, and the data of {workdir} "
                "are real-valued; leave it out"
            )
        self.threshold = functools.partial(threshold, quantile=self.settings.quantile, low=experiment.low)

    @property
    def is_active(self) -> bool:
        """Whether the denoiser differs from the run's own, unconditional one."""
        return bool(self.record())

    def record(self) -> dict[str, Any]:
        """The active settings, for a manifest."""
        settings = self.settings
        keys = {
            "scale": settings.scale != 1,
            "autoguidance_scale": self.weaker,
            "autoguidance": self.weaker,
            "classifier_scale": self.classify,
            "classifier": self.classify,
            "encoder_scale": self.encoder,
            "encoder": self.encoder,
            "text": self.encoder and settings.text,
            "image": self.encoder and settings.image,
            "quantile": settings.threshold == "dynamic",
            "threshold": settings.threshold != "none",
        }
        found = {key: settings[key] for key, active in keys.items() if active}
        if self.label is not None:
            found["label"] = self.label
            if self.classes:
                found["class"] = self.classes[self.label] if isinstance(self.label, int) else self.label
        if self.has_interval:
            found |= {"low": settings.low, "high": settings.high}
        return found

    @property
    def has_interval(self) -> bool:
        """Whether a term is active that ``guidance.low`` and ``guidance.high`` limit to an interval."""
        return self.settings.scale != 1 or any((self.weaker, self.classify, self.encoder))

    def labels(self, numbers: Tensor) -> Tensor | None:
        """The class labels of the examples with these numbers (B,), int64 (B,); None without labels."""
        if self.label is None:
            return None
        labels = torch.full_like(numbers, self.label) if isinstance(self.label, int) else numbers % self.num_classes
        return labels.to(self.experiment.device)

    def __call__(self, denoise: Denoise, numbers: Tensor) -> PerExample:
        """The guided denoiser of the examples with these numbers (B,)."""
        numbers = numbers.to(self.experiment.device)
        return PerExample(lambda rows: self._guided(for_examples(denoise, rows), numbers[rows]))

    def _guided(self, denoise: Denoise, numbers: Tensor) -> Guided:
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
        if self.encoder:
            guided = self.encoder(guided)
        if self.has_interval:
            guided = within(guided, plain, sde, settings.low, settings.high)
        return self.threshold(guided)

    def _encoder(self) -> EncoderGuidance | None:
        """Guidance towards ``guidance.text`` or ``guidance.image``.

        Raises: ValueError for a text or an image without an encoder.
        """
        settings = self.settings
        if settings.encoder:
            return make_encoder_guidance(self.config, self.experiment)
        for key in ("text", "image"):
            if settings[key]:
                raise ValueError(
                    f"guidance.{key} {settings[key]!r} needs a guidance.encoder: train one with --config clip, or give "
                    "the folder of a CLIPModel"
                )
        return None

    def _parse_label(self, text: str, workdir: Path) -> int | str | None:
        """The label that a text names: ``ALL``, the number of a class, or None if it is empty.

        The name of a class has precedence over a number.
        """
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
        """Raises: ValueError if the command needs an unconditional estimate or a label to scale, and has none."""
        scale = self.settings.scale
        if self.conditional and self.label is None and not self.config.train.label_dropout:
            raise ValueError(
                f"{workdir} was trained with train.label_dropout 0 and has no unconditional estimate: add --label 0 or "
                f"--label {ALL}"
            )
        if scale == 1:
            return
        if self.label is None or not self.conditional:
            raise ValueError(
                f"guidance.scale {scale} needs a label and a run trained with labels: add --label 0 or --label {ALL}"
            )
        if not self.config.train.label_dropout:
            raise ValueError(
                f"guidance.scale {scale} needs unconditional estimates, and {workdir} was trained with "
                "train.label_dropout 0; train with 0.1"
            )

    def _weaker_run(self, folder: Path) -> Guided:
        """The denoiser of the weaker run for autoguidance, as a denoiser of this run's SDE."""
        recipe = recipe_of(folder, self.config)
        theirs, denoise, _ = load(recipe, folder, Options())
        check_data("guidance.autoguidance", folder, theirs, self.experiment)
        classes, ours = (config.network.get("num_classes", 0) for config in (recipe, self.config))
        if classes != ours:
            raise ValueError(f"guidance.autoguidance {folder} has {classes} classes, this run {ours}: need as many")
        return transport(denoise, theirs.sde, self.experiment.sde)

    def _classifier(self, folder: Path) -> Classifier:
        """The classifier of noisy states, trained on the SDE of this run."""
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
            raise ValueError(f"guidance.classifier {folder} is not a classifier: train one with {train}")
        check_data("guidance.classifier", folder, theirs, self.experiment)
        check_noise("guidance.classifier", folder, recipe, self.config, train)
        if classes not in (0, classify.num_classes):
            raise ValueError(f"guidance.classifier {folder} has {classify.num_classes} classes, this run {classes}")
        if classes and self.classes and theirs.facts.classes not in ((), self.classes):
            raise ValueError(f"guidance.classifier {folder} has other class numbers: train one on the same data")
        self.classes = theirs.facts.classes or self.classes
        return classify
