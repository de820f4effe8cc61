"""Evaluation: distances against closed forms, floors, references with their protocol, and the command line."""

import json
import shlex
import shutil

import numpy as np
import pytest
import torch

from score_sde import run as command_line
from score_sde.data import DATASETS, DataError, order
from score_sde.engine import features as networks
from score_sde.engine import metrics
from score_sde.engine.config import load, override
from score_sde.engine.datasets import read_dataset
from score_sde.engine.features import make_features
from score_sde.engine.metrics import distances, frechet_distance, kernel_distance, nearest

FAST = ("--sampler=heun", "--steps=4", "--num_samples=60", "--config.evaluate.subset_size=40")
FAST += ("--config.evaluate.num_examples=80", "--config.evaluate.subsets=5")


def normals(num, dimensions, seed):
    return torch.randn(num, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def command(*words):
    return command_line.main(["run.py", *map(str, words)])


# --- distances --------------------------------------------------------------------------------------------------------


def of_moments(mean, covariance, num, seed):
    """Vectors with exactly these moments."""
    x = normals(num, len(mean), seed)
    x = x - x.mean(0)
    whitened = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (num - 1))).T
    return whitened @ torch.linalg.cholesky(covariance).T + mean


@pytest.mark.parametrize("dimensions", [1, 3, 8])
def test_frechet_distance_of_gaussians_is_the_closed_form(dimensions):
    basis = torch.linalg.qr(normals(dimensions, dimensions, 0))[0]
    a, b = torch.linspace(0.2, 2, dimensions).double(), torch.linspace(1.5, 0.3, dimensions).double()
    means = normals(2, dimensions, 1)
    x, y = (
        of_moments(m, (basis * v) @ basis.T, num, seed)
        for m, v, num, seed in ((means[0], a, 50, 2), (means[1], b, 70, 3))
    )
    expected = (means[0] - means[1]).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_of_whole_sets_is_the_unbiased_estimate():
    x, y = normals(12, 3, 0), normals(12, 3, 1) + 0.5

    def kernel(a, b):
        return (a @ b.T / 3 + 1) ** 3

    within = sum((kernel(a, a).sum() - kernel(a, a).trace()) / (12 * 11) for a in (x, y))
    found, spread = kernel_distance(x, y, subsets=3, subset_size=12, seed=0)
    assert found == pytest.approx((within - 2 * kernel(x, y).mean()).item(), rel=1e-9)
    assert spread == pytest.approx(0, abs=1e-9)


def test_kernel_distance_of_equal_laws_is_zero_within_its_error():
    found = [kernel_distance(normals(200, 4, 2 * k), normals(200, 4, 2 * k + 1), 1, 200, 0)[0] for k in range(40)]
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5
    other, _ = kernel_distance(normals(200, 4, 0) + 0.5, normals(200, 4, 1), 1, 200, 0)
    assert other > 4 * np.std(found)


def test_subsets_follow_from_the_seed_alone():
    x, y = normals(60, 2, 0), normals(60, 2, 1)
    state = torch.random.get_rng_state()
    one, same, other = (kernel_distance(x, y, 5, 20, seed) for seed in (3, 3, 4))
    assert one == same != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nearest():
    x, y = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [3.0, 4.0], [9.0, 9.0]])
    assert nearest(x, y) == pytest.approx(0.5)
    assert nearest(y, y) == 0


def test_worse_samples_are_farther_than_the_floor():
    points = {split: torch.from_numpy(np.asarray(DATASETS["moons"](split).x[:2000])) for split in ("train", "test")}
    fresh = torch.from_numpy(DATASETS["moons"]("train").x[2000:3000])
    rows = [
        distances(fresh + std * normals(1000, 2, 0), points, "test", 5, 500, 0) for std in (0.0, 0.2, 0.4)
    ]  # fmt: skip
    for name in ("frechet_distance", "kernel_distance"):
        good, worse, worst = (row[name]["samples"] for row in rows)
        assert good < worse < worst
        assert rows[0][name]["floor"] < worse
    assert rows[0]["frechet_distance"]["samples"] == pytest.approx(rows[0]["frechet_distance"]["floor"], abs=5e-3)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(points, digits, classifier_run, tmp_path, capsys):
    """Evaluates a copy of a run: (result, folder, output)."""

    def run(which, *words, name="heun-4-identity-test"):
        workdir = tmp_path / which
        if not workdir.exists():
            shutil.copytree({"points": points, "digits": digits}[which], workdir)
        capsys.readouterr()
        assert command("--mode=evaluate", f"--workdir={workdir}", *FAST, *words) == 0
        folder = workdir / "evaluation"
        return json.loads((folder / f"{name}.json").read_text()), folder, capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory):
    """A classifier trained for a few steps."""
    workdir = tmp_path_factory.mktemp("classifier")
    keys = {"network.channels": 8, "optim.warmup_images": 0, "train.total_images": 640, "train.batch_size": 64}
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    assert command("--config=classifier", "--mode=train", "--device=cpu", f"--workdir={workdir}", *words) == 0
    return workdir


