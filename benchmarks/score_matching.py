"""Error and cost of all score matching losses on a density with an exact score.

    python benchmarks/score_matching.py docs/images/score_matching.png

The data are eight Gaussians of standard deviation 0.1 on a circle, at two noise levels. Each loss trains the same
network, two blocks of 64, from the same weights, on the same points, for the same number of steps. The columns are:

error     E|s_hat - s|^2 / E|s|^2 over fresh points: the Fisher divergence to the exact score, relative to its size
ms/step   time of a step of 256 points on one core, including the optimizer
noise     standard deviation of a step's gradient over the norm of its mean, at the same half-trained network
"""

import math
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.command import end, paths
from score_sde.models import NETWORKS
from score_sde.sde_lib import EDMSDE, OBJECTIVES, WEIGHTS, Denoiser, GaussianMixture, Objective, explicit

SIGMAS = (0.3, 0.02)
STEPS, BATCH, RATE, REPEATS = 1_000, 256, 3e-3, 100
CELLS, ARROWS, EXTENT = 160, 17, 1.45

ANGLES = torch.arange(8) * math.pi / 4
RING = GaussianMixture(torch.ones(8), torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.01)
SDE = EDMSDE()

LOSSES = {
    "denoising": ("denoising", {}),
    "implicit": ("implicit", {}),
    "sliced_vr": ("sliced_vr", {}),
    "sliced_vr, 4 projections": ("sliced_vr", {"projections": 4}),
    "sliced": ("sliced", {}),
    "sliced, 4 projections": ("sliced", {"projections": 4}),
}
DRAWN = ("denoising", "implicit", "sliced_vr", "sliced")


def new_denoiser() -> Denoiser:
    """Returns an untrained denoiser, always with the same weights."""
    torch.manual_seed(0)
    return Denoiser(NETWORKS["mlp"]((2,), width=64, depth=2), SDE, "edm", 0.7)


