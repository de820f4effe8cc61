"""Picture of the README: trajectories from noise to digits, and a density in the plane.

python run.py --config vpsde --mode train
python run.py --config points --mode train --config.data.name=swiss_roll --workdir runs/swiss_roll
python benchmarks/overview.py runs/vpsde runs/swiss_roll docs/images/overview.png
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.command import end, paths  # noqa: E402
from score_sde.engine.config import Options, stored  # noqa: E402
from score_sde.engine.load import load  # noqa: E402
from score_sde.engine.sampler import make_step, make_times  # noqa: E402
from score_sde.samplers import Noise, trajectory  # noqa: E402
from score_sde.sde_lib import log_prob  # noqa: E402
from score_sde.sde_lib.adams_pece import AdamsPECE  # noqa: E402

ROWS, MOMENTS, CELLS = 6, 10, 120


def digits(workdir: Path) -> torch.Tensor:
    """Returns states of predictor-corrector trajectories at evenly spaced steps, (ROWS, MOMENTS, 8, 8) in [0, 1]."""
    config = stored(workdir)
    experiment, denoise, _ = load(config, workdir, Options())
    sde, times, noise = experiment.sde, make_times(config.sample, experiment), Noise(torch.arange(ROWS))
    with torch.no_grad():
        x = sde.prior_std * noise(torch.empty(ROWS, *experiment.facts.shape))
        states = [x, *trajectory(make_step(config.sample, experiment), denoise, x, times, noise)]
    shown = [states[int(k)] for k in torch.linspace(0, len(states) - 1, MOMENTS)]
    return torch.stack(shown, 1)[:, :, 0].add(1).div(2).clamp(0, 1)


def density(workdir: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the coordinates of the cells along an axis, and the model's density in the cells."""
    config = stored(workdir)
    experiment, denoise, _ = load(config, workdir, Options())
    cells = torch.linspace(-1, 1, CELLS) * 0.6 * experiment.facts.diameter
    points = torch.cartesian_prod(cells, cells)
    nats = log_prob(experiment.sde, denoise, points, experiment.gaussian.isotropic(), solver=AdamsPECE(64)).nats
    return cells, nats.exp().reshape(CELLS, CELLS)


def main() -> None:
    """Draw both panels and write the picture."""
    from matplotlib.figure import Figure

    digit_run, plane_run, target = paths("DIGITS_RUN", "POINTS_RUN", "PICTURE.png")
    figure = Figure(figsize=(10, 3.8), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    states = digits(digit_run)
    canvas = torch.nn.functional.pad(states, (0, 1, 0, 1)).permute(0, 2, 1, 3).reshape(ROWS * 9, MOMENTS * 9)
    left.imshow(canvas, cmap="gray_r", interpolation="nearest")
    left.set_title("from noise to digits, by predictor-corrector", fontsize=10)
    cells, values = density(plane_run)
    right.pcolormesh(cells, cells, values.T, cmap="magma", shading="gouraud")
    right.set_title("density of a model in the plane", fontsize=10)
    right.set_aspect("equal")
    for axes in (left, right):
        axes.set_axis_off()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    print(f"written: {target}")


if __name__ == "__main__":
    end(main)