IDENTITY = "--config.evaluate.features=identity"


def test_points_by_their_coordinates(evaluated):
    result, folder, printed = evaluated("points", IDENTITY, "--seed=3")
    metrics = result["metrics"]
    assert set(metrics) == {"frechet_distance", "kernel_distance", "novelty"}
    assert 0 < metrics["frechet_distance"]["floor"] < metrics["frechet_distance"]["samples"]
    protocol = {"features": "identity", "train_n": 80, "test_n": 80, "num_samples": 60, "split": "test", "seed": 3}
    assert result["protocol"].items() >= protocol.items()
    assert (
        result["samples"].items() >= {"sampler": "heun", "steps": 4, "nfe": 9.0, "num_samples": 60, "seed": 3}.items()
    )
    assert {"torch", "torchmetrics"} <= result["versions"].keys()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".npz"}
    for name, row in metrics.items():
        (line,) = (line for line in printed.splitlines() if name.replace("_", " ") in line)
        assert f"{row['samples']:.4f}" in line
        assert f"{row['floor']:.4f}" in line


def test_the_same_command_gives_the_same_numbers(evaluated):
    first, folder, _ = evaluated("points", IDENTITY)
    again, _, _ = evaluated("points", IDENTITY, "--batch_size=7")
    for name, row in first["metrics"].items():
        assert again["metrics"][name] == pytest.approx(row, rel=1e-4)
    assert again["protocol"] == first["protocol"]
    assert len(list(folder.glob("reference-*.npz"))) == 1


def test_samples_from_a_file_have_the_metrics_of_drawn_ones(evaluated, tmp_path):
    drawn, _, _ = evaluated("digits", IDENTITY)
    assert command("--mode=sample", f"--workdir={tmp_path / 'digits'}", *FAST[:3]) == 0
    file = tmp_path / "digits" / "samples" / "heun-4" / "samples.npz"
    read, _, _ = evaluated("digits", IDENTITY, f"--config.evaluate.samples={file}")
    assert read["metrics"] == drawn["metrics"]
    assert read["samples"]["nfe"] == drawn["samples"]["nfe"] == 9


