"""Likelihood from the command line: closed forms, each example scored once, and every term of the result."""

import dataclasses
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats
import torch

from score_sde import run as command_line
from score_sde.data import Dataset, Identity, Pixels, read_digits
from score_sde.engine import checkpoint, density, ranks
from score_sde.engine.build import build
from score_sde.engine.config import load, override
from score_sde.engine.density import COPY, DensityEstimator
from score_sde.engine.facts import DataFacts
from score_sde.engine.likelihood_report import interval
from score_sde.engine.modes import likelihood
from score_sde.engine.partial_results import PartialResults
from score_sde.engine.randomness import DEQUANTIZATION, positions, uniform
from score_sde.sde_lib import DEQUANTIZATIONS, PRIORS, SDES, SOLVERS, Gaussian, GaussianMixture, prior_term
from score_sde.sde_lib.denoiser import Prediction
from score_sde.sde_lib.dequantization import data_time
from score_sde.sde_lib.velocity import ExampleError
from tests.runs import ROOT, command

FAST = ("--config.likelihood.evaluations=8", "--config.likelihood.check_examples=0")
KEYS = ("bits_per_dim", "bits_per_dim_stderr", "bits_per_dim_interval", "nats", "nats_stderr", "nats_interval", "terms")
KEYS += ("probe_stderr_nats", "repeat_stderr_nats", "nfe", "traces", "trace", "t", "noise", "noise_levels", "check")
KEYS += ("num_examples", "split", "dequantization", "settings", "sde", "checkpoint_step", "scored_before", "seconds")


def read(workdir, name="test-uniform"):
    """The result, and the rows of the examples."""
    folder = workdir / "likelihood"
    return json.loads((folder / f"{name}.json").read_text()), dict(np.load(folder / f"{name}.npz"))


def unfinished(workdir):
    """Files of an unfinished measurement."""
    return sorted((workdir / "likelihood").glob("*rows*"))


@pytest.fixture
def measured():
    """Measures a run at a loose tolerance: (result, rows)."""

    def run(workdir, num, *words, name="test-uniform"):
        flags = (f"--workdir={workdir}", f"--config.likelihood.num_examples={num}")
        assert command("--mode=likelihood", *flags, *FAST, *words) == 0
        assert not unfinished(workdir)
        return read(workdir, name)

    return run


# --- known answers ----------------------------------------------------------------------------------------------------

MEAN, STD, GUESS = 0.2, 0.3, 0.5
QUICK = {"evaluations": 16, "batch_size": 50}
PROBED = {"exact_trace_below": 0, "probe": "gauss"}


@pytest.fixture
def exact(monkeypatch, tmp_path):
    """Measures a dataset under a law's exact denoiser, by default N(MEAN, STD^2): (result, rows).

    The moment-matched Gaussian is wrong. Changes apply to the section ``likelihood``.
    """

    def run(dataset, name="vpsde", gaussian=None, seed=0, codec=None, state=None, law=None, **changes):
        config = load(name if dataset.levels else "points")
        tolerances = (
            {"solver.rtol": 1e-4, "solver.atol": 1e-4} if changes.get("solver", "adams_pece") != "adams_pece" else {}
        )
        settings = {"batch_size": 7, "check_examples": 0, "evaluations": 32, **tolerances, **changes}
        override(config, [("sde.name", load(name).sde.name), ("seed", str(seed))])
        override(config, [(f"likelihood.{key}", str(value)) for key, value in settings.items()])
        facts = DataFacts(dataset.shape, dataset.levels, STD, 1.0)
        gaussian = gaussian or Gaussian(torch.zeros(dataset.shape, dtype=torch.float64), GUESS**2)
        experiment = build(config, facts, gaussian)
        experiment = dataclasses.replace(experiment, codec=codec or experiment.codec)
        law = law or GaussianMixture(torch.ones(1), torch.full((1, *dataset.shape), MEAN), STD**2)
        path = checkpoint.save(tmp_path / "checkpoints", 7, {}, state or {}, {})
        monkeypatch.setattr(likelihood, "load", lambda *args: (experiment, law.denoiser(experiment.sde), path))
        monkeypatch.setattr(likelihood, "read_dataset", lambda *args: dataset)
        likelihood.run(config, tmp_path, command_line.Options())
        return read(tmp_path, f"test-{config.likelihood.dequantization}")

    return run


def spread(sde, t):
    """alpha at time t, and the standard deviation of N(MEAN, STD^2) at that time."""
    alpha, sigma, _ = sde.marginal(t)
    return alpha, math.hypot(alpha * STD, sigma)


def log_normal(x, sde, t=None):
    """Nats of x (B, *) under N(MEAN, STD^2) with the noise of t_min, in double precision."""
    alpha, std = spread(sde, t or sde.t_min)
    z = (x.double() - alpha * MEAN) / std
    return (-0.5 * z**2 - math.log(math.sqrt(2 * math.pi) * std)).flatten(1).sum(1)


def log_model(x, sde, t=None):
    """The same under the model: the standard prior carried to x (B, D) by the flow, which is linear."""
    (alpha, std), (last, wide) = spread(sde, t or sde.t_min), spread(sde, sde.t_max)
    latent = last * MEAN + wide / std * (x.double() - alpha * MEAN)
    return sde.prior_log_prob(latent) + x.shape[1] * math.log(wide / std)


def quantized(levels, num=12, shape=(1, 2, 4)):
    """Draws of N(MEAN, STD^2) as integers."""
    x = MEAN + STD * torch.randn(num, *shape, generator=torch.Generator().manual_seed(0))
    return Dataset(Pixels(levels).decode(x).numpy(), np.arange(num), levels=levels)


def pointed(num=12, seed=1):
    """Draws of N(MEAN, STD^2) as points of the plane."""
    x = MEAN + STD * torch.randn(num, 2, generator=torch.Generator().manual_seed(seed))
    return Dataset(x.numpy(), np.arange(num))


def copies(dataset, dequantization, which=0, sde="vpsde"):
    """Log-density of one dequantized copy of each example, and minus the log-density of its noise; both (N,)."""
    sde, width = SDES[sde](), 2 / dataset.levels
    x, t = Pixels(dataset.levels).encode(torch.from_numpy(dataset.x)), data_time(dequantization, sde, width)
    u = uniform(0, DEQUANTIZATION, positions(0, len(x)) + which * COPY, x)
    state, log_q = DEQUANTIZATIONS[dequantization](sde, t, x, u, width)
    return log_normal(state, sde, t).numpy(), -log_q.numpy()


