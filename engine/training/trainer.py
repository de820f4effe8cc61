"""The state of training and one step of it: any objective, by default weighted denoising score matching.

A step is a function of the weights, the optimiser's state and ``images_seen``: data order, times, noise and dropout all
follow from the seed and the position. So a run that was killed goes on by the same command as if nothing had happened,
and the examples of a step may be shared out over any number of processes.
"""

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from score_sde.data import Dataset, reader
from score_sde.engine import checkpoint, memory, ranks
from score_sde.engine.build import build, conditions
from score_sde.engine.codecs import fit_codec, make_codec, moment_matched
from score_sde.engine.datasets import check_classes
from score_sde.engine.devices import set_threads
from score_sde.engine.errors import CheckpointError, OutOfMemory
from score_sde.engine.facts import DataFacts
from score_sde.engine.load import check_there, load_average
from score_sde.engine.log import say, versions
from score_sde.engine.objective import make_objective, make_timestep_sampler
from score_sde.engine.pictures import unit
from score_sde.engine.precision import PRECISIONS, check_precision
from score_sde.engine.randomness import (
    OBJECTIVE,
    TRAINING,
    Ahead,
    dither,
    dithers,
    draw_times,
    kept,
    noise,
    positions,
    seed_dropout,
)
from score_sde.engine.recipe import MODEL, RECIPE, digest
from score_sde.engine.torch_private import scale_
from score_sde.engine.training.adam import Adam, AdamW
from score_sde.engine.training.ema import EMA
from score_sde.engine.training.nonfinite import NonFiniteSteps, first_nonfinite_layer, stop
from score_sde.engine.training.posthoc import Snapshots, about, profiles
from score_sde.models.layers import resolutions
from score_sde.sde_lib import OBJECTIVES, Denoiser, Gaussian
from score_sde.sde_lib.devices import put
from score_sde.storage.naming import pick

OPTIMIZERS = {"adam": Adam, "adamw": AdamW}


COMPILE = {"auto": None, "true": True, "false": False}
"""Whether the network is compiled; None leaves it to the device."""


class StepResult(NamedTuple):
    """Loss and norm of the gradient (0-d, still on the device, so that nothing waits for it), and the learning rate."""

    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


