"""Every term of a log-density against exact values, for every solver and probe, and the engine's bits/dim.

The data are a Gaussian with a full covariance, for examples of shape (2, 2). Its flow is linear, so the end point, the
change of volume and the estimate of each probe have closed forms. The moment-matched Gaussian is a different Gaussian,
so that the solver has something to solve. The density starts from the true marginal at t_max; separate rows measure the
prior's mismatch, which is never part of a solver's error.
"""

import contextlib
import io
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_sde.configs import default
from score_sde.data.archives import unpack_arrays
from score_sde.engine.config import Options, override, to_json
from score_sde.engine.datasets import read_dataset
from score_sde.engine.density import COPY
from score_sde.engine.modes import likelihood
from score_sde.engine.randomness import DEQUANTIZATION, uniform
from score_sde.engine.training.trainer import Trainer
from score_sde.samplers import Noise
from score_sde.sde_lib import (
    ADAPTIVE,
    DEQUANTIZATIONS,
    PRIORS,
    PROBES,
    SDE,
    SDES,
    SOLVERS,
    Exact,
    Gaussian,
    GaussianMixture,
    Hutchinson,
    LogProb,
    log_prob,
    prior_term,
    sample_log_prob,
)
from score_sde.sde_lib.adams_pece import AdamsPECE
from score_sde.sde_lib.dequantization import data_time, edge
from score_sde.sde_lib.process import Time
from score_sde.sde_lib.runge_kutta import DormandPrince
from score_sde.sde_lib.velocity import Indices, Solution, Solver, Velocity
from score_sde.selftest.rows import Row, Setting, distance, exactly, worst
from score_sde.storage.reading import read_text
from score_sde.storage.writing import confined, write_text

DIMENSIONS, SEED = 4, 40


class Normal:
    """Data N(m, C) in four dimensions under one SDE, their exact flow from t_min to t_max, and a Gaussian N(m', C').

    N(m', C') serves as the moment-matched Gaussian.
    """

    def __init__(self, sde: SDE, setting: Setting) -> None:
        root = 0.5 * setting.normals(4, 4)
        covariance = root @ root.mT + 0.1 * setting.tensor(torch.eye(4))
        self.sde, self.mean = sde, setting.normals(2, 2, seed=2)
        self.mixture = GaussianMixture.of_covariances(setting.tensor([1.0]), self.mean[None], covariance[None])
        self.denoise = self.mixture.denoiser(sde)
        directions = torch.linalg.qr(setting.normals(4, 2, seed=6).cpu().double()).Q.to(covariance)
        self.gaussian = Gaussian(0.5 * self.mean, 0.2, setting.tensor([0.5, 1.5]), directions)
        first, last = sde.marginal(sde.t_min), sde.marginal(sde.t_max)
        values, vectors = torch.linalg.eigh(exactly(covariance))
        stretch = ((last.alpha**2 * values + last.sigma**2) / (first.alpha**2 * values + first.sigma**2)).sqrt()
        self.first, self.last = first, last
        self.flow = vectors @ torch.diag(stretch) @ vectors.mT
        self.volume = stretch.log().sum().item()
        # Probes estimate the trace of the integral of v / (v + r^2) dr / r, minus the moment-matched Gaussian's.
        axes = exactly(directions)
        outside = torch.eye(4).double() - axes @ axes.mT
        along = axes @ torch.diag(self.integral(exactly(self.gaussian.variances))) @ axes.mT
        along = along + self.integral(torch.tensor(0.2).double()) * outside
        self.matrix = along - vectors @ torch.diag(self.integral(values)) @ vectors.mT
        self.constant = self.volume - self.matrix.trace().item()

    def integral(self, variance: Tensor) -> Tensor:
        """Returns the integral of v / (v + r^2) dr / r from t_min to t_max, r = sigma / alpha."""
        near, far = ((m.sigma / m.alpha) ** 2 for m in (self.first, self.last))
        return 0.5 * torch.log(far / near * (variance + near) / (variance + far))

    def latent(self, x: Tensor) -> Tensor:
        """Returns the end point of the flow from x (B, 2, 2)."""
        mean = exactly(self.mean).flatten()
        end: Tensor = self.last.alpha * mean + (exactly(x).flatten(1) - self.first.alpha * mean) @ self.flow
        return end.reshape(x.shape)

    def log_prob(self, x: Tensor, t: float) -> Tensor:
        """Returns the log-density at time t, by torch."""
        return self._marginal(t, exactly(self.mean), exactly(self.mixture.covariance)).log_prob(exactly(x).flatten(1))

    def matched(self, x: Tensor) -> Tensor:
        """Returns the log-density at t_max under the marginal of the moment-matched Gaussian, by torch."""
        axes = exactly(self.gaussian.directions)
        covariance = 0.2 * torch.eye(4).double() + axes @ torch.diag(exactly([0.3, 1.3])) @ axes.mT
        return self._marginal(self.sde.t_max, 0.5 * exactly(self.mean), covariance).log_prob(exactly(x).flatten(1))

    def _marginal(self, t: float, mean: Tensor, covariance: Tensor) -> torch.distributions.Distribution:
        alpha, sigma, _ = self.sde.marginal(t)
        marginal = alpha**2 * covariance + sigma**2 * torch.eye(4).double()
        return torch.distributions.MultivariateNormal(alpha * mean.flatten(), marginal)

    def true_marginal(self, latent: Tensor) -> Tensor:
        """Returns the library's log-density of the true marginal at t_max."""
        return self.mixture.log_prob(latent, self.last.alpha, self.last.sigma)

    def evaluate(self, x: Tensor, solver: Solver, trace: Exact | Hutchinson | None = None) -> LogProb:
        """Returns the library's log-density of x, from the true marginal at t_max."""
        return log_prob(self.sde, self.denoise, x, self.gaussian, trace, None, solver, self.true_marginal)

    def sample(self, latent: Tensor, solver: Solver) -> LogProb:
        """Returns the library's sample and its log-density, from the true marginal at t_max."""
        return sample_log_prob(self.sde, self.denoise, latent, self.gaussian, None, None, solver, self.true_marginal)


