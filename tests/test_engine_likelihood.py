"""Likelihood from the command line: against closed forms, each example once, and every term in its place."""

import json
import math

import numpy as np
import pytest
import torch

import run as command_line
from data import Dataset, Pixels, read_digits
from engine import checkpoint, likelihood
from engine.build import DataFacts, build
from engine.config import load, override
from engine.randomness import DEQUANTIZATION, positions, uniform
from sde_lib import SDES, GaussianMixture, prior_term

LOOSE = ("--config.likelihood.rtol=1e-2", "--config.likelihood.atol=1e-2")
KEYS = ("bits_per_dim", "bits_per_dim_stderr", "nats", "terms", "nfe", "probes", "rtol", "atol", "num_examples")
KEYS += ("split", "dequantization", "sde", "checkpoint_step", "seconds")


def command(*words):
    """Run a command in this process and return its exit status."""
    return command_line.main(["run.py", *map(str, words)])


def read(workdir, name="test-uniform"):
    """The numbers, and the rows of the examples."""
    folder = workdir / "likelihood"
    return json.loads((folder / f"{name}.json").read_text()), dict(np.load(folder / f"{name}.npz"))


@pytest.fixture
def measured():
    """Measure a run loosely: (numbers, rows)."""

    def run(workdir, num, *words, name="test-uniform"):
        flags = (f"--workdir={workdir}", f"--config.likelihood.num_examples={num}")
        assert command("--mode=likelihood", *flags, *LOOSE, *words) == 0
        return read(workdir, name)

    return run


# --- known answers ----------------------------------------------------------------------------------------------------

MEAN, STD = 0.2, 0.3
QUICK = {"likelihood__rtol": "1e-3", "likelihood__atol": "1e-3", "likelihood__batch_size": "50"}


@pytest.fixture
def exact(monkeypatch, tmp_path):
    """Measure a dataset under the exact denoiser of N(MEAN, STD^2): (numbers, rows)."""

    def run(dataset, name="vpsde", **changes):
        config = load(name if dataset.levels else "points")
        settings = {"batch_size": "7", "rtol": "1e-4", "atol": "1e-4"}
        override(config, [("sde.name", load(name).sde.name), *((f"likelihood.{k}", v) for k, v in settings.items())])
        override(config, [(key.replace("__", "."), value) for key, value in changes.items()])
        facts = DataFacts(dataset.shape, dataset.levels, STD, 1.0)
        experiment = build(config, facts)
        normal = GaussianMixture(torch.ones(1), torch.full((1, *dataset.shape), MEAN), STD**2)
        path = checkpoint.save(tmp_path / "checkpoints", 7, {}, {}, {})
        monkeypatch.setattr(likelihood, "load", lambda *args: (experiment, normal.denoiser(experiment.sde), path))
        monkeypatch.setattr(likelihood, "read_dataset", lambda *args: dataset)
        likelihood.run(config, tmp_path, command_line.Options())
        return read(tmp_path, f"test-{config.likelihood.dequantization}")

    return run


def log_normal(x, sde):
    """Nats of x (B, D) under N(MEAN, STD^2) with the noise of the earliest time, in double precision."""
    alpha, sigma, _ = sde.at(sde.t_min)
    variance = (alpha * STD) ** 2 + sigma**2
    return (-0.5 * (x - alpha * MEAN) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance)).sum(1)


def quantized(levels, num=12, shape=(1, 2, 4)):
    """Draws of N(MEAN, STD^2) as whole numbers."""
    x = MEAN + STD * torch.randn(num, *shape, generator=torch.Generator().manual_seed(0))
    return Dataset(Pixels(levels).decode(x).numpy(), np.arange(num), levels=levels)


@pytest.mark.parametrize("sde", ["vpsde", "edm"])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bits_of_each_example_are_those_of_the_density_and_the_width_of_a_bin(levels, sde, exact):
    """-log2 of density times volume of a bin, over D; the volume is (2 / levels)^D, whatever the levels are."""
    dataset = quantized(levels)
    result, rows = exact(dataset, sde)
    values = torch.from_numpy(dataset.x).float()
    noisy = (values + uniform(0, DEQUANTIZATION, positions(0, 12), values) - 0.5).double().flatten(1)
    nats = log_normal((noisy + 0.5) * 2 / levels - 1, SDES[sde]()) + 8 * math.log(2 / levels)
    np.testing.assert_allclose(rows["nats"], nats, atol=2e-2)
    np.testing.assert_allclose(rows["bits_per_dim"], -nats / (8 * math.log(2)), atol=5e-3)
    assert result["bits_per_dim"] == pytest.approx(-nats.mean().item() / (8 * math.log(2)), abs=2e-3)
    assert result["terms"]["scaling"] == pytest.approx(8 * math.log(2 / levels))


