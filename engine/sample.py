"""Sampling: a run's weights, a grid of times, a step, and files to look at.

Sample i of a command depends on the seed ``seed + i`` alone; the batch size changes nothing but the speed.
"""

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor

from data import scatter_png, write_png
from engine import checkpoint, plane
from engine.build import DataFacts, Experiment, check_at_least, load, pick
from engine.config import Options
from engine.files import write_json, write_npz
from engine.log import Progress, versions
from samplers import GRIDS, STEPS, Heun, Noise, Step, sample
from sde_lib import SDE, Denoiser, NonFiniteError, Prediction

GRID_SAMPLES = 64
"""Samples in a grid.png and in the previews of training."""


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Draw samples and write samples.npz, a picture and manifest.json below ``workdir``/samples."""
    check_at_least(1, config, "sample.num_samples", "sample.batch_size")
    num = config.sample.num_samples
    experiment, denoiser, latents, x0, manifest = draw_run(config, workdir, options, num, config.sample.batch_size)
    samples = experiment.codec.decode(x0).cpu()

    folder = workdir / "samples" / f"{config.sample.sampler}-{config.sample.steps}"
    arranged = samples.movedim(1, -1) if is_image(experiment.facts) else samples
    pairs = {"latents": latents, "x0": x0, "levels": torch.tensor(experiment.facts.levels)}
    kept = {key: value.cpu().numpy() for key, value in pairs.items()} if config.sample.keep_latents else {}
    write_npz(folder / "samples.npz", samples=arranged.numpy(), **kept)
    picture(folder / "grid.png", samples[:GRID_SAMPLES] if is_image(experiment.facts) else samples, experiment.facts)
    plane.draw(folder, experiment, denoiser, config)
    write_json(folder / "manifest.json", manifest)
    done = f"{num} samples in {manifest['seconds']:.1f} s, {manifest['nfe']:g} evaluations each"
    print(f"{done}, from step {manifest['checkpoint_step']} ({options.weights})")
    print(f"files are in {folder}")


class Drawn(NamedTuple):
    """Samples of a run: the normals that they began with, the data they ended at, encoded, and their manifest."""

    experiment: Experiment
    denoiser: Denoiser
    latents: Tensor
    x0: Tensor
    manifest: dict[str, Any]


def draw_run(config: ConfigDict, workdir: Path, options: Options, num: int, batch_size: int) -> Drawn:
    """The samples of the seeds ``seed`` to ``seed + num - 1``, by the sampler of the section ``sample``."""
    pick(STEPS, "sampler", config.sample.sampler)
    experiment, denoiser, found = load(config, workdir, options)
    step = make_step(config, experiment.sde)
    times = make_times(config, experiment.sde)
    counted = Counted(denoiser)
    progress, drawn, start = Progress(num, "samples"), [], time.perf_counter()
    for first in range(0, num, batch_size):
        seeds = torch.arange(first, min(first + batch_size, num)) + config.seed
        drawn.append(draw_pairs(experiment, counted, step, times, seeds))
        progress.advance(len(seeds))
    progress.close()
    seconds, calls = time.perf_counter() - start, counted.calls / len(drawn)
    latents, x0 = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    manifest = {
        "sampler": config.sample.sampler,
        "steps": config.sample.steps,
        "grid": config.sample.grid,
        "options": {key: config.sample[key] for key in options_of(STEPS[config.sample.sampler], config)},
        "nfe": calls,
        "seconds": seconds,
        "num_samples": num,
        "seed": config.seed,
        "levels": experiment.facts.levels,
        "weights": options.weights,
        "checkpoint_step": checkpoint.read_meta(found)["step"],
        "config_sha256": checkpoint.sha256(workdir / "config.json"),
        "versions": versions(),
    }
    return Drawn(experiment, denoiser, latents, x0, manifest)


def draw(experiment: Experiment, denoise: Denoiser, step: Step, times: Tensor, seeds: Tensor) -> Tensor:
    """One decoded sample for each seed (B,), on the CPU; images (B, C, H, W) uint8.

    Raises: NonFiniteError naming the seed.
    """
    return experiment.codec.decode(draw_pairs(experiment, denoise, step, times, seeds)[1]).cpu()


def draw_pairs(
    experiment: Experiment, denoise: Denoiser, step: Step, times: Tensor, seeds: Tensor
) -> tuple[Tensor, Tensor]:
    """The normals that a sample begins with and the data it ends at, encoded, for each seed (B,).

    Raises: NonFiniteError naming the seed.
    """
    noise = Noise(seeds)
    with torch.no_grad():
        z = noise(torch.empty(len(seeds), *experiment.facts.shape, device=experiment.device))
        x0 = sample(step, denoise, experiment.sde.prior_std * z, times, noise)
    finite = torch.isfinite(x0).flatten(1).all(1).cpu()
    if not finite.all():
        raise NonFiniteError(
            f"the sample of seed {seeds[~finite][0]} is not finite; use more --steps or another sampler"
        )
    return z, x0


def make_step(config: ConfigDict, sde: SDE) -> Step:
    """The step of ``sample.sampler``, with those keys of the section that it takes."""
    kind = pick(STEPS, "sampler", config.sample.sampler)
    return kind(sde, **{key: config.sample[key] for key in options_of(kind, config)})


def options_of(kind: Callable, config: ConfigDict) -> list[str]:
    """The keys of the section ``sample`` that a step takes."""
    return [name for name in inspect.signature(kind).parameters if name in config.sample]


def make_times(config: ConfigDict, sde: SDE) -> Tensor:
    """The grid of ``sample.grid`` down to ``sample.t_min``, where 0 is the earliest time of the SDE."""
    return pick(GRIDS, "grid", config.sample.grid)(sde, config.sample.steps, end=config.sample.t_min or None)


def preview(experiment: Experiment, denoiser: Denoiser, config: ConfigDict, path: Path) -> None:
    """A quick look during training: 64 samples, always of the same seeds.

    By the run's own sampler if that takes at most 18 steps, else by Heun's method in as many.
    """
    sde = experiment.sde
    step, times = Heun(sde), GRIDS["karras"](sde, 18)
    if config.sample.steps <= 18:
        step, times = make_step(config, sde), make_times(config, sde)
    num = GRID_SAMPLES if is_image(experiment.facts) else 2_000
    samples = draw(experiment, denoiser, step, times, torch.arange(num))
    picture(path, samples, experiment.facts)


def picture(path: Path, samples: Tensor, facts: DataFacts) -> None:
    """A grid of images or a scatter plot of points; nothing for data of other kinds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_image(facts):
        write_png(path, samples, levels=facts.levels)
    elif facts.shape == (2,):
        scatter_png(path, samples)


def is_image(facts: DataFacts) -> bool:
    """Whether an example is a picture, (C, H, W) with levels and one or three channels."""
    return facts.levels > 0 and len(facts.shape) == 3 and facts.shape[0] in (1, 3)


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Prediction:
        self.calls += 1
        return self.denoiser(*args, **kwargs)