def check(setting: Setting) -> Iterator[Row]:
    """Checks priors, terms for every SDE and solver, probes, dequantization, and the engine end to end."""
    for name in SDES:
        yield from priors(name, setting)
    for name in SDES:
        yield from terms(f"{name} by adams", SDES[name](), AdamsPECE(80), setting)
    for name in SOLVERS:
        solver = SOLVERS[name](80) if name == "adams_pece" else SOLVERS[name](1e-5, 1e-5)
        yield from there_and_back(name, solver, setting)
        if name != "adams_pece":
            yield from terms(f"vpsde by {name}", SDES["vpsde"](), solver, setting)
    yield from at_rest(setting)
    yield from solvers()
    for name in PROBES:
        yield from frozen(name, setting)
    for name in PROBES:
        yield from fresh(name, setting)
    yield turning(setting)
    for name in DEQUANTIZATIONS:
        yield from dequantized(name, setting)
    yield bare_levels(setting)
    yield from untrained("eight_gaussians", "none", {"codec.name": "identity", "network.name": "mlp"}, setting)
    yield from untrained("digits", "uniform", {"likelihood.probes": 1}, setting)
    yield from untrained("digits", "truncated_normal", {"likelihood.samples": 3, "likelihood.probes": 2}, setting)


def examples(normal: Normal, setting: Setting) -> Tensor:
    """Returns five plausible examples of the Gaussian."""
    return normal.first.alpha * normal.mean + 0.6 * setting.normals(5, 2, 2, seed=3)


def terms(title: str, sde: SDE, solver: Solver, setting: Setting) -> Iterator[Row]:
    """Checks end point, change of volume and log-density, from the true marginal at t_max."""
    normal = Normal(sde, setting)
    x = examples(normal, setting)
    result, latent = normal.evaluate(x, solver), normal.latent(x)
    yield Row(f"{title}: end point", distance(result.latent, latent, latent.abs().max()), 2e-4)
    yield Row(f"{title}: change of volume, nats", distance(result.divergence, normal.volume), 5e-4)
    density = normal.log_prob(x, sde.t_min)
    yield Row(f"{title}: log-density from the true marginal at t_max, nats", distance(result.nats, density), 5e-4)


def there_and_back(name: str, solver: Solver, setting: Setting) -> Iterator[Row]:
    """Checks samples and their density from one solve, starting from latents of known examples."""
    normal = Normal(SDES["edm"](), setting)
    x = examples(normal, setting)
    result = normal.sample(setting.tensor(normal.latent(x)), solver)
    yield Row(f"{name}: example from its latent", distance(result.x, x), 2e-4)
    density = normal.log_prob(result.x, normal.sde.t_min)
    yield Row(f"{name}: log-density of a sample, nats", distance(result.nats, density), 5e-4)