@pytest.mark.parametrize("sde", ["vpsde", "edm"])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bits_of_each_example_follow_from_density_and_bin_width(levels, sde, exact):
    """-log2 of density times volume of a bin, over D; the volume is (2 / levels)^D for any number of levels."""
    dataset = quantized(levels)
    result, rows = exact(dataset, sde)
    values = torch.from_numpy(dataset.x).float()
    noisy = (values + uniform(0, DEQUANTIZATION, positions(0, 12), values) - 0.5).double().flatten(1)
    nats = log_normal((noisy + 0.5) * 2 / levels - 1, SDES[sde]()) + 8 * math.log(2 / levels)
    np.testing.assert_allclose(rows["nats"], nats, atol=2e-2)
    np.testing.assert_allclose(rows["bits_per_dim"], -nats / (8 * math.log(2)), atol=5e-3)
    assert result["bits_per_dim"] == pytest.approx(-nats.mean().item() / (8 * math.log(2)), abs=2e-3)
    assert result["terms"]["scaling"] == pytest.approx(8 * math.log(2 / levels))
    assert result["terms"]["dequantization"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("sde", ["vpsde", "edm"])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_noise_cut_at_the_edges_of_bins_is_subtracted(levels, sde, exact):
    """Zheng et al., 2023: the state is alpha x + sigma z; minus log q is a separate term."""
    dataset = quantized(levels)
    result, rows = exact(dataset, sde, dequantization="truncated_normal")
    density, noise = copies(dataset, "truncated_normal", sde=sde)
    np.testing.assert_allclose(rows["nats"], density + noise, atol=2e-2)
    assert result["dequantization"] == "truncated_normal"
    assert result["terms"]["dequantization"] + result["terms"]["scaling"] == pytest.approx(noise.mean(), abs=1e-4)


def test_finer_levels_cost_their_logarithm(exact):
    """The same data in 256 instead of 16 levels: four bits more, except for the density that coarse bins lose."""
    coarse, fine = (exact(quantized(levels, num=40), **QUICK)[0]["bits_per_dim"] for levels in (16, 256))
    assert fine - coarse == pytest.approx(4, abs=0.05)


@pytest.mark.parametrize("sde", SDES)
def test_nats_of_each_point_match_the_density(sde, exact):
    """In the order of the data, for any batch size."""
    x = MEAN + STD * torch.randn(12, 2, generator=torch.Generator().manual_seed(1))
    result, rows = exact(Dataset(x.numpy(), np.arange(12)), sde)
    assert len(rows["nats"]) == 12
    mismatch = prior_term(SDES[sde](), x).max().item()
    np.testing.assert_allclose(rows["nats"], log_normal(x, SDES[sde]()), atol=2e-3 + 2 * mismatch**0.5)
    assert result["bits_per_dim"] is None
    assert result["trace"] == "exact"


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_gives_the_exact_density(solver, exact):
    points = pointed()
    result, rows = exact(points, solver=solver)
    np.testing.assert_allclose(rows["nats"], log_model(torch.from_numpy(points.x), SDES["vpsde"]()), atol=1e-3)
    assert result["settings"]["solver"]["name"] == solver


@pytest.mark.parametrize("sde", SDES)
def test_either_prior_leaves_the_error_of_the_solver(sde, exact):
    """Matched to the data's distribution it gives their density; the standard prior gives the model's."""
    points, law = pointed(), Gaussian(torch.full((2,), MEAN, dtype=torch.float64), STD**2)
    x, made = torch.from_numpy(points.x), SDES[sde]()
    for prior, expected in (("matched", log_normal(x, made)), ("standard", log_model(x, made))):
        np.testing.assert_allclose(exact(points, sde, law, prior=prior)[1]["nats"], expected, atol=1e-3, err_msg=prior)


@pytest.mark.parametrize("prior", ["standard", "matched"])
def test_the_prior_is_a_separate_term(prior, exact):
    """Changing the prior changes the terms prior and total, but not the divergence."""
    result, rows = exact(pointed(), prior=prior)
    np.testing.assert_allclose(rows["nats"], rows["prior"] + rows["divergence"], atol=1e-5)
    assert result["settings"]["prior"] == prior


def test_the_density_of_a_later_time(exact):
    points = pointed()
    result, rows = exact(points, t_min=0.1)
    np.testing.assert_allclose(rows["nats"], log_model(torch.from_numpy(points.x), SDES["vpsde"](), 0.1), atol=1e-3)
    alpha, sigma, _ = SDES["vpsde"]().marginal(0.1)
    assert (result["t"], result["noise"], result["noise_levels"]) == (0.1, sigma / alpha, None)


# --- copies and repeats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dequantization", ["uniform", "truncated_normal"])
def test_copies_are_averaged_as_probabilities(dequantization, exact):
    """log mean exp over K copies, each with its own noise; every term is present and they add up."""
    dataset = quantized(4)
    result, rows = exact(dataset, dequantization=dequantization, samples=5)
    each = np.stack([sum(copies(dataset, dequantization, k)) for k in range(5)])
    expected = scipy.special.logsumexp(each, 0) - math.log(5)
    np.testing.assert_allclose(rows["nats"], expected, atol=2e-2)
    np.testing.assert_allclose(rows["importance"], expected - each.mean(0), atol=2e-2)
    assert result["nats"] == pytest.approx(sum(result["terms"].values()), abs=1e-4)
    assert result["terms"]["importance"] > 0.1
    assert result["importance_inflation_nats"] == 0


def test_one_copy_is_the_plain_estimate(exact):
    plain, (result, rows) = exact(quantized(4))[1], exact(quantized(4), samples=1)
    assert rows["nats"].tolist() == plain["nats"].tolist()
    assert not rows["importance"].any()
    assert result["terms"]["importance"] == 0


def test_more_copies_approach_the_mass_from_below(exact):
    """Each example approaches the known log mass of its bins, and on average never exceeds it."""
    dataset, sde = quantized(4, num=40), SDES["vpsde"]()
    alpha, sigma, _ = sde.marginal(sde.t_min)
    law = scipy.stats.norm(alpha * MEAN, math.hypot(alpha * STD, sigma))
    centres = Pixels(4).encode(torch.from_numpy(dataset.x)).double().flatten(1).numpy()
    mass = np.log(law.cdf(centres + 0.25) - law.cdf(centres - 0.25)).sum(1)
    found = [exact(dataset, samples=num, **QUICK)[1]["nats"] for num in (1, 4, 16, 64)]
    gaps = [(mass - nats).mean() for nats in found]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.5
    for nats, gap in zip(found, gaps, strict=True):
        assert gap > -3 * (mass - nats).std() / 40**0.5
    assert gaps[-1] < 0.1 * gaps[0]


def test_repeats_are_averaged_as_logarithms(exact):
    """The mean of independent estimates, and the variance of that mean."""
    dataset = quantized(4)
    result, rows = exact(dataset, repeats=3, samples=2)
    single = [np.stack([sum(copies(dataset, "uniform", 2 * r + k)) for k in range(2)]) for r in range(3)]
    each = np.stack([scipy.special.logsumexp(pair, 0) - math.log(2) for pair in single])
    np.testing.assert_allclose(rows["nats"], each.mean(0), atol=2e-2)
    np.testing.assert_allclose(rows["repeat_variance"], each.var(0, ddof=1) / 3, rtol=0.02, atol=2e-3)
    assert result["repeat_stderr_nats"] == pytest.approx((rows["repeat_variance"].mean() / 12) ** 0.5)
    assert result["nfe"] == 2 * 32
    assert exact(dataset)[0]["repeat_stderr_nats"] is None


def test_repeats_estimate_the_spread_over_seeds(exact):
    """Their standard error of the mean, against the spread of the means over other seeds."""
    dataset = quantized(4, num=8)
    quick = QUICK | {"exact_trace_below": 0, "evaluations": 8}
    error = exact(dataset, repeats=8, **quick)[0]["repeat_stderr_nats"]
    means = [exact(dataset, seed=seed, repeats=2, **quick)[0]["nats"] for seed in range(30)]
    assert np.std(means, ddof=1) == pytest.approx(2 * error, rel=0.35)


# --- probes -----------------------------------------------------------------------------------------------------------


def test_a_random_trace_has_the_mean_of_the_exact_one(exact):
    """An exact Gaussian has a diagonal Jacobian, whose trace one Rademacher probe gives without error."""
    trace, _ = exact(quantized(17))
    one, rows = exact(quantized(17), exact_trace_below=0)
    assert (trace["trace"], trace["probe_stderr_nats"]) == ("exact", 0)
    assert (one["trace"], one["probe_stderr_nats"]) == ("1 rademacher", None)
    assert one["nats"] == pytest.approx(trace["nats"], abs=1e-3)
    assert np.isnan(rows["probe_variance"]).all()
    _, rows = exact(quantized(17), exact_trace_below=0, probes=2)
    assert np.abs(rows["probe_variance"]).max() < 1e-6


@pytest.mark.parametrize("solver", ["adams_pece", "dopri5"])
def test_the_spread_of_probes_is_the_standard_error_of_their_mean(solver, exact):
    """Normal probes of a diagonal Jacobian vary; rows of the exact trace lie within their errors."""
    _, trace = exact(quantized(17), solver=solver, **QUICK)
    result, rows = exact(quantized(17), solver=solver, **PROBED, probes=32, **QUICK)
    scores = (rows["nats"] - trace["nats"]) / rows["probe_variance"] ** 0.5
    assert result["trace"] == "32 gauss"
    assert result["probe_stderr_nats"] == pytest.approx((rows["probe_variance"].mean() / 12) ** 0.5)
    assert result["probe_stderr_nats"] > (0.01 if solver == "adams_pece" else 0.02)
    assert 0.4 < scores.std() < 1.8
    assert abs(scores.mean()) < 4 / 12**0.5


def test_repeats_average_the_noise_of_probes(exact):
    """For points the probes are the only randomness: the variance by repeats equals the one by probes."""
    result, rows = exact(pointed(60), **PROBED, probes=2, repeats=4, **QUICK)
    assert rows["repeat_variance"].mean() == pytest.approx(rows["probe_variance"].mean(), rel=0.4)
    errors = rows["nats"] - exact(pointed(60), **QUICK)[1]["nats"]
    assert np.square(errors).mean() == pytest.approx(rows["repeat_variance"].mean(), rel=0.4)
    assert result["probe_stderr_nats"] == pytest.approx(result["repeat_stderr_nats"], rel=0.2)


def test_importance_reports_the_excess_from_probe_noise(exact):
    """Weights by noisy densities favour overestimates; the result reports the average excess."""
    dataset, changes = quantized(17, num=400), PROBED | QUICK | {"samples": 4, "probes": 2, "batch_size": 400}
    _, clean = exact(dataset, **changes | {"probe": "rademacher"})  # without error, as the Jacobian is diagonal
    result, noisy = exact(dataset, **changes)
    gain = noisy["nats"] - clean["nats"]
    assert result["importance_inflation_nats"] == pytest.approx(gain.mean(), abs=3 * gain.std() / 20)
    assert result["importance_inflation_nats"] > 5 * gain.std() / 20
    assert np.abs(clean["inflation"]).max() < 1e-6


def test_errors_of_copies_have_the_weights_of_the_copies(exact, monkeypatch):
    """Two copies with densities 1 to 3 and variances 0.4 and 0.8, in two repeats."""
    solve = DensityEstimator._solve

    def known(self, x, *args):
        found, pairs = solve(self, x, *args), len(x) // 2
        nats, variance = (torch.tensor(values).double().repeat(pairs) for values in ([0.0, math.log(3)], [0.4, 0.8]))
        return found._replace(nats=nats, variance=variance)

    monkeypatch.setattr(DensityEstimator, "_solve", known)
    result, rows = exact(quantized(17), samples=2, repeats=2, **QUICK)
    np.testing.assert_allclose(rows["probe_variance"], (0.4 / 16 + 0.8 * 9 / 16) / 2, rtol=1e-6)
    np.testing.assert_allclose(rows["inflation"], 0.5 * 3 / 16 * (0.4 + 0.8), rtol=1e-6)
    np.testing.assert_allclose(rows["importance"], math.log(2) - 0.5 * math.log(3), rtol=1e-6)
    assert result["probe_stderr_nats"] == pytest.approx(math.sqrt(0.2375 / 12))
    assert result["importance_inflation_nats"] == pytest.approx(0.1125)


@pytest.mark.parametrize(("probe", "probes"), [("gauss", 1), ("gauss", 4), ("rademacher", 2), ("orthogonal", 2)])
def test_the_check_estimates_the_error_of_the_probes(probe, probes, exact):
    """For one measurement, from its own examples, against the spread around the exact trace."""
    dataset = quantized(17, num=80)
    trace = {"exact_trace_below": 0, "probe": probe, "probes": probes}
    result, rows = exact(dataset, **{**QUICK, "check_examples": 80}, **trace)
    error = rows["nats"] - exact(dataset, **QUICK)[1]["nats"]
    found = result["check"]["probe_error"]
    assert found == pytest.approx(np.square(error).mean() ** 0.5, rel=0.4, abs=2e-4)


@pytest.mark.parametrize(("evaluations", "reference"), [(3, 12), (5, 10)])
def test_the_check_estimates_the_error_of_the_solver(evaluations, reference, exact):
    """For coarse solvers, against the closed form; the reference is refined until two agree."""
    points, sde = pointed(), SDES["vpsde"]()
    result, rows = exact(points, evaluations=evaluations, check_examples=12)
    error = rows["nats"] - log_model(torch.from_numpy(points.x), sde).numpy()
    check = result["check"]
    assert check["solver_error"] == pytest.approx(np.square(error).mean() ** 0.5, rel=0.3)
    assert check["mean_error"] == pytest.approx(error.mean(), abs=check["mean_error_margin"])
    assert check.items() >= {"examples": 12, "probe_error": 0, "against": f"{reference} evaluations"}.items()


class Levels:
    """Independent pixels, each a level with probabilities that have two modes."""

    def __init__(self, levels):
        centres = (torch.arange(levels).double() + 0.5) * 2 / levels - 1
        weights = torch.exp(-0.5 * ((centres + 0.5) / 0.25) ** 2) + 0.6 * torch.exp(-0.5 * ((centres - 0.4) / 0.3) ** 2)
        self.levels, self.law = levels, GaussianMixture(weights, centres[:, None], 0.0)

    def dataset(self, num, shape=(1, 2, 2)):
        x = self.law.sample(num * math.prod(shape), torch.Generator().manual_seed(0)).reshape(num, *shape)
        return Dataset(Pixels(self.levels).decode(x.float()).numpy(), np.arange(num), levels=self.levels)

    def denoiser(self, sde):
        return lambda x, t: Prediction(self.law.denoiser(sde)(x.reshape(-1, 1), t).x0.reshape(x.shape).to(x))

    def bound(self, dataset, sde):
        """log p - log q of each example at the noise that the engine draws, in nats."""
        width, x = 2 / self.levels, Pixels(self.levels).encode(torch.from_numpy(dataset.x))
        t, u = data_time("truncated_normal", sde, width), uniform(0, DEQUANTIZATION, positions(0, len(x)), x)
        state, log_q = DEQUANTIZATIONS["truncated_normal"](sde, t, x, u, width)
        return (self.law.denoiser(sde).log_prob(state.reshape(-1, 1), t).reshape(len(x), -1).sum(1) - log_q).numpy()


BARE = {"dequantization": "truncated_normal", "batch_size": 100, "check_examples": 8}


def test_bare_levels_are_solved_with_the_default_evaluations(exact):
    """256 levels, whose flow is fast close to the data; against the exact density of each example."""
    law = Levels(256)
    dataset = law.dataset(100)
    expected = law.bound(dataset, SDES["vpsde"]()).mean()
    result, _ = exact(dataset, law=law, **BARE)
    assert result["nats"] == pytest.approx(expected, abs=0.05 * result["nats_stderr"])
    assert abs(result["check"]["mean_error"]) < 0.05 * result["nats_stderr"]


def test_a_bound_above_the_density_is_not_reported_as_converged(exact, monkeypatch, capsys):
    """Without nodes close to the data, 32 evaluations are far off: verdict and interval show it."""
    monkeypatch.setattr(density, "edge", lambda name: 0.0)
    law = Levels(256)
    dataset = law.dataset(100)
    result, rows = exact(dataset, law=law, **BARE)
    error = rows["nats"] - law.bound(dataset, SDES["vpsde"]())
    assert error.mean() > 2 * result["nats_stderr"]
    assert result["check"]["mean_error"] == pytest.approx(error[:8].mean(), rel=0.1)
    low, high = result["nats_interval"]
    assert low < law.bound(dataset, SDES["vpsde"]()).mean() < high
    assert "NOT CONVERGED: it is " in (out := capsys.readouterr().out)
    assert " nats too likely on average, not below the standard error: set likelihood.evaluations=0\n" in out
    assert all(len(line) <= 120 for line in out.splitlines()[:-1])


def test_automatic_evaluations_suffice_for_the_solver(exact, monkeypatch):
    """They start at 32 for random probes and end once the error is below the sample's."""
    monkeypatch.setattr(density, "edge", lambda name: 0.0)
    law = Levels(64)
    dataset = law.dataset(100)
    expected = law.bound(dataset, SDES["vpsde"]()).mean()
    result, _ = exact(dataset, law=law, **BARE, evaluations=0, exact_trace_below=0)
    assert result["nfe"] in (64, 128, 256)
    assert result["solver"] == f"adams_pece, {result['nfe']:.0f} evaluations"
    assert abs(result["nats"] - expected) < result["nats_stderr"]
    easy, _ = exact(quantized(17), **PROBED, evaluations=0, check_examples=4)
    assert (easy["nfe"], easy["check"]["against"]) == (32, "64 evaluations")


def test_the_interval_of_a_spiral_covers_its_exact_density(exact):
    """Points of the plane with the exact trace: automatic evaluations leave almost no solver error."""
    angle = 1.5 * math.pi + 3 * math.pi * (torch.arange(100).double() + 0.5) / 100
    curve = 0.1 * angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    law, sde = GaussianMixture(torch.ones(100).double(), curve, 0.03**2), SDES["vpsde"]()
    x = law.sample(200, torch.Generator().manual_seed(0)).float()
    changes = {"law": law, "batch_size": 200, "check_examples": 8}
    result, rows = exact(Dataset(x.numpy(), np.arange(200)), evaluations=0, **changes)
    expected = law.denoiser(sde).log_prob(x.double(), sde.t_min).numpy()
    assert result["nats"] == pytest.approx(expected.mean(), abs=0.02 * result["nats_stderr"])
    assert result["check"]["mean_error"] == pytest.approx(0, abs=0.02 * result["nats_stderr"])
    few, rows = exact(Dataset(x.numpy(), np.arange(200)), evaluations=16, **changes)
    low, high = few["nats_interval"]
    assert low < expected.mean() < high
    assert high - low > interval(rows["nats"])[1] - interval(rows["nats"])[0]


@pytest.mark.parametrize(
    ("dimensions", "exact", "evaluations"), [(1, True, 128), (16, True, 128), (32, True, 64), (64, True, 32)]
)
def test_few_dimensions_start_with_many_evaluations(dimensions, exact, evaluations):
    assert density.start(dimensions, exact) == evaluations
    assert density.start(dimensions, False) == 32


def test_the_check_of_an_adaptive_solver_takes_a_tenth_of_the_tolerance(exact):
    result, _ = exact(pointed(), solver="dopri5", check_examples=4)
    assert result["check"]["against"] == "rtol 1e-05, atol 1e-05"
    assert result["check"]["solver_error"] < 1e-3


def test_the_check_takes_at_most_as_many_orthogonal_probes_as_dimensions(exact):
    result, _ = exact(pointed(), exact_trace_below=0, probe="orthogonal", probes=2, check_examples=4)
    assert result["check"]["probe_error"] == 0
    assert result["probe_stderr_nats"] == 0


def test_one_dimension_uses_the_exact_trace(exact):
    line = Dataset(pointed().x[:, :1], np.arange(12))
    result, rows = exact(line, **PROBED)
    assert result["trace"] == "exact"
    np.testing.assert_allclose(rows["nats"], log_model(torch.from_numpy(line.x), SDES["vpsde"]()), atol=1e-3)


def test_the_check_can_be_left_out(exact):
    assert exact(pointed(), check_examples=0)[0]["check"] is None
    assert exact(pointed(), check_examples=100)[0]["check"]["examples"] == 12


def test_the_prior_mismatch_of_each_example_is_reported(exact):
    """From the data, which a state at time t scales by alpha."""
    points, sde = pointed(), SDES["vpsde"]()
    for t in (0.0, 0.5):
        result, rows = exact(points, t_min=t)
        expected = prior_term(sde, torch.from_numpy(points.x) / sde.marginal(t or sde.t_min).alpha)
        np.testing.assert_allclose(rows["mismatch"], expected, rtol=1e-5)
        assert result["prior_mismatch_nats"] == pytest.approx(rows["mismatch"].mean())


@pytest.mark.parametrize("sde", SDES)
def test_the_mismatch_of_the_prior_is_a_divergence_between_normals(sde):
    """Against torch's own, for the end point of each example."""
    made, x = SDES[sde](), torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma, _ = made.marginal(made.t_max)
    end = torch.distributions.Normal(alpha * x, torch.full_like(x, sigma))
    prior = torch.distributions.Normal(torch.zeros_like(x), torch.full_like(x, made.prior_std))
    expected = torch.distributions.kl_divergence(end, prior).flatten(1).sum(1)
    torch.testing.assert_close(prior_term(made, x), expected, rtol=1e-9, atol=1e-12)


# --- uncertainty ------------------------------------------------------------------------------------------------------


def test_the_interval_is_students(exact):
    """By scipy, from the rows; in bits the ends change places."""
    result, rows = exact(quantized(17, num=5))
    expected = scipy.stats.t.interval(0.95, 4, rows["nats"].mean(), scipy.stats.sem(rows["nats"]))
    assert result["nats_interval"] == pytest.approx(expected)
    low, high = result["bits_per_dim_interval"]
    assert low < result["bits_per_dim"] < high
    assert [low, high] == pytest.approx([-end / (8 * math.log(2)) for end in expected[::-1]])


def test_the_interval_includes_the_error_of_the_solver():
    """It extends on the side of the bias only, and in quadrature by the bias's uncertainty."""
    values = np.array([1.0, 2.0, 4.0])
    low, high = interval(values)
    assert interval(values, 0.5) == pytest.approx([low - 0.5, high])
    assert interval(values, -0.5) == pytest.approx([low, high + 0.5])
    reach = math.hypot(values.mean() - low, 2.0)
    assert interval(values, 0.5, 2.0) == pytest.approx([values.mean() - reach - 0.5, values.mean() + reach])


def test_the_interval_covers_the_entropy_of_the_data(exact):
    """In 95 of 100 groups of four examples, including the noise of probes and repeats.

    Single probes spread the rows more than the data do, and the interval has to include that. The data have many
    dimensions, where a log-density is nearly normal; for four examples, two standard errors would cover too few.
    """
    _, std = spread(SDES["vpsde"](), SDES["vpsde"]().t_min)
    mean = -16 * math.log(2 * math.pi * math.e * std**2)  # mean nats of an example in 32 dimensions
    x = MEAN + STD * torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    changes = (
        PROBED
        | QUICK
        | {"solver": "dopri5", "solver.rtol": 1e-2, "solver.atol": 1e-2, "batch_size": 2000, "repeats": 2}
    )
    result, rows = exact(Dataset(x.numpy(), np.arange(2000)), **changes)
    assert result["repeat_stderr_nats"] > 0.3 * result["nats_stderr"]
    groups = rows["nats"].reshape(500, 4)
    held = np.mean([low < mean < high for low, high in map(interval, groups)])
    assert 0.93 < held < 0.97
    assert np.mean([abs(group.mean() - mean) < group.std(ddof=1) for group in groups]) < 0.9


# --- a trained run ----------------------------------------------------------------------------------------------------


def test_files_rows_and_sums(digits, measured):
    result, rows = measured(digits, 5, "--config.likelihood.probes=3", "--batch_size=2")
    assert {path.name for path in (digits / "likelihood").iterdir()} >= {"test-uniform.json", "test-uniform.npz"}
    assert set(KEYS) <= result.keys()
    assert {len(column) for column in rows.values()} == {5}
    assert result["nats"] == pytest.approx(sum(result["terms"].values()), abs=1e-4)
    scaling = 64 * math.log(2 / 17)
    np.testing.assert_allclose(rows["nats"], rows["prior"] + rows["divergence"] + scaling, atol=1e-3)
    np.testing.assert_allclose(rows["bits_per_dim"], -rows["nats"] / (64 * math.log(2)))
    for key in ("nats", "bits_per_dim"):
        assert result[key] == pytest.approx(rows[key].mean())
        assert result[f"{key}_stderr"] == pytest.approx(rows[key].std(ddof=1) / 5**0.5)
    assert (rows["probe_variance"] > 0).all()
    assert result["probe_stderr_nats"] == pytest.approx((rows["probe_variance"].mean() / 5) ** 0.5)
    assert result["prior_mismatch_nats"] == pytest.approx(rows["mismatch"].mean())
    expected = {"trace": "3 rademacher", "num_examples": 5, "split": "test", "checkpoint_step": 8, "nfe": 8}
    expected |= {"dequantization": "uniform", "sde": "vpsde", "weights": "ema", "traces": 8, "scored_before": 0}
    assert result.items() >= expected.items()
    assert result["settings"]["probes"] == 3
    assert result["t"] == 1e-5
    assert result["noise_levels"] == pytest.approx(result["noise"] * 17 / 2)
    assert result["seconds"] > 0


@pytest.mark.parametrize("words", [(), ("--config.likelihood.solver=dopri5", "--config.likelihood.solver.rtol=1e-2")])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_rows_do_not_depend_on_the_batch_size(digits, measured, batch_size, words):
    _, rows = measured(digits, 4, f"--batch_size={batch_size}", "--config.likelihood.probes=2", *words)
    _, others = measured(digits, 9, "--batch_size=9", "--config.likelihood.probes=2", *words)
    for key, column in rows.items():
        np.testing.assert_allclose(column, others[key][:4], rtol=1e-4, atol=2e-3, err_msg=key)


def test_each_example_is_scored_once(points, measured, monkeypatch):
    """The batches make up the split, in order."""
    seen, batch = [], Dataset.batch
    monkeypatch.setattr(Dataset, "batch", lambda self, indices: [seen.extend(indices), batch(self, indices)][1])
    monkeypatch.setattr("score_sde.data.points.SIZES", {"train": 20, "test": 11})
    for num, expected in ((0, 11), (100, 11), (7, 7)):
        seen.clear()
        result, rows = measured(points, num, "--batch_size=4", name="test-none")
        assert seen == list(range(expected))
        assert result["num_examples"] == len(rows["nats"]) == expected
    seen.clear()
    _, rows = measured(points, 0, "--batch_size=8", "--split=train", name="train-none")
    assert seen == list(range(20))
    assert len(rows["nats"]) == 20


def test_bits_are_refused_for_real_numbers(points, measured, capsys):
    result, rows = measured(points, 6, name="test-none")
    assert result["bits_per_dim"] is None
    assert result["bits_per_dim_stderr"] is None
    assert result["bits_per_dim_interval"] is None
    assert "bits_per_dim" not in rows
    assert result["trace"] == "exact"
    assert result["terms"]["scaling"] == 0
    out = capsys.readouterr().out
    assert "nats an example (no dequantization), 95 % interval " in out
    assert "bits/dim are for data of whole numbers; these are real-valued" in out
    assert "noise of standard deviation 0.001 units of the data" in out


def test_output_in_bits(digits, measured, capsys):
    measured(
        digits, 3, "--config.likelihood.samples=2", "--config.likelihood.probes=2", "--config.likelihood.repeats=2"
    )
    out = capsys.readouterr().out
    assert "bits/dim (uniform dequantization, 2 copies weighted by importance), 95 % interval " in out
    assert "densities may exceed 1, so nats may be positive" in out
    assert "data with noise of standard deviation 0.0085 levels (time 1e-05)" in out
    assert "nats are noise of the probes, which importance counts as likelihood" in out
    assert "by probes alone" in out
    assert "by 2 repeats alone" in out
    assert "3 examples once each, 16 evaluations of the network for each, 16 of them with the divergence" in out
    assert all(len(line) <= 120 for line in out.splitlines()[:-1])


def test_output_of_the_check(exact, capsys):
    exact(pointed(), check_examples=8)
    assert "nats off one of 64 evaluations on 8 examples, and the trace is exact" in capsys.readouterr().out
    exact(pointed(), **PROBED, check_examples=8)
    assert " of its random probes\n" in capsys.readouterr().out
    exact(pointed(), **PROBED, evaluations=2, check_examples=8)
    assert "not below the " in (out := capsys.readouterr().out)
    assert "NOT CONVERGED: it is " in out
    exact(pointed(), check_examples=0)
    assert "the solver's error was not measured, for likelihood.check_examples is 0" in capsys.readouterr().out


def test_one_example_has_no_standard_error(digits, measured, capsys):
    result, _ = measured(digits, 1)
    assert result["nats_stderr"] == result["bits_per_dim_stderr"] == 0
    assert result["nats_interval"] is result["bits_per_dim_interval"] is None
    assert "bits/dim (uniform dequantization), from one example" in capsys.readouterr().out


def test_splits_checkpoints_and_weights_differ(digits, measured):
    measured(digits, 2, "--split=train")
    found = [read(digits, "train-uniform")[1]["nats"].tolist()]
    for words in ((), ("--weights=raw",), ("--checkpoint=4",)):
        result, rows = measured(digits, 2, *words)
        assert result["weights"] == ("raw" if "--weights=raw" in words else "ema")
        assert result["checkpoint_step"] == (4 if "--checkpoint=4" in words else 8)
        found.append(rows["nats"].tolist())
    assert len({tuple(nats) for nats in found}) == 4


def test_the_noise_follows_the_seed(digits, measured):
    rows = [measured(digits, 2, f"--seed={seed}")[1]["nats"] for seed in (0, 0, 1)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "adams_pece"])