def test_images_by_a_classifier(evaluated, classifier_run):
    features, name = f"--config.evaluate.features={classifier_run}", "heun-4-classifier-test"
    result, _, printed = evaluated("digits", features, "--config.evaluate.num_examples=0", name=name)
    metrics = result["metrics"]
    assert set(metrics) == {
        "frechet_distance", "kernel_distance", "novelty", "confidence", "rarest_class", "accuracy"
    }  # fmt: skip
    assert result["protocol"]["features_sha256"] in (classifier_run / "checkpoints/step_00000010/meta.json").read_text()
    last = json.loads((classifier_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["accuracy"] == {"samples": None, "floor": pytest.approx(last["validation_accuracy"])}
    assert metrics["frechet_distance"]["floor"] < metrics["frechet_distance"]["samples"]
    for name in ("confidence", "rarest_class"):
        assert all(0 <= value <= 1 for value in metrics[name].values())
    assert "accuracy" in printed


def test_real_examples_score_the_floor(evaluated, classifier_run, tmp_path):
    """With training images as samples, the distances are at the floor and no image is novel."""
    folder = tmp_path / "real"
    folder.mkdir()
    numbers = order(0, 0, 1437)[:300]
    images = DATASETS["digits"]("train").batch(numbers)["x"]
    np.savez(folder / "samples.npz", samples=images.movedim(1, -1).numpy())
    manifest = {"sampler": "none", "steps": 0, "nfe": 0, "seed": 0, "levels": 17}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    words = (f"--config.evaluate.samples={folder / 'samples.npz'}", f"--config.evaluate.features={classifier_run}")
    result, _, _ = evaluated("digits", *words, "--config.evaluate.num_examples=0", name="none-0-classifier-test")
    for name in ("frechet_distance", "kernel_distance"):
        row = result["metrics"][name]
        assert row["samples"] == pytest.approx(row["floor"], rel=1e-6)
    assert result["metrics"]["novelty"]["samples"] == pytest.approx(0, abs=1e-3)


def test_the_reference_is_reused(evaluated, monkeypatch):
    first, folder, _ = evaluated("points", IDENTITY)
    (path,) = folder.glob("reference-*.npz")
    monkeypatch.setattr(metrics, "write_npz", None)
    again, _, _ = evaluated("points", IDENTITY, f"--config.evaluate.reference={path}")
    assert again["metrics"] == first["metrics"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(evaluated, tmp_path, capsys, monkeypatch):
    """Evaluates the points with arguments that fail; returns the line on standard error."""
    evaluated("points", IDENTITY)
    monkeypatch.chdir(tmp_path)

    def run(status, *words, workdir="points"):
        capsys.readouterr()
        assert command("--mode=evaluate", f"--workdir={workdir}", *FAST, *words) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


@pytest.mark.parametrize(
    ("status", "word", "message"),
    [
        (2, "--config.evaluate.features=identiti", "unknown evaluate.features 'identiti'; did you mean 'identity'?"),
        (2, "--config.evaluate.features=zzz", "known: identity, inception, the folder of a classifier's run"),
        (
            3,
            "--config.evaluate.features=runs/classifier",
            ": use --config.evaluate.features=identity, since classifiers do not support these data",
        ),
        (
            2,
            "--config.evaluate.features=points",
            "points is not a classifier: use --config.evaluate.features=identity, since",
        ),
        (2, "--config.evaluate.features=inception", "the features inception need images, not data of shape (2,)"),
        (2, "--config.evaluate.subset_size=61", "evaluate.subset_size 61: need at most 60, for there are 60 samples"),
        (2, "--config.evaluate.subset_size=1", "evaluate.subset_size 1: need at least 2"),
        (2, "--config.evaluate.subsets=0", "evaluate.subsets 0: need 1 to 1e6"),
        (2, "--config.evaluate.num_examples=-1", "evaluate.num_examples -1: need at least 0"),
        (2, "--sampler=huen", "unknown sampler 'huen'; did you mean 'heun'?"),
        (3, "--config.evaluate.samples=none.npz", "none.npz does not exist: check the path"),
        (
            3,
            "--config.evaluate.samples=text.npz",
            "text.npz is damaged, no .npz or of Python objects: restore it from a copy",
        ),
        (
            3,
            "--config.evaluate.samples=alone/samples.npz",
            "alone/manifest.json is missing or not a manifest: --mode sample writes",
        ),
        (
            3,
            "--config.evaluate.samples=other.npz",
            "other.npz holds arr_0 and no array samples: give a file of this pr",
        ),
        (3, "--config.evaluate.reference=none.npz", "none.npz does not exist: check the path"),
        (3, "--config.evaluate.reference=text.npz", "text.npz is damaged, no .npz or of Python objects: restore it"),
    ],
)
def test_one_line_for_each_mistake(refused, tmp_path, status, word, message):
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "alone").mkdir()
    np.savez(tmp_path / "other.npz", np.zeros((60, 2), np.float32))
    np.savez(tmp_path / "alone" / "samples.npz", samples=np.zeros((60, 2), np.float32))
    assert message in refused(status, IDENTITY, word)


def test_non_finite_samples(refused, tmp_path):
    np.savez(tmp_path / "samples.npz", samples=np.full((60, 2), np.nan, np.float32))
    (tmp_path / "manifest.json").write_text(
        json.dumps({"sampler": "none", "steps": 0, "nfe": 0, "seed": 0, "levels": 0})
    )
    assert "samples.npz contains non-finite numbers" in refused(3, IDENTITY, "--config.evaluate.samples=samples.npz")


def test_a_file_in_the_place_of_the_folder(refused, tmp_path):
    shutil.rmtree(tmp_path / "points" / "evaluation")
    (tmp_path / "points" / "evaluation").write_text("mine")
    assert "points/evaluation: " in (line := refused(3, IDENTITY))
    assert line.endswith("choose another --workdir")


def test_a_reference_of_another_protocol_is_refused(refused, evaluated, tmp_path):
    (path,) = (tmp_path / "points" / "evaluation").glob("reference-*.npz")
    line = refused(2, IDENTITY, f"--config.evaluate.reference={path}", "--config.evaluate.num_examples=70")
    assert f"{path} is a reference of another protocol: train_n is 80 there and 70 here; " in line
    other = ("--config.data.name=swiss_roll", "--allow_changes")
    line = refused(2, IDENTITY, f"--config.evaluate.reference={path}", *other)
    assert "train_sha256 is" in line
    assert "test_sha256 is" in line


def test_samples_of_other_data_are_refused(refused, evaluated, tmp_path):
    evaluated("digits", IDENTITY)
    assert command("--mode=sample", "--workdir=digits", *FAST[:3]) == 0
    line = refused(2, IDENTITY, "--config.evaluate.samples=digits/samples/heun-4/samples.npz")
    assert "samples of shape (1, 8, 8) and 17 levels, the data have (2,), 0" in line


def test_a_damaged_classifier(refused, classifier_run, tmp_path):
    shutil.copytree(classifier_run, tmp_path / "damaged")
    for path in (tmp_path / "damaged").rglob("ema-*.safetensors"):
        path.write_bytes(path.read_bytes()[:-10])
    line = refused(3, "--config.evaluate.features=damaged", workdir=tmp_path / "points")
    assert "is truncated or damaged" in line


@pytest.mark.parametrize("missing", [True, False])
def test_the_command_in_the_error_trains_a_classifier_of_the_same_data(missing, classifier_run, tmp_path, capsys):
    """For labelled images of 6x6 pixels, without a classifier or with one of the digits."""
    images = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 1), np.uint8)
    np.savez(tmp_path / "my data.npz", images=images, labels=np.arange(60) % 3)
    words = ["--config=mnist", "--device=cpu", f"--config.data.path={tmp_path / 'my data.npz'}"]
    words += ["--config.network.channel_mult=(1,)", "--config.network.channels=8", "--config.network.attention=()"]
    small = ["--config.train.total_images=8", "--config.train.batch_size=4", "--config.train.sample_every=0"]
    run = f"--workdir={tmp_path / 'run'}"
    assert command("--mode=train", run, *words, *small) == 0
    given = [run, "--mode=evaluate", f"--config.evaluate.features={tmp_path / 'none' if missing else classifier_run}"]
    few = ["--sampler=heun", "--steps=2", "--num_samples=8", "--config.evaluate.subset_size=6"]
    capsys.readouterr()
    assert command(*given, *few) == (3 if missing else 2)
    advice = capsys.readouterr().err.partition("train one with python run.py ")[2]
    train, _, rest = advice.partition(" and name it by ")
    assert command(*shlex.split(train), *small, "--device=cpu") == 0
    assert command(run, "--mode=evaluate", rest.partition(", or ")[0], *few) == 0


