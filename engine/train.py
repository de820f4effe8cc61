"""Training: weighted denoising score matching, resumable bit for bit.

A step is a function of the weights, the optimiser's state and ``images_seen``: data order, times, noise and dropout all
follow from the seed and the position. So a run that was killed goes on by the same command as if nothing had happened.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor

from data import Dataset, batch_at
from engine import checkpoint
from engine.build import (
    DataFacts,
    Experiment,
    build,
    check_at_least,
    make_codec,
    make_time_law,
    make_weight,
    pick,
    read_dataset,
)
from engine.config import Options, to_json
from engine.ema import EMA
from engine.files import write_text
from engine.log import Metrics, Progress, versions
from engine.randomness import DITHER, HELD_OUT, TRAINING, Ahead, noise, positions, seed_dropout, uniform
from engine.sample import preview
from sde_lib import SDE, Denoiser, NonFiniteError, denoising_loss, stratified

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HELD_OUT_EXAMPLES = 512
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
NOISE_BINS = (-20.0, -8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0, 20.0)
"""Borders in log-SNR of the bins that the held-out loss is told by; the outer two take everything beyond."""


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Train the config in ``workdir``, from the newest checkpoint there."""
    trainer = Trainer(config, workdir, read_dataset(config, "train"))
    last_step = math.ceil(config.train.total_images / config.train.batch_size)
    if trainer.step >= last_step:
        print(
            f"{workdir} is trained already, on {trainer.images_seen} images; raise --config.train.total_images to go on"
        )
        return
    write_text(workdir / "config.json", to_json(config, versions()))
    print(trainer.describe(), flush=True)
    held_out = HeldOut(config, trainer.experiment, read_dataset(config, "test"))
    metrics, window = Metrics(workdir, trainer.step), Window(config.train.batch_size)
    progress = Progress(last_step * config.train.batch_size, "images", done=trainer.images_seen)

    for result in trainer.steps(last_step):
        step, last = trainer.step, trainer.step == last_step
        log, evaluate, draw = (
            every > 0 and (last or step % every == 0)
            for every in (config.train.log_every, config.train.evaluate_every, config.train.sample_every)
        )
        save = last or (config.train.checkpoint_every > 0 and step % config.train.checkpoint_every == 0)
        window.add(result)
        progress.advance(config.train.batch_size, window.note)
        if not (log or evaluate or save or draw):
            continue
        with window.pause():
            window.check(trainer)
            if log or evaluate or save:  # a line at each checkpoint: a run that goes on from there begins a new one
                line = {"step": step, "images_seen": trainer.images_seen, **window.close()}
                line |= {"ema_distance": trainer.ema_distance()}
                line |= held_out.losses(trainer.ema.networks[0]) if evaluate else {}
                metrics.write(line)
            if save:
                trainer.save()
            if draw:
                preview(trainer.experiment, trainer.denoiser_of_average(), workdir / "samples" / f"step_{step:08d}.png")
    progress.close()
    print(f"trained on {trainer.images_seen} images, {progress.rate:.0f} a second, pauses included")
    for key in ("loss", "held_out_loss", "held_out_loss_of_zero"):
        if key in line:
            print(f"  {key:<22} {line[key]:.4f}")
    print(f"weights, metrics and pictures are in {workdir}; next: python run.py --workdir {workdir} --mode sample")


