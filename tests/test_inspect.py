"""The mode data: its numbers against numpy, its picture, and no other file in the folder."""

import json

import numpy as np
import pytest
from PIL import Image

from score_sde import run as command_line
from score_sde.data import read_digits


@pytest.fixture
def look(tmp_path, capsys):
    """Runs the mode data with these arguments: (numbers, lines of output)."""

    def run(*words, split="train"):
        assert command_line.main(["run.py", "--mode=data", f"--workdir={tmp_path / 'run'}", *words]) == 0
        return json.loads((tmp_path / "run" / "data" / f"{split}.json").read_text()), capsys.readouterr().out

    return run


@pytest.mark.parametrize(("split", "count"), [("train", 1437), ("test", 360)])
def test_digits(look, tmp_path, split, count):
    found, out = look("--config=vpsde", f"--split={split}", split=split)
    dataset = read_digits(split)
    x = (dataset.batch(np.arange(count))["x"].numpy().astype(float) + 0.5) * 2 / 17 - 1
    assert (found["count"], found["shape"], found["levels"], found["classes"]) == (count, [1, 8, 8], 17, 10)
    expected = {"low": x.min(), "high": x.max(), "mean": x.mean(), "std": x.std()}
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    flat = x.reshape(count, -1)
    square = (flat**2).sum(1)
    largest = (square[:, None] + square - 2 * flat @ flat.T).max() ** 0.5
    assert found["diameter"] == pytest.approx(largest, rel=1e-4)
    assert f"digits, {split}: {count} examples of shape (1, 8, 8), whole numbers 0 to 16, 10 classes" in out
    assert f"suggested sigma_data {x.std():.3f}" in out
    assert f"suggested sigma_max {largest:.3g}" in out
    files = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert files == {f"data/{split}.json", f"data/{split}.png"}


def test_points(look, tmp_path):
    found, out = look("--config=points", "--config.data.name=checkerboard")
    assert (found["count"], found["shape"], found["levels"], found["classes"]) == (20_000, [2], 0, 0)
    assert found["std"] == pytest.approx(3**-0.5, rel=0.01)
    assert "real numbers, no labels" in out
    with Image.open(tmp_path / "run" / "data" / "train.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize("num", [1, 3])
def test_a_few_images_of_the_user(look, tmp_path, num):
    """A single image is enough, although it has no distance to another; the picture shows its pixels."""
    (tmp_path / "own" / "train").mkdir(parents=True)
    (tmp_path / "own" / "test").mkdir()
    for split, count in (("train", num), ("test", 1)):
        for k in range(count):
            Image.new("RGB", (6, 4), (255, 40 * k, 0)).save(tmp_path / "own" / split / f"{k}.png")
    found, _ = look("--config=mnist", f"--config.data.path={tmp_path / 'own'}")
    assert (found["count"], found["shape"], found["levels"]) == (num, [3, 4, 6], 256)
    assert (found["diameter"] == 0) == (num == 1)
    with Image.open(tmp_path / "run" / "data" / "train.png") as picture:
        assert (255, 0, 0) in {color for _, color in picture.convert("RGB").getcolors(100_000)}


def test_inspection_needs_no_run_and_changes_none(look, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "note.txt").write_text("mine")
    look("--config=vpsde")
    assert (tmp_path / "run" / "note.txt").read_text() == "mine"
    assert not (tmp_path / "run" / "config.json").exists()


def test_photos_of_other_sizes_with_classes(look, tmp_path, capsys):
    """Everything done to them is printed and written: crop and size, class names, files left out."""
    for folder, size in {"2": (40, 30), "10": (8, 20)}.items():
        (tmp_path / "own" / folder).mkdir(parents=True)
        for k in range(12):
            Image.new("RGB", size, (20 * k, 0, 255)).save(tmp_path / "own" / folder / f"{k:02}.jpg")
    (tmp_path / "own" / "10" / "a.gif").touch()
    words = ("--config=mnist", f"--config.data.path={tmp_path / 'own'}")
    assert command_line.main(["run.py", "--mode=data", f"--workdir={tmp_path / 'run'}", *words]) == 3
    assert "set data.size to crop and resize" in capsys.readouterr().err
    found, out = look(*words, "--config.data.size=16")
    assert (found["count"], found["shape"], found["class_names"]) == (21, [3, 16, 16], ["2", "10"])
    lines = [
        "classes: 0 2, 1 10",
        "files left out: 1 .gif; images are .png, .jpg, .jpeg, .webp",
        "images are cropped to the square at their centre and resized to 16 x 16 (Lanczos)",
        "22 images decoded, stored as 8 x 20 to 40 x 30 pixels; 11 of them were enlarged",
    ]
    assert all(f"  {line}\n" in out for line in lines)
    assert found["notes"] == lines[1:3]
