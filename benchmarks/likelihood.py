"""Cost and error of a log-density: the classic recipe and ours, in one run.

    python benchmarks/likelihood.py              on a mixture with an exact density
    python benchmarks/likelihood.py runs/vpsde   on a trained network, against a tight solution of its own flow

The mixture models the digits of scikit-learn in 64 dimensions: five Gaussians per digit, by k-means, with the twelve
leading directions of their examples and a floor of 0.05. Errors are in bits/dim of one example, over 96 draws of the
mixture (24 test digits for a network) and three draws of the probes; rows with the exact trace use a third of them.

The classic recipe follows Song et al., 2021: scipy's RK45 integrates x and the log-density over t with rtol = atol =
1e-5, one step size for the whole batch and one fixed Rademacher probe, and copies the state through numpy at each
evaluation. Times are for one example on one thread, medians of interleaved rounds, relative to the classic recipe.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.command import end  # noqa: E402
from benchmarks.problems import digits64, moment_matched  # noqa: E402
from score_sde.engine.config import Options, stored  # noqa: E402
from score_sde.engine.datasets import read_dataset  # noqa: E402
from score_sde.engine.load import load  # noqa: E402
from score_sde.samplers import Noise  # noqa: E402
from score_sde.sde_lib import SDE, SDES, Denoiser, Exact, Gaussian, Hutchinson, Prediction, log_prob  # noqa: E402
from score_sde.sde_lib.adams_pece import AdamsPECE  # noqa: E402
from score_sde.sde_lib.likelihood import Solver, matched_prior  # noqa: E402
from score_sde.sde_lib.runge_kutta import DormandPrince  # noqa: E402
from score_sde.sde_lib.solvers import Torchdiffeq  # noqa: E402

ROUNDS = 3
SHAPE = 1, 8, 8


class Problem(NamedTuple):
    """Examples, a flow, and their exact log-densities in nats."""

    sde: SDE
    denoise: Denoiser
    gaussian: Gaussian
    x: Tensor
    truth: Tensor

    def some(self, num: int) -> "Problem":
        """Returns the problem with the first ``num`` examples only."""
        return self._replace(x=self.x[:num], truth=self.truth[:num])


class Answer(NamedTuple):
    """Log-densities in nats, and their cost per example: forwards of the network and products with its Jacobian."""

    nats: Tensor
    forwards: float
    products: float


def mixture() -> Problem:
    """Returns draws of the mixture of digits, under VP."""
    law, sde = digits64(), SDES["vpsde"](t_min=1e-5)
    x = law.sample(96, torch.Generator().manual_seed(31337))
    denoise, guess = law.denoiser(sde), moment_matched(law)

    def pictures(x: Tensor, t: float) -> Prediction:
        return Prediction(denoise(x.flatten(1), t).x0.reshape(x.shape))

    guess = Gaussian(guess.mean.reshape(SHAPE), guess.rest)
    return Problem(sde, pictures, guess, x.reshape(-1, *SHAPE), law.log_prob(x))


def network(workdir: Path) -> Problem:
    """Returns dequantized test digits, and the network of a run in float64."""
    config = stored(workdir)
    experiment, denoiser, _ = load(config, workdir, Options())
    values = torch.as_tensor(read_dataset(config.data, "test").batch(np.arange(24))["x"]).double()
    values = values + torch.rand(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    x, denoiser = experiment.codec.encode(values).double(), denoiser.double()
    problem = Problem(experiment.sde, denoiser, experiment.gaussian.isotropic(), x, x)
    return problem._replace(truth=ours(DormandPrince(1e-6, 1e-6))(problem, 0).nats)


def classic(tolerance: float, exact: bool = False) -> Callable[[Problem, int], Answer]:
    """Returns the published recipe; ``exact`` replaces the probe by the exact trace."""

    def solve(problem: Problem, seed: int) -> Answer:
        sde, x, calls = problem.sde, problem.x, 0
        probes = torch.eye(x[0].numel()).double()[:, None].expand(-1, len(x), -1).reshape(-1, *x.shape)
        if not exact:
            probes = torch.randint(0, 2, (1, *x.shape), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1

        def drift(t: float, x: Tensor) -> Tensor:
            score = sde.score(x, problem.denoise(x, t).x0, t)
            return sde.drift(t) * x - 0.5 * sde.diffusion(t) ** 2 * score

        def rates(t: float, state: np.ndarray) -> np.ndarray:
            nonlocal calls
            calls += 1
            y = torch.from_numpy(state[: x.numel()].copy()).reshape(x.shape)
            with torch.no_grad():
                move = drift(t, y)
            with torch.enable_grad():
                y.requires_grad_()
                again = drift(t, y)  # as published: a second evaluation for the divergence
                divergence = sum(
                    (torch.autograd.grad(again, y, v, retain_graph=True)[0] * v).flatten(1).sum(1) for v in probes
                )
            return np.concatenate([move.flatten().numpy(), divergence.numpy()])

        start = np.concatenate([x.flatten().numpy(), np.zeros(len(x))])
        span = sde.t_min, sde.t_max
        end = torch.from_numpy(solve_ivp(rates, span, start, rtol=tolerance, atol=tolerance, method="RK45").y[:, -1])
        latent, change = end[: x.numel()].reshape(x.shape), end[x.numel() :]
        return Answer(matched_prior(sde, problem.gaussian, latent) + change, 2 * calls, calls * len(probes))

    return solve


def ours(solver: Solver, probes: int = 0, kind: str = "rademacher") -> Callable[[Problem, int], Answer]:
    """Returns the library's log-density, with the exact trace for 0 probes."""

    def solve(problem: Problem, seed: int) -> Answer:
        draw = Noise(torch.arange(len(problem.x)) + 1000 * seed)
        trace = Hutchinson(draw, probes, kind, fresh=not solver.adaptive) if probes else Exact()

        def prior(latent: Tensor) -> Tensor:
            return matched_prior(problem.sde, problem.gaussian, latent)

        found = log_prob(
            problem.sde, problem.denoise, problem.x, problem.gaussian, trace, solver=solver, prior_log_prob=prior
        )
        products = probes or problem.x[0].numel()
        calls, traced = found.calls.double().mean().item(), found.traced.double().mean().item()
        return Answer(found.nats, calls, traced * products)

    return solve