class Window:
    """The steps since the last line of metrics: their mean loss and their speed, pauses not counted."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.note = batch_size, ""
        self._open()

    def add(self, result: "StepResult") -> None:
        """Count one step."""
        self.results.append(result)

    def check(self, trainer: "Trainer") -> None:
        """Raises: NonFiniteError if a loss or gradient of these steps is not finite; nothing of them is saved then."""
        numbers = torch.stack([torch.stack([r.loss, r.gradient_norm]) for r in self.results])
        if not torch.isfinite(numbers).all():
            first = trainer.step - len(self.results) + int((~torch.isfinite(numbers).all(1)).nonzero()[0]) + 1
            raise NonFiniteError(
                f"loss or gradient not finite at step {first}; the checkpoints before it are kept: train in another "
                "--workdir with a lower optim.learning_rate, or with train.precision=float32"
            )

    def close(self) -> dict[str, float]:
        """The line of metrics, and a new window."""
        loss = torch.stack([r.loss for r in self.results]).mean().item()
        self.note = f"loss {loss:.4f}"
        line = {
            "loss": loss,
            "gradient_norm": self.results[-1].gradient_norm.item(),
            "learning_rate": self.results[-1].learning_rate,
            "images_per_second": len(self.results) * self.batch_size / (time.perf_counter() - self.start),
        }
        self._open()
        return line

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stop the clock."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

    def _open(self) -> None:
        self.results, self.start = [], time.perf_counter()


class StepResult(NamedTuple):
    """Loss and norm of the gradient (0-d, still on the device, so that nothing waits for it), and the learning rate."""

    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


class Trainer:
    """Network, averages and optimiser of a run, at some step; taken from the newest checkpoint where there is one."""

    def __init__(self, config: ConfigDict, workdir: Path, dataset: Dataset) -> None:
        self.config, self.workdir, self.dataset = config, workdir, dataset
        self.precision = pick(PRECISIONS, "precision", config.train.precision)
        check_at_least(1, config, "train.total_images", "train.batch_size")
        check_at_least(0, config, "optim.learning_rate", "optim.clip_norm", "train.keep_checkpoints")
        if config.network.get("num_classes", 0) not in (0, dataset.num_classes):
            raise ValueError(
                f"network.num_classes {config.network.num_classes}: the data have {dataset.num_classes}; 0 ignores them"
            )
        self.folder = workdir / "checkpoints"
        found = checkpoint.find(self.folder) if checkpoint.steps(self.folder) else None
        meta = checkpoint.read_meta(found) if found else {}
        codec = make_codec(config, dataset.levels)
        facts = DataFacts.from_dict(meta["data"]) if found else DataFacts.of(dataset, codec)
        torch.manual_seed(config.seed)
        self.experiment = build(config, facts)
        self.network = self.experiment.network.train()
        self.parameters = list(self.network.parameters())
        self.ema = EMA(self.network, config.ema.rates, config.ema.warmup)
        optimizer = pick(OPTIMIZERS, "optimizer", config.optim.name)
        self.optimizer = optimizer(
            self.parameters,
            lr=learning_rate(config, 0),
            betas=(config.optim.beta1, config.optim.beta2),
            weight_decay=config.optim.weight_decay,
            fused=True,
        )
        self.step = 0
        if found:
            self._load(found)
        network = torch.compile(self.network) if config.train.compile else self.network
        self.denoiser = self.experiment.denoiser(network, config)
        self.weight = make_weight(config, self.denoiser.sigma_data)
        self.time_law = make_time_law(config)
        like = torch.empty(1, *facts.shape, device=self.experiment.device)
        sde = self.experiment.sde
        sde.tabulate(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))  # the laws of time ask for the ends
        self.eps = Ahead(lambda where: noise(config.seed, TRAINING, where)(like.expand(len(where), *facts.shape)))
        self.dither = Ahead(lambda where: dither(config.seed, where, like)) if dithers(config, facts) else None

    @property
    def images_seen(self) -> int:
        """Examples that training has used so far, counting each use."""
        return self.step * self.config.train.batch_size

    def describe(self) -> str:
        """What is about to be trained, on what, and where its files go."""
        parameters = sum(p.numel() for p in self.network.parameters())
        device, config = self.experiment.device, self.config
        start = f"from step {self.step}" if self.step else "from the start"
        return (
            f"{config.network.name} with {parameters:,} parameters on {device} ({self.precision}), {config.sde.name}\n"
            f"{len(self.dataset)} examples of shape {self.experiment.facts.shape} from {config.data.name}, "
            f"sigma_data {self.denoiser.sigma_data:.4f}\n"
            f"{config.train.total_images} images in batches of {config.train.batch_size}, {start}; "
            f"files go to {self.workdir}"
        )

    def steps(self, last_step: int) -> Iterator[StepResult]:
        """Train up to ``last_step``, yielding after each step."""
        while self.step < last_step:
            result = self._train_step()
            self.step += 1
            yield result

    def _train_step(self) -> StepResult:
        config, device = self.config, self.experiment.device
        start, num = self.images_seen, config.train.batch_size
        batch = batch_at(self.dataset, config.seed, start, num, mirror=config.data.mirror)
        x = batch.pop("x").to(device)
        x0 = self.experiment.codec.encode(x + self.dither(start, num) if self.dither else x)
        cond = {"label": batch["label"].to(device)} if config.network.get("num_classes") else {}
        t, correction = draw_times(self.step, x0, self.experiment.sde, self.time_law)
        eps = self.eps(start, num)

        seed_dropout(config.seed, self.step, device)
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            loss = denoising_loss(self.experiment.sde, self.denoiser, self.weight, x0, eps, t, **cond)
        loss = (correction.flatten() * loss).mean()
        loss.backward()
        limit = config.optim.clip_norm or math.inf
        norm = clip_gradients([p.grad for p in self.parameters], limit)
        rate = learning_rate(config, self.images_seen)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        return StepResult(loss.detach(), norm, rate)

    def denoiser_of_average(self) -> Denoiser:
        """The denoiser with the first of the averages for its network."""
        return self.experiment.denoiser(self.ema.networks[0], self.config)

    def ema_distance(self) -> float:
        """Distance of the weights from their average, relative to the size of the average."""
        pairs = zip(self.network.parameters(), self.ema.networks[0].parameters(), strict=True)
        apart, size = zip(*(((p - a).square().sum(), a.square().sum()) for p, a in pairs), strict=True)
        return torch.sqrt(sum(apart) / sum(size)).item()

    def save(self) -> None:
        """Write a checkpoint of this step, and delete those that are too old."""
        averages = dict(zip(map(checkpoint.ema_file, self.ema.rates), self.ema.networks, strict=True))
        state = {"optimizer": self.optimizer.state_dict(), "ema_updates": self.ema.num_updates}
        meta = {
            "images_seen": self.images_seen,
            "data": asdict(self.experiment.facts),
            "sigma_data": self.denoiser.sigma_data,
            "ema": [checkpoint.ema_file(rate) for rate in self.ema.rates],
            "versions": versions(),
        }
        checkpoint.save(self.folder, self.step, {checkpoint.RAW: self.network, **averages}, state, meta)
        checkpoint.forget(self.folder, self.config.train.keep_checkpoints)

    def _load(self, path: Path) -> None:
        checkpoint.load_network(path, checkpoint.RAW, self.network)
        for rate, average in zip(self.ema.rates, self.ema.networks, strict=True):
            checkpoint.load_network(path, checkpoint.ema_file(rate), average)
        state = checkpoint.load_state(path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.num_updates = state["ema_updates"]
        self.step = checkpoint.read_meta(path)["step"]


class HeldOut:
    """The loss on fixed draws of (x, t, eps) from the test split: comparable between steps, and between runs."""

    def __init__(self, config: ConfigDict, experiment: Experiment, dataset: Dataset) -> None:
        num = min(HELD_OUT_EXAMPLES, len(dataset))
        batch = batch_at(dataset, config.seed, 0, num)
        device = experiment.device
        where = positions(0, num)
        x = batch.pop("x").to(device)
        self.x0 = experiment.codec.encode(
            x + dither(config.seed, where, x[:1]) if dithers(config, experiment.facts) else x
        )
        self.cond = {"label": batch["label"].to(device)} if config.network.get("num_classes") else {}
        self.eps = noise(config.seed, HELD_OUT, where)(self.x0)
        self.t, self.correction = draw_times(0, self.x0, experiment.sde, make_time_law(config))
        self.experiment, self.config = experiment, config

    @torch.no_grad()
    def losses(self, network: torch.nn.Module) -> dict[str, float]:
        """The held-out loss, what a network that is always zero would get, and the loss in bins of log-SNR."""
        denoiser = self.experiment.denoiser(network, self.config)
        weight = make_weight(self.config, denoiser.sigma_data)
        silent = self.experiment.denoiser(_Zero(), self.config)
        sde, draws = self.experiment.sde, (self.x0, self.eps, self.t)
        loss, zero = (
            self.correction.flatten() * denoising_loss(sde, d, weight, *draws, **self.cond) for d in (denoiser, silent)
        )
        bins = torch.bucketize(sde.log_snr(self.t).flatten(), torch.tensor(NOISE_BINS[1:-1], device=loss.device))
        found = {"held_out_loss": loss.mean().item(), "held_out_loss_of_zero": zero.mean().item()}
        for k, (low, high) in enumerate(pairwise(NOISE_BINS)):
            if (bins == k).any():
                found[f"held_out_loss/log_snr_{low:g}_to_{high:g}"] = loss[bins == k].mean().item()
        return found


class _Zero(torch.nn.Module):
    """The network that has learned nothing."""

    def forward(self, x: Tensor, log_snr: Tensor, **cond: Tensor) -> Tensor:
        return torch.zeros_like(x)


def draw_times(step: int, like: Tensor, sde: SDE, law: Callable) -> tuple[Tensor, Tensor]:
    """Times of a global batch shaped as ``like`` (B, *), and their corrections; both (B, 1, ..., 1).

    One time in each of B equal shares of the law; the shares move on by the golden ratio from step to step, so that
    all times are visited evenly.
    """
    u = stratified(step * GOLDEN_RATIO % 1, 0, len(like), len(like)).to(like.device)
    return law(sde, u.reshape(-1, *[1] * (like.ndim - 1)))


def dithers(config: ConfigDict, facts: DataFacts) -> bool:
    """Whether levels get uniform noise of one level's width before they are encoded."""
    return config.train.dequantize and facts.levels > 0


def dither(seed: int, where: Tensor, like: Tensor) -> Tensor:
    """Noise uniform on [-1/2, 1/2] for the examples at these positions (N,), each shaped as ``like[0]``."""
    return uniform(seed, DITHER, where, like.expand(len(where), *like.shape[1:])) - 0.5


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], limit: float) -> Tensor:
    """Scale the gradients in place so that the norm of all is at most ``limit``; returns the norm before, 0-d.

    As ``torch.nn.utils.clip_grad_norm_``, in two thirds of its time on a small network.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def learning_rate(config: ConfigDict, images_seen: int) -> float:
    """Linear warm-up to optim.learning_rate, then constant or down to 0 along half a cosine."""
    rise = min(1.0, (images_seen + config.train.batch_size) / max(config.optim.warmup_images, 1))
    share = min(1.0, images_seen / config.train.total_images)
    return config.optim.learning_rate * rise * pick(DECAYS, "decay", config.optim.decay)(share)


DECAYS = {"constant": lambda share: 1.0, "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share))}
