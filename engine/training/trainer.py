"""Training of a run, step by step: by default weighted denoising score matching.

A step is a function of the weights, the state of the optimizer and the number of examples before it: data order, times,
noise and dropout masks follow from the seed and the position. A resumed run therefore computes the same steps, and the
examples of a batch may be divided among any number of processes.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from score_sde.configs.default import Config
from score_sde.data import Dataset
from score_sde.engine import checkpoint, memory, ranks
from score_sde.engine.errors import OutOfMemory
from score_sde.engine.log import say, versions
from score_sde.engine.objective import make_objective, make_timestep_sampler
from score_sde.engine.pictures import unit
from score_sde.engine.precision import PRECISIONS, check_precision
from score_sde.engine.recipe import MODEL, RECIPE, digest
from score_sde.engine.training.adam import make_optimizer
from score_sde.engine.training.batches import Batches
from score_sde.engine.training.checks import check, check_processes, compiles
from score_sde.engine.training.ema import EMA
from score_sde.engine.training.learning_rate import learning_rate
from score_sde.engine.training.microbatches import Microbatches
from score_sde.engine.training.nonfinite import NonFiniteSteps, first_nonfinite_layer, stop
from score_sde.engine.training.out_of_memory import too_large
from score_sde.engine.training.posthoc import Snapshots
from score_sde.engine.training.start import find_start, make_experiment
from score_sde.engine.training.state import State
from score_sde.engine.training.update import Update
from score_sde.sde_lib import Denoiser
from score_sde.storage.naming import pick


class StepResult(NamedTuple):
    """Result of a step. Loss and norm of the gradient are 0-d, on the device: reading them waits for it."""

    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


class Trainer:
    """Training of a run, from its newest checkpoint or from the start.

    A step follows the gradient of the mean loss over the whole batch. The batch is divided among the processes, and
    each part into microbatches of ``train.microbatch`` examples.

    Attributes:
        step: steps taken.
        images_seen: examples of these steps.
        network: with the raw weights.
        parallel: the same network, which averages gradients over the processes.
        window_state: steps since the last line of metrics before the start.
    """

    def __init__(self, config: Config, workdir: Path, dataset: Dataset) -> None:
        check(config, dataset)
        self.config, self.workdir, self.dataset = config, workdir, dataset
        self.precision = pick(PRECISIONS, "precision", config.train.precision)
        self.start = find_start(config, workdir, dataset)
        self.step, self.images_seen = self.start.step, self.start.images_seen
        self.experiment = make_experiment(config, dataset, self.start)
        check_precision(self.precision, self.experiment.device)
        self.compiled = compiles(config, self.experiment.device)
        self.timestep_sampler = make_timestep_sampler(config.loss.timestep_sampler)
        self.batches = Batches(config, self.experiment, dataset, self.timestep_sampler)
        self.network = self.experiment.network
        check_processes(self.network, config.seed, self.images_seen, self.batches.first, workdir)
        self.parallel = (ranks.sharded if config.train.sharding else ranks.parallel)(self.network)
        self.parameters = list(self.network.parameters())
        self.ema = EMA(self.network, config.ema.rates, config.ema.warmup, config.ema.profiles)
        self.optimizer = make_optimizer(config.optim, self.parameters)
        self.nonfinite = NonFiniteSteps(workdir / "skipped", config.train.max_skipped)
        self.state = State(self.network, self.ema, self.optimizer, self.timestep_sampler, self.nonfinite)
        self.window_state = self.state.load(self.start.path) if self.start.path else {}
        note_arithmetic(self.start.meta.get("arithmetic", {}), self.arithmetic(), self.step)
        self.snapshots = Snapshots(workdir, self.ema, config.ema.snapshot_every, config.ema.max_snapshots, self.step)
        if config.train.recompute:
            memory.recompute(self.parallel)
        network: nn.Module = torch.compile(self.parallel) if self.compiled else self.parallel  # type: ignore[assignment]  # a module of a module
        self.denoiser = self.experiment.denoiser(network, config)
        self.objective = make_objective(config, self.experiment)
        self.microbatches = Microbatches(
            self.objective,
            self.precision,
            config.seed,
            config.train.total_images,
            self.batches.first,
            self.microbatch_size,
        )
        self.update = Update(self.optimizer, self.ema, partial(learning_rate, config), config.optim.clip_norm)

    @property
    def microbatch_size(self) -> int:
        """Examples per microbatch of this process."""
        return self.config.train.microbatch or self.batches.num

    def arithmetic(self) -> dict[str, Any]:
        """Returns the settings that decide the rounding of sums: with equal ones a run resumes bit for bit."""
        return {
            "device": self.experiment.device.type,
            "threads": torch.get_num_threads(),
            "processes": ranks.size(),
            "microbatch": self.microbatch_size,
            "compiled": self.compiled,
            "torch": versions()["torch"],
        }

    def describe(self) -> list[str]:
        """Returns lines on the network, the data and the files of this run."""
        parameters = sum(p.numel() for p in self.network.parameters())
        device, config = self.experiment.device, self.config
        start = f"from step {self.step}" if self.step else "from the start"
        num = torch.get_num_threads()
        spins, policy = os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY", "active")
        waiting = f"s, {f'{spins} spins' if spins else policy} while they wait" if num > 1 else ""
        threads = f", {num} thread{waiting}" if device.type == "cpu" else ""
        processes = f" over {ranks.size()} processes" if ranks.size() > 1 else ""
        return [
            f"{config.network.name} with {parameters:,} parameters on {device} ({self.precision}{threads}), "
            f"{config.sde.name}",
            f"{len(self.dataset)} examples of shape {self.experiment.facts.shape} from {config.data.name}, "
            f"sigma_data {self.denoiser.sigma_data:.4f}; test split: {self.dataset.validation}",
            f"{config.train.total_images} {unit(self.experiment.facts)} in batches of {config.train.batch_size}"
            f"{processes}, {start}; files go to {self.workdir}",
        ]

    def steps(self, last_step: int) -> Iterator[StepResult]:
        """Trains up to ``last_step`` and yields the result of each step.

        Raises: OutOfMemory if a step does not fit, with the size that does.
        """
        start, first = time.perf_counter(), self.compiled
        while self.step < last_step:
            result = self._attempt()
            if first:
                result.loss.item()
                say(f"compiled the network and took a step in {time.perf_counter() - start:.1f} s")
                first = False
            self.step += 1
            self.images_seen += self.config.train.batch_size
            yield result

    def position(self, step: int) -> int:
        """Returns the number of examples before a step of this command.

        Earlier commands of the run may have had another batch size.
        """
        return self.images_seen + (step - self.step) * self.config.train.batch_size

    def last_step(self) -> int:
        """Returns the step after which training has had ``train.total_images`` examples."""
        left = self.config.train.total_images - self.images_seen
        return self.step + math.ceil(left / self.config.train.batch_size)

    def denoiser_of_average(self) -> Denoiser:
        """Returns the denoiser with the first average of the weights."""
        return self.experiment.denoiser(self.ema.networks[0], self.config)

    def look(self, step: int, result: StepResult, finite: bool) -> None:
        """Counts a step; if it is not finite, saves its inputs and weights.

        Raises: ValueError for data outside the codec's range; NonFiniteError after too many non-finite steps in a row,
            or at the end of a run without any finite step, with the first non-finite layer.
        """
        self.nonfinite.note(finite)
        if finite:
            return
        self.batches.check(self.position(step))
        inputs = self._inputs(step)
        facts = {"loss": result.loss.item(), "gradient_norm": result.gradient_norm.item(), "weights_of": self.step}
        network = ranks.whole_network(self.network)
        self.nonfinite.keep(step + 1, inputs, network, facts)
        if self.nonfinite.too_many or self.nonfinite.count == step + 1 == self.last_step():
            denoise, seen = self.experiment.denoiser(network, self.config), self.position(step)
            where = first_nonfinite_layer(network, lambda: self.microbatches.losses(denoise, inputs, seen).sum())
            raise stop(self.nonfinite, step + 1, where, checkpoint.newest(self.workdir / "checkpoints"))

    def save(self, window: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Writes a checkpoint of this step and deletes old ones.

        Args:
            window: steps since the last line of metrics.
            more: JSON values for meta.json.
        """
        config, folder = self.config, self.workdir / "checkpoints"
        meta = {
            "images_seen": self.images_seen,
            "data": asdict(self.experiment.facts),
            "data_sha256": self.start.data_sha256,
            "test_split": self.dataset.validation,
            "sigma_data": self.denoiser.sigma_data,
            "ema": [checkpoint.ema_file(rate) for rate in self.ema.rates],
            "arithmetic": self.arithmetic(),
            "recipe_sha256": digest(config, RECIPE),
            "model_sha256": digest(config, MODEL),
            "versions": versions(),
            **more,
        }
        self.state.save(folder, self.step, self.experiment.gaussian, window or {}, meta)
        if ranks.rank() == 0:
            checkpoint.forget(folder, config.train.keep_checkpoints, config.train.keep_every)

    def _inputs(self, step: int) -> dict[str, Tensor]:
        return self.batches.inputs(step, self.position(step))

    def _attempt(self) -> StepResult:
        try:
            return self._train_step()
        except RuntimeError as error:
            if not memory.ran_out(error):
                raise
        raise self._too_large()  # after the except clause, which keeps the tensors of the step

    def _train_step(self) -> StepResult:
        inputs, sampler = self._inputs(self.step), self.timestep_sampler
        losses = self.microbatches.backward(self.denoiser, self.parallel, inputs, self.images_seen)
        if sampler.learns:
            sampler.observe(self.experiment.sde, ranks.joined(inputs["t"]), ranks.joined(losses))
        loss = ranks.sum_over((inputs["correction"].flatten() * losses).mean() / ranks.size())
        norm = self.update(loss, self.images_seen)
        return StepResult(loss, norm, self.optimizer.lr)

    def _too_large(self) -> OutOfMemory:
        """Returns the error of a step that exceeds the memory of this process."""
        size = min(self.microbatch_size, self.batches.num)
        if any(map(ranks.is_spread, self.parameters)):
            return too_large(self.config, self.experiment.device, size, None)
        self.optimizer.zero_grad()
        denoise = self.experiment.denoiser(self.network, self.config)

        def attempt(num: int) -> None:
            moments = [] if self.optimizer.state else [torch.empty_like(p) for p in 2 * self.parameters]
            part = {key: value[:num] for key, value in self._inputs(self.step).items()}
            losses = self.microbatches.losses(denoise, part, self.images_seen)
            torch.autograd.grad(losses.sum(), self.parameters, allow_unused=True)
            del moments

        return too_large(self.config, self.experiment.device, size, attempt)


def note_arithmetic(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> None:
    """Prints the settings of ``Trainer.arithmetic`` that changed since the checkpoint."""
    changes = [f"{key} {before[key]} -> {now[key]}" for key in before.keys() & now.keys() if before[key] != now[key]]
    if changes:
        listed = ", ".join(sorted(changes))
        say(f"from step {step} on sums are rounded differently ({listed}): bits differ from here on")
