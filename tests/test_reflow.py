"""Reflow: stored pairs of noise and sample, their use in training, and the straight flow that they define."""

import itertools
import json

import numpy as np
import pytest
import torch

from score_sde import run as command_line
from score_sde.data import DataError, Dataset, Identity, Pixels, batch_at, read_pairs
from score_sde.engine import plane
from score_sde.engine.config import load, override
from score_sde.engine.datasets import read_dataset
from score_sde.engine.training.trainer import Trainer
from score_sde.engine.training.validation import Validation
from score_sde.samplers import DDIM, GRIDS, Heun, Noise, sample
from score_sde.sde_lib import SDES, WEIGHTS, Prediction, denoising_loss


def command(*words):
    return command_line.main(["run.py", *map(str, words)])


def kept(workdir, sampler="heun"):
    """A samples.npz of twelve samples in three steps, with their noise."""
    flags = (f"--sampler={sampler}", "--steps=3", "--num_samples=12", "--batch_size=5", "--seed=7")
    assert command("--mode=sample", f"--workdir={workdir}", "--config.sample.keep_latents=true", *flags) == 0
    return workdir / "samples" / f"{sampler}-3" / "samples.npz"


def write_pairs(path, latents, x0, levels=0):
    np.savez(path, latents=latents, x0=x0, levels=levels)
    return str(path)


# --- files ------------------------------------------------------------------------------------------------------------


def test_latents_are_the_normals_of_each_seed_and_x0_decodes_to_the_sample(digits):
    with np.load(kept(digits)) as found:
        latents, x0, samples, levels = (found[key] for key in ("latents", "x0", "samples", "levels"))
    assert latents.dtype == x0.dtype == np.float32
    assert latents.shape == x0.shape == (12, 1, 8, 8)
    assert levels == 17
    expected = Noise(torch.arange(7, 19))(torch.empty(12, 1, 8, 8))
    assert np.array_equal(latents, expected.numpy())
    assert np.array_equal(Pixels(17).decode(torch.from_numpy(x0)).movedim(1, -1).numpy(), samples)


def test_latents_are_kept_only_on_request(digits):
    assert command("--mode=sample", f"--workdir={digits}", "--sampler=ddim", "--steps=2", "--num_samples=2") == 0
    with np.load(digits / "samples" / "ddim-2" / "samples.npz") as found:
        assert found.files == ["samples"]


@pytest.mark.parametrize("run", ["digits", "points"])
def test_pairs_are_read_as_they_were_drawn(run, request, monkeypatch):
    monkeypatch.setattr(plane, "draw", lambda *args: None)
    path = kept(request.getfixturevalue(run))
    with np.load(path) as found:
        latents, x0 = found["latents"], found["x0"]
    for split, rows in (("train", [i for i in range(12) if i % 10]), ("test", [0, 10])):
        dataset = read_pairs(split, str(path))
        batch = dataset.batch(range(len(dataset)))
        codec = Pixels(17) if dataset.levels else Identity(0)
        assert np.array_equal(batch["eps"].numpy(), latents[rows])
        expected = x0[rows].clip(-1, 1) if dataset.levels else x0[rows]
        np.testing.assert_allclose(codec.encode(batch["x"]).numpy(), expected, rtol=0, atol=2e-7)


def test_mirrored_examples_have_mirrored_noise():
    x = np.random.default_rng(0).standard_normal((50, 1, 2, 3)).astype(np.float32)
    batch = batch_at(Dataset(x, np.arange(50), eps=-x), seed=0, images_seen=0, batch_size=50, mirror=True)
    assert torch.equal(batch["eps"], -batch["x"])
    assert not torch.equal(batch["x"], batch_at(Dataset(x, np.arange(50)), 0, 0, 50)["x"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"samples": np.zeros((4, 2))}, "does not contain latents, x0, levels"),
        (
            {"latents": np.zeros((4, 2)), "x0": np.zeros((3, 2)), "levels": 0},
            r"latents \(4, 2\) for x0 \(3, 2\): .*keep_latents=true",
        ),
        ({"latents": np.zeros((1, 2)), "x0": np.zeros((1, 2)), "levels": 0}, "for 2 or more samples"),
    ],
)
def test_files_without_pairs_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "samples.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_pairs("train", str(tmp_path / "samples.npz"))


