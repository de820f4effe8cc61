"""Every term of a log-density against exact densities, both ways, by every solver and probe, and the engine's bits/dim.

The data are one Gaussian with a full covariance, on examples of shape (2, 2): its flow is linear, so that end point,
change of volume and the estimate of every single probe have a closed form. The moment-matched Gaussian is another
Gaussian, so that something is left to solve. The density is taken from the true law at t_max; how far the prior is from
that law is a row of its own, and never part of a solver's error.
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
from score_sde.sde_lib.velocity import Solution, Velocity
from score_sde.selftest.rows import Row, Setting, distance, exactly, worst
from score_sde.storage.reading import read_text
from score_sde.storage.writing import confined, write_text

DIMENSIONS, SEED = 4, 40


class Normal:
    """N(m, C) in four dimensions under one SDE, what its flow from t_min to t_max does, and a moment-matched Gaussian
    N(m', C')."""

    def __init__(self, sde: SDE, setting: Setting) -> None:
        root = 0.5 * setting.normals(4, 4)
        covariance = root @ root.mT + 0.1 * setting.tensor(torch.eye(4))
        self.sde, self.mean = sde, setting.normals(2, 2, seed=2)
        self.mixture = GaussianMixture.of_covariances(setting.tensor([1.0]), self.mean[None], covariance[None])
        self.denoise = self.mixture.denoiser(sde)
        directions = torch.linalg.qr(setting.normals(4, 2, seed=6).cpu().double()).Q.to(covariance)
        self.guess = Gaussian(0.5 * self.mean, 0.2, setting.tensor([0.5, 1.5]), directions)
        first, last = sde.marginal(sde.t_min), sde.marginal(sde.t_max)
        values, vectors = torch.linalg.eigh(exactly(covariance))
        stretch = ((last.alpha**2 * values + last.sigma**2) / (first.alpha**2 * values + first.sigma**2)).sqrt()
        self.first, self.last = first, last
        self.flow = vectors @ torch.diag(stretch) @ vectors.mT
        self.volume = stretch.log().sum().item()
        # The trace that probes estimate is that of the integral of v / (v + r^2) dr / r, less the guess's.
        guessed = exactly(directions)
        outside = torch.eye(4).double() - guessed @ guessed.mT
        along = guessed @ torch.diag(self.grown(exactly(self.guess.variances))) @ guessed.mT
        along = along + self.grown(torch.tensor(0.2).double()) * outside
        self.matrix = along - vectors @ torch.diag(self.grown(values)) @ vectors.mT
        self.constant = self.volume - self.matrix.trace().item()

    def grown(self, variance: Tensor) -> Tensor:
        """The integral of v / (v + r^2) dr / r from the data to the noise."""
        near, far = ((m.sigma / m.alpha) ** 2 for m in (self.first, self.last))
        return 0.5 * torch.log(far / near * (variance + near) / (variance + far))

    def latent(self, x: Tensor) -> Tensor:
        """The end point of x (B, 2, 2)."""
        mean = exactly(self.mean).flatten()
        return (self.last.alpha * mean + (exactly(x).flatten(1) - self.first.alpha * mean) @ self.flow).reshape(x.shape)

    def log_prob(self, x: Tensor, t: float) -> Tensor:
        """Log-density at time t, by torch."""
        return self._law(t, exactly(self.mean), exactly(self.mixture.covariance)).log_prob(exactly(x).flatten(1))

    def matched(self, x: Tensor) -> Tensor:
        """Log-density at t_max of the marginal that the moment-matched Gaussian has there, by torch."""
        guessed = exactly(self.guess.directions)
        covariance = 0.2 * torch.eye(4).double() + guessed @ torch.diag(exactly([0.3, 1.3])) @ guessed.mT
        return self._law(self.sde.t_max, 0.5 * exactly(self.mean), covariance).log_prob(exactly(x).flatten(1))

    def _law(self, t: float, mean: Tensor, covariance: Tensor) -> torch.distributions.Distribution:
        alpha, sigma, _ = self.sde.marginal(t)
        marginal = alpha**2 * covariance + sigma**2 * torch.eye(4).double()
        return torch.distributions.MultivariateNormal(alpha * mean.flatten(), marginal)

    def true_law(self, latent: Tensor) -> Tensor:
        """The library's log-density of the true law at t_max."""
        return self.mixture.log_prob(latent, self.last.alpha, self.last.sigma)

    def evaluate(
        self, x: Tensor, solver: AdamsPECE | DormandPrince, trace: Exact | Hutchinson | None = None
    ) -> LogProb:
        """The library's answer, from the true law at t_max."""
        return log_prob(self.sde, self.denoise, x, self.guess, trace, None, solver, self.true_law)

    def sample(self, latent: Tensor, solver: AdamsPECE | DormandPrince) -> LogProb:
        """The same from the other end."""
        return sample_log_prob(self.sde, self.denoise, latent, self.guess, None, None, solver, self.true_law)