def rows(trained: bool) -> dict[str, Callable[[Problem, int], Answer]]:
    """Returns the contenders by name; the first is the classic recipe."""
    return {
        "classic: RK45 1e-5, one probe": classic(1e-5),
        "classic: RK45 1e-3, one probe": classic(1e-3),
        **{f"adams {n}, a fresh probe each": ours(AdamsPECE(n), 1) for n in (8, 16, 32, 48)},
        **{f"adams 32, {k} fresh probes each": ours(AdamsPECE(32), k) for k in (4, 16)},
        "adams 32, 16 orthogonal probes each": ours(AdamsPECE(32), 16, "orthogonal"),
        "dopri5 1e-3, one probe": ours(DormandPrince(1e-3, 1e-3), 1),
        **({} if trained else {"classic: RK45 1e-5, exact trace": classic(1e-5, exact=True)}),
        **{f"adams {n}, exact trace": ours(AdamsPECE(n)) for n in (8, 16, 24, 32, 48, 64)},
        **{f"adams {n}, exact trace at {m}": ours(AdamsPECE(n, m)) for n, m in ((48, 16), (48, 24), (72, 24))},
        **{f"dopri5 {tol:g}, exact trace": ours(DormandPrince(tol, tol)) for tol in (1e-3, 1e-4, 1e-5)},
        **({} if trained else {"torchdiffeq dopri8 1e-5, exact trace": ours(Torchdiffeq(1e-5, 1e-5, "dopri8"))}),
    }


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    trained = len(sys.argv) > 1
    whole = network(Path(sys.argv[1])) if trained else mixture()
    bits = whole.x[0].numel() * math.log(2)
    table: dict[str, list[tuple[Answer, Tensor, float]]] = {}
    for round in range(ROUNDS):
        for name, solve in rows(trained).items():
            if round and "exact" in name:
                continue  # deterministic: equal in every round
            problem = whole.some(len(whole.x) // 3) if "exact" in name else whole
            start = time.perf_counter()
            answer = solve(problem, round)
            seconds = (time.perf_counter() - start) / len(problem.x)
            table.setdefault(name, []).append((answer, (answer.nats - problem.truth) / bits, seconds))
            print(".", end="", file=sys.stderr, flush=True)
    times = {name: statistics.median(seconds for *_, seconds in found) for name, found in table.items()}
    print(f"\n{'':38s} forwards products   rms error   mean error    median    time")
    for name, found in table.items():
        error = torch.stack([off for _, off, _ in found])
        rms, mean, median = error.square().mean().sqrt(), error.mean(), error.abs().median()
        cost = f"{found[0][0].forwards:8.0f} {found[0][0].products:8.0f}"
        ratio = times[name] / next(iter(times.values()))
        print(f"{name:38s} {cost}   {rms:9.1e}   {mean:+10.1e}   {median:7.1e}   {ratio:5.2f}")


if __name__ == "__main__":
    end(main)
