"""Sampling: a run's weights, a grid of times, a step, and files to look at.

Sample i of a command depends on the seed ``seed + i`` alone; the batch size changes nothing but the speed.
"""

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from data import scatter_png, write_png
from engine import checkpoint, plane
from engine.build import DataFacts, Experiment, build, check_at_least, pick
from engine.config import Options
from engine.files import write_json, write_npz
from engine.log import Progress, versions
from samplers import GRIDS, STEPS, Heun, Noise, Step, sample
from sde_lib import SDE, Denoiser, NonFiniteError, Prediction

GRID_SAMPLES = 64
"""Samples in a grid.png and in the previews of training."""


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Draw samples and write samples.npz, a picture and manifest.json below ``workdir``/samples."""
    pick(STEPS, "sampler", config.sample.sampler)
    check_at_least(1, config, "sample.num_samples", "sample.batch_size")
    experiment, denoiser, found = load(config, workdir, options)
    step = make_step(config, experiment.sde)
    times = make_times(config, experiment.sde)
    num, counted = config.sample.num_samples, Counted(denoiser)
    progress, drawn, start = Progress(num, "samples"), [], time.perf_counter()
    for first in range(0, num, config.sample.batch_size):
        seeds = torch.arange(first, min(first + config.sample.batch_size, num)) + config.seed
        drawn.append(draw(experiment, counted, step, times, seeds))
        progress.advance(len(seeds))
    progress.close()
    seconds, calls = time.perf_counter() - start, counted.calls / len(drawn)
    samples = torch.cat(drawn)

    folder = workdir / "samples" / f"{config.sample.sampler}-{config.sample.steps}"
    arranged = samples.movedim(1, -1) if is_image(experiment.facts) else samples
    write_npz(folder / "samples.npz", samples=arranged.numpy())
    picture(folder / "grid.png", samples[:GRID_SAMPLES] if is_image(experiment.facts) else samples, experiment.facts)
    plane.draw(folder, experiment, denoiser, config)
    meta = checkpoint.read_meta(found)
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
        "checkpoint_step": meta["step"],
        "config_sha256": checkpoint.sha256(workdir / "config.json"),
        "versions": versions(),
    }
    write_json(folder / "manifest.json", manifest)
    print(f"{num} samples in {seconds:.1f} s, {calls:g} evaluations each, from step {meta['step']} ({options.weights})")
    print(f"files are in {folder}")


def load(config: ConfigDict, workdir: Path, options: Options) -> tuple[Experiment, Denoiser, Path]:
    """The experiment of a trained run, its denoiser with the weights that the options ask for, and their checkpoint.

    Raises: CheckpointError if there is none, or it is damaged or of another network.
    """
    found = checkpoint.find(workdir / "checkpoints", options.checkpoint)
    meta = checkpoint.read_meta(found)
    experiment = build(config, DataFacts.from_dict(meta["data"]))
    name = checkpoint.RAW if options.weights == "raw" else meta["ema"][0]
    checkpoint.load_network(found, name, experiment.network)
    network = experiment.network.eval().requires_grad_(False)
    return experiment, experiment.denoiser(network, config), found


def draw(experiment: Experiment, denoise: Denoiser, step: Step, times: Tensor, seeds: Tensor) -> Tensor:
    """One decoded sample for each seed (B,), on the CPU; images (B, C, H, W) uint8.

    Raises: NonFiniteError naming the seed.
    """
    sde, noise = experiment.sde, Noise(seeds)
    with torch.no_grad():
        x = sde.prior_std * noise(torch.empty(len(seeds), *experiment.facts.shape, device=experiment.device))
        x = sample(step, denoise, x, times, noise)
    finite = torch.isfinite(x).flatten(1).all(1).cpu()
    if not finite.all():
        raise NonFiniteError(
            f"the sample of seed {seeds[~finite][0]} is not finite; use more --steps or another sampler"
        )
    return experiment.codec.decode(x).cpu()


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


def preview(experiment: Experiment, denoiser: Denoiser, path: Path) -> None:
    """A quick look during training: 64 samples by Heun's method in 18 steps, always of the same seeds."""
    times = GRIDS["karras"](experiment.sde, 18)
    num = GRID_SAMPLES if is_image(experiment.facts) else 2_000
    samples = draw(experiment, denoiser, Heun(experiment.sde), times, torch.arange(num))
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