def check(setting: Setting) -> Iterator[Row]:
    """Priors, terms under every SDE and by every solver, probes, dequantisation, and the engine from end to end."""
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
    """Five examples that the Gaussian may have made."""
    return normal.first.alpha * normal.mean + 0.6 * setting.normals(5, 2, 2, seed=3)


def terms(who: str, sde: SDE, solver: AdamsPECE | DormandPrince, setting: Setting) -> Iterator[Row]:
    """End point, change of volume and log-density, from the true law at t_max."""
    normal = Normal(sde, setting)
    x = examples(normal, setting)
    result, latent = normal.evaluate(x, solver), normal.latent(x)
    yield Row(f"{who}: end point", distance(result.latent, latent, latent.abs().max()), 2e-4)
    yield Row(f"{who}: change of volume, nats", distance(result.divergence, normal.volume), 5e-4)
    density = normal.log_prob(x, sde.t_min)
    yield Row(f"{who}: log-density from the true last law, nats", distance(result.nats, density), 5e-4)


def there_and_back(name: str, solver: AdamsPECE | DormandPrince, setting: Setting) -> Iterator[Row]:
    """Samples and their density from one solve, of the latents of known examples."""
    normal = Normal(SDES["edm"](), setting)
    x = examples(normal, setting)
    result = normal.sample(setting.tensor(normal.latent(x)), solver)
    yield Row(f"{name}: from the latent back to the example", distance(result.x, x), 2e-4)
    density = normal.log_prob(result.x, normal.sde.t_min)
    yield Row(f"{name}: log-density of a sample, nats", distance(result.nats, density), 5e-4)


def at_rest(setting: Setting) -> Iterator[Row]:
    """Where the moment-matched Gaussian is right nothing moves, and two evaluations are exact."""
    normal = Normal(SDES["vpsde"](), setting)
    values, vectors = torch.linalg.eigh(exactly(normal.mixture.covariance))
    normal.guess = Gaussian(normal.mean, 1.0, setting.tensor(values), setting.tensor(vectors))
    x = examples(normal, setting)
    result = normal.evaluate(x, AdamsPECE(2))
    found = distance(result.nats, normal.log_prob(x, normal.sde.t_min))
    yield Row("right moment-matched Gaussian: log-density by two evaluations, nats", found, 1e5 * setting.rounding)