def test_another_solver_agrees(points, measured, solver):
    tight = ("--config.likelihood.solver.rtol=1e-5", "--config.likelihood.solver.atol=1e-5")
    _, own = measured(points, 4, "--config.likelihood.evaluations=128", name="test-none")
    result, other = measured(points, 4, f"--config.likelihood.solver={solver}", *tight, name="test-none")
    assert result["settings"]["solver"]["name"] == solver
    np.testing.assert_allclose(own["nats"], other["nats"], atol=5e-3)


def test_fewer_traces_are_counted(digits, measured):
    result, _ = measured(digits, 2, "--config.likelihood.solver.traces=3")
    assert (result["nfe"], result["traces"]) == (8, 3)


def test_the_time_of_the_density_can_be_later(digits, measured):
    early, _ = measured(digits, 2)
    late, _ = measured(digits, 2, "--config.likelihood.t_min=1e-2")
    assert late["t"] == 1e-2
    assert late["noise"] > early["noise"]
    assert late["nats"] != early["nats"]


# --- killed and resumed -----------------------------------------------------------------------------------------------

NAME = "test-none"
TWO = ("--config.likelihood.exact_trace_below=0", "--config.likelihood.probes=2", "--batch_size=4", *FAST)


def score(workdir, num, *words):
    """Exit status of a measurement of points."""
    flags = (f"--workdir={workdir}", f"--config.likelihood.num_examples={num}")
    return command("--mode=likelihood", *flags, *TWO, *words)


