"""Pictures for data in the plane: the model's density, and how points travel from the prior to the data."""

from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from engine.build import Experiment
from samplers import Heun, Noise, trajectory
from samplers.grids import log_snr
from sde_lib import Denoiser, log_prob
from sde_lib.adams import Adams
from storage.writing import replace

NUM_PATHS, NUM_TIMES, NUM_CELLS = 80, 60, 80


def draw(folder: Path, experiment: Experiment, denoise: Denoiser, config: ConfigDict) -> None:
    """Write density.png and trajectories.png for points in the plane; nothing for data of other shapes."""
    if experiment.facts.shape != (2,):
        return
    from matplotlib.figure import Figure

    reach = 0.6 * experiment.facts.diameter
    cells = torch.linspace(-reach, reach, NUM_CELLS)
    points = torch.cartesian_prod(cells, cells).to(experiment.device)
    nats = log_prob(experiment.sde, denoise, points, experiment.gaussian.isotropic(), solver=Adams(64)).nats.cpu()
    density = nats.exp().reshape(NUM_CELLS, NUM_CELLS).T.numpy()
    highest = np.quantile(density, 0.998)  # a single cell does not dim the others
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(title="density of the model, by the probability flow", aspect="equal")
    axes.pcolormesh(cells.numpy(), cells.numpy(), density, cmap="magma", shading="nearest", vmin=0, vmax=highest)
    replace(folder / "density.png", lambda file: figure.savefig(file, format="png"))

    noise, times = Noise(torch.arange(NUM_PATHS) + config.seed), log_snr(experiment.sde, NUM_TIMES)
    with torch.no_grad():
        x = experiment.sde.prior_std * noise(torch.empty(NUM_PATHS, 2, device=experiment.device))
        states = [x, *trajectory(Heun(experiment.sde), denoise, x, times, noise)]
    moments = [experiment.sde.at(t) for t in times.tolist()]
    scales = [((m.alpha * experiment.facts.std) ** 2 + m.sigma**2) ** 0.5 / experiment.facts.std for m in moments]
    paths = torch.stack([state / scale for state, scale in zip(states, [*scales, 1.0], strict=True)]).cpu().numpy()
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(title="the probability flow, from the prior (gray) to the data", aspect="equal")
    axes.plot(paths[..., 0], paths[..., 1], linewidth=0.6, alpha=0.7)
    axes.scatter(*paths[0].T, s=8, color="gray")
    axes.scatter(*paths[-1].T, s=10, color="black", zorder=3)
    replace(folder / "trajectories.png", lambda file: figure.savefig(file, format="png"))
