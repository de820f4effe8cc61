"""Picture of the processes: log-SNR over time, and noisy states of a digit over time under each process.

python run.py --config learned --mode train
python benchmarks/schedules.py runs/learned docs/images/schedules.png
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.command import end, paths  # noqa: E402
from score_sde.data import Pixels, read_digits  # noqa: E402
from score_sde.engine import checkpoint  # noqa: E402
from score_sde.engine.config import stored  # noqa: E402
from score_sde.engine.objective import make_timestep_sampler  # noqa: E402
from score_sde.sde_lib import SDE, SDES  # noqa: E402

MOMENTS, DIGIT, CELL = 10, 0, 9

ROWS = {
    "vesde": "ncsn",
    "rectified": "logistic",
    "cosine": "iddpm",
    "sigmoid": "",
    "laplace": "",
    "subvpsde": "",
    "vpsde": "ddpm",
    "edm": "",
    "learned": "",
}
"""Each process, and its twin: its discrete-time process, or another process with the same log-SNR."""

COLOURS = ["#7a5195", "#d45087", "#2f9e73", "#9bb83c", "#f39c35", "#35a7c4", "#33589f", "#6b7280", "#111827"]


def learned(workdir: Path) -> SDE:
    """Returns the process whose uniform times have the distribution that a run has learned."""
    config = stored(workdir)
    sampler = make_timestep_sampler(config.loss.timestep_sampler)
    sampler.load_state_dict(checkpoint.load_state(checkpoint.find(workdir / "checkpoints"))["timestep_sampler"])
    return sampler.process(SDES[config.sde.name](**{key: v for key, v in config.sde.items() if key != "name"}))


@torch.no_grad()
def curve(sde: SDE) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns times as fractions of the interval of a process, and the log-SNR at these times."""
    fraction = torch.linspace(0, 1, 2001, dtype=torch.float64)
    return fraction, sde.log_snr(sde.t_min + (sde.t_max - sde.t_min) * fraction)


@torch.no_grad()
def latents(sde: SDE) -> torch.Tensor:
    """Returns noisy states of one digit at evenly spaced times, divided by sqrt(alpha^2 + sigma^2); (MOMENTS, 8, 8)."""
    dataset = read_digits("test")
    x0 = Pixels(dataset.levels).encode(torch.from_numpy(dataset.x[DIGIT, 0]).float())
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    t = torch.linspace(sde.t_min, sde.t_max, MOMENTS).reshape(-1, 1, 1)
    return sde.perturb(x0, eps, t) / torch.hypot(sde.alpha(t), sde.sigma(t))


def main() -> None:
    """Draw both panels and write the picture."""
    from matplotlib.figure import Figure

    workdir, target = paths("RUN", "PICTURE.png")
    processes = {name: make() for name, make in SDES.items()} | {"learned": learned(workdir)}
    figure = Figure(figsize=(9, 12.8), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[1, 1.75])
    labels = [f"{name} · {twin}" if twin else name for name, twin in ROWS.items()]
    for name, label, colour in zip(ROWS, labels, COLOURS):
        above.plot(*curve(processes[name]), color=colour, linewidth=3, label=label)
        if ROWS[name]:
            above.plot(*curve(processes[ROWS[name]]), color="white", linewidth=1, linestyle=(0, (1, 3)))
    above.set(xlim=(0, 1), ylim=(-17, 14), ylabel="log-SNR")
    above.set_title("how fast each process takes the signal away", fontsize=12)
    above.grid(alpha=0.25)
    above.legend(fontsize=9, frameon=False, loc="lower center", ncols=5)
    above.spines[["top", "right"]].set_visible(False)
    rows = torch.stack([latents(processes[name]) for name in ROWS])
    canvas = torch.nn.functional.pad(rows, (0, 1, 0, 1), value=-2.2).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    below.imshow(canvas, cmap="gray_r", vmin=-2.2, vmax=2.2, interpolation="nearest", aspect="auto")
    below.set_yticks([CELL * k + 3.5 for k in range(len(ROWS))], labels, fontsize=10)
    for tick, colour in zip(below.get_yticklabels(), COLOURS):
        tick.set_color(colour)
    below.set_xticks([CELL * k + 3.5 for k in range(MOMENTS)], [f"{k / (MOMENTS - 1):.2f}" for k in range(MOMENTS)])
    below.set_xlabel("share of the time from data to noise", fontsize=11)
    below.set_title("one digit and one noise at evenly spaced times, scaled to one size", fontsize=12)
    below.tick_params(length=0)
    below.spines[:].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    print(f"written: {target}")


if __name__ == "__main__":
    end(main)