def at_rest(setting: Setting) -> Iterator[Row]:
    """Checks that two evaluations are exact if the moment-matched Gaussian is the data distribution."""
    normal = Normal(SDES["vpsde"](), setting)
    values, vectors = torch.linalg.eigh(exactly(normal.mixture.covariance))
    normal.gaussian = Gaussian(normal.mean, 1.0, setting.tensor(values), setting.tensor(vectors))
    x = examples(normal, setting)
    result = normal.evaluate(x, AdamsPECE(2))
    found = distance(result.nats, normal.log_prob(x, normal.sde.t_min))
    yield Row("exact moment-matched Gaussian: log-density in two evaluations, nats", found, 1e5 * setting.rounding)


class Circle(Velocity):
    """A velocity with a closed form: u rotates by the angle times the speed, and the rate is a cosine."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self.traced: list[bool] = []

    def __call__(
        self, angle: Time, u: Tensor, rows: Indices = slice(None), traced: bool = True
    ) -> tuple[Tensor, Tensor]:
        self.traced.append(traced)
        rate = torch.cos(torch.as_tensor(angle, dtype=u.dtype)).expand(len(u), 1)
        return self.speed * torch.stack([-u[:, 1], u[:, 0]], 1), rate if traced else rate[:, :0]

    def locate(self, angle: float) -> str:
        return f"at {angle}"

    def end(self, by: float) -> Tensor:
        """Returns the end point of (1, 0)."""
        return torch.tensor([[math.cos(self.speed * by), math.sin(self.speed * by)]], dtype=torch.float64)


def solvers() -> Iterator[Row]:
    """Checks tolerances of adaptive solvers, and the budget and orders of the solver with fixed nodes."""
    velocity, (start, end) = Circle(), (1e-3, math.pi / 2 - 1e-3)
    u, area = Circle().end(0.0), math.sin(end) - math.sin(start)
    for name in ADAPTIVE:
        found, fast = ADAPTIVE[name](1e-6, 1e-6)(Circle(40.0), u, start, end), Circle(40.0).end(end - start)
        error = worst([distance(found.u, fast), distance(found.integrals, area)])
        yield Row(f"{name}: error of a fast velocity, relative to the tolerance", error / 1e-6, 100.0)
    found = AdamsPECE(32, 12)(velocity, u, start, end)
    counts = [len(velocity.traced), sum(velocity.traced), found.calls.item(), found.traced.item()]
    yield Row("adams: evaluations and traces, difference from the budget", distance(counts, [32, 12, 32, 12]), 0.0)
    for order in (1, 2, 3):
        ends = [AdamsPECE(n, order=order)(Circle(), u, start, end).u for n in (81, 161)]
        errors = [distance(found, Circle().end(end - start)) for found in ends]
        yield Row(
            f"adams: order of a predictor of order {order}, distance from {order + 1}",
            abs(math.log2(errors[0] / errors[1]) - order - 1),
            0.5,
        )
    errors = [distance(AdamsPECE(161, traces)(Circle(), u, start, end).integrals, area) for traces in (21, 41)]
    shortfall = max(0.0, 4 - math.log2(errors[0] / errors[1]))
    yield Row("adams: order in the number of traces, shortfall from 4", shortfall, 0.5)


def priors(sde_name: str, setting: Setting) -> Iterator[Row]:
    """Checks the priors' log-densities, the mismatch with the true marginal at t_max, and the engine's bound on it."""
    normal = Normal(SDES[sde_name](), setting)
    sde, x = normal.sde, normal.latent(examples(normal, setting))
    standard = torch.distributions.Normal(exactly(0.0), exactly(sde.prior_std))
    expected = standard.log_prob(x).flatten(1).sum(1)
    found = distance(PRIORS["standard"](sde, normal.gaussian, setting.tensor(x)), expected, expected.abs())
    yield Row(f"{sde_name}: log-density of the prior at the end points", found, 100 * setting.rounding)
    found = distance(expected, normal.log_prob(x, sde.t_max))
    yield Row(f"{sde_name}: prior mismatch with the true marginal at t_max, nats", found, 0.05)
    expected = normal.matched(x)
    found = distance(PRIORS["matched"](sde, normal.gaussian, setting.tensor(x)), expected, expected.abs())
    yield Row(f"{sde_name}: log-density of the matched prior at the end points", found, 1000 * setting.rounding)
    yield Row(f"{sde_name}: reported bound on the prior mismatch", mismatch(sde, setting), 1e-5)


def mismatch(sde: SDE, setting: Setting) -> float:
    """Returns the error of the reported bound against KL(N(alpha x0, sigma^2) || N(0, prior_std^2)) by torch."""
    x0, (alpha, sigma, _) = setting.normals(5, 2, 3), sde.marginal(sde.t_max)
    last, prior = torch.distributions.Normal(alpha * exactly(x0), sigma), torch.distributions.Normal(0.0, sde.prior_std)
    expected = torch.distributions.kl_divergence(last, prior).flatten(1).sum(1)
    return distance(prior_term(sde, x0), expected)


def spread(name: str, num: int, matrix: Tensor) -> float:
    """Returns the variance of the mean of K estimates of the trace of a symmetric matrix, in closed form."""
    squared, trace, size = matrix.square().sum(), matrix.trace(), len(matrix)
    found = {
        "rademacher": 2 * (squared - matrix.diagonal().square().sum()) / num,
        "gauss": 2 * squared / num,
        "orthogonal": 2 * (size * squared - trace**2) / (size + 2) * (size - num) / (num * (size - 1)),
    }
    return found[name].item()


def frozen(name: str, setting: Setting) -> Iterator[Row]:
    """Checks that each estimate is the quadratic form of one probe, and bias and variance of their mean."""
    normal, rows = Normal(SDES["vpsde"](), setting), 512
    x = setting.normals(rows, 2, 2, seed=4)
    for num in (1, 2, DIMENSIONS):
        title, vectors = f"{num} frozen {name}", probes(name, num, rows).start(x)
        first, again = exactly(vectors(slice(None))), exactly(vectors(slice(None)))
        yield Row(f"{title}: same probes at a second call", distance(first, again), 0.0)
        result = normal.evaluate(x, DormandPrince(1e-5, 1e-5), probes(name, num, rows))
        first = first[:, 0].flatten(2)
        forms = torch.einsum("kbi,ij,kbj->bk", first, normal.matrix, first)
        found = exactly(result.estimates) - exactly(result.prior)[:, None] - normal.constant
        yield Row(f"{title}: each estimate against the form of one probe, nats", distance(found, forms), 5e-3)
        yield Row(f"{title}: result against their mean", distance(result.estimates.mean(1), result.nats), 1e-4)
        error, variance = found.mean(1) - normal.matrix.trace(), spread(name, num, normal.matrix)
        yield bias(title, error, variance)
        ratio = (error.var().item() + 1e-6) / (variance + 1e-6)
        yield Row(f"{title}: variance relative to theory, distance from 1", abs(ratio - 1), 0.3)
        if num > 1:
            yield reported_variance(title, result, variance)


def probes(name: str, num: int, rows: int, fresh: bool = False) -> Hutchinson:
    """Returns ``num`` probes for each of ``rows`` examples, one seed per example."""
    return Hutchinson(Noise(torch.arange(rows), stream=SEED), num, name, fresh)


def bias(title: str, error: Tensor, variance: float) -> Row:
    """Returns the row for the mean of errors (B,) with this variance; 1e-6 allows for the solver's error."""
    stderr = math.sqrt((variance + 1e-6) / len(error))
    return Row(f"{title}: bias, in standard errors", (error.mean().abs() / stderr).item(), 4.0)


