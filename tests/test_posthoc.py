"""Profiles against numerical integration, rebuilt profiles against tracked ones, and snapshots on disk."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from score_sde import run as command_line
from score_sde.engine import checkpoint
from score_sde.engine.config import Options, stored
from score_sde.engine.datasets import read_dataset
from score_sde.engine.errors import CheckpointError
from score_sde.engine.load import load_model
from score_sde.engine.training import posthoc
from score_sde.engine.training.ema import EMA, WIDEST, exponent, width
from score_sde.engine.training.posthoc import (
    Snapshots,
    about,
    combination,
    fit,
    inner_products,
    load_weights,
    profiles,
    spacing,
)
from score_sde.engine.training.validation import Validation

TRACKED = (0.05, 0.1)
KEYS = ("network.channels=8", "optim.warmup_images=0", "optim.decay=constant", "optim.learning_rate=1e-2")
KEYS += ("train.batch_size=8", "train.sample_every=0", "train.evaluate_every=0", "train.checkpoint_every=8")
KEYS += ("ema.rates=(0.9,0.5)", "ema.profiles=(0.05,0.1)", "ema.snapshot_every=2", "ema.max_snapshots=8")


def power(tau, gamma, end):
    """The profile."""
    return (gamma + 1) * tau**gamma / end ** (gamma + 1) if 0 <= tau <= end else 0.0


def command(*words):
    """Runs a command in this process and returns its exit status."""
    return command_line.main(["run.py", *map(str, words)])


def train(workdir, steps, *more):
    """Trains a small run with profiles to this many steps, from the start or from where it stopped."""
    keys = [f"--config.{key}" for key in (*KEYS, f"train.total_images={8 * steps}")]
    assert command("--config=vpsde", "--mode=train", "--device=cpu", f"--workdir={workdir}", *keys, *more) == 0
    return workdir


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of 21 steps whose snapshot spacing has doubled once."""
    return train(tmp_path_factory.mktemp("tracked"), 21)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0, 6.94, 16.97, 200.0])
def test_width_is_the_standard_deviation_of_a_profile(gamma):
    first, second = (quad(lambda tau, k=k: tau**k * power(tau, gamma, 1.0), 0, 1)[0] for k in (1, 2))
    assert width(gamma) == pytest.approx(math.sqrt(second - first**2), rel=1e-7)
    assert exponent(width(gamma)) == pytest.approx(gamma, rel=1e-9, abs=1e-9)