class Batches(list):
    """Scored batches, and the number of them after which the next one is interrupted."""

    stop = None


@pytest.fixture
def scored(monkeypatch):
    """Records the batches that are scored."""
    found, measure = Batches(), DensityEstimator.score

    def count(self, dataset, examples):
        if len(found) == found.stop:
            raise KeyboardInterrupt
        found.append(examples)
        return measure(self, dataset, examples)

    monkeypatch.setattr(DensityEstimator, "score", count)
    return found


@pytest.fixture
def copied(points, tmp_path):
    """A copy of the run."""
    return shutil.copytree(points, tmp_path / "run", ignore=shutil.ignore_patterns("likelihood"))


@pytest.fixture
def undisturbed(points, tmp_path):
    """Bytes of the rows of the first 11 points, from one command."""
    workdir = shutil.copytree(points, tmp_path / "undisturbed", ignore=shutil.ignore_patterns("likelihood"))
    assert score(workdir, 11) == 0
    return (workdir / "likelihood" / f"{NAME}.npz").read_bytes()


def test_an_interrupted_measurement_resumes(copied, undisturbed, scored, capsys):
    """Each example is scored once in all, and the rows equal an uninterrupted command's bit for bit."""
    scored.stop = 2
    assert score(copied, 11) == 130
    assert [path.name.split(".")[1][:5] for path in unfinished(copied)] == ["rows-"]
    assert not (copied / "likelihood" / f"{NAME}.npz").exists()
    capsys.readouterr()
    scored.stop = None
    assert score(copied, 11) == 0
    assert scored == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert (copied / "likelihood" / f"{NAME}.npz").read_bytes() == undisturbed
    assert read(copied, NAME)[0]["scored_before"] == 8
    assert "8 of 11 examples were scored by an earlier command: going on with the others" in capsys.readouterr().out
    assert not unfinished(copied)