def reported_variance(title: str, result: LogProb, variance: float) -> Row:
    """Returns the row for the mean of the reported variances."""
    found = (exactly(result.variance).mean().item() + 1e-6) / (variance + 1e-6)
    return Row(f"{title}: reported variance relative to the true one, distance from 1", abs(found - 1), 0.3)


def fresh(name: str, setting: Setting) -> Iterator[Row]:
    """Checks new probes at every evaluation: no bias, less noise than frozen probes, and the reported variance."""
    normal, rows, solver = Normal(SDES["vpsde"](), setting), 512, AdamsPECE(32)
    x = setting.normals(rows, 2, 2, seed=4)
    exact, found = normal.evaluate(x, solver), []
    for renewed in (False, True):
        result = normal.evaluate(x, solver, probes(name, 2, rows, renewed))
        found.append(exactly(result.nats) - exactly(exact.nats))
    title, variance = f"2 fresh {name}", found[1].var().item()
    yield Row(f"{title}: noise relative to frozen probes", (found[1].std() / found[0].std()).item(), 0.6)
    yield bias(title, found[1], variance)
    yield reported_variance(title, result, variance)
    accepted = not refused(normal, x, probes(name, 2, rows, True))
    yield Row(f"{title}: accepted by an adaptive solver", float(accepted), 0.0)


