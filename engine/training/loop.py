"""Training of a run from its newest checkpoint to its last step."""

import itertools
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_sde.configs.default import Config
from score_sde.engine import prior, ranks
from score_sde.engine.commands import PROGRAM
from score_sde.engine.config import Options, read_run
from score_sde.engine.datasets import read_dataset
from score_sde.engine.lock import Writer
from score_sde.engine.log import Metrics, Progress, say, versions
from score_sde.engine.pictures import unit
from score_sde.engine.recipe import RECIPE
from score_sde.engine.remarks import remarks
from score_sde.engine.resolve import written
from score_sde.engine.training.outputs import Outputs, due
from score_sde.engine.training.signals import Stopped, StopSignals
from score_sde.engine.training.trainer import Trainer
from score_sde.engine.training.validation import Validation
from score_sde.engine.training.window import Window
from score_sde.storage.writing import write_text


def train(config: Config, workdir: Path, options: Options, signals: StopSignals, writer: Writer) -> None:
    """Trains a run from its newest checkpoint to train.total_images, in a folder that ``writer`` locks.

    Raises: Stopped after a checkpoint, if a signal arrived; NonFiniteError after too many non-finite steps.
    """
    trainer = make_trainer(config, workdir, options)
    units, last_step, seen = unit(trainer.experiment.facts), trainer.last_step(), trainer.images_seen
    if trainer.step >= last_step:
        say(f"{workdir} is trained already, on {seen} {units}; raise --config.train.total_images to go on")
        return
    say(*trainer.describe())
    if trainer.objective.trains_denoiser():
        prior.warn(config.sde.name, trainer.experiment.sde, trainer.experiment.gaussian)
    validation = (
        Validation(config, trainer.experiment, read_dataset(config.data, "test")) if ranks.rank() == 0 else None
    )
    window, results, start = Window(trainer), trainer.steps(last_step), trainer.step
    first = next(results)  # before any file: a config whose first step fails leaves none
    writer.check()
    text = written(workdir, config, options, versions())
    if ranks.rank() == 0:
        write_text(workdir / "config.json", text)
    metrics = Metrics(workdir, start, trainer.start.meta.get("metric_lines"))
    outputs = Outputs(trainer, window, validation, metrics, text)
    progress = Progress(seen + (last_step - start) * config.train.batch_size, units, done=seen)

    for result in itertools.chain([first], results):
        stop, after_step = signals.to_stop(), due(trainer, last_step)
        window.add(result)
        progress.advance(config.train.batch_size, window.note)
        if stop or any(after_step):
            with window.pause(), trainer.ema.whole():
                writer.check()
                outputs.write(after_step, stop)
        if stop and trainer.step < last_step:
            ranks.wait_for_all()  # the first process may still be writing
            message = f"stopped at step {trainer.step}, with a checkpoint; run the same command to go on"
            raise Stopped(signals.number or signal.SIGTERM, message)
    progress.close()
    if ranks.rank() == 0:
        conclude(trainer, options, progress, outputs.line)


def make_trainer(config: Config, workdir: Path, options: Options) -> Trainer:
    """Returns the trainer of a run and prints remarks on its data.

    Raises: CheckpointError if config.json was edited since the checkpoint, unless the options allow it.
    """
    dataset = read_dataset(config.data, "train")
    for line in remarks(dataset):
        say(line)
    trainer = Trainer(config, workdir, dataset)
    if trainer.step and not options.allow_changes and (workdir / "config.json").is_file():
        stored = trainer.start.meta.get("recipe_sha256")
        read_run(workdir).check_digest(stored, RECIPE, workdir / f"step_{trainer.step:08d}")
    return trainer


def conclude(trainer: Trainer, options: Options, progress: Progress, line: Mapping[str, Any]) -> None:
    """Prints the last line of metrics and the next command."""
    skipped = f", {trainer.nonfinite.count} steps skipped" if trainer.nonfinite.count else ""
    say(f"trained on {trainer.images_seen} {progress.unit}, {progress.rate:.0f} a second, pauses included{skipped}")
    for key in ("loss", "validation_loss", "validation_loss_of_zero", "validation_accuracy"):
        if key in line:
            say(f"  {key:<23} {line[key]:.4f}")
    command = shlex.join([*options.command, "--workdir", str(trainer.workdir), "--mode", "sample"])
    then = f"; next: {PROGRAM} {command}" if trainer.objective.trains_denoiser() else ""
    say(f"weights, metrics and pictures are in {trainer.workdir}{then}")
