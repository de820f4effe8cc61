"""Problems with known solutions: a data distribution, a process, starts, and the end points of the exact flow.

Errors are measured in y = x / alpha, the state in units of the data. Starts and end points are float64. End points are
cached in the system's temporary folder, by a hash of the problem.
"""

import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from score_sde.configs.choices import choose  # noqa: E402
from score_sde.engine import tuned  # noqa: E402
from score_sde.engine.config import Options, stored  # noqa: E402
from score_sde.engine.load import load  # noqa: E402
from score_sde.engine.sampler import make_step  # noqa: E402
from score_sde.samplers import Step  # noqa: E402
from score_sde.samplers.calibration import Tuned  # noqa: E402
from score_sde.sde_lib import SDE, SDES, Denoiser, Flow, Gaussian, GaussianMixture, Prediction  # noqa: E402
from score_sde.sde_lib.process import Time  # noqa: E402
from score_sde.sde_lib.runge_kutta import DormandPrince  # noqa: E402

CLUSTERS, DIRECTIONS, FLOOR = 5, 12, 0.05
CACHE = Path(tempfile.gettempdir()) / "solver-benchmark"
TIGHT = DormandPrince(1e-11, 1e-12)


def gmm1d() -> GaussianMixture:
    """Returns three Gaussians in one dimension."""
    weights, means, stds = torch.tensor([[0.3, 0.4, 0.3], [-0.8, 0.1, 0.9], [0.05, 0.2, 0.1]]).double()
    return GaussianMixture(weights, means[:, None], stds[:, None] ** 2)


def gmm2d() -> GaussianMixture:
    """Returns eight Gaussians on a circle; the last is three times as likely as the first."""
    angles = torch.arange(8).double() * torch.pi / 4
    weights = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)
    return GaussianMixture(weights, 0.7 * torch.stack([angles.cos(), angles.sin()], 1), 0.05**2)


def digits64() -> GaussianMixture:
    """Returns a mixture for the digits of scikit-learn.

    Each digit has five Gaussians, by k-means, with the leading directions of their examples and a variance floor.
    """
    images, labels = load_digits(return_X_y=True)
    images, weights, means, covariances = torch.from_numpy(images / 8 - 1), [], [], []
    for digit in range(10):
        own = images[torch.from_numpy(labels == digit)]
        cluster = torch.from_numpy(KMeans(CLUSTERS, n_init=4, random_state=0).fit(own.numpy()).labels_)
        for k in range(CLUSTERS):
            member = own[cluster == k]
            values, vectors = torch.linalg.eigh(torch.cov(member.mT))
            leading = vectors[:, -DIRECTIONS:] * values[-DIRECTIONS:].clamp_min(0).sqrt()
            weights.append(len(member))
            means.append(member.mean(0))
            covariances.append(leading @ leading.mT + FLOOR**2 * torch.eye(64).double())
    return GaussianMixture.of_covariances(torch.tensor(weights).double(), torch.stack(means), torch.stack(covariances))


MIXTURES: dict[str, Callable[[], GaussianMixture]] = {"gmm1d": gmm1d, "gmm2d": gmm2d, "digits64": digits64}

PROCESSES: dict[str, Callable[[], SDE]] = {
    "vp": lambda: SDES["vpsde"](t_min=1e-3),
    "edm": lambda: SDES["edm"](sigma_min=0.002, sigma_max=80.0),
    "smld": lambda: SDES["vesde"](sigma_min=0.01, sigma_max=50.0, t_min=0.0),
    "subvp": lambda: SDES["subvpsde"](t_min=1e-3),
}


class LowRank:
    """``law.denoiser(sde)`` in a tenth of the time, for covariances of low rank plus a multiple of the identity.

    Args:
        rank: leading directions of each covariance, 0 or more; the other directions must have equal variances.
    """

    def __init__(self, law: GaussianMixture, sde: SDE, rank: int) -> None:
        self.law, self.sde = law, sde
        count, dimensions = law.means.shape
        self.floor, self.variances = law.variances[:, 0], law.variances[:, dimensions - rank :]
        bases = law.bases[:, :, dimensions - rank :] if rank else law.means.new_zeros(count, dimensions, 0)
        self.directions = bases.transpose(0, 1).flatten(1)
        self.along = torch.einsum("kd,kdr->kr", law.means, bases)

    def __call__(self, x: Tensor, t: Time) -> Prediction:
        means, (alpha, sigma, _) = self.law.means, self.sde.marginal(t)
        wide = alpha[..., None] if isinstance(alpha, Tensor) else alpha
        along = (x @ self.directions).unflatten(1, self.along.shape) - wide * self.along
        rest = alpha**2 * self.floor + sigma**2
        variance = rest[..., None] + wide**2 * (self.variances - self.floor[:, None])
        square = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ means.mT) + alpha**2 * means.square().sum(1)
        less = 1 / rest[..., None] - 1 / variance
        exponent = square / rest - (along.square().mul_(less)).sum(-1)
        volume = (means.shape[1] - along.shape[-1]) * torch.log(rest) + torch.log(variance).sum(-1)
        posterior = torch.softmax(self.law.log_weights - 0.5 * (exponent + volume), 1)
        gain = alpha * self.floor / rest
        turn = along.mul_(wide * self.variances / variance - gain[..., None]).mul_(posterior[..., None])
        x0 = (posterior * (1 - gain * alpha)) @ means + (posterior * gain).sum(1, keepdim=True) * x
        return Prediction(x0 + turn.flatten(1) @ self.directions.mT)


