"""Tuning from the command line: the stored plan, its use, and messages when it is not used."""

import json
import shutil

import pytest

from benchmarks import problems
from benchmarks.solvers import error, ours, walk
from score_sde.engine import plane
from score_sde.engine.errors import CheckpointError
from score_sde.engine.modes import tune
from tests.runs import command

FLAGS = ("--sampler=adams", "--steps=3")


@pytest.fixture
def points_run(points, tmp_path, monkeypatch):
    """A copy of the run on points, and a tuning that takes seconds."""
    monkeypatch.setattr(tune, "REFERENCES", 40)
    monkeypatch.setattr(tune, "ITERATIONS", 8)
    monkeypatch.setattr(plane, "draw", lambda *args: None)
    return shutil.copytree(points, tmp_path / "points")


@pytest.fixture
def tuned_run(points_run):
    """The same, tuned."""
    assert command("--mode=tune", f"--workdir={points_run}", *FLAGS) == 0
    return points_run


def draw(workdir, *words):
    """Exit status of a command that draws three samples, and the manifest."""
    status = command("--mode=sample", f"--workdir={workdir}", "--num_samples=3", *FLAGS, *words)
    path = workdir / "samples" / "adams-3" / "manifest.json"
    return status, json.loads(path.read_text()) if path.exists() else {}


def test_the_stored_plan(tuned_run, capsys):
    kept = json.loads((tuned_run / "tuned" / "adams-3.json").read_text())
    times = kept["plan"]["times"]
    assert len(times) == len(kept["plan"]["seen"]) == len(kept["plan"]["moves"]) == 4
    assert (times[0], times[-1]) == (1.0, 1e-3)
    assert kept["validation"]["num"] == 8
    assert kept["validation"]["after"]["mean"] <= kept["validation"]["before"]["mean"]
    assert kept["made_for"]["weights"] == "ema"
    assert kept.items() >= {"grid": "logistic", "seed": 0, "references": 40}.items()


def test_the_same_command_stores_the_same_plan(tuned_run):
    path = tuned_run / "tuned" / "adams-3.json"
    first = json.loads(path.read_text())
    assert command("--mode=tune", f"--workdir={tuned_run}", *FLAGS) == 0
    second = json.loads(path.read_text())
    assert first.pop("seconds") != second.pop("seconds")
    assert json.dumps(first) == json.dumps(second)


def test_a_plan_is_used_unless_a_grid_is_given(tuned_run, capsys):
    status, manifest = draw(tuned_run)
    assert (status, manifest["grid"], manifest["nfe"], manifest["steps"]) == (0, "tuned", 4, 3)
    assert f"tuned by {tuned_run / 'tuned' / 'adams-3.json'}" in capsys.readouterr().out
    assert draw(tuned_run, "--config.sample.grid=tuned")[1]["grid"] == "tuned"
    capsys.readouterr()
    assert draw(tuned_run, "--config.sample.grid=karras")[1]["grid"] == "karras"
    assert "tuned by" not in capsys.readouterr().out


def test_tuning_and_drawing_in_one_command(points_run):
    status, manifest = draw(points_run, "--tune=grid", "--config.sample.grid=edm")
    assert (status, manifest["grid"], manifest["nfe"]) == (0, "tuned", 3)
    kept = json.loads((points_run / "tuned" / "adams-3.json").read_text())
    assert (kept["grid"], len(kept["plan"]["times"])) == ("edm", 3)


def test_the_benchmark_of_solvers_uses_the_plan(points_run, tmp_path, monkeypatch):
    """To its own last time and from other starts; a plan for another time is ignored."""
    monkeypatch.setattr(problems, "CACHE", tmp_path)
    with pytest.raises(CheckpointError, match="make it with --mode tune --sampler adams --steps 3"):
        problems.calibrated(points_run, 3)
    assert command("--mode=tune", f"--workdir={points_run}", *FLAGS) == 0
    with pytest.raises(ValueError, match=r"made for t_min 0\.001, not 0\.0"):
        problems.calibrated(points_run, 3)
    assert command("--mode=tune", f"--workdir={points_run}", *FLAGS, "--config.sample.t_min=0") == 0
    kept = json.loads((points_run / "tuned" / "adams-3.json").read_text())
    problem = problems.trained(points_run, 200, 0)
    step, times = problems.calibrated(points_run, 3)
    tuned, default = error(problem, walk(problem, step, times)), error(problem, walk(problem, *ours(problem, 3)))
    assert times.tolist() == kept["plan"]["times"]
    gain = kept["validation"]["before"]["median"] / kept["validation"]["after"]["median"]
    assert gain > 1.05
    assert default.median / tuned.median == pytest.approx(gain, rel=0.2)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--weights=raw"], "weights ema, not raw"),
        (["--config.sample.t_min=0.01"], "t_min 0.001, not 0.01"),
        (["--config.sample.sampler.order=2"], "order 0, not 2"),
    ],
)
def test_a_plan_for_another_setting(tuned_run, capsys, words, key):
    """An error if the plan was requested, else a note and no plan."""
    status, manifest = draw(tuned_run, *words)
    out = capsys.readouterr().out
    assert (status, manifest["grid"]) == (0, "logistic")
    assert "not tuned: " in out
    assert key in out
    assert draw(tuned_run, *words, "--config.sample.grid=tuned")[0] == 2
    err = capsys.readouterr().err
    assert key in err
    assert "--mode tune --sampler adams --steps 3" in err


def test_a_plan_for_another_checkpoint(tuned_run, capsys):
    path = tuned_run / "tuned" / "adams-3.json"
    kept = json.loads(path.read_text())
    kept["made_for"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(kept))
    assert draw(tuned_run)[1]["grid"] == "logistic"
    assert draw(tuned_run, "--config.sample.grid=tuned")[0] == 2
    assert f"made for weights_sha256 {'0' * 64}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-40], lambda text: text.replace('"seen"', '"told"'), lambda _: "[]"]
)
def test_a_damaged_plan(tuned_run, capsys, damage):
    path = tuned_run / "tuned" / "adams-3.json"
    path.write_text(damage(path.read_text()))
    assert draw(tuned_run)[1]["grid"] == "logistic"
    assert draw(tuned_run, "--config.sample.grid=tuned")[0] == 3
    assert "adams-3.json is damaged; make it with --mode tune" in capsys.readouterr().err


def test_a_missing_plan(points_run, capsys):
    assert draw(points_run, "--config.sample.grid=tuned")[0] == 3
    assert "does not exist; make it with --mode tune" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--mode=tune", "--sampler=heun", "--steps=3"], "Heun has no coefficients to tune"),
        (["--mode=tune", "--sampler=adams", "--config.sample.sampler.eta=1.0"], "adds noise"),
        (["--mode=tune", "--sampler=adams", "--steps=1", "--config.sample.grid=edm"], "nothing to tune"),
        (["--mode=likelihood", "--tune=grid"], "--tune is for --mode evaluate or sample, not likelihood"),
        (["--mode=sample", "--tune=steps"], "should be one of"),
    ],
)
def test_unsupported_tuning_is_refused(points_run, capsys, words, why):
    assert command(f"--workdir={points_run}", *words) == 2
    assert why in capsys.readouterr().err