def turning(setting: Setting) -> Row:
    """Checks fresh Rademacher probes, whose mean over as many evaluations as coordinates is the trace of a matrix."""
    x, matrix = setting.normals(16, 2, 4, 2), exactly(setting.normals(16, 16, seed=5))
    vectors = probes("rademacher", 1, len(x), fresh=True).start(x)
    v = torch.stack([exactly(vectors(slice(None)))[0, 0].flatten(1) for _ in range(32)])
    rounds = torch.einsum("nbi,ij,nbj->nb", v, matrix, v).unflatten(0, (2, 16)).mean(1)
    return Row("fresh rademacher: mean over one round against the trace", distance(rounds, matrix.trace()), 1e-12)


def refused(normal: Normal, x: Tensor, trace: Hutchinson) -> bool:
    """Returns whether the library refuses these probes for an adaptive solver."""
    try:
        normal.evaluate(x, Unmoved(), trace)
    except ValueError:
        return True
    return False


class Unmoved:
    """An adaptive solver that returns its start without an evaluation."""

    adaptive = True

    def refined(self) -> "Unmoved":
        return self

    def __call__(self, velocity: Velocity, u: Tensor, start: float, end: float, /) -> Solution:
        counts = torch.zeros(len(u), dtype=torch.int64)
        return Solution(u, u.new_zeros(len(u), 2), counts, counts)


def dequantized(name: str, setting: Setting) -> Iterator[Row]:
    """Checks quantiles of the dequantized state at evenly spaced u, its density, and the density's integral."""
    sde, width, num = SDES["vpsde"](), 0.2, 4001
    t = sde.time(torch.tensor(2 * math.log(1.2 / width), dtype=torch.float64)).item()
    (alpha, sigma, _), u = sde.marginal(t), (torch.arange(num).double() + 0.5) / num
    x = setting.tensor(torch.full((num, 1), 0.3))
    state, log_q = DEQUANTIZATIONS[name](sde, t, x, setting.tensor(u)[:, None], width)
    if name == "none":
        yield Row("dequantization none: state unchanged", distance(state, x) + distance(log_q, 0.0), 0.0)
        return
    exact = {
        "uniform": (0.3 + width * (u - 0.5), torch.full_like(u, 1 / width)),
        "truncated_normal": truncated(alpha * 0.3, sigma, math.erf(0.6 / math.sqrt(2)), u),
    }
    states, density = exact[name]
    yield Row(f"dequantization {name}: quantiles", distance(state[:, 0], states), 1e-5)
    yield Row(f"dequantization {name}: log-density", distance(log_q, density.log()), 1e-4)
    mass = torch.trapezoid(exactly(log_q).exp(), exactly(state[:, 0])).item()
    yield Row(f"dequantization {name}: integral of the density over the bin, distance from 1", abs(mass - 1), 2e-3)


