"""Step-size control and churn on a one-dimensional mixture with an exact flow: figures of docs/solvers-measured.md.

    OMP_NUM_THREADS=1 python benchmarks/adaptive.py

In one dimension the probability flow preserves the distribution function, so bisection gives its end point. The number
of evaluations is the slowest example's.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from score_sde.samplers import GRIDS, STEPS, Noise, Step, sample, trajectory  # noqa: E402
from score_sde.sde_lib import SDE, SDES, GaussianMixture, Prediction  # noqa: E402
from score_sde.sde_lib.process import Marginal  # noqa: E402

BUMPS = GaussianMixture(
    torch.tensor([0.3, 0.7]).double(), torch.tensor([[-1.0], [0.8]]).double(), torch.tensor([[0.04], [0.16]]).double()
)
TOLERANCES = (1e-2, 1e-3, 1e-4)


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, sde: SDE) -> None:
        self.denoise, self.calls = BUMPS.denoiser(sde, 0.5), 0

    def __call__(self, x: Tensor, t: float | Tensor) -> Prediction:
        self.calls += 1
        return self.denoise(x, t)


def distribution(x: Tensor, at: Marginal) -> Tensor:
    """Returns P(state < x) under the marginal of the mixture at one time."""
    deviation = torch.sqrt(at.alpha**2 * BUMPS.variances[:, 0] + at.sigma**2)
    return (BUMPS.log_weights.exp() * torch.special.ndtr((x - at.alpha * BUMPS.means[:, 0]) / deviation)).sum(1)


def transported(x: Tensor, first: Marginal, last: Marginal) -> Tensor:
    """Returns the end point of the flow from x (B, 1), by bisection."""
    target, low, high = distribution(x, first), torch.full_like(x, -1e3), torch.full_like(x, 1e3)
    for _ in range(100):
        middle = 0.5 * (low + high)
        below = (distribution(middle, last) < target)[:, None]
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


def tolerances(process: str) -> None:
    """Prints evaluations, median and largest error of both orders of ``dpm_adaptive`` over 41 starts, to log-SNR 6."""
    sde = SDES[process]()
    end = sde.time(torch.tensor(6.0, dtype=torch.float64)).item()
    first, last = sde.marginal(sde.t_max), sde.marginal(end)
    x = first.alpha * BUMPS.mean + first.sigma * torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    exact = transported(x, first, last)
    for tolerance in TOLERANCES:
        line = f"{process:9} {tolerance:7.0e}"
        for order in (2, 3):
            step = STEPS["dpm_adaptive"](sde, order=order, control_rtol=tolerance, control_atol=tolerance)
            denoise = Counted(sde)
            state, _ = trajectory(step, denoise, x, GRIDS["log_snr"](sde, 1, end=end), torch.zeros_like)
            error = (state - exact).abs()
            line += f"   {denoise.calls - 1:4d} {error.median().item():8.1e} {error.max().item():8.1e}"
        print(line, flush=True)


def excess(step: Step, num_steps: int, num: int) -> tuple[float, int]:
    """Returns the relative error of the samples' variance, and the number of evaluations."""
    sde, noise, denoise = step.sde, Noise(torch.arange(num)), Counted(step.sde)
    x = sde.prior_std * noise(torch.empty(num, 1, dtype=torch.float64))
    x = sample(step, denoise, x, GRIDS["log_snr"](sde, num_steps), noise)
    return (x.var() / BUMPS.covariance).item() - 1, denoise.calls


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    with torch.no_grad():
        print("dpm_adaptive of order 2 and of order 3: evaluations, median and largest error, at each tolerance")
        for process in ("vpsde", "vesde", "subvpsde"):
            tolerances(process)
        print("\nedm with churn 30 on VP, 40,000 samples: variance over that of the data, less 1")
        for num_steps in (60, 200):
            print(
                f"{num_steps:4d} moves {excess(STEPS['edm'](SDES['vpsde'](), churn=30.0), num_steps, 40_000)[0]:+.4f}"
            )
        print("\nadaptive_sde, 6,000 samples: the same; evaluations")
        for process in ("vpsde", "edm"):
            for rtol, atol in ((0.05, 0.0078), (0.01, 0.001)):
                step = STEPS["adaptive_sde"](SDES[process](), control_rtol=rtol, control_atol=atol)
                found, calls = excess(step, 1, 6_000)
                print(f"{process:6} {rtol:g}, {atol:g}: {found:+.3f}, {calls}", flush=True)


if __name__ == "__main__":
    main()
