"""The mode bound: closed forms, each example scored once, every term of the result, and refusals."""

import json
import math

import numpy as np
import pytest
import torch

from score_sde import run as command_line
from score_sde.data import Dataset, Pixels
from score_sde.engine import checkpoint
from score_sde.engine.build import build
from score_sde.engine.config import load, override
from score_sde.engine.facts import DataFacts
from score_sde.engine.modes import bound
from score_sde.sde_lib import ConsistencyModel, Gaussian, GaussianMixture, NonFiniteError, Prediction, prior_term
from score_sde.sde_lib.bound import decoder_term

KEYS = (
    "bits_per_dim",
    "bits_per_dim_stderr",
    "nats",
    "nats_stderr",
    "terms",
    "unit",
    "estimator",
    "levels",
    "v",
)
KEYS += ("t_min", "num_examples", "nfe", "split", "sde", "weights", "seed", "checkpoint_step", "seconds", "versions")
LEVELS = 30
CHAIN = {"sde.num_levels": LEVELS, "sde.beta_min": 1e-4, "sde.beta_max": 0.4}
REAL = {"codec.name": "identity", "network.name": "mlp"}
MEAN, STD = 0.2, 0.3


def command(*words):
    """Runs a command in this process and returns its exit status."""
    return command_line.main(["run.py", *map(str, words)])


def read(workdir, split="test"):
    """The result, and the rows of the examples."""
    folder = workdir / "bound"
    return json.loads((folder / f"{split}.json").read_text()), dict(np.load(folder / f"{split}.npz"))


@pytest.fixture
def exact(monkeypatch, tmp_path):
    """Measures a dataset under a mixture's exact denoiser: (result, rows, process)."""

    def run(dataset, mixture, config="ddpm", **changes):
        given = CHAIN if config == "ddpm" else {}
        config = load(config)
        override(config, [(key, str(value)) for key, value in ({"bound.batch_size": 7} | given | changes).items()])
        guess = Gaussian(torch.full(dataset.shape, MEAN).double(), STD**2)
        experiment = build(config, DataFacts(dataset.shape, dataset.levels, STD, 1.0), guess)
        path = checkpoint.save(tmp_path / "checkpoints", 7, {}, {}, {})
        monkeypatch.setattr(bound, "load", lambda *args: (experiment, mixture.denoiser(experiment.sde), path))
        monkeypatch.setattr(bound, "read_dataset", lambda *args: dataset)
        monkeypatch.setattr(bound, "plot", lambda *args: None)
        bound.run(config, tmp_path, command_line.Options())
        return *read(tmp_path), experiment.sde

    return run


def quantized(levels, num=12, shape=(1, 2, 4)):
    """Draws of N(MEAN, STD^2) as integers."""
    x = MEAN + STD * torch.randn(num, *shape, generator=torch.Generator().manual_seed(0))
    return Dataset(Pixels(levels).decode(x).numpy(), np.arange(num), levels=levels)


def normal(shape):
    return GaussianMixture(torch.ones(1), torch.full((1, *shape), MEAN), STD**2)


# --- known answers ----------------------------------------------------------------------------------------------------


