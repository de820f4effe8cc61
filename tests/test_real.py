"""Real-valued data: files of tables, signals and fields, and runs with numbers in units of the data."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from score_sde import run as command_line
from score_sde.data import DATASETS, DataError, Dataset
from score_sde.engine import checkpoint
from score_sde.engine.build import build
from score_sde.engine.codecs import fit_codec, moment_matched
from score_sde.engine.config import load, override
from score_sde.engine.density import DensityEstimator
from score_sde.engine.facts import DataFacts
from score_sde.sde_lib import Gaussian, GaussianMixture

SHAPES = {"table": (20, 3), "signals": (20, 2, 8), "fields": (20, 2, 8, 6)}
TINY = (
    "--device=cpu",
    "--config.train.batch_size=8",
    "--config.train.total_images=32",
    "--config.optim.warmup_images=0",
)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def refused(status: int, capsys, *words: str) -> str:
    """The error line of a command."""
    assert command_line.main(["run.py", *words]) == status
    return capsys.readouterr().err.splitlines()[-1]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_every_tenth_row_is_held_out(name, kind, tmp_path):
    x, path = numbers(*SHAPES[name]), tmp_path / f"x.{kind}"
    np.save(path, x) if kind == "npy" else np.savez(path, data=x, labels=np.arange(20) % 4)
    train, test = (DATASETS[name](split=split, path=str(path)) for split in ("train", "test"))
    assert test.validation == "every 10th row"
    for dataset, rows in ((test, [0, 10]), (train, sorted(set(range(20)) - {0, 10}))):
        batch = dataset.batch(range(len(dataset)))
        assert torch.equal(batch["x"], torch.from_numpy(x[rows].astype(np.float32)))
        assert (dataset.levels, dataset.num_classes) == (0, 4 if kind == "npz" else 0)
        if kind == "npz":
            assert batch["label"].tolist() == [row % 4 for row in rows]


def test_a_test_path_is_the_whole_test_split(tmp_path):
    paths = {split: str(tmp_path / f"{split}.npy") for split in ("train", "test")}
    for k, path in enumerate(paths.values()):
        np.save(path, np.full((3, 2), k))
    for k, split in enumerate(paths):
        dataset = DATASETS["table"](split=split, path=paths["train"], test_path=paths["test"])
        assert dataset.batch(range(len(dataset)))["x"].tolist() == [[k, k]] * 3
        assert dataset.validation == paths["test"]


@pytest.mark.parametrize(
    ("name", "stored", "read"),
    [
        ("signals", (20, 8), (1, 8)),
        ("fields", (20, 8, 6), (1, 8, 6)),
        ("fields", (20, 8, 6, 2), (2, 8, 6)),
        ("fields", (20, 2, 8, 6), (2, 8, 6)),
        ("fields", (20, 6, 6, 6), (6, 6, 6)),
    ],
)
def test_layouts_become_channels_first(name, stored, read, tmp_path):
    x = numbers(*stored).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    dataset = DATASETS[name](split="test", path=str(tmp_path / "x.npy"))
    assert dataset.shape == read
    expected = np.moveaxis(x, 3, 1) if stored[-1] == 2 else x.reshape(20, *read)
    assert torch.equal(dataset.batch([1])["x"][0], torch.from_numpy(expected[10].copy()))


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("table", np.array([[1.0, 2.0], [3.0, math.nan], [math.inf, 1.0]]), r"contains nan in row 1; 2 of 3 rows"),
        ("table", np.full((3, 2), 1e39), r"contains 1e\+39 in row 0; 3 of 3 rows"),
        ("table", numbers(4, 2, 8), r"shape \(4, 2, 8\); expected a table \(N, D\): take --config signals"),
        ("signals", numbers(4), r"shape \(4,\); expected signals \(N, C, L\)$"),
        ("table", np.array([["a", "b"]]), r"contains <U1"),
        ("table", numbers(4, 2) + 1j, r"contains complex128"),
        ("table", np.zeros((0, 2)), r"contains no data"),
        ("table", numbers(1, 2), r"too few rows to leave any for train"),
    ],
    ids=["missing", "overflow", "rank", "flat", "text", "complex", "empty", "single"],
)
def test_unsuitable_data_are_refused_by_one_line(name, x, message, tmp_path):
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match=message):
        DATASETS[name](split="train", path=str(tmp_path / "x.npy"))


def test_whole_numbers_of_any_size_are_real_numbers(tmp_path):
    x = np.arange(40, dtype=np.uint8).reshape(20, 2)
    np.save(tmp_path / "x.npy", x)
    dataset = DATASETS["table"](split="test", path=str(tmp_path / "x.npy"))
    assert dataset.batch([0, 1])["x"].tolist() == x[[0, 10]].tolist()


# --- keys that a dataset does not use ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--config=points", "--config.data.path=mine.npy"),
            "mine.npy': the dataset moons does not read it",
        ),
        (("--config=vpsde", "--config.data.test_path=t"), "/t': the dataset digits does not read it"),
        (("--config=table", "--config.data.max_pixels=5"), "data.max_pixels 5: the dataset table does not read it"),
        (("--config=table", "--config.data.mirror=true"), "data.mirror true: it flips signals and images"),
        (("--config=table", "--config.data.test_path=t"), "/t' is given without data.path"),
    ],
)
def test_a_key_that_would_be_ignored_is_refused(words, message, capsys, tmp_path):
    line = refused(2, capsys, "--mode=train", f"--workdir={tmp_path / 'run'}", *words)
    assert message in line
    if "does not read" in message and "max_pixels" not in message:
        assert "mnist (images), " in line
    assert not (tmp_path / "run").exists()


def test_cifar10_splits_one_file_by_default_and_records_it(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "mine.npy", images)
    words = (
        f"--config.data.path={tmp_path / 'mine.npy'}",
        "--config.network.channels=8",
        "--config.train.sample_every=0",
    )
    small = ("--config.network.num_blocks=1", "--config.train.precision=float32", "--config.network.attention=()")
    line = ["run.py", "--config=cifar10", "--mode=train", f"--workdir={tmp_path / 'run'}", *words, *small, *TINY]
    assert command_line.main(line) == 0
    assert "18 examples of shape (3, 8, 8) from images" in (out := capsys.readouterr().out)
    assert "test split: every 10th image" in out
    assert checkpoint.read_meta(checkpoint.find(tmp_path / "run" / "checkpoints"))["test_split"] == "every 10th image"


# --- likelihood in units of the data ----------------------------------------------------------------------------------


def test_the_density_of_gaussian_data_is_exact_in_units_of_the_data():
    """log N(v; m, C) of columns in units from 1e-3 to 1e3, by the exact denoiser of the standardized data."""
    scales = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.4]], dtype=torch.float64) * scales[:, None]
    mean = torch.tensor([0.02, -4.0, 5e3], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(mean, scale_tril=root)
    torch.manual_seed(0)
    dataset = Dataset(normal.sample((400,)).float().numpy(), np.arange(400))
    config = load("table")
    override(config, [("likelihood.evaluations", "96"), ("likelihood.prior", "matched"), ("device", "cpu")])
    codec = fit_codec(config, "train", dataset)
    means, stds = (torch.tensor(numbers, dtype=torch.float64) for numbers in (codec.means, codec.stds))
    covariance = (root @ root.T) / (stds[:, None] * stds)
    law = GaussianMixture.of_covariances(torch.ones(1), ((mean - means) / stds)[None], covariance[None])
    values, directions = torch.linalg.eigh(covariance)
    gaussian = Gaussian((mean - means) / stds, 1.0, values, directions)
    experiment = build(config, DataFacts.of(dataset, codec), gaussian)
    denoiser = law.denoiser(experiment.sde)
    found = DensityEstimator.of(config, experiment, denoiser).score(dataset, list(range(50)))
    expected = normal.log_prob(dataset.batch(range(50))["x"].double())
    np.testing.assert_allclose(found["nats"], expected, rtol=0, atol=2e-3)
    scaling = experiment.codec.log_det((3,))
    np.testing.assert_allclose(found["prior"] + found["divergence"] + scaling, found["nats"], rtol=0, atol=1e-4)
    assert np.abs(found["dequantization"]).max() == 0


# --- runs -------------------------------------------------------------------------------------------------------------

UNITS = {"table": (50.0, [3e-3, 1.0, 2e4]), "signals": (50.0, [3e-3, 2e4]), "fields": (50.0, [3e-3, 2e4])}


@pytest.fixture(scope="module", params=UNITS)
def trained(request, tmp_path_factory):
    """Name, data and folder of a run on a file."""
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    offset, scales = UNITS[name]
    x = numbers(60, *SHAPES[name][1:]) + offset
    x = x * np.reshape(scales, (-1, *[1] * (x.ndim - 2)))
    np.save(folder / "x.npy", x)
    words = [
        f"--config={name}",
        "--mode=train",
        f"--workdir={folder / 'run'}",
        f"--config.data.path={folder / 'x.npy'}",
    ]
    network = ("--config.network.width=16",) if name == "table" else ("--config.network.channels=8",)
    assert command_line.main(["run.py", *words, *network, *TINY, "--config.train.sample_every=4"]) == 0
    return name, x.astype(np.float32), folder / "run"


def command(folder, *words: str) -> None:
    assert command_line.main(["run.py", f"--workdir={folder}", *words]) == 0


def test_the_codec_of_a_run_is_measured_on_its_training_data(trained):
    _, x, folder = trained
    facts = checkpoint.read_meta(checkpoint.find(folder / "checkpoints"))["data"]
    train = np.delete(x, np.s_[::10], axis=0).astype(np.float64)
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(facts["codec"]["means"], train.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(facts["codec"]["stds"], train.std(axes), rtol=1e-6)
    assert facts["std"] == pytest.approx(1, abs=1e-4)


def test_samples_are_in_units_of_the_data_after_the_data_are_gone(trained, tmp_path):
    name, x, folder = trained
    (path := folder.parent / "x.npy").rename(tmp_path / "away.npy")
    try:
        command(folder, "--mode=sample", "--num_samples=32", "--batch_size=32", "--steps=4")
    finally:
        (tmp_path / "away.npy").rename(path)
    samples = np.load(next(folder.glob("samples/*/samples.npz")))["samples"]
    assert samples.shape == (32, *x.shape[1:])
    axes = (0, *range(2, x.ndim))
    scale = np.array(UNITS[name][1])
    assert (np.abs(samples.mean(axes) - 50 * scale) < 2 * scale).all()
    assert (samples.std(axes) < 3 * scale).all()


def test_nats_are_in_units_of_the_data(trained):
    """The nats are the encoded data's, minus the log of each channel's standard deviation at every position."""
    _, x, folder = trained
    words = ("--mode=likelihood", "--config.likelihood.evaluations=4", "--config.likelihood.check_examples=0")
    command(folder, *words)
    found = json.loads((folder / "likelihood" / "test-none.json").read_text())
    terms = found["terms"]
    assert found["bits_per_dim"] is None
    positions = math.prod(x.shape[2:])
    stds = checkpoint.read_meta(checkpoint.find(folder / "checkpoints"))["data"]["codec"]["stds"]
    assert terms["scaling"] == pytest.approx(-positions * sum(map(math.log, stds)), rel=1e-6)
    assert found["nats"] == pytest.approx(terms["prior"] + terms["divergence"] + terms["scaling"], rel=1e-5)
    assert terms["dequantization"] == 0


def test_a_bound_is_in_units_of_the_data(trained):
    """For a nearly zero network, bound and density differ little, compared with a scaling of hundreds of nats."""
    _, x, folder = trained
    command(folder, "--mode=bound", "--config.bound.evaluations=64")
    command(folder, "--mode=likelihood", "--config.likelihood.evaluations=16")
    bound = json.loads((folder / "bound" / "test.json").read_text())["nats"]
    exact = json.loads((folder / "likelihood" / "test-none.json").read_text())["nats"]
    assert abs(bound - exact) < 0.5 * math.prod(x.shape[1:])


def test_a_run_resumes_with_its_own_codec(trained):
    folder = trained[2]
    before = checkpoint.read_meta(checkpoint.find(folder / "checkpoints"))["data"]
    command(folder, "--mode=train", "--config.train.total_images=40")
    after = checkpoint.read_meta(checkpoint.find(folder / "checkpoints"))
    assert (after["step"], after["data"]) == (5, before)


def test_a_codec_that_was_measured_on_other_channels_is_refused():
    config = load("table")
    facts = DataFacts((3,), 0, 1.0, 1.0, codec={"means": (0.0, 0.0), "stds": (1.0, 1.0)})
    with pytest.raises(ValueError, match="measured on data of another shape"):
        build(config, facts)
    with pytest.raises(ValueError, match="codec standardize needs measurements of the training data"):
        build(config, dataclasses.replace(facts, codec={}))


@pytest.mark.parametrize("name", SHAPES)
def test_recipes_run_on_synthetic_data_and_learn(name, tmp_path):
    words = ("--config.train.total_images=2560", "--config.train.batch_size=32", "--config.optim.warmup_images=0")
    sizes = () if name == "table" else ("--config.network.channels=8",)
    line = ["run.py", f"--config={name}", "--mode=train", f"--workdir={tmp_path}", "--device=cpu", *words, *sizes]
    assert command_line.main([*line, "--config.train.sample_every=0", "--config.optim.decay=constant"]) == 0
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation_loss"] < 0.9 * last["validation_loss_of_zero"]


def test_the_moment_matched_gaussian_describes_the_encoded_data():
    config = load("table")
    dataset = DATASETS["table"](split="train")
    guess = moment_matched(dataset, fit_codec(config, "train", dataset))
    assert guess.std == pytest.approx(1, abs=0.05)
    assert guess.mean.abs().max() < 0.1