@pytest.mark.parametrize("left", [1, 30, -1])
def test_a_last_line_that_was_cut_off_is_scored_again(left, copied, undisturbed, scored):
    """The whole batch is scored again, so that the bits are the same."""
    scored.stop = 2
    assert score(copied, 11) == 130
    (path,) = unfinished(copied)
    whole = path.read_bytes()
    last = whole.rindex(b"\n") + 1
    path.write_bytes(whole[: last + left] if left > 0 else whole[:left])
    scored.stop = 3
    assert score(copied, 11) == 130
    scored.stop = None
    assert score(copied, 11) == 0
    assert scored == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7], [8, 9, 10]]
    assert (copied / "likelihood" / f"{NAME}.npz").read_bytes() == undisturbed


def test_a_full_disk_loses_one_batch(copied, undisturbed, scored, monkeypatch, capsys):
    append, calls = PartialResults.append, []

    def full(self, examples, columns):
        calls.append(examples)
        if len(calls) == 2:
            self.path.write_bytes(self.path.read_bytes() + b'\n{"example": [4, 5')
            raise OSError(28, "No space left on device", str(self.path))
        append(self, examples, columns)

    monkeypatch.setattr(PartialResults, "append", full)
    assert score(copied, 11) == 3
    assert capsys.readouterr().err.endswith("free some space and run the same command to go on\n")
    assert score(copied, 11) == 0
    assert scored == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7], [8, 9, 10]]
    assert (copied / "likelihood" / f"{NAME}.npz").read_bytes() == undisturbed