def test_known_data_cost_the_prior_alone(exact):
    dataset = Dataset(np.full((3, 1, 2, 2), 3, dtype=np.uint8), np.arange(3), levels=8)
    x0 = Pixels(8).encode(torch.from_numpy(dataset.x))
    result, rows, chain = exact(dataset, GaussianMixture.of_points(x0[:1]), **{"bound.v": 0.0})
    expected = prior_term(chain, x0).numpy() / (4 * math.log(2))
    np.testing.assert_allclose(rows["bits_per_dim"], expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(rows["distortion"], 0, atol=1e-5)
    assert result["terms"]["prior"] == pytest.approx(expected.mean(), rel=1e-4)
    assert result["terms"]["diffusion"] == pytest.approx(0, abs=1e-6)


def test_bits_of_the_bound_are_slightly_above_the_density(exact):
    """With the forward step's variance, exact up to the last levels; the volume of a bin is (2 / levels)^D."""
    dataset = quantized(256, num=60)
    result, rows, _ = exact(dataset, normal(dataset.shape), **{"bound.v": 1.0})
    x = Pixels(256).encode(torch.from_numpy(dataset.x)).double().flatten(1)
    nats = torch.distributions.Normal(MEAN, STD).log_prob(x).sum(1) + 8 * math.log(2 / 256)
    gap = rows["bits_per_dim"] + nats.numpy() / (8 * math.log(2))
    assert 0 < gap.mean() < 0.3
    assert result["bits_per_dim"] == pytest.approx(rows["bits_per_dim"].mean())


def test_the_smaller_variance_is_worse_where_the_data_are_wide(exact):
    dataset = quantized(17)
    small, large = (exact(dataset, normal(dataset.shape), **{"bound.v": v})[0] for v in (0.0, 1.0))
    assert small["bits_per_dim"] > large["bits_per_dim"]
    assert (small["v"], large["v"]) == (0.0, 1.0)


def test_terms_add_up_and_distortion_is_in_levels(exact):
    """In much noise the estimate carries no information, so the error is the data's standard deviation, in levels."""
    dataset = quantized(256, num=200)
    result, rows, _ = exact(dataset, normal(dataset.shape), **{"bound.batch_size": 200})
    assert result["bits_per_dim"] == pytest.approx(sum(result["terms"].values()))
    np.testing.assert_allclose(rows["bits_per_dim"], rows["prior"] + rows["rate"].sum(1))
    assert result["terms"]["decoder"] == pytest.approx(rows["rate"][:, 0].mean())
    assert rows["rate"].shape == rows["distortion"].shape == (200, LEVELS)
    assert np.sqrt((rows["distortion"][:, -1] ** 2).mean()) == pytest.approx(STD * 128, rel=0.05)
    assert result["nfe"] == result["levels"] == LEVELS


def test_the_continuous_bound_of_one_point_is_its_prior_and_its_decoder(exact):
    dataset = Dataset(np.full((64, 1, 2, 2), 3, dtype=np.uint8), np.arange(64), levels=8)
    x0, bits = Pixels(8).encode(torch.from_numpy(dataset.x)), 4 * math.log(2)
    result, rows, sde = exact(dataset, GaussianMixture.of_points(x0[:1]), "vpsde", **{"bound.batch_size": 64})
    terms, diffusion, (alpha, sigma, _) = result["terms"], rows["rate"][:, 1:].sum(1), sde.marginal(result["t_min"])
    assert sigma / alpha == pytest.approx(0.3 / 4)
    assert terms["prior"] == pytest.approx(prior_term(sde, x0).mean().item() / bits, rel=1e-4)
    assert terms["decoder"] == pytest.approx(decoder_term(x0, 0.3 / 4, 1 / 4).mean().item() / bits, rel=1e-5)
    assert terms["diffusion"] == pytest.approx(diffusion.mean()) == pytest.approx(0, abs=3 * diffusion.std() / 8)
    np.testing.assert_allclose(rows["distortion"], 0, atol=1e-5)


def test_the_continuous_bound_of_moment_matched_fine_levels_has_no_variance(exact):
    """The volume of a bin is (2 / levels)^D; the decoder's own noise has a width of 0.3 bins."""
    dataset = quantized(256)
    found = [exact(dataset, normal(dataset.shape), "vpsde", **{"bound.evaluations": n}) for n in (1, 16)]
    x = Pixels(256).encode(torch.from_numpy(dataset.x))
    nats = torch.distributions.Normal(MEAN, STD).log_prob(x).flatten(1).sum(1) + 8 * math.log(2 / 256)
    nats = nats + 8 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.3)) - decoder_term(x, 0.3 / 128, 1 / 128)
    for result, rows, _ in found:
        np.testing.assert_allclose(rows["nats"], nats, atol=2e-3)
        np.testing.assert_allclose(rows["bits_per_dim"], -rows["nats"] / (8 * math.log(2)))
        assert result["nats"] == pytest.approx(rows["nats"].mean())
        assert result["nats_stderr"] == pytest.approx(rows["nats"].std(ddof=1) / 12**0.5)
        assert result["bits_per_dim"] == pytest.approx(sum(result["terms"].values()))
    assert [result["nfe"] for result, _, _ in found] == [1, 16]


@pytest.mark.parametrize(("config", "estimator"), [("ddpm", "chain"), ("vpsde", "continuous")])
def test_real_values_have_nats_and_no_bits(exact, capsys, config, estimator):
    x = MEAN + STD * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    dataset = Dataset(x.numpy(), np.arange(200))
    result, rows, _ = exact(dataset, normal((2,)), config, **REAL, **{"bound.v": 1.0})
    nats = torch.distributions.Normal(MEAN, STD).log_prob(x).sum(1).mean().item()
    assert result["nats"] == pytest.approx(nats, abs=1e-3) if config == "vpsde" else nats - 2 < result["nats"] < nats
    assert (result["estimator"], result["unit"], result["bits_per_dim"]) == (estimator, "nats", None)
    assert result["nats"] == pytest.approx(-sum(result["terms"].values()), rel=1e-5)
    assert "bits_per_dim" not in rows
    out = capsys.readouterr().out
    assert (
        f"test: log-likelihood at least {result['nats']:.3f} +- {result['nats_stderr']:.3f} nats; bits/dim are for"
        in out
    )


EITHER = pytest.mark.parametrize("config", ["ddpm", "vpsde"])


