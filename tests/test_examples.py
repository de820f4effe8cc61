"""Examples to edit, from a split or a file, in the run's format."""

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.data import DataError
from score_sde.engine import examples
from score_sde.engine.config import Options, stored
from score_sde.engine.datasets import read_dataset
from score_sde.engine.examples import check_finite, read_given, read_input, read_picture
from score_sde.engine.facts import DataFacts
from score_sde.engine.load import load
from score_sde.sde_lib import NonFiniteError

GREY, COLOUR, POINTS = DataFacts((1, 6, 4), 17, 0.5, 1.0), DataFacts((3, 6, 4), 256, 0.5, 1.0), DataFacts((2,), 0, 1, 1)
REAL = DataFacts((1, 6, 4), 0, 0.5, 1.0)


def levels(facts, num=3, most=None):
    """Levels of a run's shape, (N, C, H, W) uint8."""
    generator = np.random.default_rng(0)
    return generator.integers(0, most or facts.levels, (num, *facts.shape)).astype(np.uint8)


@pytest.mark.parametrize("facts", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("form", ["first", "last", "npz", "samples"])
def test_arrays_are_levels_as_they_are(facts, form, tmp_path):
    """Channels first or last, and the samples.npz of the mode sample."""
    x = levels(facts)
    last = np.moveaxis(x, 1, -1)
    path = tmp_path / ("x.npz" if form in ("npz", "samples") else "x.npy")
    if form in ("first", "last"):
        np.save(path, x if form == "first" else last)
    else:
        np.savez(path, **{"x" if form == "npz" else "samples": last})
    found = read_input(path, facts)
    assert found.dtype == torch.uint8
    assert np.array_equal(found, x)


def test_examples_are_copied_from_the_file(tmp_path, monkeypatch):
    """The file is memory-mapped and read-only."""
    x = levels(GREY)
    monkeypatch.setattr(examples, "read_array", lambda path: (x, None))
    (tmp_path / "x.npy").touch()
    read_input(tmp_path / "x.npy", GREY).zero_()
    assert np.array_equal(x, levels(GREY))


def test_a_picture_s_shades_become_the_levels_of_the_run(tmp_path):
    """Shades written by a picture of these levels are recovered; others go to the nearest level."""
    x = np.arange(24, dtype=np.uint8).reshape(6, 4) % 17
    Image.fromarray((x * 255.0 / 16).round().astype(np.uint8)).save(tmp_path / "x.png")
    assert np.array_equal(read_input(tmp_path / "x.png", GREY)[0, 0], x)
    Image.new("L", (4, 6), 7).save(tmp_path / "dark.png")
    Image.new("L", (4, 6), 8).save(tmp_path / "light.PNG")
    assert (read_input(tmp_path / "dark.png", GREY) == 0).all()
    assert (read_input(tmp_path / "light.PNG", GREY) == 1).all()


def test_a_picture_with_colours_is_taken_unchanged(tmp_path):
    x = levels(COLOUR, 1)
    Image.fromarray(np.moveaxis(x[0], 0, -1)).save(tmp_path / "x.png")
    found = read_input(tmp_path / "x.png", COLOUR)
    assert (found.dtype, found.shape) == (torch.uint8, (1, 3, 6, 4))
    assert np.array_equal(found, x)


def test_real_numbers(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 2))
    np.savez(tmp_path / "x.npz", samples=x)
    np.save(tmp_path / "x.npy", x)
    for name in ("x.npz", "x.npy"):
        found = read_input(tmp_path / name, POINTS)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, x, rtol=1e-6)