def test_damaged_and_missing_pairs_are_refused(tmp_path):
    (tmp_path / "samples.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="is damaged or does not contain"):
        read_pairs("train", str(tmp_path / "samples.npz"))
    with pytest.raises(DataError, match="does not exist: write it with --mode sample"):
        read_pairs("train", str(tmp_path / "nowhere.npz"))
    with pytest.raises(ValueError, match=r"data.path is empty"):
        read_pairs("train", "")


def test_pairs_can_be_inspected(digits, tmp_path):
    words = ("--config=reflow", f"--config.data.path={kept(digits)}", f"--workdir={tmp_path}", "--split=test")
    assert command("--mode=data", *words) == 0
    found = json.loads((tmp_path / "data" / "test.json").read_text())
    assert (found["count"], found["levels"]) == (2, 17)
    assert (tmp_path / "data" / "test.png").is_file()


# --- training ---------------------------------------------------------------------------------------------------------


def trainer_of(path, workdir, **changes):
    keys = {"device": "cpu", "network.channels": 8, "data.path": path, "train.init": "", "train.batch_size": 4}
    config = load("reflow")
    override(config, [(key, str(value)) for key, value in (keys | changes).items()])
    return Trainer(config, workdir, read_dataset(config.data, "train"))


@pytest.fixture
def trainer(digits, tmp_path):
    return trainer_of(kept(digits), tmp_path)


def test_training_uses_the_noise_of_the_pairs(trainer):
    """Each example of a step has its own noise, paired as in the npz."""
    seen, objective = [], trainer.objective

    def listen(denoise, x0, eps, *args, **cond):
        seen.append((x0, eps))
        return objective(denoise, x0, eps, *args, **cond)

    trainer.microbatches.objective = listen
    list(trainer.steps(2))
    whole = trainer.dataset.batch(range(len(trainer.dataset)))
    encoded = Pixels(17).encode(whole["x"])
    for x0, eps in seen:
        number = [int((whole["eps"] == e).flatten(1).all(1).nonzero()) for e in eps]
        assert torch.equal(encoded[number], x0)


def test_validation_loss_uses_the_noise_of_the_pairs(trainer):
    dataset = read_dataset(trainer.config.data, "test")
    validation, seen = Validation(trainer.config, trainer.experiment, dataset), []
    trainer.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    validation.losses(trainer.network)
    whole = dataset.batch([0, 1])
    alpha, sigma, _ = trainer.experiment.sde.marginal(validation.t)
    states = [alpha * validation.x0 + sigma * whole["eps"][order] for order in ([0, 1], [1, 0])]
    c_in = ((alpha * trainer.denoiser.sigma_data) ** 2 + sigma**2) ** -0.5
    assert min((c_in * state - seen[0]).abs().max() for state in states) < 1e-5


def test_a_run_on_pairs_from_the_run_that_drew_them(digits, tmp_path):
    keys = {"data.path": kept(digits), "train.init": digits, "network.channels": 8, "train.total_images": 8}
    keys |= {"network.learned_variance": True, "train.batch_size": 4, "train.sample_every": 4}
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    assert command("--mode=train", "--config=reflow", "--device=cpu", f"--workdir={tmp_path}", *words) == 0
    assert command("--mode=sample", f"--workdir={tmp_path}", "--num_samples=2") == 0
    with np.load(tmp_path / "samples" / "ddim-4" / "samples.npz") as found:
        assert found["samples"].shape == (2, 8, 8, 1)


# --- the exact flow of a mixture on a line ----------------------------------------------------------------------------


@pytest.fixture
def coupled(mixture, tmp_path):
    """Pairs of the exact flow, read from a file: data and noise; and a table of the map from noise to data."""
    sde, noise = SDES["rectified"](), Noise(torch.arange(4000))
    heun, times = Heun(sde), GRIDS["uniform"](sde, 100)
    z = noise(torch.empty(4000, 1, dtype=torch.float64))
    table = torch.linspace(-7, 7, 2001, dtype=torch.float64)[:, None]
    ends = sample(heun, mixture.denoiser(sde), sde.prior_std * torch.cat([z, table]), times, noise)
    x0 = ends[:4000]
    path = write_pairs(tmp_path / "samples.npz", z.numpy(), x0.numpy())
    parts = [read_pairs(split, path).batch(range(n)) for split, n in (("train", 3600), ("test", 400))]
    x0, eps = (torch.cat([part[key] for part in parts]).double() for key in ("x", "eps"))
    return sde, x0, eps, (table[:, 0].numpy(), ends[4000:, 0].numpy())


def straightened(sde, noise, data):
    """E[x_0 | x_t] of the coupling: on a line the map is monotone, so x_t determines its noise."""

    def denoise(x, t):
        alpha, sigma = (np.broadcast_to(np.asarray(v), x.shape)[:, 0] for v in sde.marginal(t)[:2])
        place = np.empty(len(x))
        for a, s in {(a, s) for a, s in zip(alpha.tolist(), sigma.tolist())}:
            rows = (alpha == a) & (sigma == s)
            place[rows] = np.interp(x[rows, 0].numpy(), a * data + s * noise, noise)
        return Prediction(torch.from_numpy(np.interp(place, noise, data))[:, None])

    return denoise


def bend(sde, denoise, x0, eps, num=20):
    """Mean squared distance of the velocity from the chord along the flow. Liu et al., 2022, eq. 7."""
    times = GRIDS["uniform"](sde, num).tolist()
    x, found = sde.perturb(x0, eps, times[0]), []
    for t, s in itertools.pairwise(times):
        estimate = denoise(x, t).x0
        found.append((sde.eps(x, estimate, t) - estimate - (eps - x0)).square().mean())
        x = sde.bridge(x, estimate, t, s)[0]
    return torch.stack(found).mean().item()


def test_pairs_keep_the_law_of_the_data(coupled, mixture):
    _, x0, _, _ = coupled
    for power in (1, 2, 3):
        value = x0**power
        exact = mixture.sample(400_000, torch.Generator().manual_seed(0)) ** power
        assert abs(value.mean() - exact.mean()).item() < 3 * value.std().item() / 4000**0.5


def test_the_straightened_flow_is_the_optimum_on_the_pairs(coupled):
    """Its loss vanishes at every time, because no other flow has these pairs; the first flow's loss does not."""
    sde, x0, eps, table = coupled
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64).repeat_interleave(100)[:, None]
    x0, eps = x0[:300], eps[:300]
    assert denoising_loss(sde, straightened(sde, *table), WEIGHTS["x0"], x0, eps, t).max() < 1e-5


def test_reflow_straightens_the_flow_so_that_one_step_suffices(coupled, mixture):
    sde, x0, eps, table = coupled
    before, after = mixture.denoiser(sde), straightened(sde, *table)
    assert bend(sde, before, x0, eps) > 0.1
    assert bend(sde, after, x0, eps) < 1e-5
    times = GRIDS["uniform"](sde, 1)
    errors = [
        (sample(DDIM(sde), denoise, sde.perturb(x0, eps, sde.t_max), times, None) - x0).square().mean().sqrt().item()
        for denoise in (before, after)
    ]
    assert errors[0] > 0.1
    assert errors[1] < 1e-3
