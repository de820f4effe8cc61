"""Training: any objective, by default weighted denoising score matching; resumable bit for bit.

A step is a function of the weights, the optimiser's state and ``images_seen``: data order, times, noise and dropout all
follow from the seed and the position. So a run that was killed goes on by the same command as if nothing had happened.
"""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor

from data import Dataset, batch_at
from engine import checkpoint
from engine.build import (
    DataFacts,
    build,
    check_at_least,
    conditions,
    first_guess,
    load_average,
    make_codec,
    make_objective,
    make_time_law,
    pick,
    read_dataset,
    set_threads,
)
from engine.config import Options, to_json
from engine.ema import EMA
from engine.files import write_text
from engine.held_out import HeldOut
from engine.log import Metrics, Progress, versions
from engine.randomness import (
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
from engine.sample import preview
from sde_lib import Denoiser, NonFiniteError

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Train the config in ``workdir``, from the newest checkpoint there."""
    trainer = Trainer(config, workdir, read_dataset(config, "train"))
    last_step = math.ceil(config.train.total_images / config.train.batch_size)
    if trainer.step >= last_step:
        print(
            f"{workdir} is trained already, on {trainer.images_seen} images; raise --config.train.total_images to go on"
        )
        return
    print(trainer.describe(), flush=True)
    held_out = HeldOut(config, trainer.experiment, read_dataset(config, "test"))
    window, results, start = Window(config.train.batch_size), trainer.steps(last_step), trainer.step
    first = next(results)  # a config whose first step fails leaves nothing behind
    write_text(workdir / "config.json", to_json(config, versions()))
    metrics = Metrics(workdir, start)
    progress = Progress(last_step * config.train.batch_size, "images", done=start * config.train.batch_size)

    for result in itertools.chain([first], results):
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
            if draw and trainer.objective.generates:
                picture = workdir / "samples" / f"step_{step:08d}.png"
                preview(trainer.experiment, trainer.denoiser_of_average(), config, picture)
    progress.close()
    print(f"trained on {trainer.images_seen} images, {progress.rate:.0f} a second, pauses included")
    for key in ("loss", "held_out_loss", "held_out_loss_of_zero", "held_out_accuracy"):
        if key in line:
            print(f"  {key:<22} {line[key]:.4f}")
    then = f"; next: python run.py --workdir {workdir} --mode sample" if trainer.objective.generates else ""
    print(f"weights, metrics and pictures are in {workdir}{then}")


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
        if not 0 <= config.train.label_dropout <= 1:
            raise ValueError(f"train.label_dropout {config.train.label_dropout}: need a share from 0 to 1")
        if config.network.get("num_classes", 0) not in (0, dataset.num_classes):
            raise ValueError(
                f"network.num_classes {config.network.num_classes}: the data have {dataset.num_classes}; 0 ignores them"
            )
        self.folder = workdir / "checkpoints"
        found = checkpoint.find(self.folder) if checkpoint.steps(self.folder) else None
        meta = checkpoint.read_meta(found) if found else {}
        codec = make_codec(config, dataset.levels)
        set_threads(config)
        facts = DataFacts.from_dict(meta["data"]) if found else DataFacts.of(dataset, codec)
        gaussian = checkpoint.load_gaussian(found, facts.shape) if found else None
        torch.manual_seed(config.seed)
        self.experiment = build(config, facts, gaussian or first_guess(dataset, codec))
        if config.train.init and not found:
            load_average(Path(config.train.init), self.experiment.network)
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
        self.time_law = make_time_law(config)
        if found:
            self._load(found)
        network = torch.compile(self.network) if config.train.compile else self.network
        self.denoiser = self.experiment.denoiser(network, config)
        self.objective = make_objective(config, self.experiment)
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
        cond = conditions(config, batch, device)
        if cond:
            cond["keep"] = kept(config.seed, positions(start, num), config.train.label_dropout).to(device)
        t, correction = draw_times(self.step, x0, self.experiment.sde, self.time_law)
        eps = batch["eps"].to(device) if "eps" in batch else self.eps(start, num)

        seed_dropout(config.seed, self.step, device)
        draw, progress = noise(config.seed, OBJECTIVE, positions(start, num)), start / config.train.total_images
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            losses = self.objective(self.denoiser, x0, eps, t, draw, progress, **cond)
        self.time_law.observe(self.experiment.sde, t, losses.detach())
        loss = (correction.flatten() * losses).mean()
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
        state = {
            "optimizer": self.optimizer.state_dict(),
            "ema_updates": self.ema.num_updates,
            "time_law": self.time_law.state_dict(),
        }
        meta = {
            "images_seen": self.images_seen,
            "data": asdict(self.experiment.facts),
            "sigma_data": self.denoiser.sigma_data,
            "ema": [checkpoint.ema_file(rate) for rate in self.ema.rates],
            "versions": versions(),
        }
        parts = {checkpoint.RAW: self.network, **averages, checkpoint.GAUSSIAN: self.experiment.gaussian}
        checkpoint.save(self.folder, self.step, parts, state, meta)
        checkpoint.forget(self.folder, self.config.train.keep_checkpoints)

    def _load(self, path: Path) -> None:
        checkpoint.load_network(path, checkpoint.RAW, self.network)
        for rate, average in zip(self.ema.rates, self.ema.networks, strict=True):
            checkpoint.load_network(path, checkpoint.ema_file(rate), average)
        state = checkpoint.load_state(path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.num_updates = state["ema_updates"]
        self.time_law.load_state_dict(state.get("time_law", {}))  # earlier versions had no law that learns
        self.step = checkpoint.read_meta(path)["step"]


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
