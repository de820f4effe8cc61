"""docs/extending.md: its config file registers a process, a step, a network and a dataset, and its commands run."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from score_sde.engine.modes import MODES, Mode
from score_sde.models.mlp import MLP
from score_sde.run import help_text
from tests.runs import command, train

ROOT = Path(__file__).parents[1]
COMMAND = """
import sys
from score_sde import run
from score_sde.engine import plane

plane.NUM_CELLS = 8
sys.exit(run.main(["run.py", *sys.argv[1:]]))
"""
"""run.py with a small picture of the density, which takes most of the time at its full size."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a space in its name, the page's file in it, and a function that runs a command there."""
    folder = tmp_path_factory.mktemp("extending") / "my work"
    folder.mkdir()
    text = (ROOT / "docs" / "extending.md").read_text()
    (folder / "mine.py").write_text(text.split("```python\n")[1].split("```")[0])

    def run(*words):
        return subprocess.run(
            [sys.executable, "-c", COMMAND, *words],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )

    return folder, run


@pytest.fixture(scope="module")
def trained(place):
    """The output of a training by the page's file."""
    _, run = place
    words = ["--config=mine.py", "--mode=train", "--device=cpu", "--workdir=runs/my run", "--config.network.width=8"]
    done = run(*words, "--config.train.total_images=512", "--config.train.sample_every=0")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_documented_file_trains_and_the_printed_command_samples(place, trained):
    folder, run = place
    command = trained.rpartition("next: python run.py ")[2].strip()
    assert shlex.split(command) == [
        f"--config={folder}/mine.py", "--config.network.width=8", "--workdir", "runs/my run", "--mode", "sample"
    ]  # fmt: skip
    sampled = run(*shlex.split(command), "--num_samples=2", "--device=cpu")
    assert sampled.returncode == 0, sampled.stderr
    manifest = json.loads((folder / "runs/my run/samples/midpoint-20/manifest.json").read_text())
    assert (manifest["sampler"], manifest["changes"]) == ("midpoint", {})

    alone = run("--workdir=runs/my run", "--mode=sample", "--device=cpu")
    assert alone.returncode == 2
    assert "; the run's own config file registers it: add " in alone.stderr
    assert shlex.quote(f"--config={folder}/mine.py") in alone.stderr


def test_the_selftest_measures_process_and_step(place):
    """With the page's command, in a clone."""
    folder, _ = place
    line = next(line for line in (ROOT / "docs" / "extending.md").read_text().splitlines() if "selftest import" in line)
    words = [sys.executable, *shlex.split(line)[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert [row for row in rows if not row.endswith("passed")] == []
    assert sum(row.startswith("Midpoint, Quarter: shortfall from order 2") for row in rows) == 1


def test_the_command_for_a_strangers_file_is_not_printed(place, trained):
    """For a run of another account the message mentions a file, but not the command that runs it."""
    folder, run = place
    config = shutil.copytree(folder / "runs/my run", folder / "theirs") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"signature": "0" * 64}))
    alone = run("--workdir=theirs", "--mode=sample", "--device=cpu")
    assert alone.returncode == 2
    assert "; its author's config file registers it: read that file, then add it with --config FILE.py" in alone.stderr
    assert "mine.py" not in alone.stderr


MODE = '''
"""Counts the weights of a run."""

from score_sde.engine.files import write_json
from score_sde.engine.load import load


def run(config, workdir, options):
    network = load(config, workdir, options)[0].network
    write_json(workdir / "weights.json", {"weights": sum(p.numel() for p in network.parameters())})
'''


def test_a_mode_is_a_module_and_a_record(tmp_path, monkeypatch, capsys):
    """It runs on a run, appears in the help, and takes the flags of its record alone."""
    (tmp_path / "count_weights.py").write_text(MODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODES, "count", Mode("count_weights"))
    folder = tmp_path / "run"
    assert train(folder, 1, "points", network__width=8, network__depth=1) == 0
    assert command("--mode=count", f"--workdir={folder}") == 0
    expected = MLP((2,), width=8, depth=1)
    found = json.loads((folder / "weights.json").read_text())
    assert found == {"weights": sum(p.numel() for p in expected.parameters())}
    capsys.readouterr()
    assert command("--mode=count", f"--workdir={folder}", "--batch_size=3") == 2
    assert ", not count: leave it out" in capsys.readouterr().err
    assert "| count" in help_text()