def test_published_exponents():
    """Karras et al. 2024: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert [round(exponent(sigma_rel), 2) for sigma_rel in TRACKED] == [16.97, 6.94]
    assert width(0.0) == WIDEST


@pytest.mark.parametrize("num", [1, 2, 40])
def test_the_recursion_is_the_sum_of_its_weights(num):
    """The parameters of update k have weight (k^(g + 1) - (k - 1)^(g + 1)) / t^(g + 1); the initial ones have none."""
    widths, network = (0.02, 0.1, 0.25), nn.Linear(1, 3, bias=False)
    ema, path = EMA(network, (0.9,), profiles=widths), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(num):
        with torch.no_grad():
            network.weight.copy_(torch.randn(3, 1, generator=generator))
        path.append(network.weight.detach().double().clone())
        ema.update()
    for sigma_rel, average in zip(widths, ema.networks[1:]):
        borders = (torch.arange(num + 1, dtype=torch.float64) / num) ** (exponent(sigma_rel) + 1)
        expected = sum(share * weights for share, weights in zip(borders.diff(), path))
        torch.testing.assert_close(average.weight.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("one", [(16.97, 1.0), (0.1, 0.7), (40.0, 0.3)])
@pytest.mark.parametrize("other", [(6.94, 1.0), (16.97, 0.5), (3.0, 0.31)])
def test_inner_products_by_integration(one, other):
    end = min(one[1], other[1])
    expected = quad(lambda tau: power(tau, *one) * power(tau, *other), 0, end, epsabs=0, epsrel=1e-10, limit=200)[0]
    assert inner_products(np.array(one), np.array(other)) == pytest.approx(expected, rel=1e-8)


def basis_of(num):
    """The two tracked profiles at ``num`` evenly spaced times."""
    return [(exponent(sigma_rel), 1000.0 * k / num) for k in range(1, num + 1) for sigma_rel in TRACKED]


def test_a_profile_of_the_basis_is_reproduced():
    basis = basis_of(32)
    for k in (0, 20, 63):
        shares, error = fit(basis, basis[k])
        np.testing.assert_allclose(shares, np.eye(len(basis))[k], atol=1e-9)
        assert error < 1e-7


@pytest.mark.parametrize(
    ("sigma_rel", "bound"), [(0.03, 0.012), (0.07, 0.0011), (0.15, 0.0025), (0.2, 0.007), (0.25, 0.04)]
)
def test_the_error_of_a_fit_by_integration(sigma_rel, bound):
    """With 32 snapshots of two profiles it is small; the weights of the average sum to 1."""
    basis, wanted = basis_of(32), (exponent(sigma_rel), 1000.0)
    shares, error = fit(basis, wanted)
    tau = np.linspace(0, 1000, 40_001)[1:] - 1000 / 80_000
    target = (wanted[0] + 1) * tau ** wanted[0] / 1000 ** (wanted[0] + 1)
    found = added(shares, basis, tau)
    assert error == pytest.approx(np.linalg.norm(found - target) / np.linalg.norm(target), rel=1e-3)
    assert error < bound
    assert sum(shares) == pytest.approx(1.0, abs=1e-12)
    nearby = np.random.default_rng(0).normal(size=len(basis)) * 1e-4
    worse = np.linalg.norm(found + added(nearby - nearby.mean(), basis, tau) - target) / np.linalg.norm(target)
    assert worse > error  # perturbed weights with the same sum


def added(shares, basis, tau):
    """Sum of a basis's profiles with these weights."""
    return sum(
        share * np.where(tau <= end, (gamma + 1) / end * np.minimum(tau / end, 1) ** gamma, 0)
        for share, (gamma, end) in zip(shares, basis)
    )


def test_rebuilt_profiles_equal_the_tracked_ones(tmp_path):
    """For weights that drift, oscillate, wander and rest, the error is within the profile's times their norm."""
    wanted, num = (0.03, 0.07, 0.15, 0.2), 600
    network = nn.Linear(1, 4, bias=False)
    ema, direct = EMA(network, (0.9,), profiles=TRACKED), EMA(network, (0.9,), profiles=wanted)
    snapshots = Snapshots(tmp_path, ema, every=20, most=32, step=0)
    steps = torch.randn(num, generator=torch.Generator().manual_seed(0)).cumsum(0) / math.sqrt(num)
    path = torch.empty(num, 4)
    for k in range(num):
        t = k + 1
        path[k] = torch.tensor([10 / math.sqrt(t), math.sin(12 * math.log(t)), steps[k], 3.0])
        with torch.no_grad():
            network.weight.copy_(path[k, :, None])
        for average in (ema, direct):
            average.update()
        if snapshots.due(t):
            snapshots.keep(t)
    parts = {checkpoint.RAW: network, **profiles(ema)}
    found = checkpoint.save(tmp_path / "checkpoints", num, parts, {}, about(ema))
    rebuilt = nn.Linear(1, 4, bias=False)
    for sigma_rel, average in zip(wanted, direct.networks[1:]):
        load_weights(found, f"ema:{sigma_rel}", rebuilt)
        gamma = exponent(sigma_rel)
        _, error = fit([(k.gamma, k.end) for k in posthoc.stored(found)], (gamma, float(num)))
        norm = math.sqrt((gamma + 1) ** 2 / (2 * gamma + 1) / num)
        apart = (rebuilt.weight - average.weight)[:, 0].abs()
        assert (apart[:3] <= 1.1 * error * norm * path.norm(dim=0)[:3] + 1e-5).all()
        assert apart[3] < 1e-5
        assert 1e-6 < apart[:3].max() < 0.01 * path.std(0)[:3].max()
    for sigma_rel, average in zip(TRACKED, ema.networks[1:]):
        load_weights(found, f"ema:{sigma_rel}", rebuilt)
        assert torch.equal(rebuilt.weight, average.weight)


