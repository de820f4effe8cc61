"""Error of a log-density by dimension and solver nodes, and on discrete levels; exact distributions under VP.

    python benchmarks/likelihood_nodes.py

Errors are root mean square and mean, in bits/dim of one example. The trace is exact, and the density starts from the
true marginal at t_max, so the errors are the solver's alone. The mixtures ``clusters`` have 12 Gaussians with random
means, each wide in a third of its directions. The weights of the levels follow two bumps, and their noise is
``truncated_normal``.
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.problems import digits64, gmm1d, gmm2d, moment_matched  # noqa: E402
from score_sde.sde_lib import DEQUANTIZATIONS, SDES, Exact, Gaussian, GaussianMixture, log_prob, nodes  # noqa: E402
from score_sde.sde_lib.adams_pece import AdamsPECE  # noqa: E402
from score_sde.sde_lib.dequantization import data_time  # noqa: E402

BUDGETS = (16, 32, 64, 128)
LAWS_OF_NODES = ((nodes.CENTRE, nodes.WEIGHT), (0.6, 0.8), (0.3, 0.8))


def spiral() -> GaussianMixture:
    """Returns points along one and a half turns of a spiral in the plane, with noise 0.03."""
    angle = 1.5 * math.pi + 3 * math.pi * (torch.arange(300).double() + 0.5) / 300
    curve = torch.stack([angle * angle.cos() - 2, angle * angle.sin() - 2 / (3 * math.pi)], 1)
    return GaussianMixture(torch.ones(300).double(), curve / 10, 0.03**2)


def clusters(dimensions: int) -> GaussianMixture:
    """Returns twelve Gaussians with standard deviations 0.3 and 0.08."""
    generator = torch.Generator().manual_seed(dimensions)
    means = 0.8 * torch.randn(12, dimensions, generator=generator, dtype=torch.float64)
    bases = torch.linalg.qr(torch.randn(12, dimensions, dimensions, generator=generator, dtype=torch.float64)).Q
    variances = torch.full((12, dimensions), 0.08**2).double()
    variances[:, : max(dimensions // 3, 1)] = 0.3**2
    return GaussianMixture(torch.linspace(1, 2, 12).double(), means, variances, bases)


def levels(num: int) -> GaussianMixture:
    """Returns a distribution on ``num`` levels in [-1, 1], without noise."""
    centres = (torch.arange(num).double() + 0.5) * 2 / num - 1
    weights = torch.exp(-0.5 * ((centres + 0.5) / 0.25) ** 2) + 0.6 * torch.exp(-0.5 * ((centres - 0.4) / 0.3) ** 2)
    return GaussianMixture(weights, centres[:, None], 0.0)


def error(law: GaussianMixture, guess: Gaussian, state: Tensor, t: float, solver: AdamsPECE) -> str:
    """Returns the solver's error as text, for states (N, D) at time t."""
    sde = SDES["vpsde"]()
    denoise = law.denoiser(sde)
    found = log_prob(sde, denoise, state, guess, Exact(), t, solver, lambda x: denoise.log_prob(x, sde.t_max)).nats
    off = (found - denoise.log_prob(state, t)) / (state.shape[1] * math.log(2))
    return f"{off.square().mean().sqrt():.1e} ({off.mean():+.1e})"


def continuous(name: str, law: GaussianMixture, num: int, budgets: tuple[int, ...]) -> None:
    """Print the rows of one data distribution, one per distribution of the nodes."""
    sde, generator = SDES["vpsde"](), torch.Generator().manual_seed(7)
    (alpha, sigma, _), x = sde.marginal(sde.t_min), law.sample(num, generator)
    state = alpha * x + sigma * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    for centre, share in LAWS_OF_NODES:
        nodes.logistic_uniform.__defaults__ = centre, share, 0.0
        cells = [error(law, moment_matched(law), state, sde.t_min, AdamsPECE(n)) for n in budgets]
        print(f"{name:12s} {centre:4} {share:5}   " + "  ".join(f"{cell:18s}" for cell in cells), flush=True)
    nodes.logistic_uniform.__defaults__ = nodes.CENTRE, nodes.WEIGHT, 0.0


def bare(num: int) -> None:
    """Print the rows of ``num`` discrete levels, without and with nodes at the edge."""
    law, sde, width = levels(num), SDES["vpsde"](), 2 / num
    generator, t = torch.Generator().manual_seed(3), data_time("truncated_normal", sde, width)
    x = law.sample(300, generator)
    u = torch.rand(x.shape, dtype=x.dtype, generator=generator)
    state, _ = DEQUANTIZATIONS["truncated_normal"](sde, t, x, u, width)
    guess = Gaussian(law.mean, law.covariance.item() + width**2 / 12)
    for edge in (0.0, 0.15, 0.3, 0.45):
        cells = [error(law, guess, state, t, AdamsPECE(n, edge=edge)) for n in BUDGETS]
        print(f"{f'{num} levels':12s} edge {edge:4}    " + "  ".join(f"{cell:18s}" for cell in cells), flush=True)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{'':12s} centre share  " + "  ".join(f"{n:<18d}" for n in BUDGETS))
    small = {"gmm1d": gmm1d(), "gmm2d": gmm2d(), "spiral": spiral()}
    for name, law in {**small, **{f"clusters {d}": clusters(d) for d in (1, 2, 4, 8, 16)}}.items():
        continuous(name, law, 150, BUDGETS)
    continuous("digits64", digits64(), 24, BUDGETS[:3])
    for num in (17, 64, 256):
        bare(num)


if __name__ == "__main__":
    main()