def test_killed_after_the_last_batch(copied, undisturbed, scored, monkeypatch):
    """Nothing is left to score."""

    def killed(*args, **arrays):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(likelihood, "write_npz", killed)
        assert score(copied, 11) == 130
    assert score(copied, 11) == 0
    assert len(scored) == 3
    assert (copied / "likelihood" / f"{NAME}.npz").read_bytes() == undisturbed


@pytest.mark.parametrize(("num", "others"), [(15, [[8, 9, 10, 11], [12, 13, 14]]), (8, []), (6, [])])
def test_more_and_fewer_examples_reuse_the_stored_rows(num, others, copied, scored):
    scored.stop = 2
    assert score(copied, 11) == 130
    scored.stop = None
    assert score(copied, num) == 0
    assert scored[2:] == others
    result, rows = read(copied, NAME)
    assert len(rows["nats"]) == num
    assert result["scored_before"] == min(num, 8)
    assert score(copied, num) == 0
    np.testing.assert_allclose(read(copied, NAME)[1]["nats"], rows["nats"], atol=1e-4)
    assert read(copied, NAME)[0]["scored_before"] == 0


def test_a_smaller_batch_size_reuses_the_stored_rows(copied, scored):
    """The remedy for running out of memory."""
    scored.stop = 1
    assert score(copied, 11) == 130
    scored.stop = None
    assert score(copied, 11, "--batch_size=3", "--config.likelihood.check_examples=2") == 0
    assert scored == [[0, 1, 2, 3], [4, 5], [6, 7, 8], [9, 10]]


