"""Bits per dimension of test digits by training loss, for each of four processes.

    python benchmarks/likelihood_training.py runs

Trains the runs <sde>-<weight> that the folder lacks, two minutes each, and measures each by the probability flow and by
the variational bound. The columns are ``edm``, the recipe of the configs; ``simple``, the squared error of the noise at
uniform times, as in DDPM; and ``likelihood``, the bound itself at times even in log-SNR, which reduces its variance
(Song, Durkan, Murray, Ermon, 2021). The last row trains on discrete levels without dequantization.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.command import end, paths  # noqa: E402
from score_sde import run  # noqa: E402

RECIPES = {
    "edm": [],
    "simple": ["--config.loss.weight=simple", "--config.loss.timestep_sampler=uniform"],
    "likelihood": ["--config.loss.weight=likelihood", "--config.loss.timestep_sampler=importance"],
}
EDM = ["--config.denoiser.parameterization=edm", "--config.loss.weight=edm", "--config.loss.timestep_sampler=lognormal"]
ROWS = {
    "vpsde": ("vpsde", [], "uniform"),
    "subvpsde": ("subvpsde", [], "uniform"),
    "vesde": ("vesde", [], "uniform"),
    "cosine": ("cosine", EDM, "uniform"),
    "vpsde-raw": ("vpsde", ["--config.train.dequantize=False"], "truncated_normal"),
}
"""Row -> config, further flags of all its runs, and the dequantization of the measurement."""


def main() -> None:
    """Print the table."""
    (folder,) = paths("FOLDER")
    print(f"| process | {' | '.join(f'{weight}: flow | bound' for weight in RECIPES)} |")
    print("|---|" + "---|---|" * len(RECIPES))
    for row, (config, common, noise) in ROWS.items():
        cells = []
        for weight, changes in RECIPES.items():
            workdir = folder / (row if weight == "edm" and row != "cosine" else f"{row}-{weight}")
            known = ["run.py", f"--workdir={workdir}", "--device=cpu"]
            if not (workdir / "checkpoints").is_dir():
                quiet = ["--mode=train", f"--config={config}", "--config.train.sample_every=0"]
                check(run.main([*known, *quiet, *common, *changes]))
            likelihood = [f"--config.likelihood.dequantization={noise}", "--config.likelihood.probes=4"]
            check(run.main([*known, "--mode=likelihood", "--config.likelihood.solver=adams_pece", *likelihood]))
            check(run.main([*known, "--mode=bound"]))
            flow = json.loads((workdir / "likelihood" / f"test-{noise}.json").read_text())
            bound = json.loads((workdir / "bound" / "test.json").read_text())
            cells += [f"{r['bits_per_dim']:.3f} +- {r['bits_per_dim_stderr']:.3f}" for r in (flow, bound)]
        print(f"| `{row}` | {' | '.join(cells)} |", flush=True)


def check(status: int) -> None:
    """Exit with the status of a command that failed."""
    if status:
        sys.exit(status)


if __name__ == "__main__":
    end(main)