@pytest.mark.parametrize(
    ("facts", "name", "content", "error", "message"),
    [
        (GREY, "x.npy", levels(GREY)[:, :, :5], ValueError, "examples of shape (1, 5, 4), the run has (1, 6, 4)"),
        (COLOUR, "x.npy", levels(GREY), ValueError, "examples of shape (1, 6, 4), the run has (3, 6, 4)"),
        (GREY, "x.npy", levels(GREY, most=200), ValueError, "contains levels up to 1"),
        (GREY, "x.npy", levels(GREY, most=2) + 0.5, DataError, "numbers that are not whole"),
        (GREY, "x.npy", levels(GREY, num=0, most=2), DataError, "contains no images"),
        (GREY, "x.npz", {"y": levels(GREY)}, DataError, "has the keys y: save the images"),
        (GREY, "x.npy", "text", DataError, "is empty, damaged or contains Python objects"),
        (GREY, "x.npy", None, DataError, "x.npy does not exist: check the path"),
        (GREY, "x.gif", "text", ValueError, "need a file ending in .png or .jpg or .jpeg or .webp or .npy or .npz"),
        (GREY, "x.png", None, DataError, "x.png does not exist: check the path"),
        (GREY, "x.png", "text", DataError, "x.png is not a complete PNG, JPEG or WebP image: replace or remove it"),
        (GREY, "x.png", Image.new("L", (6, 4)), ValueError, "is of mode L and 6x4 pixels; the run needs L, 4x6"),
        (GREY, "x.png", Image.new("RGB", (4, 6)), ValueError, "is of mode RGB and 4x6 pixels; the run needs L, 4x6"),
        (COLOUR, "x.png", Image.new("L", (4, 6)), ValueError, "is of mode L and 4x6 pixels; the run needs RGB, 4x6"),
        (COLOUR, "x.png", Image.new("RGBA", (4, 6)), DataError, "x.png has transparent pixels: flatten it"),
        (POINTS, "x.png", Image.new("L", (4, 6)), ValueError, "is a picture, and the run has examples of shape (2,)"),
        (REAL, "x.png", Image.new("L", (4, 6)), ValueError, "is a picture, and the run has examples of real numbers"),
        (POINTS, "x.txt", "text", ValueError, "need a file ending in .npy or .npz"),
        (POINTS, "x.npz", {"y": np.zeros((3, 2))}, DataError, "has the keys y: save the data"),
        (POINTS, "x.npz", {"samples": np.zeros((3, 4))}, ValueError, "examples of shape (4,), the run has (2,)"),
        (POINTS, "x.npz", {"samples": np.full((3, 2), np.nan)}, DataError, "contains nan in row 0; 3 of 3 rows"),
    ],
)
def test_files_without_examples_of_the_run_are_refused(facts, name, content, error, message, tmp_path):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        content.save(path)
    with pytest.raises(error) as caught:
        read_input(path, facts)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_half_a_picture_is_damaged(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match="is not a complete PNG, JPEG or WebP"):
        read_picture(path, (1, 60, 40))


@pytest.fixture
def run_of(digits, points):
    """A run's config and experiment, with other values in the section edit."""

    def make(name, **settings):
        workdir = {"digits": digits, "points": points}[name]
        config = stored(workdir)
        for key, value in settings.items():
            config.edit[key] = value
        return config, load(config, workdir, Options())[0]

    return make


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_of_a_split_are_evenly_spaced(split, run_of):
    """Because the examples of many splits are sorted by class."""
    config, experiment = run_of("digits", num_examples=7)
    dataset = read_dataset(config.data, split)
    last = len(dataset) - 1
    assert torch.equal(read_given(config, experiment, split), dataset.batch([k * last // 6 for k in range(7)])["x"])
    config.edit.num_examples = 0
    assert len(read_given(config, experiment, split)) == len(dataset)
    config.edit.num_examples = 10**6
    assert len(read_given(config, experiment, split)) == len(dataset)


@pytest.mark.parametrize(("most", "expected"), [(0, 5), (2, 2), (9, 5)])
def test_the_first_examples_of_a_file(most, expected, run_of, tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    np.savez(tmp_path / "x.npz", samples=x)
    config, experiment = run_of("points", num_examples=most, input=str(tmp_path / "x.npz"))
    assert np.array_equal(read_given(config, experiment, "test"), x[:expected])


def test_a_file_without_examples(run_of, tmp_path):
    np.savez(tmp_path / "x.npz", samples=np.zeros((0, 2)))
    config, experiment = run_of("points", input=str(tmp_path / "x.npz"))
    with pytest.raises(DataError, match=r"x\.npz contains no data: check the path"):
        read_given(config, experiment, "test")


def test_a_split_of_another_form(run_of):
    config, _ = run_of("digits")
    _, experiment = run_of("points")
    with pytest.raises(ValueError, match=r"the data have shape \(1, 8, 8\) and 17 levels, the run \(2,\), 0"):
        read_given(config, experiment, "test")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_non_finite_example_is_named(bad):
    made = torch.zeros(3, 1, 2)
    check_finite(made, torch.arange(5, 8))
    made[1:, 0, 1] = bad
    with pytest.raises(NonFiniteError, match="example 6: the result is not finite"):
        check_finite(made, torch.arange(5, 8))
