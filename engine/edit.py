"""Editing: what a trained run makes of examples that are there already.

A task gets the run, its denoiser and a dataset, writes pictures into its folder, and says what it did.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from PIL.Image import Image as Picture
from torch import Tensor

from data import Dataset, table, write_gif
from engine import checkpoint
from engine.build import Experiment, check_at_least, check_form, pick, read_dataset
from engine.config import Options
from engine.files import replace, write_json
from engine.log import Progress, versions
from engine.sample import Counted, is_image, load
from samplers import DDIM, ODE, Ancestral, Noise, sample
from samplers.editing import depth_time, flow_path, slerp, stochastic_path
from samplers.grids import karras
from sde_lib import NonFiniteError

PRIOR = "prior draws"
"""Label of the one path that has no examples at its ends."""


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Do a task; write its pictures and manifest.json below ``workdir``/edit/<task>."""
    if not options.task:
        raise ValueError(f"give --task ({' | '.join(TASKS)})")
    task, split = pick(TASKS, "task", options.task), options.split or "test"
    experiment, denoiser, found = load(config, workdir, options)
    facts = experiment.facts
    if not is_image(facts):
        raise ValueError(f"--task {options.task} shows images, and the run has examples of shape {facts.shape}")
    dataset = read_dataset(config, split)
    check_form(dataset, facts)

    folder, counted, start = workdir / "edit" / options.task, Counted(denoiser), time.perf_counter()
    with torch.no_grad():
        done = task(folder, experiment, counted, dataset, config)
    seconds, meta = time.perf_counter() - start, checkpoint.read_meta(found)
    manifest = {
        "task": options.task,
        **done,
        "split": split,
        "nfe": counted.calls,
        "seconds": seconds,
        "seed": config.seed,
        "levels": facts.levels,
        "weights": options.weights,
        "checkpoint_step": meta["step"],
        "config_sha256": checkpoint.sha256(workdir / "config.json"),
        "versions": versions(),
    }
    write_json(folder / "manifest.json", manifest)
    print(
        f"{options.task} in {seconds:.1f} s, {counted.calls} evaluations, from step {meta['step']} ({options.weights})"
    )
    print(f"files are in {folder}")


def interpolate(
    folder: Path, experiment: Experiment, denoise: Counted, dataset: Dataset, config: ConfigDict
) -> dict[str, Any]:
    """Paths from ``edit.first`` to ``edit.second``, a row each: grid.png, and animation.gif running along them."""
    settings, facts, num = config.edit, experiment.facts, len(dataset)
    check_at_least(2, config, "edit.frames")
    for key in ("first", "second"):
        if not -num <= settings[key] < num:
            raise ValueError(f"edit.{key} {settings[key]}: need 0 to {num - 1}, or -{num} to -1 from the last")
    ends = dataset.batch([settings.first, settings.second])["x"]
    weights = torch.linspace(0, 1, settings.frames)
    x = experiment.codec.encode(ends.to(experiment.device))

    rows, nfe, progress = {}, {}, Progress(len(settings.depths) + 3, "paths")
    for label, path in paths(experiment, denoise, x, weights, config):
        if not torch.isfinite(path).all():
            raise NonFiniteError(f"the path {label!r} is not finite; use more --steps")
        rows[label] = experiment.codec.decode(path).cpu()
        nfe[label] = denoise.calls - sum(nfe.values())
        progress.advance(1)
    progress.close()

    names = [f"{weight:.2f}" for weight in weights.tolist()]
    sides = {label: (None, None) if label == PRIOR else ends for label in rows}

    def show(which: slice) -> Picture:
        strips = {label: [sides[label][0], *row[which], sides[label][1]] for label, row in rows.items()}
        return table(strips, [["first"], names[which], ["second"]], facts.levels)

    replace(folder / "grid.png", lambda file: show(slice(None)).save(file, format="PNG"))
    write_gif(folder / "animation.gif", [show(slice(k, k + 1)) for k in range(len(names))])
    taken = {key: config.sample[key] for key in ("steps", "t_min", "variance", "solver", "rtol", "atol")}
    return {"options": {**settings.to_dict(), **taken}, "paths": nfe}


def paths(
    experiment: Experiment, denoise: Counted, x: Tensor, weights: Tensor, config: ConfigDict
) -> Iterator[tuple[str, Tensor]]:
    """Labels and paths (frames, *) between the encoded pair x (2, *).

    Mixed as they are; in encodings by q(x_t | x_0) of each depth; in latents of the probability flow; and between two
    draws of the prior, the samples that ``--mode sample`` has of the seeds ``seed`` and ``seed + 1``.
    """
    sde, settings = experiment.sde, config.sample
    first, second = x.split(1)
    weights = weights.to(x).reshape(-1, *[1] * (x.ndim - 1))
    alike, end = torch.full((len(weights),), config.seed), settings.t_min or None
    depths = {share: depth_time(sde, share, experiment.sigma_data(config)) for share in config.edit.depths}
    yield "pixels", torch.lerp(first, second, weights)
    for share, t in depths.items():
        step, times = Ancestral(sde, settings.variance), karras(sde, settings.steps, t, end)
        yield f"noise {share:g}", stochastic_path(step, denoise, first, second, weights, times, Noise(alike))
    flow = ODE(sde, settings.solver, settings.rtol, settings.atol)
    yield "flow latents", flow_path(flow, denoise, first, second, weights, Noise(alike))
    latents = sde.prior_std * Noise(torch.tensor([config.seed, config.seed + 1]))(x)
    mixed, times = slerp(*latents.split(1), weights), karras(sde, settings.steps, end=end)
    yield PRIOR, sample(DDIM(sde), denoise, mixed, times, Noise(alike))


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"interpolate": interpolate}
"""What the user types after ``--task``: (folder, experiment, denoise, dataset, config) -> its part of the manifest."""