class Circle(Velocity):
    """A velocity with a closed form: u turns by the angle times the speed, and the rate is a cosine."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed, self.traced = speed, []

    def __call__(
        self, angle: Time, u: Tensor, rows: Tensor | slice = slice(None), traced: bool = True
    ) -> tuple[Tensor, Tensor]:
        self.traced.append(traced)
        rate = torch.cos(torch.as_tensor(angle, dtype=u.dtype)).expand(len(u), 1)
        return self.speed * torch.stack([-u[:, 1], u[:, 0]], 1), rate if traced else rate[:, :0]

    def place(self, angle: float) -> str:
        return f"at {angle}"

    def end(self, by: float) -> Tensor:
        """Where (1, 0) comes to."""
        return torch.tensor([[math.cos(self.speed * by), math.sin(self.speed * by)]], dtype=torch.float64)


def solvers() -> Iterator[Row]:
    """The tolerance is kept; what the solver with a budget takes, and how its error falls."""
    velocity, (start, end) = Circle(), (1e-3, math.pi / 2 - 1e-3)
    u, area = Circle().end(0.0), math.sin(end) - math.sin(start)
    for name in ADAPTIVE:
        found, fast = ADAPTIVE[name](1e-6, 1e-6)(Circle(40.0), u, start, end), Circle(40.0).end(end - start)
        error = worst([distance(found.u, fast), distance(found.integrals, area)])
        yield Row(f"{name}: error of a fast velocity, over the tolerance", error / 1e-6, 100.0)
    found = AdamsPECE(32, 12)(velocity, u, start, end)
    counts = [len(velocity.traced), sum(velocity.traced), found.calls.item(), found.traced.item()]
    yield Row("adams: evaluations and traces, off the budget", distance(counts, [32, 12, 32, 12]), 0.0)
    for order in (1, 2, 3):
        ends = [AdamsPECE(n, order=order)(Circle(), u, start, end).u for n in (81, 161)]
        errors = [distance(found, Circle().end(end - start)) for found in ends]
        yield Row(
            f"adams: order of a predictor of order {order}, distance from {order + 1}",
            abs(math.log2(errors[0] / errors[1]) - order - 1),
            0.5,
        )
    errors = [distance(AdamsPECE(161, traces)(Circle(), u, start, end).integrals, area) for traces in (21, 41)]
    yield Row("adams: order in the number of traces, short of 4", max(0.0, 4 - math.log2(errors[0] / errors[1])), 0.5)


def priors(sde_name: str, setting: Setting) -> Iterator[Row]:
    """How far the prior is from the true law at t_max, which no solver can mend."""
    normal = Normal(SDES[sde_name](), setting)
    sde, x = normal.sde, normal.latent(examples(normal, setting))
    law = torch.distributions.Normal(exactly(0.0), exactly(sde.prior_std))
    expected = law.log_prob(x).flatten(1).sum(1)
    found = distance(PRIORS["standard"](sde, normal.guess, setting.tensor(x)), expected, expected.abs())
    yield Row(f"{sde_name}: log-density of the prior at the end points", found, 100 * setting.rounding)
    found = distance(expected, normal.log_prob(x, sde.t_max))
    yield Row(f"{sde_name}: mismatch of the prior and the true last law, nats, no error of a solver", found, 0.05)
    expected = normal.matched(x)
    found = distance(PRIORS["matched"](sde, normal.guess, setting.tensor(x)), expected, expected.abs())
    yield Row(f"{sde_name}: log-density of the matched prior at the end points", found, 1000 * setting.rounding)
    yield Row(f"{sde_name}: bound on the mismatch that the engine tells", mismatch(sde, setting), 1e-5)


def mismatch(sde: SDE, setting: Setting) -> float:
    """Of KL(N(alpha x0, sigma^2) || N(0, prior_std^2)), by torch, to what the engine tells."""
    x0, (alpha, sigma, _) = setting.normals(5, 2, 3), sde.marginal(sde.t_max)
    laws = torch.distributions.Normal(alpha * exactly(x0), sigma), torch.distributions.Normal(0.0, sde.prior_std)
    expected = torch.distributions.kl_divergence(*laws).flatten(1).sum(1)
    return distance(prior_term(sde, x0), expected)


def spread(name: str, num: int, matrix: Tensor) -> float:
    """Variance of the mean of K estimates of the trace of a symmetric matrix, in closed form."""
    squared, trace, size = matrix.square().sum(), matrix.trace(), len(matrix)
    found = {
        "rademacher": 2 * (squared - matrix.diagonal().square().sum()) / num,
        "gauss": 2 * squared / num,
        "orthogonal": 2 * (size * squared - trace**2) / (size + 2) * (size - num) / (num * (size - 1)),
    }
    return found[name].item()


def frozen(name: str, setting: Setting) -> Iterator[Row]:
    """Each estimate is its own quadratic form; the spread of their mean is that of the theory, and the one told."""
    normal, rows = Normal(SDES["vpsde"](), setting), 512
    x = setting.normals(rows, 2, 2, seed=4)
    for num in (1, 2, DIMENSIONS):
        who, vectors = f"{num} frozen {name}", probes(name, num, rows).start(x)
        first, again = exactly(vectors(slice(None))), exactly(vectors(slice(None)))
        yield Row(f"{who}: the same when asked again", distance(first, again), 0.0)
        result = normal.evaluate(x, DormandPrince(1e-5, 1e-5), probes(name, num, rows))
        first = first[:, 0].flatten(2)
        forms = torch.einsum("kbi,ij,kbj->bk", first, normal.matrix, first)
        found = exactly(result.estimates) - exactly(result.prior)[:, None] - normal.constant
        yield Row(f"{who}: every estimate is that of one fixed probe, nats", distance(found, forms), 5e-3)
        yield Row(f"{who}: the result is their mean", distance(result.estimates.mean(1), result.nats), 1e-4)
        error, variance = found.mean(1) - normal.matrix.trace(), spread(name, num, normal.matrix)
        yield bias(who, error, variance)
        ratio = (error.var().item() + 1e-6) / (variance + 1e-6)
        yield Row(f"{who}: variance over that of the theory, distance from 1", abs(ratio - 1), 0.3)
        if num > 1:
            yield told(who, result, variance)


def probes(name: str, num: int, rows: int, fresh: bool = False) -> Hutchinson:
    """Of so many examples, each of another seed."""
    return Hutchinson(Noise(torch.arange(rows), stream=SEED), num, name, fresh)


def bias(who: str, error: Tensor, variance: float) -> Row:
    """The mean of errors (B,) of this variance, beside that of the solver."""
    stderr = math.sqrt((variance + 1e-6) / len(error))
    return Row(f"{who}: bias, in standard errors", (error.mean().abs() / stderr).item(), 4.0)


def told(who: str, result: LogProb, variance: float) -> Row:
    """The mean of the variances that are told."""
    found = (exactly(result.variance).mean().item() + 1e-6) / (variance + 1e-6)
    return Row(f"{who}: variance told over the true one, distance from 1", abs(found - 1), 0.3)


def fresh(name: str, setting: Setting) -> Iterator[Row]:
    """New probes at every evaluation: no bias, less noise than frozen ones by the same solver, and they tell it."""
    normal, rows, solver = Normal(SDES["vpsde"](), setting), 512, AdamsPECE(32)
    x = setting.normals(rows, 2, 2, seed=4)
    exact, found = normal.evaluate(x, solver), []
    for renewed in (False, True):
        result = normal.evaluate(x, solver, probes(name, 2, rows, renewed))
        found.append(exactly(result.nats) - exactly(exact.nats))
    who, variance = f"2 fresh {name}", found[1].var().item()
    yield Row(f"{who}: noise over that of frozen ones", (found[1].std() / found[0].std()).item(), 0.6)
    yield bias(who, found[1], variance)
    yield told(who, result, variance)
    yield Row(f"{who}: taken by a solver that adapts", float(not refused(normal, x, probes(name, 2, rows, True))), 0.0)


def turning(setting: Setting) -> Row:
    """Forms of one matrix with fresh Rademacher probes, in as many evaluations as there are coordinates, twice."""
    x, matrix = setting.normals(16, 2, 4, 2), exactly(setting.normals(16, 16, seed=5))
    vectors = probes("rademacher", 1, len(x), fresh=True).start(x)
    v = torch.stack([exactly(vectors(slice(None)))[0, 0].flatten(1) for _ in range(32)])
    rounds = torch.einsum("nbi,ij,nbj->nb", v, matrix, v).unflatten(0, (2, 16)).mean(1)
    return Row("fresh rademacher: a round of them off the trace", distance(rounds, matrix.trace()), 1e-12)


def refused(normal: Normal, x: Tensor, trace: Hutchinson) -> bool:
    """Whether a solver that asks again and again gets other answers; this one asks never."""
    try:
        normal.evaluate(x, Patient(), trace)
    except ValueError:
        return True
    return False


class Patient:
    """A solver by name."""

    adaptive = True

    def __call__(self, velocity: Velocity, u: Tensor, start: float, end: float) -> Solution:
        counts = torch.zeros(len(u), dtype=torch.int64)
        return Solution(u, u.new_zeros(len(u), 2), counts, counts)


def dequantized(name: str, setting: Setting) -> Iterator[Row]:
    """The law of a state, at evenly spread u, and its density: they belong together, and fill the bin."""
    sde, width, num = SDES["vpsde"](), 0.2, 4001
    t = sde.time(torch.tensor(2 * math.log(1.2 / width), dtype=torch.float64)).item()
    (alpha, sigma, _), u = sde.marginal(t), (torch.arange(num).double() + 0.5) / num
    x = setting.tensor(torch.full((num, 1), 0.3))
    state, log_q = DEQUANTIZATIONS[name](sde, t, x, setting.tensor(u)[:, None], width)
    if name == "none":
        yield Row("dequantisation none: changes nothing", distance(state, x) + distance(log_q, 0.0), 0.0)
        return
    laws = {
        "uniform": (0.3 + width * (u - 0.5), torch.full_like(u, 1 / width)),
        "truncated_normal": truncated(alpha * 0.3, sigma, math.erf(0.6 / math.sqrt(2)), u),
    }
    states, density = laws[name]
    yield Row(f"dequantisation {name}: places in the bin", distance(state[:, 0], states), 1e-5)
    yield Row(f"dequantisation {name}: log-density of a place", distance(log_q, density.log()), 1e-4)
    mass = torch.trapezoid(exactly(log_q).exp(), exactly(state[:, 0])).item()
    yield Row(f"dequantisation {name}: the density's integral over the bin, distance from 1", abs(mass - 1), 2e-3)


def truncated(mean: float, std: float, inside: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """Quantiles of a normal law of which this share around the mean is kept, and their densities, by torch."""
    law = torch.distributions.Normal(exactly(mean), exactly(std))
    states = law.icdf(0.5 + inside * (u - 0.5))
    return states, law.log_prob(states).exp() / inside


def bare_levels(setting: Setting) -> Row:
    """Density of 256 bare levels with truncated noise by the default number of evaluations, from the true last law."""
    sde, width = SDES["vpsde"](), 2 / 256
    centres = (torch.arange(256).double() + 0.5) * width - 1
    weights = torch.exp(-2 * centres**2)
    law = GaussianMixture(setting.tensor(weights), setting.tensor(centres)[:, None], setting.tensor(0.0))
    denoise, guess = law.denoiser(sde), Gaussian(law.mean, law.covariance.item())
    t, num = data_time("truncated_normal", sde, width), 64
    x = setting.tensor(centres[2::4])[:, None]
    u = setting.tensor((torch.arange(num).double() * 0.618) % 1)[:, None].clamp(0.01, 0.99)
    state, _ = DEQUANTIZATIONS["truncated_normal"](sde, t, x, u, width)
    solver = AdamsPECE(32, edge=edge("truncated_normal"))
    result = log_prob(sde, denoise, state, guess, None, t, solver, lambda latent: denoise.log_prob(latent, sde.t_max))
    error = (exactly(result.nats) - exactly(denoise.log_prob(state, t))).mean().abs().item()
    return Row("256 bare levels, truncated_normal: mean error of 32 evaluations, nats", error, 0.02)


def untrained(data: str, dequantization: str, changes: dict[str, str | int], setting: Setting) -> Iterator[Row]:
    """The engine's likelihood of a run before its first step.

    An untrained network is zero, and with the parameterisation edm it is the exact denoiser of N(0, sigma_data^2): bits
    per dimension have a closed form, dequantisation, its copies and codec included.
    """
    config, who = default.get_config(), f"{data}, {dequantization}"
    small = {"unet": {"channels": 4, "channel_mult": "(1,)", "attention": "()"}, "mlp": {"width": 8, "depth": 1}}
    network = changes.get("network.name", config.network.name)
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
        trainer = Trainer(config, workdir, read_dataset(config, "train"))
        trainer.save()
        likelihood.run(config, workdir, Options())
        (path,) = (workdir / "likelihood").glob("*.json")
        result, columns = json.loads(read_text(path)), unpack_arrays(path.with_suffix(".npz"), bool)[1]

    sde, std, copies = trainer.experiment.sde, trainer.denoiser.sigma_data, config.likelihood.samples
    values, levels = exactly(read_dataset(config, "test").batch(np.arange(4))["x"]), 17 if data == "digits" else 0
    width, t = 2 / levels if levels else 0.0, sde.t_min
    found = []
    for copy in range(copies):
        u = exactly(uniform(config.seed, DEQUANTIZATION, torch.arange(4) + copy * COPY, values))
        x, log_q = (values + 0.5) * width - 1 if levels else values, torch.zeros_like(values)
        if dequantization == "uniform":
            x, log_q = x + width * (u - 0.5), torch.full_like(x, -math.log(width))
        if dequantization == "truncated_normal":  # the noise is 0.3 widths of a level
            t = sde.time_of_ratio(0.3 * width)
            x, density = truncated(
                sde.marginal(t).alpha * x, sde.marginal(t).sigma, math.erf(0.5 / 0.3 / math.sqrt(2)), u
            )
            log_q = density.log()
        wide, narrow = (math.hypot(sde.marginal(end).alpha * std, sde.marginal(end).sigma) for end in (sde.t_max, t))
        law = torch.distributions.Normal(exactly(0.0), exactly(1.0))
        nats = law.log_prob(x * wide / narrow) + math.log(wide / narrow) - log_q
        found.append(nats.flatten(1).sum(1))
    nats, dimensions = torch.logsumexp(torch.stack(found), 0) - math.log(copies), values[0].numel()
    found = distance(columns["nats"], nats, dimensions)
    yield Row(f"{who}: nats of an untrained network against N(0, s^2), each dimension", found, 1e-3)
    total = sum(result["terms"].values())
    yield Row(f"{who}: terms add up to the nats", distance([total, result["nats"]], nats.mean(), dimensions), 1e-3)
    if levels:
        bits = -nats / (dimensions * math.log(2))
        found = worst([distance(columns["bits_per_dim"], bits), distance(result["bits_per_dim"], bits.mean())])
        yield Row(f"{who}: bits/dim of an untrained network against N(0, s^2)", found, 1e-3)
