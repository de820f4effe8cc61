"""Pictures of each kind of data: content, layout and units."""

import pytest
import torch
from PIL import Image

from score_sde import run as command_line
from score_sde.data import DATASETS
from score_sde.data.plots import lines, scatter, shades
from score_sde.engine import plane
from score_sde.engine.facts import DataFacts
from score_sde.engine.pictures import compared, num_shown, picture, unit

KINDS = {
    "images": DataFacts((1, 8, 6), 17, 0.5, 1.0),
    "fields": DataFacts((2, 8, 6), 0, 1.0, 1.0),
    "signals": DataFacts((2, 9), 0, 1.0, 1.0),
    "column": DataFacts((1,), 0, 1.0, 1.0),
    "points": DataFacts((2,), 0, 1.0, 1.0),
    "table": DataFacts((8,), 0, 1.0, 1.0),
}
UNITS = {"images": "images", "fields": "images", "signals": "signals", "column": "examples", "table": "examples"}


def examples(facts: DataFacts, num: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, *facts.shape, generator=generator)
    return (x.abs() * 4).clamp(max=16).to(torch.uint8) if facts.levels else x


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_unit_and_non_empty_pictures(kind, tmp_path):
    facts = KINDS[kind]
    assert unit(facts) == UNITS.get(kind, "points")
    x = examples(facts, num_shown(facts) + 3)
    picture(tmp_path / "grid.png", x, facts)
    rows = {"one": list(x[:3]), "other": list(x[3:6])}
    compared(rows, [["a", "b", "c"]], facts).save(tmp_path / "compared.png")
    for name in ("grid.png", "compared.png"):
        with Image.open(tmp_path / name) as found:
            assert min(found.size) > 100
            assert len(found.convert("RGB").getcolors(2**24)) > 5


@pytest.mark.parametrize(("channels", "num"), [(1, 32), (3, 8), (4, 8), (9, 8)])
def test_a_picture_of_signals_has_at_most_four_rows_of_channels(channels, num):
    """But at least one row of eight signals."""
    assert num_shown(DataFacts((channels, 16), 0, 1.0, 1.0)) == num


def test_signals_are_lines_in_units_of_the_data_with_one_range_a_channel():
    x = torch.tensor([[[0.0, 1.0, 3.0], [50.0, 70.0, 60.0]], [[-1.0, 2.0, 0.0], [90.0, 80.0, 40.0]]])
    figure = lines({"given": [x[0], None], "made": [x[1], x[0]]}, ["a", "b"])
    axes = figure.axes
    assert [len(each.lines) for each in axes] == [1, 0, 1, 0, 1, 1, 1, 1]
    assert axes[4].lines[0].get_ydata().tolist() == x[1, 0].tolist()
    assert axes[6].lines[0].get_ydata().tolist() == x[1, 1].tolist()
    for channel, (low, high) in enumerate([(-1.2, 3.2), (37.5, 92.5)]):
        for row in (channel, channel + 2):
            assert axes[2 * row].get_ylim() == pytest.approx((low, high))
    assert (axes[0].get_ylabel(), axes[2].get_ylabel()) == ("given\nchannel 0", "given\nchannel 1")


@pytest.mark.parametrize(("columns", "plots"), [(1, 1), (2, 1), (4, 16), (9, 36)])
def test_tables_are_plotted_column_against_column(columns, plots):
    x = torch.randn(30, columns, generator=torch.Generator().manual_seed(0))
    axes = scatter({"one": x, "other": x + 1}).axes
    assert len(axes) == plots
    if columns == 1:
        assert sum(bar.get_height() for bar in axes[0].patches) == pytest.approx(2)  # two sets of fractions
    else:
        first, second = (part.get_offsets() for part in axes[0 if columns == 2 else 1].collections)
        expected = x[:, [0, 1]] if columns == 2 else x[:, [1, 0]]
        torch.testing.assert_close(torch.from_numpy(first.data).float(), expected)
        torch.testing.assert_close(torch.from_numpy(second.data).float(), expected + 1)


def test_columns_of_different_ranges_have_separate_axes():
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    assert scatter({"": x}).axes[0].get_aspect() == 1
    assert scatter({"": x * torch.tensor([1.0, 1e3])}).axes[0].get_aspect() == "auto"
    with pytest.raises(ValueError, match=r"rows of shape \(3, 3, 3\): give \(N, D\)"):
        scatter({"": torch.zeros(3, 3, 3)})


def test_real_images_become_shades_of_their_range():
    x = torch.tensor([[[[-1.0, 0.0, 1.0, 2.0]], [[10.0, 20.0, 30.0, 40.0]]]])
    found = shades(x, torch.tensor([-1.0, 10.0]), torch.tensor([1.0, 40.0]))
    assert found.tolist() == [[[[0, 128, 255, 255], [0, 85, 170, 255]]]]


# --- in the plane -----------------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn in the plane, by title."""
    found, plot = {}, plane.plot

    def kept(title):
        found[title.split(",")[0]] = figure, axes = plot(title)
        return figure, axes

    monkeypatch.setattr(plane, "plot", kept)
    monkeypatch.setattr(plane, "NUM_CELLS", 6)
    return found


def sampled(folder, *words):
    line = ("--mode=sample", f"--workdir={folder}", "--device=cpu", "--num_samples=8", "--steps=3")
    assert command_line.main(["run.py", *line, *words]) == 0


def test_the_pictures_in_the_plane_are_drawn_once_for_each_weights(points, figures, capsys):
    sampled(points)
    assert len(figures) == 2
    assert "density.png and trajectories.png of these weights are in" in capsys.readouterr().out
    figures.clear()
    sampled(points, "--sampler=ddim")
    sampled(points, "--sampler=heun")
    assert figures == {}
    sampled(points, "--weights=raw")
    assert len(figures) == 2
    names = sorted(path.name for path in (points / "plane").iterdir())
    assert [name.rpartition("-")[2] for name in names] == ["ema", "raw"]
    assert {path.name for path in (points / "plane" / names[0]).iterdir()} == {
        "density.png",
        "trajectories.png",
        "drawn.json",
    }


def test_trajectories_are_in_coordinates_of_the_data_over_the_data(points, figures):
    sampled(points, "--seed=7")
    axes = figures["paths of the probability flow"][1]
    behind, prior, ends = (part.get_offsets().data for part in axes.collections)
    data = DATASETS["moons"](split="train").batch(range(2000))["x"]
    torch.testing.assert_close(torch.from_numpy(behind).float(), data)
    assert 0.8 < prior.std() < 1.2
    assert [line.get_xdata()[-1] for line in axes.lines] == pytest.approx(list(ends[:, 0]))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("column 0, units of the data", "column 1, units of the data")


def test_missing_data_are_reported_and_the_rest_is_drawn(points, figures, monkeypatch, capsys):
    def gone(*args):
        raise FileNotFoundError(2, "No such file", "mine.npy")

    monkeypatch.setattr(plane, "read_dataset", gone)
    sampled(points, "--seed=8")
    assert len(figures["paths of the probability flow"][1].collections) == 2
    assert "drawn without the data" in capsys.readouterr().out


def test_training_prints_the_number_and_kind_of_examples(tmp_path, capsys):
    words = ("--config.train.total_images=64", "--config.train.batch_size=32", "--config.train.sample_every=0")
    line = ["run.py", "--config=points", "--mode=train", f"--workdir={tmp_path}", "--device=cpu", *words]
    assert command_line.main(line) == 0
    out = capsys.readouterr().out
    assert "64 points in batches of 32" in out
    assert "trained on 64 points" in out
    assert "images" not in out