def test_finer_levels_cost_their_logarithm(exact):
    """The same data in 256 instead of 16 levels: four bits more, but for what coarse bins lose of the density."""
    coarse, fine = (exact(quantized(levels, num=40), **QUICK)[0]["bits_per_dim"] for levels in (16, 256))
    assert fine - coarse == pytest.approx(4, abs=0.05)


@pytest.mark.parametrize("sde", SDES)
def test_nats_of_each_point_are_those_of_the_density(sde, exact):
    """In the order of the data, whichever the batches are."""
    x = MEAN + STD * torch.randn(12, 2, generator=torch.Generator().manual_seed(1))
    result, rows = exact(Dataset(x.numpy(), np.arange(12)), sde)
    assert len(rows["nats"]) == 12
    mismatch = prior_term(SDES[sde](), x).max().item()
    np.testing.assert_allclose(rows["nats"], log_normal(x.double(), SDES[sde]()), atol=2e-3 + 2 * mismatch**0.5)
    assert result["bits_per_dim"] is None
    assert result["divergence"] == "exact"


def test_a_random_trace_has_the_mean_of_the_exact_one(exact):
    """An exact Gaussian has a diagonal Jacobian, of which one Rademacher probe gives the trace without error."""
    trace, _ = exact(quantized(17))
    one, rows = exact(quantized(17), likelihood__exact_trace_below="0")
    assert (trace["divergence"], trace["probes"], trace["probe_stderr_nats"]) == ("exact", 0, None)
    assert (one["divergence"], one["probes"], one["probe_stderr_nats"]) == ("rademacher", 1, None)
    assert one["nats"] == pytest.approx(trace["nats"], abs=1e-3)
    assert not rows["probe_stderr"].any()


def test_the_spread_of_probes_is_the_standard_error_of_their_mean(exact):
    """Normal probes of a diagonal Jacobian spread; rows of the exact trace lie within their errors."""
    _, trace = exact(quantized(17), **QUICK)
    changes = {"likelihood__exact_trace_below": "0", "likelihood__probe": "gauss", "likelihood__probes": "32", **QUICK}
    result, rows = exact(quantized(17), **changes)
    scores = (rows["nats"] - trace["nats"]) / rows["probe_stderr"]
    assert result["probes"] == 32
    assert result["probe_stderr_nats"] == pytest.approx(rows["probe_stderr"].mean())
    assert result["probe_stderr_nats"] > 0.1
    assert 0.4 < scores.std() < 1.8
    assert abs(scores.mean()) < 4 / 12**0.5


@pytest.mark.parametrize("sde", SDES)
def test_the_mismatch_of_the_prior_is_a_divergence_between_normals(sde):
    """Against torch's own, for the end point of each example."""
    made, x = SDES[sde](), torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma, _ = made.at(made.t_max)
    end = torch.distributions.Normal(alpha * x, torch.full_like(x, sigma))
    prior = torch.distributions.Normal(torch.zeros_like(x), torch.full_like(x, made.prior_std))
    expected = torch.distributions.kl_divergence(end, prior).flatten(1).sum(1)
    torch.testing.assert_close(prior_term(made, x), expected, rtol=1e-9, atol=1e-12)


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
    assert (rows["probe_stderr"] > 0).all()
    assert result["probe_stderr_nats"] == pytest.approx(rows["probe_stderr"].mean())
    assert result["prior_mismatch_nats"] == pytest.approx(rows["mismatch"].mean())
    expected = {"probes": 3, "divergence": "rademacher", "num_examples": 5, "split": "test", "checkpoint_step": 8}
    assert result.items() >= (expected | {"dequantization": "uniform", "sde": "vpsde", "weights": "ema"}).items()
    assert result["t_min"] == 1e-5
    assert result["nfe"] > 6
    assert result["seconds"] > 0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_rows_do_not_depend_on_the_batch_size(digits, measured, batch_size):
    _, rows = measured(digits, 4, f"--batch_size={batch_size}")
    _, others = measured(digits, 9, "--batch_size=9")
    for key, column in rows.items():
        np.testing.assert_allclose(column, others[key][:4], rtol=1e-4, atol=2e-3, err_msg=key)


def test_each_example_is_scored_once(points, measured, monkeypatch):
    """The batches make up the split, in its order."""
    seen, batch = [], Dataset.batch
    monkeypatch.setattr(Dataset, "batch", lambda self, indices: [seen.extend(indices), batch(self, indices)][1])
    monkeypatch.setattr("data.points.SIZES", {"train": 20, "test": 11})
    for num, expected in ((0, 11), (100, 11), (7, 7)):
        seen.clear()
        result, rows = measured(points, num, "--batch_size=4", name="test-none")
        assert seen == list(range(expected))
        assert result["num_examples"] == len(rows["nats"]) == expected