@EITHER
@pytest.mark.parametrize("size", [1, 64])
def test_rows_do_not_depend_on_the_batch_size(exact, size, config):
    dataset = quantized(17, num=9)
    wide = GaussianMixture(torch.ones(1), torch.zeros(1, *dataset.shape), 1.0)
    (_, some, _), (_, other, _) = (exact(dataset, wide, config, **{"bound.batch_size": n}) for n in (7, size))
    np.testing.assert_allclose(some["rate"], other["rate"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(some["distortion"], other["distortion"], rtol=1e-4, atol=1e-5)


@EITHER
def test_noise_follows_the_seed(exact, config):
    dataset = quantized(17, num=3)
    wide = GaussianMixture(torch.ones(1), torch.zeros(1, *dataset.shape), 1.0)
    found = [exact(dataset, wide, config, seed=seed)[1]["rate"] for seed in (0, 0, 1)]
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A run of improved DDPM with 10 levels and learned variances."""
    folder = tmp_path_factory.mktemp("chain")
    keys = {"sde.num_levels": 10, "network.channels": 8, "train.total_images": 64, "train.batch_size": 8}
    keys |= {"train.sample_every": 0, "optim.warmup_images": 0}
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    assert command("--mode=train", "--config=iddpm", "--device=cpu", f"--workdir={folder}", *words) == 0
    return folder


def test_numbers_rows_and_picture_are_written(chain, capsys):
    assert command("--mode=bound", f"--workdir={chain}", "--config.bound.num_examples=5", "--batch_size=3") == 0
    result, rows = read(chain)
    assert set(KEYS) <= result.keys()
    assert (result["num_examples"], result["levels"], result["v"]) == (5, 10, "learned")
    assert rows["rate"].shape == (5, 10)
    assert (chain / "bound" / "rate_distortion.png").stat().st_size > 1000
    assert result["estimator"] == "chain"
    out = capsys.readouterr().out
    assert f"test: at most {result['bits_per_dim']:.4f}" in out
    assert "5 examples once each at all 10 levels, learned variance" in out


def test_every_other_process_has_the_continuous_bound(digits, capsys):
    words = ("--config.bound.num_examples=5", "--batch_size=3", "--config.bound.evaluations=4")
    assert command("--mode=bound", f"--workdir={digits}", *words) == 0
    result, rows = read(digits)
    assert set(KEYS) <= result.keys()
    assert (result["estimator"], result["levels"], result["nfe"]) == ("continuous", None, 4)
    assert rows["rate"].shape == (5, 5)
    assert rows["distortion"].shape == (5, 4)
    assert rows["log_snr"].shape == (5,)
    assert (digits / "bound" / "rate_distortion.png").stat().st_size > 1000
    out = capsys.readouterr().out
    assert f"test: at most {result['bits_per_dim']:.4f}" in out
    assert "5 examples once each with 4 evaluations, decoded at t = 0.00724" in out
    assert "compare with --mode likelihood" in out


def test_the_other_split_has_its_own_files(chain):
    assert command("--mode=bound", f"--workdir={chain}", "--split=train", "--config.bound.num_examples=2") == 0
    assert read(chain, "train")[0]["split"] == "train"


def test_a_run_samples_with_its_variances(chain):
    assert command("--mode=sample", f"--workdir={chain}", "--steps=5", "--num_samples=2") == 0
    assert (chain / "samples" / "ancestral_learned-5" / "samples.npz").is_file()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_consistency_model_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(bound, "load", lambda *args: (None, object.__new__(ConsistencyModel), tmp_path))
    with pytest.raises(
        ValueError,
        match="is a consistency model: it has no density and no latents, only the end of the flow; take its teacher",
    ):
        bound.run(load("vpsde"), tmp_path, command_line.Options())


def test_non_finite_numbers_are_refused(exact, monkeypatch):
    """Example 9 is the third of the second batch."""
    dataset, mixture = quantized(17), normal((1, 2, 4))

    def denoise(x, t):
        found = torch.zeros_like(x)
        if len(x) == 5:
            found[2, 0, 1, 3] = math.nan
        return Prediction(found)

    monkeypatch.setattr(mixture, "denoiser", lambda sde: denoise)
    with pytest.raises(NonFiniteError, match="the bound of example 9 is not finite; check the network and the data"):
        exact(dataset, mixture, "vpsde")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--config.bound.v=1.5", "bound.v 1.5: need 0 to 1, from posterior to forward"),
        ("--batch_size=0", "--batch_size"),
        ("--config.bound.num_examples=-1", "bound.num_examples -1: need at least 0"),
        ("--config.bound.evaluations=0", "bound.evaluations 0: need 1 to 1e6"),
    ],
)
def test_values_out_of_range_are_refused(words, message, chain, capsys):
    assert command("--mode=bound", f"--workdir={chain}", words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("t", [-1.0, 1e-6, 1.0])
def test_a_decoder_outside_of_the_process_is_refused(digits, capsys, t):
    assert command("--mode=bound", f"--workdir={digits}", f"--config.bound.t_min={t}") == 2
    assert f"decoder at t = {t}: the network was trained on [1e-05, 1.0]" in capsys.readouterr().err
