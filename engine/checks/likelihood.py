"""Every term of a log-density against exact densities, Hutchinson's error, and the engine's bits per dimension.

The data are one Gaussian with a full covariance, on examples of shape (2, 2): its flow is linear, so that end point,
change of volume and the estimate of every single probe have a closed form. The density is taken from the true law at
t_max; how far the prior is from that law is a row of its own, and never part of a solver's error.
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

from configs import default
from engine import likelihood
from engine.build import read_dataset
from engine.checks.rows import Row, Setting, distance, exactly, worst
from engine.config import Options, override, to_json
from engine.files import write_text
from engine.randomness import DEQUANTIZATION, positions, uniform
from engine.train import Trainer
from sde_lib import PROBES, SDE, SDES, SOLVERS, GaussianMixture, LogProb, exact_trace, log_prob, prior_term

TOLERANCE = 1e-5


class Gaussian:
    """N(m, Q diag(v) Q^T) in four dimensions under one SDE, and what its flow from t_min to t_max does."""

    def __init__(self, sde: SDE, setting: Setting) -> None:
        root = 0.5 * setting.normals(4, 4)
        covariance = root @ root.mT + 0.1 * setting.tensor(torch.eye(4))
        self.sde, self.mean = sde, setting.normals(2, 2, seed=2)
        self.mixture = GaussianMixture.of_covariances(setting.tensor([1.0]), self.mean[None], covariance[None])
        self.denoise = self.mixture.denoiser(sde)
        first, last = sde.at(sde.t_min), sde.at(sde.t_max)
        values, vectors = torch.linalg.eigh(exactly(covariance))
        stretch = ((last.alpha**2 * values + last.sigma**2) / (first.alpha**2 * values + first.sigma**2)).sqrt()
        self.first, self.last = first, last
        self.flow = vectors @ torch.diag(stretch) @ vectors.mT
        # The integral of the Jacobian of dy/dl, a matrix: its trace and the forms v^T J v are what probes estimate.
        self.jacobian = vectors @ torch.diag(stretch.log() - math.log(last.alpha / first.alpha)) @ vectors.mT
        self.volume = stretch.log().sum().item()

    def latent(self, x: Tensor) -> Tensor:
        """The end point of x (B, 2, 2)."""
        mean = exactly(self.mean).flatten()
        return (self.last.alpha * mean + (exactly(x).flatten(1) - self.first.alpha * mean) @ self.flow).reshape(x.shape)

    def log_prob(self, x: Tensor, t: float) -> Tensor:
        """Log-density at time t, by torch."""
        alpha, sigma, _ = self.sde.at(t)
        covariance = alpha**2 * exactly(self.mixture.covariance) + sigma**2 * torch.eye(4).double()
        law = torch.distributions.MultivariateNormal(alpha * exactly(self.mean).flatten(), covariance)
        return law.log_prob(exactly(x).flatten(1))

    def evaluate(self, x: Tensor, probes: Tensor, solver: str = "dopri5") -> LogProb:
        """The library's answer, from the true law at t_max."""

        def true_law(latent: Tensor) -> Tensor:
            return self.mixture.log_prob(latent, self.last.alpha, self.last.sigma)

        return log_prob(
            self.sde,
            self.denoise,
            x,
            probes,
            solver=SOLVERS[solver],
            rtol=TOLERANCE,
            atol=TOLERANCE,
            prior_log_prob=true_law,
        )


def check(setting: Setting) -> Iterator[Row]:
    """Prior mismatch, terms under every SDE and by every solver, probes, and the engine from end to end."""
    for name in SDES:
        yield from prior(name, setting)
    for name in SDES:
        yield from terms(name, "dopri5", setting)
    for solver in SOLVERS:
        if solver != "dopri5":
            yield from terms("vpsde", solver, setting)
    for name in PROBES:
        yield from hutchinson(name, setting)
    yield from untrained("eight_gaussians", {"codec.name": "identity", "network.name": "mlp"}, setting)
    yield from untrained("digits", {}, setting)


def examples(gaussian: Gaussian, setting: Setting) -> Tensor:
    """Five examples that the Gaussian may have made."""
    return gaussian.first.alpha * gaussian.mean + 0.6 * setting.normals(5, 2, 2, seed=3)


def terms(sde_name: str, solver: str, setting: Setting) -> Iterator[Row]:
    """End point, change of volume and log-density, from the true law at t_max."""
    gaussian = Gaussian(SDES[sde_name](), setting)
    x = examples(gaussian, setting)
    result = gaussian.evaluate(x, exact_trace(x), solver)
    latent, who = gaussian.latent(x), f"{sde_name} by {solver}"
    yield Row(f"{who}: end point", distance(result.latent, latent, latent.abs().max()), 2e-4)
    yield Row(f"{who}: change of volume, nats", distance(result.divergence, gaussian.volume), 5e-4)
    density = gaussian.log_prob(x, gaussian.sde.t_min)
    yield Row(f"{who}: log-density from the true last law, nats", distance(result.nats, density), 5e-4)


def prior(sde_name: str, setting: Setting) -> Iterator[Row]:
    """How far the prior is from the true law at t_max, which no solver can mend."""
    gaussian = Gaussian(SDES[sde_name](), setting)
    sde, x = gaussian.sde, gaussian.latent(examples(gaussian, setting))
    law = torch.distributions.Normal(exactly(0.0), exactly(sde.prior_std))
    expected = law.log_prob(x).flatten(1).sum(1)
    found = distance(sde.prior_log_prob(setting.tensor(x)), expected, expected.abs())
    yield Row(f"{sde_name}: log-density of the prior at the end points", found, 100 * setting.rounding)
    found = distance(expected, gaussian.log_prob(x, sde.t_max))
    yield Row(f"{sde_name}: mismatch of the prior and the true last law, nats, no error of a solver", found, 0.05)
    yield Row(f"{sde_name}: bound on the mismatch that the engine tells", mismatch(sde, setting), 1e-5)