@pytest.mark.parametrize(
    "word",
    [
        "--seed=1",
        "--weights=raw",
        "--config.likelihood.evaluations=9",
        "--config.likelihood.probe=gauss",
        "--config.likelihood.prior=matched",
        "--config.likelihood.t_min=1e-2",
        "--config.denoiser.sigma_data=0.4",
        "--config.data.name=swiss_roll",
    ],
)
def test_other_settings_are_scored_again(word, copied, scored, capsys):
    scored.stop = 2
    assert score(copied, 11) == 130
    scored.stop = None
    assert score(copied, 11, word, "--allow_changes") == 0
    assert scored[2:] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert "is of other settings, seed, checkpoint, weights or data: starting anew" in capsys.readouterr().out
    assert not unfinished(copied)


def test_returning_to_the_first_settings_reuses_their_rows(copied, undisturbed, scored):
    """As long as no other measurement has finished."""
    for stop, words in ((2, ()), (3, ("--seed=1",)), (None, ())):
        scored.stop = stop
        assert score(copied, 11, *words) == (0 if stop is None else 130)
    assert scored == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3], [8, 9, 10]]
    assert (copied / "likelihood" / f"{NAME}.npz").read_bytes() == undisturbed


def test_rows_belong_to_the_content_of_a_checkpoint_not_its_name(exact, scored):
    """Another training run has other weights under the same step, for the same data."""
    scored.stop = 1
    with pytest.raises(KeyboardInterrupt):
        exact(pointed(), state={"weights": 1})
    scored.stop = None
    assert exact(pointed(), state={"weights": 2})[0]["scored_before"] == 0
    assert scored == [[*range(7)], [*range(7)], [*range(7, 12)]]


@pytest.mark.slow
def test_a_killed_measurement_resumes(copied, tmp_path, scored):
    """SIGKILL after the first row."""
    words = ("--config.threads=1", "--config.likelihood.evaluations=60", "--batch_size=1")
    flags = (f"--workdir={copied}", "--config.likelihood.num_examples=11", *TWO, *words)
    process = subprocess.Popen([sys.executable, "run.py", "--mode=likelihood", *flags], cwd=ROOT)
    while not unfinished(copied) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert score(copied, 11, *words) == 0
    assert 0 < len(scored) < 11
    assert read(copied, NAME)[0]["scored_before"] == 11 - len(scored)
    whole = shutil.copytree(copied, tmp_path / "whole", ignore=shutil.ignore_patterns("likelihood"))
    assert score(whole, 11, *words) == 0
    same = [(folder / "likelihood" / f"{NAME}.npz").read_bytes() for folder in (copied, whole)]
    assert same[0] == same[1]


# --- several processes ------------------------------------------------------------------------------------------------


ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # for torchrun; nothing is sent there


@pytest.fixture
def second(monkeypatch):
    """This process as the second of two, without a first one."""
    with monkeypatch.context() as patch:
        for key, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", **ADDRESS}.items():
            patch.setenv(key, value)
        patch.setattr(ranks, "wait_for_all", lambda: None)
        patch.setattr(ranks, "check_alike", lambda *given: None)
        yield patch


def test_the_second_of_two_processes_scores_its_batches_silently(copied, undisturbed, scored, second, capfd):
    """Every second batch, without check, result or output. A single process then scores the rest."""
    capfd.readouterr()
    second.setattr(DensityEstimator, "_check", None)
    assert score(copied, 11, "--config.likelihood.check_examples=4") == 0
    assert scored == [[4, 5, 6, 7]]
    assert tuple(capfd.readouterr()) == ("", "")
    assert [path.name[-8:] for path in (copied / "likelihood").iterdir()] == ["-1.jsonl"]
    second.undo()
    assert score(copied, 11) == 0
    assert scored[1:] == [[0, 1, 2, 3], [8, 9, 10]]
    assert (copied / "likelihood" / f"{NAME}.npz").read_bytes() == undisturbed
    assert not unfinished(copied)


FAILING = """
import os, signal, sys, time
from pathlib import Path

from score_sde import run
from score_sde.engine.density import DensityEstimator
from score_sde.sde_lib import NonFiniteError

measure, batches = DensityEstimator.score, []


def fail(self, dataset, examples):
    if os.environ["RANK"] == "1" and batches:
        while sum(path.read_text().count("nats") for path in Path("{folder}").glob("*-0.jsonl")) < 3:
            time.sleep(0.01)  # until the other has done its share, and waits
        if "{how}" == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise NonFiniteError("nothing is well", examples[0])
    batches.append(examples)
    return measure(self, dataset, examples)


DensityEstimator.score = fail
sys.exit(run.main(sys.argv))
"""


