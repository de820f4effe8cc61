"""Files that training writes: metrics, pictures, snapshots and checkpoints.

Metrics, picture and snapshot of a step are written before its checkpoint: a killed run writes those after its last
checkpoint again, with equal content, and misses none.
"""

from typing import Any, NamedTuple

from score_sde.engine import ranks
from score_sde.engine.drawing import preview
from score_sde.engine.log import Metrics
from score_sde.engine.training.trainer import Trainer
from score_sde.engine.training.validation import Validation
from score_sde.engine.training.window import Window


class Due(NamedTuple):
    """Outputs that are due after a step."""

    metrics: bool
    validation: bool
    picture: bool
    snapshot: bool
    checkpoint: bool


def due(trainer: Trainer, last_step: int) -> Due:
    """Returns the outputs that are due after the trainer's step; the last step has all that are switched on."""
    config, step, last = trainer.config.train, trainer.step, trainer.step == last_step
    log, validation, picture = (
        every > 0 and (last or step % every == 0)
        for every in (config.log_every, config.evaluate_every, config.sample_every)
    )
    checkpoint = last or (config.checkpoint_every > 0 and step % config.checkpoint_every == 0)
    metrics = log or validation or checkpoint
    return Due(metrics, validation, picture, trainer.snapshots.due(step), checkpoint)


class Outputs:
    """Writes the outputs of steps. All processes take part, and the first one writes.

    Args:
        validation: None in all processes but the first.
        config_json: text of config.json, kept in each checkpoint.

    Attributes:
        line: values of the last line of metrics.
    """

    def __init__(
        self, trainer: Trainer, window: Window, validation: Validation | None, metrics: Metrics, config_json: str
    ) -> None:
        self.trainer, self.window, self.validation, self.metrics = trainer, window, validation, metrics
        self.config_json = config_json
        self.line: dict[str, Any] = {}

    def write(self, outputs: Due, stop: bool) -> None:
        """Writes the outputs of the trainer's step, with a checkpoint also if training stops.

        Raises: NonFiniteError after too many non-finite steps in a row.
        """
        trainer, first = self.trainer, ranks.rank() == 0
        self.window.look()
        if outputs.metrics:
            self._write_metrics(outputs.validation)
        if outputs.picture and trainer.objective.trains_denoiser() and first:
            picture = trainer.workdir / "samples" / f"step_{trainer.step:08d}.png"
            preview(trainer.experiment, trainer.denoiser_of_average(), trainer.config, picture)
        if outputs.snapshot and first:
            trainer.snapshots.keep(trainer.step)
        if outputs.checkpoint or stop:
            self.metrics.flush()
            trainer.save(self.window.state_dict(), metric_lines=self.metrics.lines, config_json=self.config_json)

    def _write_metrics(self, validation: bool) -> None:
        trainer = self.trainer
        self.line = {"step": trainer.step, "images_seen": trainer.images_seen, **self.window.close()}
        self.line["ema_distance"] = trainer.ema.distance().item()
        if self.validation is not None and validation:
            self.line |= self.validation.losses(trainer.ema.networks[0])
        if ranks.rank() == 0:
            self.metrics.write(self.line)