def truncated(mean: float | Tensor, std: float, inside: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """Returns quantiles of a normal truncated to its central probability ``inside``, and their densities, by torch."""
    normal = torch.distributions.Normal(exactly(mean), exactly(std))
    states = normal.icdf(0.5 + inside * (u - 0.5))
    return states, normal.log_prob(states).exp() / inside


def bare_levels(setting: Setting) -> Row:
    """Checks the density of 256 point masses with truncated noise, at the default number of evaluations.

    The density starts from the true marginal at t_max.
    """
    sde, width = SDES["vpsde"](), 2 / 256
    centres = (torch.arange(256).double() + 0.5) * width - 1
    weights = torch.exp(-2 * centres**2)
    points = GaussianMixture(setting.tensor(weights), setting.tensor(centres)[:, None], setting.tensor(0.0))
    denoise, gaussian = points.denoiser(sde), Gaussian(points.mean, points.covariance.item())
    t, num = data_time("truncated_normal", sde, width), 64
    x = setting.tensor(centres[2::4])[:, None]
    u = setting.tensor((torch.arange(num).double() * 0.618) % 1)[:, None].clamp(0.01, 0.99)
    state, _ = DEQUANTIZATIONS["truncated_normal"](sde, t, x, u, width)
    solver = AdamsPECE(32, edge=edge("truncated_normal"))

    def last(latent: Tensor) -> Tensor:
        return denoise.log_prob(latent, sde.t_max)

    result = log_prob(sde, denoise, state, gaussian, None, t, solver, last)
    error = (exactly(result.nats) - exactly(denoise.log_prob(state, t))).mean().abs().item()
    return Row("256 point masses, truncated_normal: mean error in 32 evaluations, nats", error, 0.02)


def untrained(data: str, dequantization: str, changes: dict[str, str | int], setting: Setting) -> Iterator[Row]:
    """Checks the engine's likelihood of a run before its first training step.

    An untrained network is zero, and under the parameterization edm it is the exact denoiser of N(0, sigma_data^2). So
    bits per dimension have a closed form, with dequantization, its copies and the codec.
    """
    config, title = default.get_config(), f"{data}, {dequantization}"
    small: dict[str, dict[str, int | str]] = {
        "unet": {"channels": 4, "channel_mult": "(1,)", "attention": "()"},
        "mlp": {"width": 8, "depth": 1},
    }
    network = str(changes.get("network.name", config.network.name))
    settings = {
        "device": setting.device,
        "data.name": data,
        **changes,
        **{f"network.{key}": value for key, value in small[network].items()},
        "likelihood.dequantization": dequantization,
        "likelihood.num_examples": 4,
        "likelihood.batch_size": 3,
        "likelihood.evaluations": 48,
        "likelihood.check_examples": 0,
    }
    override(config, [(key, str(value)) for key, value in settings.items()])
    with (
        tempfile.TemporaryDirectory() as folder,
        confined(workdir := Path(folder)),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        write_text(workdir / "config.json", to_json(config))
        trainer = Trainer(config, workdir, read_dataset(config.data, "train"))
        trainer.save()
        likelihood.run(config, workdir, Options())
        (path,) = (workdir / "likelihood").glob("*.json")
        result, columns = json.loads(read_text(path)), unpack_arrays(path.with_suffix(".npz"), bool)[1]

    values, levels = exactly(read_dataset(config.data, "test").batch(np.arange(4))["x"]), 17 if data == "digits" else 0
    nats = untrained_nats(config, trainer.experiment.sde, trainer.denoiser.sigma_data, values, levels)
    dimensions = values[0].numel()
    found = distance(columns["nats"], nats, dimensions)
    yield Row(f"{title}: nats of an untrained network against N(0, s^2), per dimension", found, 1e-3)
    total = sum(result["terms"].values())
    yield Row(f"{title}: terms add up to the nats", distance([total, result["nats"]], nats.mean(), dimensions), 1e-3)
    if levels:
        bits = -nats / (dimensions * math.log(2))
        found = worst([distance(columns["bits_per_dim"], bits), distance(result["bits_per_dim"], bits.mean())])
        yield Row(f"{title}: bits/dim of an untrained network against N(0, s^2)", found, 1e-3)


def untrained_nats(config: ConfigDict, sde: SDE, std: float, values: Tensor, levels: int) -> Tensor:
    """Returns the log-densities (B,) of values (B, *) if the model is the exact denoiser of N(0, std^2)."""
    width, t, copies = 2 / levels if levels else 0.0, sde.t_min, config.likelihood.samples
    found = []
    for copy in range(copies):
        u = exactly(uniform(config.seed, DEQUANTIZATION, torch.arange(4) + copy * COPY, values))
        x, log_q = (values + 0.5) * width - 1 if levels else values, torch.zeros_like(values)
        if config.likelihood.dequantization == "uniform":
            x, log_q = x + width * (u - 0.5), torch.full_like(x, -math.log(width))
        if config.likelihood.dequantization == "truncated_normal":  # the noise is 0.3 bin widths
            t = sde.time_of_ratio(0.3 * width)
            x, density = truncated(
                sde.marginal(t).alpha * x, sde.marginal(t).sigma, math.erf(0.5 / 0.3 / math.sqrt(2)), u
            )
            log_q = density.log()
        wide, narrow = (math.hypot(sde.marginal(end).alpha * std, sde.marginal(end).sigma) for end in (sde.t_max, t))
        standard = torch.distributions.Normal(exactly(0.0), exactly(1.0))
        nats = standard.log_prob(x * wide / narrow) + math.log(wide / narrow) - log_q
        found.append(nats.flatten(1).sum(1))
    return torch.logsumexp(torch.stack(found), 0) - math.log(copies)