def torchrun(script, *words):
    """Runs a script in two processes and returns their output."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(copied, undisturbed):
    words = (f"--workdir={copied}", "--config.likelihood.num_examples=11", *TWO, "--config.threads=1")
    done = torchrun("run.py", "--mode=likelihood", *words)
    assert done.returncode == 0
    assert (copied / "likelihood" / f"{NAME}.npz").read_bytes() == undisturbed
    assert not unfinished(copied)
    assert done.stdout.count("nats an example") == 1
    assert done.stdout.startswith("test: ")
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_failing_process_ends_the_other_and_a_single_one_resumes(how, copied, undisturbed, tmp_path, scored):
    """The other process is waiting for it at that time, and must not wait forever."""
    script = FAILING.replace("{how}", how).replace("{folder}", str(copied / "likelihood"))
    (tmp_path / "failing.py").write_text(script)
    words = (f"--workdir={copied}", "--config.likelihood.num_examples=11", *TWO, "--config.threads=1", "--batch_size=2")
    done = torchrun(str(tmp_path / "failing.py"), "--mode=likelihood", *words)
    assert done.returncode != 0
    assert ("error: example 6: nothing is well" in done.stderr) == (how == "failed")
    assert not (copied / "likelihood" / f"{NAME}.npz").exists()
    assert len(unfinished(copied)) == 2
    assert score(copied, 11, "--batch_size=2") == 0
    assert scored == [[6, 7], [10]]
    found, expected = read(copied, NAME)[1], dict(np.load(io.BytesIO(undisturbed)))
    for key, column in found.items():
        np.testing.assert_allclose(column, expected[key], rtol=1e-4, atol=1e-4, err_msg=key)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dequantization=none", "likelihood.dequantization 'none', but the data are whole numbers: use 'uniform'"),
        ("dequantization=variational", "unknown dequantization 'variational'; known: none, truncated_normal, uniform"),
        ("dequantization=unifrom", "unknown dequantization 'unifrom'; did you mean 'uniform'?"),
        ("t_min=1e-9", "likelihood at t = 1e-09: the network was trained on [1e-05, 1.0]"),
        ("t_min=-1", "likelihood at t = -1.0: the network was trained on [1e-05, 1.0]"),
        ("t_min=-1e-9 dequantization=truncated_normal", "likelihood at t = -1e-09: the network was trained on "),
        ("t_min=1.0", "likelihood at t = 1.0: the network was trained on [1e-05, 1.0]"),
        ("probes=0", "likelihood.probes 0: need 1 to 1e6"),
        ("batch_size=-1", "likelihood.batch_size -1: need at least 0"),
        ("num_examples=-3", "likelihood.num_examples -3: need at least 0"),
        ("check_examples=-1", "likelihood.check_examples -1: need at least 0"),
        ("samples=0", "likelihood.samples 0: need 1 to 1e6"),
        ("repeats=0", "likelihood.repeats 0: need 1 to 1e6"),
        ("evaluations=1", "evaluations 1: need at least 2, one at each end"),
        ("solver.traces=1", "traces 1: need 0 (all), or 2 to 32, the number of evaluations"),
        ("solver.traces=33", "traces 33: need 0 (all), or 2 to 32, the number of evaluations"),
        ("probe=gaus", "unknown probe 'gaus'; did you mean 'gauss'?"),
        ("probe=gaus exact_trace_below=100", "unknown probe 'gaus'; did you mean 'gauss'?"),
        ("prior=matchd", "unknown prior 'matchd'; did you mean 'matched'?"),
        ("solver=adams_pec", "unknown solver 'adams_pec'; did you mean 'adams_pece'?"),
        ("solver=dopri8", "unknown solver 'dopri8'; did you mean "),
        ("solver.rtol=0 solver=dopri5", "likelihood.solver.rtol 0.0: need above 0 to 1, usually 1e-5"),
        ("solver.atol=-1 solver=dopri5", "likelihood.solver.atol -1.0: need a number above 0, usually 1e-5"),
        ("solver.atol=0 solver=torchdiffeq_dopri8", "likelihood.solver.atol 0.0: need a number above 0, usually 1e-5"),
        ("probe=orthogonal probes=65", "65 orthogonal probes in 64 dimensions: need at most 64"),
        ("probe=orthogonal probes=65 check_examples=0", "65 orthogonal probes in 64 dimensions: need at most 64"),
        ("samples=2", "likelihood.samples 2: importance weights turn the noise of the probes"),
    ],
)
def test_invalid_settings_are_refused(words, message, digits, capsys):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    flags = [f"--config.likelihood.{word}" for word in words.split()]
    assert command("--mode=likelihood", f"--workdir={digits}", *flags) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {message}")
    assert captured.out == ""
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_importance_takes_the_exact_trace_or_more_probes(digits, measured):
    for word in ("--config.likelihood.probes=2", "--config.likelihood.exact_trace_below=65"):
        measured(digits, 1, "--config.likelihood.samples=2", word)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dequantization=uniform", "likelihood.dequantization 'uniform', but the data are real-valued: use 'none'"),
        (
            "dequantization=truncated_normal",
            "likelihood.dequantization 'truncated_normal', but the data are ",
        ),
        ("samples=2", "likelihood.samples 2: without dequantization all copies are equal; use 1"),
        ("repeats=2", "likelihood.repeats 2: nothing is random with the exact trace; use 1"),
    ],
)
def test_invalid_settings_for_real_numbers_are_refused(words, message, points, capsys):
    assert command("--mode=likelihood", f"--workdir={points}", f"--config.likelihood.{words}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_data_of_another_form_are_refused(digits, monkeypatch, capsys):
    """The digits with half of their rows."""
    whole = read_digits("test")
    halves = Dataset(whole.x[:, :, :4], whole.rows, levels=17)
    monkeypatch.setattr(likelihood, "read_dataset", lambda *args: halves)
    assert command("--mode=likelihood", f"--workdir={digits}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the data have shape (1, 4, 8) and 17 levels, the run (1, 8, 8), 17" in line


class Latents(Identity):
    """A codec that discards information."""

    def log_det(self, shape):
        return None


def test_a_codec_without_a_determinant_is_refused(exact, tmp_path):
    with pytest.raises(ValueError, match="codec 'identity' has no log-determinant, so the density of the data"):
        exact(pointed(), codec=Latents(0))
    assert not (tmp_path / "likelihood").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("consistency_training", "is a consistency model: it has no density"),
        ("classification", "is a classifier, which draws nothing and has no density"),
    ],
)
def test_runs_without_a_density_are_refused(name, message, copied, capsys):
    assert (
        command("--mode=likelihood", f"--workdir={copied}", f"--config.loss.objective={name}", "--allow_changes") == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (copied / "likelihood").exists()


@pytest.mark.parametrize("check", [0, 8])
def test_non_finite_weights_are_named(check, copied, monkeypatch, capsys):
    """Before anything is written, with a check and without."""
    loaded = likelihood.load

    def broken(*args):
        experiment, denoiser, found = loaded(*args)
        for weights in experiment.network.parameters():
            weights.fill_(torch.nan)
        return experiment, denoiser, found

    monkeypatch.setattr(likelihood, "load", broken)
    assert score(copied, 3, f"--config.likelihood.check_examples={check}") == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: example 0: the network is not finite at t = 1e-05, log-SNR ")
    assert line.endswith("; check the weights and the data")
    assert not (copied / "likelihood").exists()


@pytest.mark.parametrize("words", [{"check_examples": 8}, {"repeats": 2, **PROBED}, {"solver": "dopri5"}])
def test_a_non_finite_example_is_named_by_its_number_in_the_split(words, exact):
    """The number is not that in its batch, nor a copy's."""
    points = pointed()
    points.x[9] = np.nan
    with pytest.raises(ExampleError, match=r"^example 9: the network is not finite at t = ") as error:
        exact(points, batch_size=4, **words)
    assert error.value.exit_status == 4


def test_a_non_finite_copy_is_named_by_its_example(exact, monkeypatch):
    """A prior that is zero at the end point of example 9, in the third of its copies."""
    density, calls = PRIORS["standard"], []

    def prior(sde, gaussian, x):
        found = density(sde, gaussian, x)
        calls.append(len(found))
        return torch.where(torch.arange(len(found)) == 5, -torch.inf, found) if len(calls) == 3 else found

    monkeypatch.setitem(PRIORS, "standard", prior)
    with pytest.raises(ExampleError, match=r"^example 9: the log-density is -inf; check"):
        exact(quantized(17), batch_size=4, samples=3)
    assert calls == [12, 12, 12]


def test_a_solver_failure_has_its_exit_status(digits, monkeypatch, capsys):
    monkeypatch.setattr("score_sde.sde_lib.runge_kutta._MAX_STEPS", 2)
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    words = ("--config.likelihood.num_examples=1", "--config.likelihood.solver=dopri5")
    assert command("--mode=likelihood", f"--workdir={digits}", *words) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: example 0: the solver is stuck at t = ")
    assert ", with a step of " in line
    assert "raise the tolerances (rtol 1e-05, atol 1e-05)" in line
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before