# --- Inception --------------------------------------------------------------------------------------------------------


class Inception(torch.nn.Module):
    """A stand-in for the network that returns its input."""

    def __init__(self, name, features, path):
        super().__init__()
        assert (name, features) == ("inception-v3-compat", ["2048"])
        self.load_state_dict(torch.load(path, weights_only=True))

    def forward(self, x):
        assert x.dtype == torch.uint8
        return x.flatten(1).float()


def inception(**keys):
    config = load("vpsde")
    override(config, [("evaluate.features", "inception"), ("device", "cpu")])
    override(config, [(f"evaluate.{key}", str(value)) for key, value in keys.items()])
    return make_features(config, read_dataset(config.data, "test"))


def test_inception_receives_three_channels_of_256_levels(monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "find_spec", lambda name: name)
    monkeypatch.setattr(networks, "NoTrainInceptionV3", Inception)
    torch.save({}, tmp_path / "weights.pth")
    features = inception(inception_path=tmp_path / "weights.pth")
    found = features.of([torch.tensor([0, 4, 8, 16], dtype=torch.uint8).reshape(1, 1, 2, 2)])
    assert found.tolist() == [[0, 64, 128, 255] * 3]
    assert (features.name, len(features.sha256)) == ("inception", 64)


def test_missing_inception(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"evaluate.inception_path is empty: give pt_inception-2015"):
        inception()
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="need torch-fidelity, which is not installed"):
        inception(inception_path=tmp_path / "weights.pth")
    monkeypatch.setattr(networks, "find_spec", lambda name: name)
    monkeypatch.setattr(networks, "NoTrainInceptionV3", Inception)
    with pytest.raises(DataError, match="No such file or directory"):
        inception(inception_path=tmp_path / "weights.pth")
    for content in (b"", b"text", b"\x80\x02cos\nsystem\n."):
        (tmp_path / "weights.pth").write_bytes(content)
        with pytest.raises(DataError, match="does not contain the weights of Inception v3"):
            inception(inception_path=tmp_path / "weights.pth")
    torch.save({"other": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="does not contain the weights of Inception v3"):
        inception(inception_path=tmp_path / "weights.pth")


def test_a_class_without_samples_is_the_rarest():
    """Even if it is the last class, whose count is missing."""
    one_hot = torch.eye(3, dtype=torch.float64)
    found = metrics.classes(
        lambda label: 0.9 * one_hot[label], torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2]), None
    )
    assert found["rarest_class"] == {"samples": 0.0, "floor": pytest.approx(1 / 3)}
    assert found["confidence"] == {"samples": pytest.approx(0.9), "floor": pytest.approx(0.9)}