def test_spacing_doubles_to_bound_the_number_of_snapshots():
    kept = set()
    for step in range(1, 2000):
        apart = spacing(step, 3, 10)
        if step % apart == 0:
            kept = {k for k in kept | {step} if k % apart == 0}
            assert kept == set(range(apart, step + 1, apart))
        assert len(kept) <= 10
        assert step < 18 or len(kept) >= 5


def test_snapshots_are_bounded(tracked):
    names = [path.name for path in checkpoint.steps(tracked / posthoc.FOLDER)]
    assert names == [f"step_{step:08d}" for step in (4, 8, 12, 16, 20)]
    assert json.loads((tracked / "snapshots/step_00000012/meta.json").read_text())["ema_updates"] == 12


def test_a_resumed_run_has_the_snapshots_of_an_uninterrupted_one(tracked, tmp_path):
    """Killed after step 21, with a checkpoint of step 16: later snapshots are dropped and made again."""
    workdir = train(tmp_path / "killed", 21)
    shutil.rmtree(workdir / "checkpoints/step_00000021")
    (workdir / "snapshots/step_00000020/power-0.1.safetensors").write_bytes(b"later")
    shutil.copytree(workdir / "snapshots/step_00000020", workdir / "snapshots/step_00000018")
    train(workdir, 21)
    for folder in ("snapshots", "checkpoints/step_00000021"):
        files = sorted(path.relative_to(workdir) for path in (workdir / folder).rglob("*.safetensors"))
        assert files == sorted(path.relative_to(tracked) for path in (tracked / folder).rglob("*.safetensors"))
        assert all((workdir / path).read_bytes() == (tracked / path).read_bytes() for path in files)


@pytest.mark.parametrize("weights", ["raw", "ema", "ema-0.9", "ema-0.5", "ema:0.05", "ema:0.1", "ema:0.08", "ema:.15"])
def test_every_name_of_weights(tracked, weights):
    network = load_model(stored(tracked), tracked, Options(weights=weights))[0].network
    found = checkpoint.find(tracked / "checkpoints")
    own = {"raw": "model", "ema": "ema-0.9", "ema:0.05": "power-0.05", "ema:0.1": "power-0.1"}.get(weights, weights)
    file = found / f"{own}.safetensors"
    assert file.is_file() == (weights not in ("ema:0.08", "ema:.15"))
    if file.is_file():
        expected = checkpoint.load_tensors(file.read_bytes())
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
        assert (posthoc.digest(found, weights) == checkpoint.sha256(file)) == (":" not in weights)
    else:
        shares = combination(found, weights)
        assert sum(share for _, share in shares) == pytest.approx(1.0)
        tensors = [(checkpoint.load_tensors((kept.path / kept.name).read_bytes()), share) for kept, share in shares]
        for key, value in network.named_parameters():
            torch.testing.assert_close(value.double(), sum(share * t[key].double() for t, share in tensors))


def test_digests_differ_between_profiles(tracked):
    found = checkpoint.find(tracked / "checkpoints")
    assert len({posthoc.digest(found, f"ema:{sigma_rel}") for sigma_rel in (0.05, 0.07, 0.08, 0.1)}) == 4


def test_an_earlier_checkpoint_uses_no_later_snapshots(tracked):
    found = checkpoint.find(tracked / "checkpoints", "16")
    assert {kept.end for kept in posthoc.stored(found)} == {4, 8, 12, 16}


def test_modes_take_profiles(tracked):
    common = (f"--workdir={tracked}", "--device=cpu", "--weights=ema:0.08")
    assert command(*common, "--mode=sample", "--sampler=ddim", "--steps=2", "--num_samples=2") == 0
    manifest = json.loads((tracked / "samples/ddim-2/manifest.json").read_text())
    assert manifest["weights"] == "ema:0.08"
    few = (
        "--config.likelihood.num_examples=2",
        "--config.likelihood.evaluations=4",
        "--config.likelihood.check_examples=0",
    )
    assert command(*common, "--mode=likelihood", *few) == 0
    found = [json.loads(path.read_text()) for path in (tracked / "likelihood").rglob("*.json")]
    assert [result["weights"] for result in found] == ["ema:0.08"]