def test_bits_are_refused_for_real_numbers(points, measured, capsys):
    result, rows = measured(points, 6, name="test-none")
    assert result["bits_per_dim"] is None
    assert result["bits_per_dim_stderr"] is None
    assert "bits_per_dim" not in rows
    assert result["divergence"] == "exact"
    assert result["terms"]["scaling"] == 0
    out = capsys.readouterr().out
    assert "bits/dim are for data of whole numbers, and these never were" in out


def test_what_is_said_of_bits(digits, measured, capsys):
    measured(digits, 3)
    out = capsys.readouterr().out
    assert "bits/dim (uniform dequantization)" in out
    assert "densities may exceed 1, so nats may be positive" in out
    assert "3 examples once each" in out


def test_one_example_has_no_standard_error(digits, measured):
    result, _ = measured(digits, 1)
    assert result["nats_stderr"] == result["bits_per_dim_stderr"] == 0


def test_splits_checkpoints_and_weights_differ(digits, measured):
    measured(digits, 2, "--split=train")
    found = [read(digits, "train-uniform")[1]["nats"].tolist()]
    for words in ((), ("--weights=raw",), ("--checkpoint=4",)):
        result, rows = measured(digits, 2, *words)
        assert result["weights"] == ("raw" if "--weights=raw" in words else "ema")
        assert result["checkpoint_step"] == (4 if "--checkpoint=4" in words else 8)
        found.append(rows["nats"].tolist())
    assert len({tuple(nats) for nats in found}) == 4


def test_the_noise_is_that_of_the_seed(digits, measured):
    rows = [measured(digits, 2, f"--seed={seed}")[1]["nats"] for seed in (0, 0, 1)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_another_solver_agrees(points, measured):
    tight = ("--config.likelihood.rtol=1e-5", "--config.likelihood.atol=1e-5")
    _, own = measured(points, 4, *tight, name="test-none")
    result, other = measured(points, 4, "--config.likelihood.solver=torchdiffeq", *tight, name="test-none")
    assert result["solver"] == "torchdiffeq"
    np.testing.assert_allclose(own["nats"], other["nats"], atol=5e-3)


def test_the_time_of_the_data_can_be_later(digits, measured):
    early, _ = measured(digits, 2)
    late, _ = measured(digits, 2, "--config.likelihood.t_min=1e-2")
    assert late["t_min"] == 1e-2
    assert late["nats"] != early["nats"]


def test_a_solver_that_gives_up_ends_with_its_status(digits, monkeypatch, capsys):
    monkeypatch.setattr("sde_lib.flow._MAX_STEPS", 2)
    assert command("--mode=likelihood", f"--workdir={digits}", "--config.likelihood.num_examples=1") == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "raise rtol and atol" in line


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dequantization=none", "likelihood.dequantization 'none', but the data are whole numbers: use 'uniform'"),
        ("dequantization=variational", "unknown likelihood.dequantization 'variational'; known: uniform, none"),
        ("t_min=1e-9", "likelihood at t = 1e-09: the network was trained on [1e-05, 1.0]"),
        ("t_min=-1", "likelihood at t = -1.0: the network was trained on [1e-05, 1.0]"),
        ("probes=0", "likelihood.probes 0: need at least 1"),
        ("batch_size=0", "likelihood.batch_size 0: need at least 1"),
        ("num_examples=-3", "likelihood.num_examples -3: need at least 0"),
        ("probe=gaus", "unknown probe 'gaus'; did you mean 'gauss'?"),
        ("solver=dopri8", "unknown solver 'dopri8'; did you mean 'dopri5'?"),
        ("rtol=0", "rtol 0.0 and atol 1e-05: need tolerances above 0"),
        ("atol=-1", "rtol 1e-05 and atol -1.0: need tolerances above 0"),
    ],
)
def test_settings_that_make_no_sense(words, message, digits, capsys):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert command("--mode=likelihood", f"--workdir={digits}", f"--config.likelihood.{words}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_noise_on_real_numbers_is_refused(points, capsys):
    assert command("--mode=likelihood", f"--workdir={points}", "--config.likelihood.dequantization=uniform") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: likelihood.dequantization 'uniform', but the data are real-valued: use 'none'"


def test_data_of_another_form_are_refused(digits, monkeypatch, capsys):
    """The digits with half of their rows."""
    whole = read_digits("test")
    halves = Dataset(whole.x[:, :, :4], whole.rows, levels=17)
    monkeypatch.setattr(likelihood, "read_dataset", lambda *args: halves)
    assert command("--mode=likelihood", f"--workdir={digits}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the data have shape (1, 4, 8) and 17 levels, the run (1, 8, 8), 17" in line
