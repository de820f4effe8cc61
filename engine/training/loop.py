"""Training a run, from its newest checkpoint on: steps, lines of metrics, pictures, checkpoints, and how it ends.

A line and a picture come before the checkpoint of their step. So whatever a run that was killed had written beyond its
last checkpoint is written again, alike, and nothing is missing.
"""

import itertools
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from score_sde.engine import prior, ranks
from score_sde.engine.commands import PROGRAM
from score_sde.engine.config import Options, read_run
from score_sde.engine.datasets import read_dataset
from score_sde.engine.drawing import preview
from score_sde.engine.lock import Writer
from score_sde.engine.log import Metrics, Progress, say, versions
from score_sde.engine.pictures import unit
from score_sde.engine.recipe import RECIPE
from score_sde.engine.remarks import remarks
from score_sde.engine.resolve import written
from score_sde.engine.training.signals import Asked, Stopped
from score_sde.engine.training.trainer import StepResult, Trainer
from score_sde.engine.training.validation import Validation
from score_sde.storage.writing import write_text


def train(config: ConfigDict, workdir: Path, options: Options, asked: Asked, writer: Writer) -> None:
    """``run``, in a folder where nobody else trains."""
    dataset = read_dataset(config, "train")
    for line in remarks(dataset):
        say(line)
    trainer = Trainer(config, workdir, dataset)
    if trainer.step and not options.allow_changes and (workdir / "config.json").is_file():
        read_run(workdir).check_digest(
            trainer.start.meta.get("recipe_sha256"), RECIPE, workdir / f"step_{trainer.step:08d}"
        )
    units = unit(trainer.experiment.facts)
    last_step, seen = trainer.last_step(), trainer.images_seen
    if trainer.step >= last_step:
        done = f"{workdir} is trained already, on {trainer.images_seen} {units}"
        say(f"{done}; raise --config.train.total_images to go on")
        return
    say(*trainer.describe())
    if trainer.objective.generates:
        prior.warn(config.sde.name, trainer.experiment.sde, trainer.experiment.gaussian)
    validation = Validation(config, trainer.experiment, read_dataset(config, "test")) if ranks.rank() == 0 else None
    window, results, start = Window(trainer), trainer.steps(last_step), trainer.step
    first = next(results)  # a config whose first step fails leaves nothing behind
    writer.check()
    text = written(workdir, config, options, versions())
    if ranks.rank() == 0:
        write_text(workdir / "config.json", text)
    metrics = Metrics(workdir, start, trainer.start.meta.get("metric_lines"))
    progress = Progress(seen + (last_step - start) * config.train.batch_size, units, done=seen)

    for result in itertools.chain([first], results):
        step, last, stop = trainer.step, trainer.step == last_step, asked.to_stop()
        log, evaluate, draw = (
            every > 0 and (last or step % every == 0)
            for every in (config.train.log_every, config.train.evaluate_every, config.train.sample_every)
        )
        save = last or (config.train.checkpoint_every > 0 and step % config.train.checkpoint_every == 0)
        snap = trainer.snapshots.due(step)
        window.add(result)
        progress.advance(config.train.batch_size, window.note)
        if not (log or evaluate or draw or snap or save or stop):
            continue
        with window.pause(), trainer.ema.whole():
            writer.check()
            window.look()
            if log or evaluate or save:
                measured: dict[str, Any] = {"step": step, "images_seen": trainer.images_seen, **window.close()}
                measured |= {"ema_distance": trainer.ema.distance().item()}
                if validation is not None and evaluate:
                    measured |= validation.losses(trainer.ema.networks[0])
                if ranks.rank() == 0:
                    metrics.write(measured)
            if draw and trainer.objective.generates and ranks.rank() == 0:
                picture = workdir / "samples" / f"step_{step:08d}.png"
                preview(trainer.experiment, trainer.denoiser_of_average(), config, picture)
            if snap and ranks.rank() == 0:
                trainer.snapshots.keep(step)
            if save or stop:
                metrics.flush()
                trainer.save(window.state_dict(), metric_lines=metrics.lines, config_json=text)
        if stop and not last:
            ranks.wait_for_all()  # the first one may still be writing
            raise Stopped(
                asked.by or signal.SIGTERM, f"stopped at step {step}, with a checkpoint; run the same command to go on"
            )
    progress.close()
    if ranks.rank() == 0:
        conclude(trainer, options, progress, measured)


def conclude(trainer: Trainer, options: Options, progress: Progress, line: Mapping[str, Any]) -> None:
    """Say how it went, by the last line of the metrics, and what to do next."""
    skipped = f", {trainer.nonfinite.count} steps skipped" if trainer.nonfinite.count else ""
    say(f"trained on {trainer.images_seen} {progress.unit}, {progress.rate:.0f} a second, pauses included{skipped}")
    for key in ("loss", "validation_loss", "validation_loss_of_zero", "validation_accuracy"):
        if key in line:
            say(f"  {key:<23} {line[key]:.4f}")
    command = shlex.join([*options.command, "--workdir", str(trainer.workdir), "--mode", "sample"])
    then = f"; next: {PROGRAM} {command}" if trainer.objective.generates else ""
    say(f"weights, metrics and pictures are in {trainer.workdir}{then}")


class Window:
    """The steps since the last line of metrics: their mean loss and their speed, pauses not counted."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.note = trainer, ""
        self.at_once = trainer.experiment.device.type == "cpu"  # where it costs nothing to look at each step
        self._open()
        if losses := trainer.window_state.get("losses"):
            norms, rates = (trainer.window_state[key] for key in ("gradient_norms", "learning_rates"))
            self.results = [
                StepResult(torch.tensor(loss), torch.tensor(norm), rate)
                for loss, norm, rate in zip(losses, norms, rates, strict=True)
            ]
            self.seen = len(losses)

    def add(self, result: StepResult) -> None:
        """Count one step."""
        self.results.append(result)
        if self.at_once:
            self.look()

    def look(self) -> None:
        """Look at the numbers of the steps that were not looked at yet.

        Raises: NonFiniteError if too many in a row were not finite.
        """
        new = self.results[self.seen :]
        begin, self.seen = self.trainer.step - len(new), len(self.results)
        if new:
            finite = torch.isfinite(torch.stack([r.loss + r.gradient_norm for r in new])).tolist()
            for k, result in enumerate(new):
                self.trainer.look(begin + k, result, finite[k])

    def close(self) -> dict[str, float]:
        """The line of metrics, and a new window. The loss is the mean over steps that were not skipped."""
        numbers = torch.stack([r.loss + 0 * r.gradient_norm for r in self.results])
        loss = numbers[torch.isfinite(numbers)].mean().item()
        self.note = f"loss {loss:.4f}"
        num = len(self.results) * self.trainer.config.train.batch_size
        line = {
            "loss": loss,
            "gradient_norm": self.results[-1].gradient_norm.item(),
            "learning_rate": self.results[-1].learning_rate,
            "skipped_steps": self.trainer.nonfinite.count,
            "images_per_second": num / (time.perf_counter() - self.start),
        }
        self._open()
        return line

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

    def state_dict(self) -> dict[str, list[float]]:
        """The steps of the open window, for a run that goes on."""
        return {
            "losses": [r.loss.item() for r in self.results],
            "gradient_norms": [r.gradient_norm.item() for r in self.results],
            "learning_rates": [r.learning_rate for r in self.results],
        }

    def _open(self) -> None:
        self.results, self.seen, self.start = [], 0, time.perf_counter()
