"""Pictures for data in the plane: the model's density, and how points travel from the prior to the data."""

from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from engine.build import Experiment
from engine.files import replace
from samplers import Noise, Step, trajectory
from sde_lib import Denoiser, exact_trace, log_prob

NUM_PATHS, NUM_CELLS = 100, 80


def draw(
    folder: Path, experiment: Experiment, denoise: Denoiser, step: Step, times: Tensor, config: ConfigDict
) -> None:
    """Write density.png and trajectories.png for points in the plane; nothing for data of other shapes."""
    if experiment.facts.shape != (2,):
        return
    from matplotlib.figure import Figure

    reach = 0.6 * experiment.facts.diameter
    cells = torch.linspace(-reach, reach, NUM_CELLS)
    points = torch.cartesian_prod(cells, cells).to(experiment.device)
    nats = log_prob(experiment.sde, denoise, points, exact_trace(points), rtol=1e-3, atol=1e-3).nats.cpu()
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(title="density of the model, by the probability flow", aspect="equal")
    sides, density = cells.numpy(), nats.exp().reshape(NUM_CELLS, NUM_CELLS).T.numpy()
    axes.pcolormesh(sides, sides, density, cmap="magma", shading="nearest")
    replace(folder / "density.png", lambda file: figure.savefig(file, format="png"))

    noise = Noise(torch.arange(NUM_PATHS) + config.seed)
    with torch.no_grad():
        x = experiment.sde.prior_std * noise(torch.empty(NUM_PATHS, 2, device=experiment.device))
        states = [x, *trajectory(step, denoise, x, times, noise)]
    scales = [(experiment.sde.at(t).alpha ** 2 + experiment.sde.at(t).sigma ** 2) ** 0.5 for t in times.tolist()]
    paths = torch.stack([state / scale for state, scale in zip(states, [*scales, 1.0], strict=True)]).cpu().numpy()
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(title=f"{config.sample.sampler}: from the prior (gray) to the data", aspect="equal")
    axes.plot(paths[..., 0], paths[..., 1], linewidth=0.4, alpha=0.6)
    axes.scatter(*paths[0].T, s=6, color="gray")
    axes.scatter(*paths[-1].T, s=8, color="black", zorder=3)
    replace(folder / "trajectories.png", lambda file: figure.savefig(file, format="png"))
