"""The wheel: one import name, a command, and no clash with other packages."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OTHERS = ("data", "models", "configs", "engine")
TINY = ["--config=table", "--config.network.width=8", "--config.train.total_images=64", "--config.train.batch_size=32"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The installed package, in an environment where other packages have the names of our folders."""
    folder = tmp_path_factory.mktemp("site")
    words = ["install", str(wheel), "--no-deps", "--no-index", f"--target={folder}", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    for name in OTHERS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("OTHER = True\n")
    return folder


@pytest.fixture
def python(site, tmp_path):
    """Runs Python with the installed package, outside the clone, and returns its standard output."""

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_wheel_installs_one_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"score_sde", "score_sde_toolkit"}
    ours = {str(path.relative_to(ROOT)) for path in ROOT.glob("*/**/*.py")} | {"run.py"}
    ours = {path for path in ours if path.split("/")[0] not in {"tests", "benchmarks", "build", ".venv", "runs"}}
    assert {f"score_sde/{path.removeprefix('score_sde/')}" for path in ours} <= set(names)
    assert "score_sde/py.typed" in names
    assert not [name for name in names if "__pycache__" in name]


def test_packages_of_others_keep_their_names(python):
    program = "import data, models, configs, engine; from score_sde.samplers import sample; from score_sde import run\n"
    program += "print(data.OTHER and models.OTHER and configs.OTHER and engine.OTHER, sample.__module__)"
    assert python("-c", program) == "True score_sde.samplers.loop\n"


def test_the_installed_command_trains_and_samples_from_another_folder(python, tmp_path):
    printed = python("-m", "score_sde", "--mode=train", *TINY)
    next_command = printed.split("next: ")[1].split()
    assert next_command[0] == "score-sde"
    python("-m", "score_sde", *next_command[1:], "--num_samples=4", "--steps=2")
    assert (tmp_path / "runs" / "table" / "samples" / "adams-2" / "samples.npz").is_file()


def test_the_wheel_has_the_command(site):
    (entries,) = site.glob("*.dist-info/entry_points.txt")
    assert "score-sde = score_sde.__main__:main" in entries.read_text()