def mismatch(sde: SDE, setting: Setting) -> float:
    """Of KL(N(alpha x0, sigma^2) || N(0, prior_std^2)), by torch, to what the engine tells."""
    x0, (alpha, sigma, _) = setting.normals(5, 2, 3), sde.at(sde.t_max)
    laws = torch.distributions.Normal(alpha * exactly(x0), sigma), torch.distributions.Normal(0.0, sde.prior_std)
    expected = torch.distributions.kl_divergence(*laws).flatten(1).sum(1)
    return distance(prior_term(sde, x0), expected)


def hutchinson(name: str, setting: Setting) -> Iterator[Row]:
    """Each estimate is its own quadratic form; their spread is that of the theory, and falls as K^(-1/2)."""
    gaussian, num, rows = Gaussian(SDES["vpsde"](), setting), 8, 512
    x = setting.normals(rows, 2, 2, seed=4)
    probes = PROBES[name](setting.normals(num, rows, 2, 2, seed=5))
    result = gaussian.evaluate(x, probes)
    forms = torch.einsum("kbi,ij,kbj->bk", *(exactly(v) for v in (vectors(probes), gaussian.jacobian, vectors(probes))))
    constant = 4 * math.log(gaussian.last.alpha / gaussian.first.alpha)
    found = exactly(result.estimates) - exactly(result.prior)[:, None] - constant
    yield Row(f"probes {name}: every estimate is that of one fixed probe, nats", distance(found, forms), 5e-3)
    yield Row(
        f"probes {name}: the result is the mean of the estimates", distance(result.estimates.mean(1), result.nats), 1e-4
    )
    error = found - gaussian.jacobian.trace()
    stderr = error.std() / math.sqrt(error.numel())
    yield Row(f"probes {name}: bias, in standard errors", abs(error.mean() / stderr).item(), 4.0)
    sizes = torch.tensor([1, 2, 4, 8])
    spread = torch.stack([error.reshape(rows, -1, k).mean(2).square().mean().sqrt() for k in sizes.tolist()])
    slope = float(np.polyfit(np.log(sizes.numpy()), np.log(spread.numpy()), 1)[0])
    yield Row(f"probes {name}: exponent of the error in their number, distance from -1/2", abs(slope + 0.5), 0.06)


def vectors(probes: Tensor) -> Tensor:
    """Probes (K, 1, B, *) as (K, B, D)."""
    return probes[:, 0].flatten(2)


def untrained(data: str, changes: dict[str, str], setting: Setting) -> Iterator[Row]:
    """The engine's likelihood of a run before its first step.

    An untrained network is zero, and with the parameterisation edm it is the exact denoiser of N(0, sigma_data^2): bits
    per dimension have a closed form, dequantisation and codec included.
    """
    config = default.get_config()
    small = {"unet": {"channels": 4, "channel_mult": "(1,)", "attention": "()"}, "mlp": {"width": 8, "depth": 1}}
    network = changes.get("network.name", config.network.name)
    settings = {
        "device": setting.device,
        "data.name": data,
        **changes,
        **{f"network.{key}": value for key, value in small[network].items()},
        "likelihood.dequantization": "uniform" if data == "digits" else "none",
        "likelihood.num_examples": 4,
        "likelihood.batch_size": 3,
        "likelihood.rtol": 1e-4,
        "likelihood.atol": 1e-4,
    }
    override(config, [(key, str(value)) for key, value in settings.items()])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        workdir = Path(folder)
        write_text(workdir / "config.json", to_json(config))
        trainer = Trainer(config, workdir, read_dataset(config, "train"))
        trainer.save()
        likelihood.run(config, workdir, Options())
        (path,) = (workdir / "likelihood").glob("*.json")
        result, columns = json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz")))

    sde, std = trainer.experiment.sde, trainer.denoiser.sigma_data
    values = read_dataset(config, "test").batch(np.arange(4))["x"]
    levels = 17 if data == "digits" else 0
    if levels:
        values = values + uniform(config.seed, DEQUANTIZATION, positions(0, 4), values) - 0.5
    x = exactly((values + 0.5) * 2 / levels - 1 if levels else values).flatten(1)
    wide, narrow = (math.hypot(sde.at(t).alpha * std, sde.at(t).sigma) for t in (sde.t_max, sde.t_min))
    law = torch.distributions.Normal(exactly(0.0), exactly(1.0))
    nats = (law.log_prob(x * wide / narrow) + math.log(wide / narrow) + (math.log(2 / levels) if levels else 0.0)).sum(
        1
    )
    dimensions = x.shape[1]
    found = distance(columns["nats"], nats, dimensions)
    yield Row(f"{data}: nats of an untrained network against N(0, s^2), each dimension", found, 1e-3)
    total = sum(result["terms"].values())
    yield Row(f"{data}: terms add up to the nats", distance([total, result["nats"]], nats.mean(), dimensions), 1e-3)
    if levels:
        bits = -nats / (dimensions * math.log(2))
        found = worst([distance(columns["bits_per_dim"], bits), distance(result["bits_per_dim"], bits.mean())])
        yield Row(f"{data}: bits/dim of an untrained network against N(0, s^2)", found, 1e-3)