def test_losses_by_profile(tracked, capsys):
    assert command(f"--workdir={tracked}", "--mode=profiles") == 0
    told = json.loads((tracked / "profiles/losses.json").read_text())["losses"]
    assert list(told)[:3] == ["raw", "ema-0.9", "ema-0.5"]
    assert {"ema:0.05", "ema:0.1"} < set(told)
    assert "ema:0.01" not in told
    out = capsys.readouterr().out
    assert "do not determine the widths 0.01" in out
    assert f"least: --weights {min(told, key=told.get)};" in out
    for weights in ("raw", "ema-0.5", "ema:0.1"):
        experiment = load_model(config := stored(tracked), tracked, Options(weights=weights))[0]
        validation = Validation(config, experiment, read_dataset(config.data, "test"))
        assert told[weights] == validation.losses(experiment.network)["validation_loss"]
    assert (tracked / "profiles/profiles.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("weights", "status", "said"),
    [
        ("ema:0.3", 2, "the width of a profile is above 0 and below 0.289"),
        ("ema:0", 2, "the width of a profile is above 0 and below 0.289"),
        ("ema:0.002", 2, "profiles kept until then miss this one by"),
        ("ema-0.99", 2, "--weights ema-0.99: the run keeps raw, ema-0.9, ema-0.5"),
        ("ema:", 2, "must be <ema|raw>, ema-0.999"),
        ("ema:wide", 2, "must be <ema|raw>, ema-0.999"),
    ],
)
def test_missing_weights(tracked, weights, status, said, capsys):
    assert command(f"--workdir={tracked}", "--mode=sample", f"--weights={weights}") == status
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_the_available_widths_are_listed(tracked):
    found = checkpoint.find(tracked / "checkpoints")
    with pytest.raises(ValueError, match=r"they give widths from (.*) to (.*); others need") as error:
        combination(found, "ema:0.002")
    words = str(error.value).split("from ")[1].split(";")[0].split(" to ")
    for sigma_rel in words:
        assert combination(found, f"ema:{sigma_rel}")


def test_a_run_without_profiles(digits):
    found = checkpoint.find(digits / "checkpoints")
    with pytest.raises(CheckpointError, match=r"has no profiles .* '--config\.ema\.profiles=\(0\.05,0\.1\)'"):
        load_weights(found, "ema:0.05", nn.Linear(1, 1))


def test_a_run_without_profiles_compares_its_averages(digits, tmp_path, capsys):
    """As the help describes, on a run of the default config."""
    workdir = shutil.copytree(digits, tmp_path / "run")
    assert command(f"--workdir={workdir}", "--mode=profiles") == 0
    assert "no profiles were tracked; train with --config.ema.profiles=(0.05,0.1)" in capsys.readouterr().out
    losses = json.loads((workdir / "profiles/losses.json").read_text())["losses"]
    assert list(losses) == ["raw", "ema-0.999"]
    assert (workdir / "profiles/profiles.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["power-0.05.safetensors", "meta.json"])
def test_a_damaged_snapshot_is_named(tracked, tmp_path, name, capsys):
    workdir = shutil.copytree(tracked, tmp_path / "damaged")
    path = workdir / "snapshots/step_00000012" / name
    path.write_bytes(path.read_bytes()[:-20])
    assert command(f"--workdir={workdir}", "--mode=sample", "--weights=ema:0.08") == 3
    assert f"step_00000012/{name} is" in capsys.readouterr().err


def test_imported_runs_have_no_profiles(tmp_path, capsys):
    assert command("--mode=import", f"--source={tmp_path}", "--weights=ema:0.05") == 2
    assert "a source holds ema or raw" in capsys.readouterr().err


@pytest.mark.parametrize("widths", [(0.0,), (0.05, 0.3), (-0.1,)])
def test_widths_out_of_range_are_refused(widths):
    with pytest.raises(ValueError, match=r"ema\.profiles .* need widths above 0 and below 0\.289"):
        EMA(nn.Linear(1, 1), (0.9,), profiles=widths)