class Trainer:
    """Network, averages and optimiser of a run, at some step; taken from the newest checkpoint where there is one.

    A batch is shared out over the processes of the command, and each takes its share ``train.microbatch`` examples at a
    time: the gradient is that of the mean over the whole batch.
    """

    def __init__(self, config: ConfigDict, workdir: Path, dataset: Dataset) -> None:
        self.config, self.workdir, self.dataset = config, workdir, dataset
        self.precision = pick(PRECISIONS, "precision", config.train.precision)
        check(config, dataset)
        self.first, self.num = ranks.share(config.train.batch_size)
        self.folder = workdir / "checkpoints"
        found = checkpoint.newest(self.folder)
        meta = checkpoint.read_meta(found) if found else {}
        self.fingerprint = fingerprint(dataset)
        if meta.get("data_sha256", self.fingerprint) != self.fingerprint:
            raise other_data(dataset, meta["data"], workdir)
        if not found:
            note_attention(config, dataset.shape)
        else:
            check_classes(config, dataset, DataFacts.from_dict(meta["data"]))
        set_threads(config, dataset.shape)
        facts = (
            DataFacts.from_dict(meta["data"]) if found else DataFacts.of(dataset, fit_codec(config, "train", dataset))
        )
        gaussian = checkpoint.load_gaussian(found, facts.shape) if found else None
        torch.manual_seed(config.seed)
        if config.train.deterministic:
            torch.use_deterministic_algorithms(True)
        self.experiment = build(config, facts, gaussian or moment_matched(dataset, make_codec(config, facts)))
        check_precision(self.precision, self.experiment.device)
        self.compiled = compiles(config, self.experiment.device)
        if config.train.init and not found:
            check_there("train.init", Path(config.train.init), config, facts.shape)
            load_average(Path(config.train.init), self.experiment.network)
        self.network = self.experiment.network.train()
        if found:
            checkpoint.load_network(found, checkpoint.RAW, self.network)
        self._check_processes(images_at(meta, config))
        self.parallel = (ranks.sharded if config.train.sharding else ranks.parallel)(self.network)
        self.parameters = list(self.network.parameters())
        self.ema = EMA(self.network, config.ema.rates, config.ema.warmup, config.ema.profiles)
        optimizer = pick(OPTIMIZERS, "optimizer", config.optim.name)
        self.optimizer = optimizer(
            self.parameters,
            lr=learning_rate(config, 0),
            betas=(config.optim.beta1, config.optim.beta2),
            weight_decay=config.optim.weight_decay,
        )
        self.step = self.images_seen = 0
        self.nonfinite = NonFiniteSteps(workdir / "skipped", config.train.max_skipped)
        self.window_state: Mapping[str, Any] = {}
        self.metric_lines = meta.get("metric_lines")
        self.recipe_sha256 = meta.get("recipe_sha256")
        self.timestep_sampler = make_timestep_sampler(config)
        if found:
            self._load(found)
            tell_changes(meta.get("arithmetic", {}), self.arithmetic(), self.step)
        self.snapshots = Snapshots(workdir, self.ema, config.ema.snapshot_every, config.ema.max_snapshots, self.step)
        if config.train.recompute:
            memory.recompute(self.parallel)
        network: nn.Module = torch.compile(self.parallel) if self.compiled else self.parallel  # type: ignore[assignment]  # a module of a module
        self.denoiser = self.experiment.denoiser(network, config)
        self.objective = make_objective(config, self.experiment)
        like = torch.empty(1, *facts.shape, device=self.experiment.device)
        sde = self.experiment.sde
        sde.tabulate(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))  # for the timestep samplers
        self.read = reader(
            dataset,
            self.experiment.device,
            config.seed,
            batch_size=self.num,
            stride=config.train.batch_size,
            mirror=config.data.mirror,
            ahead=batches_ahead(self.experiment.device),
        )
        batches = {"num": self.num, "stride": config.train.batch_size}
        self.eps = Ahead(
            lambda where: noise(config.seed, TRAINING, where)(like.expand(len(where), *facts.shape)), **batches
        )
        self.dither = None
        if dithers(config, facts):
            self.dither = Ahead(lambda where: dither(config.seed, where, like), **batches)

    def arithmetic(self) -> dict[str, Any]:
        """All that decides how sums are rounded: a run goes on bit for bit where none of it changes."""
        return {
            "device": self.experiment.device.type,
            "threads": torch.get_num_threads(),
            "processes": ranks.size(),
            "microbatch": self.config.train.microbatch or self.num,
            "compiled": self.compiled,
            "torch": versions()["torch"],
        }

    def describe(self) -> list[str]:
        """Lines that say what is about to be trained, on what, and where its files go."""
        parameters = sum(p.numel() for p in self.network.parameters())
        device, config = self.experiment.device, self.config
        start = f"from step {self.step}" if self.step else "from the start"
        num = torch.get_num_threads()
        spins, policy = os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY", "active")
        waiting = f"s, {f'{spins} spins' if spins else policy} while they wait" if num > 1 else ""
        threads = f", {num} thread{waiting}" if device.type == "cpu" else ""
        shared = f" over {ranks.size()} processes" if ranks.size() > 1 else ""
        return [
            f"{config.network.name} with {parameters:,} parameters on {device} ({self.precision}{threads}), "
            f"{config.sde.name}",
            f"{len(self.dataset)} examples of shape {self.experiment.facts.shape} from {config.data.name}, "
            f"sigma_data {self.denoiser.sigma_data:.4f}; test split: {self.dataset.validation}",
            f"{config.train.total_images} {unit(self.experiment.facts)} in batches of {config.train.batch_size}"
            f"{shared}, {start}; files go to {self.workdir}",
        ]

    def steps(self, last_step: int) -> Iterator[StepResult]:
        """Train up to ``last_step``, yielding after each step."""
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

    def _attempt(self) -> StepResult:
        try:
            return self._train_step()
        except RuntimeError as error:
            if not memory.ran_out(error):
                raise
        raise self._too_large()  # after the except clause, which keeps what had been allocated

    def _too_large(self) -> OutOfMemory:
        """The error of a step that this process has no memory for; the other processes are not asked."""
        config, size = self.config, min(self.config.train.microbatch or self.num, self.num)
        less = "" if config.train.recompute else ", or --config.train.recompute=true"
        failed = f"out of memory on {self.experiment.device} with {size} examples at a time"
        if any(map(ranks.is_spread, self.parameters)):  # what fits is not known without the others
            smaller = f"try --config.train.microbatch={size // 2}" if size > 1 else "take a smaller network"
            return OutOfMemory(f"{failed}; {smaller}{less}, or more processes")
        self.optimizer.zero_grad()
        denoiser = self.experiment.denoiser(self.network, config)

        def attempt(num: int) -> None:
            moments = [] if self.optimizer.state else [torch.empty_like(p) for p in 2 * self.parameters]
            part = {key: value[:num] for key, value in self._inputs(self.step).items()}
            losses = self._losses(denoiser, part, self.step, 0)
            torch.autograd.grad(losses.sum(), self.parameters, allow_unused=True)
            del moments

        fitting = memory.largest(attempt, size // 2)
        remedy = f"train.microbatch={fitting}"
        if pick(OBJECTIVES, "objective", config.loss.name).compares:
            remedy = f"train.batch_size={fitting * ranks.size()}"
        found = f"{fitting} fit: add --config.{remedy}" if fitting else "not even one fits: take a smaller network"
        return OutOfMemory(f"{failed}; {found}{less}")

    def _train_step(self) -> StepResult:
        config, inputs = self.config, self._inputs(self.step)
        size = config.train.microbatch or self.num
        found = []
        for begin in range(0, self.num, size):
            part = {key: value[begin : begin + size] for key, value in inputs.items()}
            whole = begin + size >= self.num
            with contextlib.nullcontext() if whole else ranks.apart(self.parallel):
                losses = self._losses(self.denoiser, part, self.step, begin)
                # of this process's share; the gradient is the mean of that of all of them
                ((part["correction"].flatten() * losses).sum() / self.num).backward()
            found.append(losses.detach())
        losses = torch.cat(found)
        self._observe(inputs["t"], losses)
        loss = ranks.sum_over((inputs["correction"].flatten() * losses).mean() / ranks.size())
        norm = clip_gradients(
            [p.grad for p in self.parameters if p.grad is not None], config.optim.clip_norm or math.inf
        )
        self.optimizer.lr = learning_rate(config, self.images_seen)
        self.optimizer.step(found_inf=(~torch.isfinite(norm + loss)).float())
        self.optimizer.zero_grad()
        self.ema.update()
        return StepResult(loss, norm, self.optimizer.lr)

    def position(self, step: int) -> int:
        """Images seen before a step of this command; earlier commands may have had another batch size."""
        return self.images_seen + (step - self.step) * self.config.train.batch_size

    def last_step(self) -> int:
        """The step after which ``train.total_images`` have been seen."""
        left = self.config.train.total_images - self.images_seen
        return self.step + math.ceil(left / self.config.train.batch_size)

    def _inputs(self, step: int) -> dict[str, Tensor]:
        """This process's share of a batch: x0, eps, t and its correction, and the conditions, a row an example.

        An example with values that its codec does not take is NaN, for ``look`` to find.
        """
        config, device, sde = self.config, self.experiment.device, self.experiment.sde
        start = self.position(step) + self.first
        batch = self.read(start)
        x0 = self.experiment.codec.encode_unread(self._values(batch.pop("x"), start))
        cond = conditions(config, batch, device)
        if cond:
            cond["keep"] = put(kept(config.seed, positions(start, self.num), config.train.label_dropout), device)
        t, correction = draw_times(step, x0, sde, self.timestep_sampler, self.first, config.train.batch_size)
        eps = put(batch["eps"], device) if "eps" in batch else self.eps(start)
        return {"x0": x0, "eps": eps, "t": t, "correction": correction, **cond}

    def _values(self, x: Tensor, start: int) -> Tensor:
        """Values of a batch as they are encoded, with noise within their bins where the config says so."""
        x = put(x, self.experiment.device)
        return x + self.dither(start) if self.dither else x

    def _losses(self, denoiser: Denoiser, inputs: Mapping[str, Tensor], step: int, begin: int) -> Tensor:
        """The losses (N,) of some inputs, the first of which has the number ``begin`` in this process's share."""
        config, device = self.config, self.experiment.device
        cond = {key: value for key, value in inputs.items() if key not in ("x0", "eps", "t", "correction")}
        seen = self.position(step)
        position, progress = seen + self.first + begin, seen / config.train.total_images
        seed_dropout(config.seed, position, device)
        draw = noise(config.seed, OBJECTIVE, positions(position, len(inputs["x0"])))
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            return self.objective(denoiser, inputs["x0"], inputs["eps"], inputs["t"], draw, progress, **cond)

    def _observe(self, t: Tensor, losses: Tensor) -> None:
        """Let the timestep sampler learn from the whole batch."""
        if self.timestep_sampler.learns:
            self.timestep_sampler.observe(self.experiment.sde, ranks.joined(t), ranks.joined(losses))

    def look(self, step: int, result: StepResult, finite: bool) -> None:
        """Count a step; if its numbers were not finite, keep what made them.

        Raises: ValueError for data that the codec does not take; NonFiniteError after too many in a row, or at the end
            of a run without any other step, with the first layer that gave such numbers.
        """
        self.nonfinite.note(finite)
        if finite:
            return
        start = step * self.config.train.batch_size + self.first
        self.experiment.codec.check(self._values(self.read(start)["x"], start))
        inputs = self._inputs(step)
        facts = {"loss": result.loss.item(), "gradient_norm": result.gradient_norm.item(), "weights_of": self.step}
        network = ranks.whole_network(self.network)
        self.nonfinite.keep(step + 1, inputs, network, facts)
        if self.nonfinite.too_many or self.nonfinite.count == step + 1 == self.last_step():
            denoiser = self.experiment.denoiser(network, self.config)
            where = first_nonfinite_layer(network, lambda: self._losses(denoiser, inputs, step, 0).sum())
            raise stop(self.nonfinite, step + 1, where, checkpoint.newest(self.folder))

    def denoiser_of_average(self) -> Denoiser:
        """The denoiser with the first of the averages for its network."""
        return self.experiment.denoiser(self.ema.networks[0], self.config)

    def save(self, window: Mapping[str, Any] | None = None, **beside: Any) -> None:
        """Write a checkpoint of this step, and delete those that are too old.

        Args:
            window: the open window of metrics.
            beside: JSON values of the files beside it, for its meta.json.
        """
        to_disk = partial(ranks.to_first, device="cpu")
        state = {
            "optimizer": self.optimizer.state_dict(to_disk),
            "ema_updates": self.ema.num_updates,
            "timestep_sampler": self.timestep_sampler.state_dict(),
            "nonfinite": self.nonfinite.state_dict(),
            "window": dict(window or {}),
        }
        meta = {
            "images_seen": self.images_seen,
            "data": asdict(self.experiment.facts),
            "data_sha256": self.fingerprint,
            "test_split": self.dataset.validation,
            "sigma_data": self.denoiser.sigma_data,
            "ema": [checkpoint.ema_file(rate) for rate in self.ema.rates],
            "arithmetic": self.arithmetic(),
            "recipe_sha256": digest(self.config, RECIPE),
            "model_sha256": digest(self.config, MODEL),
            "versions": versions(),
            **beside,
            **about(self.ema),
        }
        raw = ranks.whole_network(self.network, to_disk)
        with self.ema.whole():
            parts: dict[str, nn.Module | Gaussian] = {
                checkpoint.RAW: raw,
                **self._averages(),
                checkpoint.GAUSSIAN: self.experiment.gaussian,
            }
            if ranks.rank() == 0:
                checkpoint.save(self.folder, self.step, parts, state, meta)
                checkpoint.forget(self.folder, self.config.train.keep_checkpoints, self.config.train.keep_every)

    def _averages(self) -> dict[str, nn.Module]:
        rates = dict(zip(map(checkpoint.ema_file, self.ema.rates), self.ema.networks))
        return {**rates, **profiles(self.ema)}

    def _load(self, path: Path) -> None:
        for name, average in self._averages().items():
            checkpoint.load_network(path, name, average)
        state = checkpoint.load_state(path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.num_updates = state["ema_updates"]
        self.timestep_sampler.load_state_dict(state.get("timestep_sampler", {}))
        self.nonfinite.load_state_dict(state.get("nonfinite", self.nonfinite.state_dict()))
        self.window_state = state.get("window", {})
        meta = checkpoint.read_meta(path)
        self.step, self.images_seen = meta["step"], images_at(meta, self.config)

    def _check_processes(self, images_seen: int) -> None:
        """All processes must have started from the same weights, and draw noise of their own.

        Raises: CheckpointError where they read different checkpoints.
        """
        weights = b"".join(p.detach().cpu().numpy().tobytes() for p in self.network.parameters())
        if len(set(ranks.digests(weights + str(images_seen).encode()))) > 1:
            raise CheckpointError(
                f"the processes of this command read different checkpoints; all need the same {self.workdir}"
            )
        where = positions(images_seen + self.first, 1)
        drawn = noise(self.config.seed, TRAINING, where)(torch.empty(1, 64)).numpy().tobytes()
        assert len(set(ranks.digests(drawn))) == ranks.size()


def check(config: ConfigDict, dataset: Dataset) -> None:
    """Raises: ValueError for a value of the config that no training can have, or not on these data."""
    if config.network.get("num_classes", 0) not in (0, dataset.num_classes):
        raise ValueError(
            f"network.num_classes {config.network.num_classes}: the data have {dataset.num_classes}; 0 ignores them"
        )
    dataset.check_size(config.train.batch_size // ranks.size())
    if config.data.mirror and len(dataset.shape) == 1:
        raise ValueError(f"data.mirror true: it flips signals and images, not rows of {dataset.shape[0]} numbers")
    if config.train.batch_size % ranks.size():
        raise ValueError(
            f"train.batch_size {config.train.batch_size} does not divide over {ranks.size()} processes; take a "
            f"multiple of {ranks.size()}"
        )
    whole = ranks.size() == 1 and config.train.microbatch in (0, config.train.batch_size)
    if pick(OBJECTIVES, "objective", config.loss.name).compares and not whole:
        raise ValueError(
            f"loss.name {config.loss.name!r} compares the examples of a batch, which has to stay whole: leave "
            "train.microbatch at 0 and start one process"
        )


def note_attention(config: ConfigDict, shape: tuple[int, ...]) -> None:
    """Print a line for an attention resolution that no level has: a recipe serves data of other sizes, too."""
    network = config.network
    if not {"attention", "channel_mult"} <= set(network) or len(shape) < 2:
        return
    known = resolutions(shape[1:], len(network.channel_mult))
    if unknown := set(network.attention) - set(known):
        say(
            f"note: network.attention {tuple(network.attention)}: no level has the resolution {min(unknown)}, so "
            f"nothing attends there; the levels have {', '.join(map(str, known))}"
        )


def compiles(config: ConfigDict, device: torch.device) -> bool:
    """Whether the network is compiled: by itself on CUDA, where that pays.

    Raises: ValueError for a word that says neither, a network that is sharded, or an objective that needs second
        derivatives, which neither compiled networks have nor sharded ones nor those that compute their blocks twice.
    """
    chosen = pick(COMPILE, "train.compile", config.train.compile.lower())
    differentiates = pick(OBJECTIVES, "objective", config.loss.name).differentiates
    asked = {"compile": chosen, "recompute": config.train.recompute, "sharding": config.train.sharding}
    for key in filter(asked.get, asked if differentiates else ()):
        raise ValueError(f"train.{key} true: loss.name {config.loss.name!r} needs second derivatives; leave it out")
    if chosen and config.train.sharding:
        raise ValueError(
            "train.compile true: a sharded network is not compiled; leave out train.compile or train.sharding"
        )
    return device.type == "cuda" and not differentiates and not config.train.sharding if chosen is None else chosen


def batches_ahead(device: torch.device) -> int:
    """Batches to read before their time: two, or beside a GPU this process's share of the cores, up to 16."""
    return 2 if device.type == "cpu" else max(2, min(16, (os.cpu_count() or 1) // ranks.on_this_machine()))


def images_at(meta: Mapping[str, Any], config: ConfigDict) -> int:
    """Images seen before a checkpoint; imported ones have no count, and are taken for steps of this batch size."""
    return meta.get("images_seen", meta.get("step", 0) * config.train.batch_size)


def tell_changes(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> None:
    """Say in a line where a run goes on with other arithmetic than its checkpoint was computed with."""
    changes = [f"{key} {before[key]} -> {now[key]}" for key in before.keys() & now.keys() if before[key] != now[key]]
    if changes:
        listed = ", ".join(sorted(changes))
        say(f"from step {step} on sums are rounded differently ({listed}): bits differ from here on")


def fingerprint(dataset: Dataset) -> str:
    """A digest of a dataset: of its size, its form and 64 of its examples."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(64, len(dataset))).astype(int))
    found = hashlib.sha256(repr((len(dataset), dataset.shape, dataset.levels, dataset.num_classes)).encode())
    for key in dataset.batch(rows[:1]):
        for row in rows:  # one at a time, for 64 large images may be more than memory holds
            found.update(dataset.batch([row])[key].numpy().tobytes())
    return found.hexdigest()


def other_data(dataset: Dataset, facts: Mapping[str, Any], workdir: Path) -> ValueError:
    """The error of a run that should go on with other examples than it was trained on so far."""
    return ValueError(
        f"the run in {workdir} was trained on other examples (of shape {tuple(facts['shape'])}, {facts['levels']} "
        f"levels; these are {len(dataset)} of shape {dataset.shape}, {dataset.levels} levels): give it the same "
        "data.path, or choose another --workdir"
    )


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], limit: float) -> Tensor:
    """Scale the gradients in place so that the norm of all is at most ``limit``; returns the norm before, 0-d.

    As ``torch.nn.utils.clip_grad_norm_``, in two thirds of its time on a small network.
    """
    norm = ranks.norm(gradients)
    scale_([ranks.local(gradient) for gradient in gradients], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def learning_rate(config: ConfigDict, images_seen: int) -> float:
    """Linear warm-up to optim.learning_rate, then constant or down to 0 along half a cosine."""
    rise = min(1.0, (images_seen + config.train.batch_size) / max(config.optim.warmup_images, 1))
    share = min(1.0, images_seen / config.train.total_images)
    return config.optim.learning_rate * rise * pick(DECAYS, "decay", config.optim.decay)(share)


DECAYS = {"constant": lambda share: 1.0, "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share))}
