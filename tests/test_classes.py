"""Class names: from the data's folders to the run, the command line and the files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from score_sde import run as command_line
from score_sde.configs import default
from score_sde.engine import checkpoint
from score_sde.engine.datasets import check_classes
from score_sde.engine.facts import DataFacts

FOLDERS = ("10", "2", "cat")
TINY = ("--device=cpu", "--config.network.channels=4", "--config.train.batch_size=4", "--config.train.total_images=8")
TINY += ("--config.train.sample_every=0", "--config.train.evaluate_every=0", "--config.network.num_classes=3")


def folder_of_classes(path, names=FOLDERS):
    """Writes twelve images of 8 x 8 pixels for each class."""
    rng = np.random.default_rng(0)
    for name in names:
        (path / name).mkdir(parents=True)
        for k in range(12):
            Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)).save(path / name / f"{k:02}.png")
    return path


def command(*words):
    return command_line.main(["run.py", *map(str, words)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with class labels, and the lines that training printed."""
    folder = tmp_path_factory.mktemp("classes")
    path = folder_of_classes(folder / "own")
    words = ("--config=conditional", "--config.data.name=images", f"--config.data.path={path}", *TINY)
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("score_sde.engine.training.loop.say", lambda *said: lines.extend(said))
        assert command("--mode=train", f"--workdir={folder / 'run'}", *words) == 0
    return SimpleNamespace(workdir=folder / "run", lines=lines)


def test_training_prints_and_keeps_the_names(trained):
    assert "classes: 0 2, 1 10, 2 cat" in trained.lines
    meta = checkpoint.read_meta(checkpoint.find(trained.workdir / "checkpoints"))
    assert meta["data"]["classes"] == ["2", "10", "cat"]
    assert DataFacts.from_dict(meta["data"]).classes == ("2", "10", "cat")


@pytest.mark.parametrize(("text", "label", "name"), [("cat", 2, "cat"), ("2", 0, "2"), ("10", 1, "10"), ("0", 0, "2")])
def test_a_label_is_a_name_or_else_a_number(trained, text, label, name, capsys):
    words = ("--sampler=ddim", "--steps=2", "--num_samples=2", f"--label={text}")
    assert command("--mode=sample", f"--workdir={trained.workdir}", *words) == 0
    assert f"of class {label}, {name}\n" in capsys.readouterr().out
    manifest = trained.workdir / "samples" / "ddim-2" / "manifest.json"
    guidance = json.loads(manifest.read_text())["guidance"]
    assert guidance == {"label": label, "class": name}
    assert np.load(manifest.with_name("samples.npz"))["label"].tolist() == [label] * 2


def test_a_name_that_no_class_has(trained, capsys):
    assert command("--mode=sample", f"--workdir={trained.workdir}", "--label=cats") == 2
    expected = "error: --label cats: need 0 to 2, the name of a class, such as cat, or all\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("num_classes", "trained_on", "classes", "refused"),
    [
        (3, ("2", "10", "cat"), ("2", "10", "cat"), False),
        (3, ("2", "10", "cat"), ("2", "cat", "dog"), "class 1 is '10' in the run and 'cat' in the data"),
        (3, ("2", "10"), ("2", "10", "cat"), "class 2 is None in the run and 'cat' in the data"),
        (3, (), ("2", "10", "cat"), "class 0 is '10' in the run and '2' in the data"),  # trained by an earlier version
        (3, (), ("ant", "bee", "cat"), False),
        (3, ("2", "10", "cat"), (), False),
        (0, ("2", "10", "cat"), ("ant",), False),
    ],
)
def test_a_changed_class_order_is_refused(num_classes, trained_on, classes, refused):
    config = default.get_config()
    config.network.num_classes = num_classes
    data, facts = SimpleNamespace(classes=classes), DataFacts((1, 8, 8), 256, 0.5, 1.0, trained_on)
    if refused:
        with pytest.raises(ValueError, match=refused):
            check_classes(config, data, facts)
    else:
        check_classes(config, data, facts)
