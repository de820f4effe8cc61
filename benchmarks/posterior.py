"""Errors of posterior samplers against the exact posterior, by number of evaluations.

    OMP_NUM_THREADS=1 python benchmarks/posterior.py

The data are a mixture of two Gaussians in four dimensions, the denoiser is exact, and the posterior given y = A x_0 +
std n has a closed form. Of the two measurements, one takes two of the four entries without noise, which is inpainting,
and the other two sums of all entries with noise. A cell contains three errors of the samples:

    |mean - true| / sqrt(tr C),    |covariance - C| / |C|,    weight of the first component - true,

where C is the true covariance and the norms are Frobenius'. A method is called biased if one of them exceeds four
standard errors at the most evaluations. The exact conditional denoiser, with the same step and grid, separates the
error of the step. Steps are ancestral, on ``log_snr``, unless the row names others.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.command import end  # noqa: E402
from score_sde.samplers import (  # noqa: E402
    DPS,
    GRIDS,
    Adams,
    Ancestral,
    Noise,
    Step,
    masked,
    moment_matching,
    pigdm,
    replacement,
    resampled,
    sample,
)
from score_sde.sde_lib import SDE, SDES, Gaussian, GaussianMixture  # noqa: E402
from score_sde.sde_lib.denoiser import Denoiser  # noqa: E402

EVALUATIONS = (20, 50, 100, 250)
REPEATS, JUMP = 5, 2


class Problem(NamedTuple):
    """A measurement of the mixture, and the posterior."""

    matrix: Tensor
    y: Tensor
    std: float
    posterior: GaussianMixture

    def forward(self, x: Tensor) -> Tensor:
        """Returns A x."""
        return x @ self.matrix.mT


class Errors(NamedTuple):
    """Errors of mean, covariance and weight, or their standard errors."""

    mean: float
    covariance: float
    weight: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} {self.covariance:.3f} {self.weight:+.3f}"


def data() -> GaussianMixture:
    """Returns a mixture of two elongated Gaussians in different directions."""
    generator = torch.Generator().manual_seed(3)
    turns = torch.linalg.qr(torch.randn(2, 4, 4, dtype=torch.float64, generator=generator)).Q
    spread = torch.tensor([[0.6, 0.3, 0.1, 0.03], [0.4, 0.4, 0.05, 0.05]], dtype=torch.float64)
    means = torch.tensor([[0.6, 0.4, 0.9, -0.2], [-0.4, -0.2, -0.7, 0.6]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.4, 0.6], dtype=torch.float64), means, spread, turns)


def problems(mixture: GaussianMixture) -> dict[str, Problem]:
    """Returns both measurements, with values that leave both components likely."""
    entries = torch.eye(4, dtype=torch.float64)[:2]
    sums = torch.tensor([[0.5, 0.5, -0.5, 0.5], [0.7, -0.3, 0.4, 0.5]], dtype=torch.float64)
    found = {}
    for name, matrix, std in (("two entries of four, no noise", entries, 0.0), ("two sums, noise 0.2", sums, 0.2)):
        y = mixture.mean @ matrix.mT + torch.tensor([0.1, 0.05], dtype=torch.float64)
        found[name] = Problem(matrix, y[None], std, mixture.given(matrix, y, std))
    return found


def moment_matched(mixture: GaussianMixture) -> Gaussian:
    """Returns the moment-matched Gaussian of the mixture."""
    variances, directions = torch.linalg.eigh(mixture.covariance)
    return Gaussian(mixture.mean, 1.0, variances, directions)


Method = Callable[[int, Tensor, Noise], Tensor]
"""(evaluations, prior draws, noise) -> data."""


def methods(sde: SDE, mixture: GaussianMixture, problem: Problem) -> dict[str, Method]:
    """Returns the methods of a table by name."""
    denoise, guess, step = mixture.denoiser(sde), moment_matched(mixture), Ancestral(sde)
    exact = problem.posterior.denoiser(sde)
    guided = {
        "PiGDM, isotropic Gaussian": pigdm(denoise, sde, problem.forward, problem.y, problem.std, guess.isotropic()),
        "PiGDM, full Gaussian": pigdm(denoise, sde, problem.forward, problem.y, problem.std, guess),
        "moment matching": moment_matching(denoise, sde, problem.forward, problem.y, problem.std),
        "exact conditional denoiser": exact,
    }

    def walk(step: Step, denoise: Denoiser, grid: str) -> Method:
        return lambda num, x, noise: sample(step, denoise, x, GRIDS[grid](sde, num - 1), noise)

    def replaced(num: int, x: Tensor, noise: Noise, repeats: int = 1) -> Tensor:
        mask, known = problem.matrix.sum(0) > 0, problem.y @ problem.matrix
        times = resampled(GRIDS["log_snr"](sde, (num - 1) // repeats), JUMP, repeats)
        return sample(step, denoise, x, times, noise, replacement(known, masked(mask), noise))

    found: dict[str, Method] = {}
    if problem.std == 0:
        found["replacement"] = replaced
        found[f"RePaint, {REPEATS} times"] = lambda num, x, noise: replaced(num, x, noise, REPEATS)
    for zeta in (0.03, 0.1, 0.3):
        found[f"DPS, zeta {zeta:g}"] = walk(DPS(step, problem.forward, problem.y, zeta), denoise, "log_snr")
    found |= {name: walk(step, leaned, "log_snr") for name, leaned in guided.items()}
    return found | {
        f"{name}, adams": walk(Adams(sde, gaussian=guess.isotropic()), leaned, "logistic")
        for name, leaned in guided.items()
    }


def first_share(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """Returns p(first component | x_0), whose mean over the posterior is the component's weight; (N,)."""
    parts = [
        GaussianMixture(torch.ones(1).double(), mixture.means[k, None], mixture.variances[k], mixture.bases[k, None])
        for k in (0, 1)
    ]
    first, second = (w + part.log_prob(x) for w, part in zip(mixture.log_weights, parts))
    return torch.sigmoid(first - second)


