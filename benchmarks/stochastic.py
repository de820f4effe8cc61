"""Stochastic samplers: the distance of their samples' distribution from the exact one, by number of evaluations.

    pip install -e .[bench]
    OMP_NUM_THREADS=1 python benchmarks/stochastic.py

The data are the mixtures of ``benchmarks/problems.py``, in float64. The measure is the energy distance

    D^2 = 2 E|X - Y| - E|X - X'| - E|Y - Y'|

between states X at the last time, y = x / alpha, and exact draws Y of the marginal at that time. The table contains
sqrt(D^2 / E|Y - Y'|). The estimate of D^2 is unbiased; a negative one is shown as 0. The first row contains exact
draws, and so the resolution of this many draws. ``adams``, which adds no noise, is included for comparison.

Each sampler is shown on the better of two grids, log_snr and karras; ours on its own grid, too. Samplers of k-diffusion
draw their noise by ``torch.randn_like``, their default; its Brownian tree needs torchsde and does not change the
distribution.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.command import end  # noqa: E402
from benchmarks.peers import k_diffusion_sampling  # noqa: E402
from benchmarks.problems import DIRECTIONS, MIXTURES, PROCESSES, LowRank, moment_matched  # noqa: E402
from score_sde.samplers import GRIDS, STEPS, Adams, Churn, PredictorCorrector, SASolver, Step  # noqa: E402
from score_sde.sde_lib import SDE, Gaussian, GaussianMixture  # noqa: E402

EVALUATIONS = (10, 20, 50, 100)
DRAWS = 4096
SHARED_GRIDS = ("log_snr", "karras")

Sampler = Callable[[LowRank, Tensor, Tensor], Tensor]
"""(denoise, y at the first time, times) -> y at the last."""


def ours(sde: SDE, gaussian: Gaussian) -> dict[str, tuple[Sampler, int]]:
    """Returns our stochastic samplers, and their evaluations per move."""
    rows: dict[str, tuple[Step, int]] = {
        name: (STEPS[name](sde), 1)
        for name in ("euler_maruyama", "reverse_diffusion", "ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde")
    }
    rows["pc"] = PredictorCorrector(sde), 2
    rows["edm, churn 30"] = Churn(sde, churn=30.0), 2
    rows |= {f"sa, tau {tau:g}": (SASolver(sde, tau=tau), 1) for tau in (0.5, 1.0)}
    rows |= {f"adams, eta {eta:g}": (Adams(sde, eta=eta, gaussian=gaussian), 1) for eta in (0.0, 0.5, 1.0)}
    return {name: (partial(walk, step), cost) for name, (step, cost) in rows.items()}


def walk(step: Step, denoise: LowRank, y: Tensor, times: Tensor) -> Tensor:
    """Returns the states at the last of the times, by one of our steps."""
    sde, numbers = step.sde, times.tolist()
    sde.tabulate(times)
    step.reset(numbers)
    x = sde.marginal(numbers[0]).alpha * y
    for t, s in pairwise(numbers):
        x = step(denoise, x, t, s, torch.randn_like)
    return x / sde.marginal(numbers[-1]).alpha


def theirs(sde: SDE) -> dict[str, tuple[Sampler, int]]:
    """Returns the stochastic samplers of k-diffusion, if it is installed."""
    if importlib.util.find_spec("k_diffusion") is None:
        print("k_diffusion is not installed: its samplers are skipped")
        return {}
    sampling = k_diffusion_sampling()

    def solve(name: str, denoise: LowRank, y: Tensor, times: Tensor) -> Tensor:
        moments = {math.exp(-0.5 * sde.marginal(t).log_snr): t for t in times.tolist()}
        ratios = torch.tensor(list(moments), dtype=torch.float64)

        def model(y: Tensor, sigma: Tensor) -> Tensor:
            ratio = sigma[0].item()
            t = moments.get(ratio) or sde.time(torch.tensor(-2 * math.log(ratio), dtype=torch.float64)).item()
            return denoise(sde.marginal(t).alpha * y, t).x0

        own = {} if name == "euler_ancestral" else {"noise_sampler": lambda sigma, later: torch.randn_like(y)}
        return getattr(sampling, f"sample_{name}")(model, y, ratios, disable=True, **own)

    costs = {"euler_ancestral": 1, "dpmpp_sde": 2, "dpmpp_2m_sde": 1, "dpmpp_3m_sde": 1}
    return {f"{name} (k-diffusion)": (partial(solve, name), cost) for name, cost in costs.items()}


def distance(x: Tensor, y: Tensor) -> float:
    """Returns sqrt(D^2 / E|Y - Y'|) of two sets of draws (N, D)."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    square = 2 * torch.cdist(x, y).mean() - within(x) - within(y)
    return (square.clamp(min=0) / within(y)).sqrt().item()


def table(law: GaussianMixture, sde: SDE, num: int) -> None:
    """Print the distances for one mixture under one process."""
    denoise, guess = LowRank(law, sde, 0 if law.bases is None else DIRECTIONS), moment_matched(law)
    dimensions = (law.covariance.trace() ** 2 / law.covariance.square().sum()).item()
    generator, (alpha, sigma, _) = torch.Generator().manual_seed(1), sde.marginal(sde.t_min)
    own = partial(GRIDS["logistic"], std=guess.std, dimensions=dimensions)

    def exact() -> Tensor:
        x = law.sample(num, generator)
        return x + sigma / alpha * torch.randn(x.shape, dtype=x.dtype, generator=generator)

    truth = exact()
    print(f"{'exact draws':30s}" + f"{distance(exact(), truth):10.4f}" * len(EVALUATIONS))
    for name, (solve, cost) in (ours(sde, guess) | theirs(sde)).items():
        grids = {grid: GRIDS[grid] for grid in SHARED_GRIDS} | ({"own": own} if name.startswith("adams") else {})
        line = []
        for evaluations in EVALUATIONS:
            found = []
            for grid in grids.values():
                torch.manual_seed(0)
                y = sde.prior_std / sde.marginal(sde.t_max).alpha * torch.randn_like(truth)
                end = solve(denoise, y, grid(sde, evaluations // cost))
                found.append(distance(end, truth) if end.isfinite().all() else math.inf)
            line.append(f"{min(found):10.4f}")
        print(f"{name:30s}" + "".join(line), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", nargs="+", default=["gmm1d", "gmm2d"], choices=MIXTURES)
    parser.add_argument("--processes", nargs="+", default=list(PROCESSES), choices=PROCESSES)
    parser.add_argument("--num", type=int, default=DRAWS, help="draws")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        for mixture in options.mixtures:
            for process in options.processes:
                print(f"\n{mixture}/{process}, {options.num} draws" + "".join(f"{n:10d}" for n in EVALUATIONS))
                table(MIXTURES[mixture](), PROCESSES[process](), options.num)


if __name__ == "__main__":
    end(main)