class Problem(NamedTuple):
    """Inputs of a solver, and the exact end points.

    key: hash of the problem.
    gaussian: isotropic moment-matched Gaussian of the data.
    dimensions: effective number of dimensions of the data.
    y, ends: starts at t_max and end points of the flow at t_min, both x / alpha; (N, *) float64.
    """

    key: str
    sde: SDE
    denoise: Denoiser
    gaussian: Gaussian
    dimensions: float
    y: Tensor
    ends: Tensor


def exact(mixture: str, process: str, num: int, seed: int) -> Problem:
    """Returns the problem of a key of ``MIXTURES`` under one of ``PROCESSES``."""
    law, sde = MIXTURES[mixture](), PROCESSES[process]()
    denoise = LowRank(law, sde, 0 if law.bases is None else DIRECTIONS)
    content = (law.log_weights, law.means, law.variances, *(() if law.bases is None else (law.bases,)))
    dimensions = (law.covariance.trace() ** 2 / law.covariance.square().sum()).item()
    return problem(sde, denoise, moment_matched(law), dimensions, content, num, seed)


def trained(workdir: Path, num: int, seed: int) -> Problem:
    """Returns the problem of a run's network.

    The network receives log-SNR in float32, so its flow cannot be solved as tightly as an exact one.
    """
    experiment, denoise, _ = load(stored(workdir), workdir, Options())
    gaussian = experiment.gaussian.isotropic().like(torch.zeros((), dtype=torch.float64))
    content = tuple(denoise.state_dict().values())
    denoise, loose = denoise.double().requires_grad_(False), DormandPrince(1e-6, 1e-7)
    return problem(experiment.sde, denoise, gaussian, experiment.gaussian.dimensions, content, num, seed, loose)


def calibrated(workdir: Path, num: int) -> tuple[Step, Tensor]:
    """Returns step and times of ``run.py --mode sample --sampler adams`` for a run tuned down to its t_min.

    Raises: CheckpointError or ValueError if the run has no plan of this many moves, or its conditions differ.
    """
    config = stored(workdir)
    config.sample.t_min = 0.0
    experiment, _, found = load(config, workdir, Options())
    config.sample.sampler = choose("sample.sampler", "adams")
    step = make_step(config.sample, experiment)
    plan = tuned.read(
        tuned.plan_path(workdir, "adams", num),
        tuned.conditions(config.sample, tuned.tunable(step), found, Options().weights),
    )
    return Tuned(step, plan), torch.tensor(plan.times, dtype=torch.float64)


def problem(
    sde: SDE,
    denoise: Denoiser,
    gaussian: Gaussian,
    dimensions: float,
    content: tuple[Tensor, ...],
    num: int,
    seed: int,
    solver: DormandPrince = TIGHT,
) -> Problem:
    """Returns starts and end points, computed once per content, process, number and seed."""
    levels = [tuple(sde.marginal(t.item())) for t in torch.linspace(sde.t_min, sde.t_max, 9).double()]
    key = _hash(*content, levels, num, seed, str(solver))
    z = torch.randn(num, *gaussian.mean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = sde.prior_std / sde.marginal(sde.t_max).alpha * z
    flow = Flow(sde, denoise, gaussian)

    def follow() -> Tensor:
        start, end = sde.t_max, sde.t_min
        u = flow.enter(sde.marginal(start).alpha * y, start)
        return flow.leave(solver(flow, u, flow.angle(start), flow.angle(end))[0], end) / sde.marginal(end).alpha

    return Problem(key, sde, denoise, gaussian, dimensions, y, cached(f"{key}.pt", follow))


def moment_matched(law: GaussianMixture) -> Gaussian:
    """Returns N(mean, s^2 I) of a distribution of vectors, with s^2 its mean variance."""
    return Gaussian(law.mean, law.covariance.trace().item() / law.mean.numel())


def cached(name: str, make: Callable[[], Tensor]) -> Tensor:
    """Returns ``make()``, from the file of this name if it exists."""
    CACHE.mkdir(exist_ok=True)
    path = CACHE / name
    if not path.exists():
        torch.save(make(), path)
    return torch.load(path, weights_only=True)


def _hash(*parts: object) -> str:
    content = hashlib.sha256()
    for part in parts:
        content.update(part.contiguous().numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())
    return content.hexdigest()[:20]