def batch_loss(objective: Objective, denoise: Denoiser, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Returns the loss of a fresh batch."""

    def draw(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    x0 = RING.sample(BATCH, generator)
    return objective(denoise, x0, draw(x0), torch.full((BATCH, 1), sigma), draw, 0.0).mean()


def train(objective: Objective, sigma: float, steps: int = STEPS) -> tuple[Denoiser, float]:
    """Returns a trained denoiser, and the seconds per step."""
    denoise, generator = new_denoiser(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(denoise.parameters(), lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = time.process_time()
    for _ in range(steps):
        batch_loss(objective, denoise, sigma, generator).backward()
        torch.nn.utils.clip_grad_norm_(denoise.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return denoise, (time.process_time() - start) / steps


@torch.no_grad()
def relative_error(denoise: Denoiser, sigma: float) -> float:
    """Returns E|s_hat - s|^2 / E|s|^2 at 20,000 fresh points of the noisy density."""
    generator = torch.Generator().manual_seed(2)
    x0 = RING.sample(20_000, generator)
    x = x0 + sigma * torch.randn(x0.shape, generator=generator)
    score = RING.denoiser(SDE).score(x, sigma)
    return (explicit(denoise.score(x, sigma), score).sum() / explicit(torch.zeros_like(score), score).sum()).item()


def gradient_noise(objective: Objective, denoise: Denoiser, sigma: float, mean: torch.Tensor) -> float:
    """Returns the standard deviation of a batch's gradient, relative to the norm of ``mean``."""
    generator = torch.Generator().manual_seed(3)
    found = torch.stack([gradient(objective, denoise, sigma, generator) for _ in range(REPEATS)])
    return (found.var(0).sum().sqrt() / mean.norm()).item()


def gradient(objective: Objective, denoise: Denoiser, sigma: float, generator: torch.Generator) -> torch.Tensor:
    """Returns the gradient of a batch with respect to all weights, flattened."""
    loss = batch_loss(objective, denoise, sigma, generator)
    parts = torch.autograd.grad(loss, list(denoise.parameters()))
    return torch.cat([part.flatten() for part in parts])


def plane(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the coordinates along an axis, and the points of the grid."""
    axis = torch.linspace(-EXTENT, EXTENT, num)
    return axis, torch.cartesian_prod(axis, axis)


def picture(fields: dict[float, dict[str, Denoiser]], target: Path) -> None:
    """Draw a row per noise level: the exact field over the density, then learned fields over maps of their error."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from PIL import Image

    embers = ListedColormap(colormaps["magma"](torch.linspace(0, 0.75, 256).numpy()))  # dark enough for white arrows
    figure = Figure(figsize=(13, 5.3), dpi=100, layout="constrained")
    rows, exact = figure.subplots(len(fields), 1 + len(DRAWN)), RING.denoiser(SDE)
    (axis, cells), (ticks, points) = plane(CELLS), plane(ARROWS)
    for k, (sigma, learned) in enumerate(fields.items()):
        score = exact.score(cells, sigma)
        density = exact.log_prob(cells, sigma).exp()
        size = (density @ score.square().sum(1) / density.sum()).sqrt()
        for axes, (name, denoise) in zip(rows[k], {"exact": exact, **learned}.items(), strict=True):
            with torch.no_grad():
                field, error = denoise.score(points, sigma), (denoise.score(cells, sigma) - score).norm(dim=1) / size
            shown, colours = (error, embers) if name in learned else (density / density.max() / 1.5, "Greys")
            shown, heights = (v.reshape(CELLS, CELLS).T for v in (shown, density / density.max()))
            mesh = axes.pcolormesh(axis, axis, shown, cmap=colours, shading="gouraud", vmin=0, vmax=1)
            ink = "white" if name in learned else "black"
            axes.contour(axis, axis, heights, levels=[0.05], colors=ink, linewidths=0.6, alpha=0.7)
            length = field.norm(dim=1, keepdim=True)
            u, v = (field / length * (length / size).clamp(max=1) ** 0.5).T.reshape(2, ARROWS, ARROWS).mT
            axes.quiver(ticks, ticks, u, v, color=ink, scale=19, width=0.006, alpha=0.8)
            axes.set(xticks=[], yticks=[], aspect="equal", frame_on=False)
            axes.set_title("" if k else name, fontsize=12)
        rows[k][0].set_ylabel(f"noise {sigma:g}", fontsize=12)
    bar = figure.colorbar(mesh, ax=rows, shrink=0.6, pad=0.01)
    bar.set_label(r"|$\hat s - s$| over the root mean square of $s$", fontsize=11)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    Image.open(target).convert("RGB").quantize(160).save(target, optimize=True)  # a quarter of the bytes
    print(f"written: {target}")


def main() -> None:
    """Train all models, print the tables, draw the picture."""
    (target,) = paths("PICTURE.png")
    torch.set_num_threads(1)
    fields: dict[float, dict[str, Denoiser]] = {}
    for sigma in SIGMAS:
        objectives = {
            label: OBJECTIVES[name](SDE, WEIGHTS["sigma2"], **options) for label, (name, options) in LOSSES.items()
        }
        half, _ = train(objectives["denoising"], sigma, STEPS // 10)
        generator = torch.Generator().manual_seed(4)
        mean = sum(gradient(objectives["implicit"], half, sigma, generator) for _ in range(REPEATS)) / REPEATS
        print(f"\nnoise {sigma:g}{'':17}      error   ms/step     noise")
        for label, objective in objectives.items():
            denoise, seconds = train(objective, sigma)
            noise = gradient_noise(objective, half, sigma, mean)
            print(f"{label:25} {relative_error(denoise, sigma):10.4f} {1e3 * seconds:9.1f} {noise:9.1f}", flush=True)
            fields.setdefault(sigma, {}).update({label: denoise} if label in DRAWN else {})
    picture(fields, target)


if __name__ == "__main__":
    end(main)
