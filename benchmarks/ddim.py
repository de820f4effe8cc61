"""Sample quality of DDIM by number of steps and eta, and consistency of samples from the same latents.

    python run.py --config ddpm --mode train
    python benchmarks/ddim.py runs/ddpm docs/images/ddim.png

Prints table 1 of the DDIM paper for digits: the Frechet distance of ``benchmarks/digits.py`` for each number of steps S
and each eta (sigma-hat is DDPM's larger variance), and for the quadratic subsequence of levels at eta = 0. A second
table compares samples of fewer steps with samples of 1000 steps from the same latents: their distance, relative to the
distance between different latents, and the fraction that a classifier assigns to the same digit. The picture shows ten
latents.

Reference: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2021, sections 5.1, 5.2. arXiv:2010.02502
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.svm import SVC

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.command import end, paths  # noqa: E402
from benchmarks.digits import digits, frechet_distance  # noqa: E402
from score_sde.engine.config import Options, stored  # noqa: E402
from score_sde.engine.drawing import draw  # noqa: E402
from score_sde.engine.load import load  # noqa: E402
from score_sde.samplers import DDIM, GRIDS, Ancestral, Step  # noqa: E402
from score_sde.sde_lib import SDE  # noqa: E402

NUM_STEPS = (10, 20, 50, 100, 1000)
NUM_SAMPLES = 500
SHOWN = 10

MOVES = {
    "0": lambda sde: DDIM(sde),
    "0.2": lambda sde: DDIM(sde, 0.2),
    "0.5": lambda sde: DDIM(sde, 0.5),
    "1": lambda sde: DDIM(sde, 1.0),
    "sigma-hat": lambda sde: Ancestral(sde, v=1.0),
}
"""Column of the table -> step."""


def main() -> None:
    """Draw all samples, print the tables, write the picture."""
    workdir, target = paths("RUN", "PICTURE.png")
    torch.set_num_threads(1)
    config = stored(workdir)
    experiment, denoise, _ = load(config, workdir, Options())
    sde: SDE = experiment.sde
    (train, train_label), (test, test_label) = digits("train"), digits("test")
    real, label = np.concatenate([train, test]), np.concatenate([train_label, test_label])
    components, classifier = PCA(24, svd_solver="full").fit(real), SVC(kernel="rbf", C=10).fit(real, label)

    def sampled(step: Step, num_steps: int, grid: str = "levels") -> np.ndarray:
        x = draw(experiment, denoise, step, GRIDS[grid](sde, num_steps), torch.arange(NUM_SAMPLES))
        return x.flatten(1).numpy() / (experiment.facts.levels - 1)

    def distance(x: np.ndarray) -> float:
        return frechet_distance(components.transform(x), components.transform(real))

    print(f"| S | {' | '.join(f'eta {name}' if name[0].isdigit() else name for name in MOVES)} | eta 0, quadratic |")
    print("|" + "---|" * (len(MOVES) + 2))
    deterministic = {}
    for num_steps in NUM_STEPS:
        drawn = [sampled(make(sde), num_steps) for make in MOVES.values()]
        deterministic[num_steps] = drawn[0]
        all_levels = num_steps == sde.t_max  # both subsequences are then equal
        drawn.append(drawn[0] if all_levels else sampled(DDIM(sde), num_steps, "levels_quadratic"))
        print(f"| {num_steps} | {' | '.join(f'{distance(x):.3f}' for x in drawn)} |", flush=True)

    print("\n| S | distance to the same latent's sample at S = 1000 | same digit |\n|---|---|---|")
    reference = deterministic[NUM_STEPS[-1]]
    others = np.linalg.norm(reference - np.roll(reference, 1, axis=0), axis=1).mean()
    for num_steps in NUM_STEPS[:-1]:
        apart = np.linalg.norm(deterministic[num_steps] - reference, axis=1).mean() / others
        same = (classifier.predict(deterministic[num_steps]) == classifier.predict(reference)).mean()
        print(f"| {num_steps} | {apart:.3f} | {same:.1%} |")
    draw_picture(target, {n: x[:SHOWN].reshape(SHOWN, 8, 8) for n, x in deterministic.items()})


def draw_picture(target: Path, rows: dict[int, np.ndarray]) -> None:
    """Draw samples of the same latents, with a column per latent and a row per number of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SHOWN * 0.8 + 0.8, len(rows) * 0.8 + 0.5), dpi=120, layout="constrained")
    all_axes = figure.subplots(len(rows), SHOWN)
    for axes_of_row, (num_steps, images) in zip(all_axes, rows.items(), strict=True):
        axes_of_row[0].set_ylabel(f"S = {num_steps}", fontsize=9)
        for axes, image in zip(axes_of_row, images, strict=True):
            axes.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    figure.suptitle("ten latents, decoded by DDIM (eta 0) in S steps", fontsize=10)
    figure.savefig(target)


if __name__ == "__main__":
    end(main)
