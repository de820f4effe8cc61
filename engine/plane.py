"""Pictures for data in the plane: density of the model, and trajectories of the probability flow.

Both depend only on the run and its weights, not on a sampler, so they are drawn once.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from score_sde.configs.default import Config
from score_sde.data import DataError
from score_sde.data.plots import MOST_UNEQUAL
from score_sde.engine import checkpoint
from score_sde.engine.build import Experiment
from score_sde.engine.datasets import read_dataset
from score_sde.engine.files import write_json
from score_sde.engine.log import Progress, say
from score_sde.samplers import Heun, Noise, trajectory
from score_sde.samplers.grids import log_snr
from score_sde.sde_lib import Denoise, log_prob
from score_sde.sde_lib.adams_pece import AdamsPECE
from score_sde.storage.reading import read_text
from score_sde.storage.writing import replace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_PATHS, NUM_TIMES, NUM_CELLS, NUM_POINTS = 80, 60, 80, 2_000

CELLS_AT_A_TIME = 400

RECORD = "drawn.json"
"""File with the checkpoint, weights, seed and sizes of the pictures in its folder."""


def draw(
    workdir: Path, experiment: Experiment, denoise: Denoise, config: Config, found: Path, weights: str
) -> Path | None:
    """Writes density.png and trajectories.png to ``workdir``/plane, unless these weights were drawn before.

    Args:
        found: folder of the denoiser's checkpoint.
        weights: value of --weights.
    Returns: folder of the pictures; None for data of another shape, for which nothing is drawn.
    """
    if experiment.facts.shape != (2,):
        return None
    folder = workdir / "plane" / f"{found.name}-{weights.replace(':', '-')}"
    record = {
        "checkpoint": checkpoint.read_meta(found)["sha256"],
        "weights": weights,
        "seed": config.seed,
        "sizes": [NUM_PATHS, NUM_TIMES, NUM_CELLS, NUM_POINTS],
    }
    if drawn_from(folder) != record:
        points = training_points(config)
        draw_density(folder / "density.png", experiment, denoise)
        draw_trajectories(folder / "trajectories.png", experiment, denoise, config.seed, points)
        write_json(folder / RECORD, record)
    return folder


def drawn_from(folder: Path) -> Any:
    """Record of the pictures in a folder; None if it is missing."""
    try:
        return json.loads(read_text(folder / RECORD))
    except (OSError, ValueError):
        return None


def training_points(config: Config) -> Tensor | None:
    """Some of the training data; None, with a message, if they cannot be read."""
    try:
        dataset = read_dataset(config.data, "train")
    except (DataError, OSError) as error:
        say(f"the pictures in the plane are drawn without the data: {error}")
        return None
    return dataset.batch(range(min(NUM_POINTS, len(dataset))))["x"]


def draw_density(path: Path, experiment: Experiment, denoise: Denoise) -> None:
    """Draws the density of the model by the probability flow, in units of the data."""
    try:
        scaling = experiment.codec.log_det((2,))
    except ValueError as error:
        say(f"the density is not drawn: {error}")
        return
    reach = 0.6 * experiment.facts.diameter
    mean = experiment.gaussian.mean.float()
    cells = torch.linspace(-reach, reach, NUM_CELLS)
    corners = torch.stack([cells, cells], 1) + mean
    points = torch.cartesian_prod(*corners.T).to(experiment.device)
    progress, nats = Progress(len(points), "cells of the density"), []
    for part in points.split(CELLS_AT_A_TIME):
        found = log_prob(experiment.sde, denoise, part, experiment.gaussian.isotropic(), solver=AdamsPECE(64))
        nats.append(found.nats.cpu().double() + scaling)
        progress.advance(len(part))
    progress.close()
    density = torch.cat(nats).exp().reshape(NUM_CELLS, NUM_CELLS).T.numpy()
    highest = np.quantile(density, 0.998)  # ignores the few brightest cells
    figure, axes = plot("density of the model, by the probability flow")
    x, y = experiment.codec.values(corners).T.numpy()
    mesh = axes.pcolormesh(x, y, density, cmap="magma", shading="nearest", vmin=0, vmax=highest)
    figure.colorbar(mesh, ax=axes, shrink=0.8, label="density")
    _equal(axes)
    replace(path, lambda file: figure.savefig(file, format="png"))


def draw_trajectories(path: Path, experiment: Experiment, denoise: Denoise, seed: int, points: Tensor | None) -> None:
    """Draws trajectories x_t of the probability flow in units of the data, over the training data if available.

    The frame covers the data and 3 standard deviations of the prior, but at most about twice the extent of the data.
    """
    sde, codec = experiment.sde, experiment.codec
    noise, times = Noise(torch.arange(NUM_PATHS) + seed), log_snr(sde, NUM_TIMES)
    with torch.no_grad():
        x = sde.prior_std * noise(torch.empty(NUM_PATHS, 2, device=experiment.device))
        states = torch.stack([x, *trajectory(Heun(sde), denoise, x, times, noise)])
    paths = codec.values(states.flatten(0, 1)).reshape(states.shape).cpu().numpy()
    figure, axes = plot("paths of the probability flow, from the prior (gray) to the data (black)")
    if points is not None:
        x, y = points.T.numpy()
        axes.scatter(x, y, s=2, color="tab:blue", alpha=0.3, linewidths=0, label="training data")
        axes.legend(loc="upper right", fontsize="small")
    axes.plot(paths[..., 0], paths[..., 1], linewidth=0.6, alpha=0.7)
    (first, second), (x0, y0) = paths[0].T, paths[-1].T
    axes.scatter(first, second, s=8, color="gray")
    axes.scatter(x0, y0, s=10, color="black", zorder=3)
    reach = min(3.2 * sde.prior_std, 1.2 * experiment.facts.diameter)
    ends = codec.values(experiment.gaussian.mean.float() + torch.tensor([[-reach], [reach]]))
    (left, bottom), (right, top) = ends.tolist()
    axes.set(xlim=(left, right), ylim=(bottom, top))
    _equal(axes)
    replace(path, lambda file: figure.savefig(file, format="png"))


def plot(title: str) -> "tuple[Figure, Axes]":
    """Empty plot of the plane, in units of the data."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="column 0, units of the data", ylabel="column 1, units of the data")
    return figure, axes


def _equal(axes: "Axes") -> None:
    """Sets equal scales on both axes, unless their ranges are too unequal."""
    width, height = (np.ptp(limits) for limits in (axes.get_xlim(), axes.get_ylim()))
    if max(width, height) <= MOST_UNEQUAL * min(width, height):
        axes.set_aspect("equal")
