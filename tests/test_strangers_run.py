"""An untrusted run folder with links, pipes and devices: nothing outside changes, and no command blocks."""

import json
import os
import shutil
import signal

import pytest

from score_sde import run as command_line
from score_sde.engine import tuned
from score_sde.engine.errors import CheckpointError
from score_sde.engine.files import read_npz, read_numbers
from score_sde.engine.partial_results import PartialResults

TINY = ["--config.network.width=8", "--config.train.batch_size=4", "--config.train.checkpoint_every=2"]
TINY += ["--config.train.sample_every=2", "--config.train.evaluate_every=0", "--config.train.keep_checkpoints=1"]


def command(workdir, *words):
    return command_line.main(["run.py", f"--workdir={workdir}", "--device=cpu", *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps on points."""
    workdir = tmp_path_factory.mktemp("trained")
    assert command(workdir, "--mode=train", "--config=points", "--config.train.total_images=16", *TINY) == 0
    return workdir


@pytest.fixture
def place(trained, tmp_path):
    """The untrusted folder ``run`` next to ``theirs``, which has a text and another run."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(trained, tmp_path / "theirs" / "run")
    (tmp_path / "theirs" / "rc").write_text('alias ls="ls"\n')
    return tmp_path


@pytest.fixture(autouse=True)
def _no_wait():
    """Makes commands that wait for a pipe fail."""
    signal.alarm(120)
    yield
    signal.alarm(0)


def contents(folder):
    """Every file below a folder with its content, and every folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


TRAIN, SAMPLE = ("--mode=train", "--config.train.total_images=24"), ("--mode=sample", "--steps=2", "--num_samples=2")
TO_FILE = [".metrics.jsonl.partial", ".config.json.partial", "metrics.jsonl", ".lock", "samples/step_00000006.png"]
TO_FILE += ["samples/step_00000006.png.partial", "samples/adams-2/samples.npz", "samples/adams-2/manifest.json"]
TO_FOLDER = ["checkpoints", "samples", "tensorboard", "samples/adams-2", "checkpoints/.step_00000006.partial"]
TO_FOLDER += ["checkpoints/.step_00000004.former", "checkpoints/step_00000006"]


def link(place, name):
    """Replaces a name in the run by a link to a file or folder outside."""
    path = place / "run" / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    outside = {"checkpoints": "run/checkpoints"}.get(name, "run" if name in TO_FOLDER else "rc")
    path.symlink_to(place / "theirs" / outside)


@pytest.mark.parametrize("name", TO_FILE + TO_FOLDER)
def test_nothing_outside_a_run_changes(place, capsys, name):
    link(place, name)
    before = contents(place / "theirs")
    status = command(place / "run", *(SAMPLE if "adams" in name else TRAIN))
    lines = capsys.readouterr().err.splitlines()
    assert contents(place / "theirs") == before
    refused = status == 3 and len(lines) == 1 and "is a link" in lines[0]
    assert refused if name in ("checkpoints", "samples", "tensorboard", "samples/adams-2", ".lock") else status == 0


def test_checkpoints_behind_a_link_are_read_and_not_deleted(place, capsys):
    """Sampling from checkpoints on another disk works; training would delete the other run's."""
    link(place, "checkpoints")
    assert command(place / "run", *SAMPLE) == 0
    assert command(place / "run", *TRAIN) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoints: it is a link inside the run, and nothing is written or deleted through it" in line
    assert [path.name for path in (place / "theirs/run/checkpoints").glob("step_*")] == ["step_00000004"]


def test_a_run_that_is_a_link_is_trained(place):
    (place / "linked").symlink_to("run")
    assert command(place / "linked", *TRAIN) == 0
    assert (place / "run/checkpoints/step_00000006").is_dir()


# --- pipes and devices ------------------------------------------------------------------------------------------------


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


ODD = pytest.mark.parametrize("make", [pipe, device])


@ODD
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "model.safetensors", "state.pt", "meta.json"])
def test_a_file_of_a_run_that_is_a_pipe_is_not_read(place, capsys, name, make):
    (path,) = (place / "run").rglob(name)
    path.unlink()
    make(path)
    assert command(place / "run", *TRAIN) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert "Traceback" not in line


def rows(path):
    PartialResults(path.parent, path.name.partition(".")[0], {})


READERS = {
    "sample.grid": (read_numbers, "a.txt"),
    "results": (lambda path: read_npz(path, "samples"), "a.npz"),
    "a calibration": (lambda path: tuned.read(path, {}), "adams-2.json"),
    "rows of results": (rows, "a.rows-44136fa355b3-0.jsonl"),
}


@ODD
@pytest.mark.parametrize("name", READERS)
def test_a_result_that_is_a_pipe_is_not_read(tmp_path, name, make):
    read, file = READERS[name]
    make(tmp_path / file)
    with pytest.raises(Exception, match=r"a (pipe|device) and not a regular file|does not exist") as caught:
        read(tmp_path / file)
    assert getattr(caught.value, "exit_status", 3) == 3


@ODD
def test_an_input_that_is_a_pipe_is_not_read(place, capsys, make):
    """Examples to edit and samples to evaluate."""
    make(place / "in.npz")
    shutil.copy(place / "run/config.json", place / "manifest.json")
    edit = ("--mode=edit", "--task=sdedit", f"--config.edit.input={place}/in.npz")
    evaluate = ("--mode=evaluate", f"--config.evaluate.samples={place}/in.npz", "--config.evaluate.features=identity")
    for words in (edit, evaluate):
        assert command(place / "run", *words) == 3
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"in.npz cannot be read: it is a {make.__name__} and not a regular file" in line


def test_a_config_larger_than_any_is_not_read(place, capsys):
    (place / "run/config.json").write_text(json.dumps({"seed": 1}))
    os.truncate(place / "run/config.json", 2**40)
    assert command(place / "run", *SAMPLE) == 3
    assert "bytes, of 67,108,864 allowed" in capsys.readouterr().err
    assert CheckpointError.exit_status == 3


def test_the_lost_config_of_another_run_is_read_and_not_written(place):
    """A command writes below its own --workdir alone."""
    (place / "theirs/run/config.json").unlink()
    before = contents(place / "theirs")
    assert command(place / "run", *SAMPLE, f"--config.guidance.autoguidance={place}/theirs/run") == 0
    assert contents(place / "theirs") == before