def errors(x: Tensor, share: Tensor, posterior: GaussianMixture) -> Errors:
    """Returns the errors of samples x (N, 4)."""
    mean, covariance = posterior.mean, posterior.covariance
    return Errors(
        ((x.mean(0) - mean).norm() / covariance.trace().sqrt()).item(),
        ((x.mT.cov() - covariance).norm() / covariance.norm()).item(),
        (share.mean() - posterior.log_weights.exp()[0]).item(),
    )


def standard_errors(x: Tensor, share: Tensor, posterior: GaussianMixture) -> Errors:
    """Returns the standard errors for N exact draws, from exact draws x (N, 4)."""
    offset, size = x - posterior.mean, math.sqrt(len(x))
    products = (offset[:, :, None] * offset[:, None, :]).var(0).sum().sqrt()
    return Errors(1 / size, (products / posterior.covariance.norm()).item() / size, share.std().item() / size)


def verdict(found: Errors, chance: Errors) -> str:
    """Returns, as text, the errors above four standard errors."""
    shown = f"mean {found.mean:.2f}", f"covariance {found.covariance:.2f}", f"weight {found.weight:+.2f}"
    biased = [text for text, error, one in zip(shown, found, chance) if abs(error) > 4 * one]
    return f"biased: {', '.join(biased)}" if biased else "no bias seen"


def table(sde: SDE, mixture: GaussianMixture, problem: Problem, num: int) -> None:
    """Print the table of one measurement."""
    drawn = problem.posterior.sample(num, torch.Generator().manual_seed(5))
    chance = standard_errors(drawn, first_share(mixture, drawn), problem.posterior)
    print(f"standard errors: mean {chance.mean:.3f}, covariance {chance.covariance:.3f}, weight {chance.weight:.3f}\n")
    print(f"| method | {' | '.join(map(str, EVALUATIONS))} evaluations | at {EVALUATIONS[-1]} |")
    print("|---" * (len(EVALUATIONS) + 2) + "|")
    for name, method in methods(sde, mixture, problem).items():
        cells = []
        for evaluations in EVALUATIONS:
            noise = Noise(torch.arange(num))
            x = method(evaluations, sde.prior_std * noise(torch.empty(num, 4, dtype=torch.float64)), noise)
            cells.append(errors(x, first_share(mixture, x), problem.posterior))
        print(f"| {name} | {' | '.join(map(str, cells))} | {verdict(cells[-1], chance)} |", flush=True)


def main() -> None:
    """Print a table for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sde", default="vpsde", choices=sorted(SDES))
    parser.add_argument("--samples", type=int, default=10_000)
    options = parser.parse_args()
    sde, mixture = SDES[options.sde](), data()
    for name, problem in problems(mixture).items():
        print(f"{name}: the first component has weight {problem.posterior.log_weights.exp()[0]:.3f}")
        with torch.no_grad():
            table(sde, mixture, problem, options.samples)
        print()


if __name__ == "__main__":
    end(main)
