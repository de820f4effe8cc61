"""The command line: arguments passed on, refused usage, and exit statuses."""

import dataclasses
import errno
import importlib
import json
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

from score_sde import run as command_line
from score_sde.configs.default import Config
from score_sde.configs.sections import frozen
from score_sde.engine.config import Options, load, names, to_json
from score_sde.engine.errors import CheckpointError, describe, exit_status
from score_sde.engine.modes import MODES
from score_sde.storage.naming import listed, unknown

ROOT = Path(command_line.__file__).parent


class Mode(types.ModuleType):
    """A mode that records its arguments, and raises an error if one is set."""

    def __init__(self):
        super().__init__("mode")
        self.calls, self.error = [], None

    def run(self, config, workdir, options):
        self.calls.append((config, workdir, options))
        if self.error is not None:
            raise self.error


@pytest.fixture
def mode(monkeypatch, tmp_path):
    """Replaces every mode of the command line; the current folder is empty."""
    fake = Mode()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mode", fake)
    monkeypatch.setattr(
        command_line, "MODES", {name: dataclasses.replace(of, module="mode") for name, of in MODES.items()}
    )
    return fake


@pytest.fixture
def call(mode, capsys):
    """Runs a command line in this process: (exit status, lines on standard error)."""

    def run(line):
        status = command_line.main(["run.py", *line.split()])
        return status, capsys.readouterr().err.splitlines()

    return run


# --- arguments passed on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODES)
def test_every_mode_has_its_module(name):
    assert callable(importlib.import_module(MODES[name].module).run)


def test_config_folder_and_options(mode, call):
    assert call("--config vpsde --mode train") == (0, [])
    config, workdir, options = mode.calls.pop()
    assert config == frozen(Config, load("vpsde"))
    assert workdir == Path("runs/vpsde")
    assert options == Options()


def test_all_flags(mode, call):
    line = (
        "--config=edm --mode=sample --workdir=here --sampler=heun --steps=18 --num_samples 4 --seed 3 --device cpu "
        "--weights raw --batch_size 2 --split train --checkpoint 100 --task interpolate --log_prob"
    )
    assert call(line) == (0, [])
    config, workdir, options = mode.calls.pop()
    assert workdir == Path("here")
    assert (config.seed, config.device) == (3, "cpu")
    assert config.sample.to_dict().items() >= {"steps": 18, "num_samples": 4, "batch_size": 2}.items()
    assert config.sample.sampler.to_dict() == {"name": "heun"}
    assert options == Options(weights="raw", split="train", checkpoint="100", task="interpolate", log_prob=True)


@pytest.mark.parametrize("joined", [True, False])
def test_overrides_with_and_without_equals_sign(mode, call, joined):
    sign = "=" if joined else " "
    line = f"--config.train.batch_size{sign}8 --config vpsde --config.loss.timestep_sampler.mean{sign}-0.5 --mode train"
    assert call(line) == (0, [])
    config = mode.calls.pop()[0]
    assert (config.train.batch_size, config.loss.timestep_sampler.mean) == (8, -0.5)


def test_the_folder_of_a_run_is_enough(mode, call, tmp_path):
    (tmp_path / "config.json").write_text(to_json(load("edm")))
    assert call(f"--workdir {tmp_path} --mode likelihood --config.likelihood.probes=4") == (0, [])
    config = mode.calls.pop()[0]
    assert config.sde.to_dict() == load("edm").sde.to_dict()
    assert config.likelihood.probes == 4


# --- refused usage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "give --mode (train | sample"),
        ("--config vpsde", "give --mode"),
        ("--mode train", "give --config (cifar10 |"),
        ("--config vpsde --mode trian", "unknown mode 'trian'; did you mean 'train'?"),
        ("--config vpsd --mode train", "did you mean 'vpsde'"),
        ("--config vpsde --mode train --config.train.bach_size=3", "did you mean 'train.batch_size'"),
        ("--config vpsde --mode train --config.train.batch_size=many", "takes int, such as 64, not 'many'"),
        ("--config vpsde --mode train --config.train.compile", "--config.train.compile has no value"),
        ("--config vpsde --config.train.compile --mode train", "--config.train.compile has no value"),
        ("--config vpsde --mode sample --stepz 3", "Did you mean: steps"),
        ("--config vpsde --mode sample --steps 0", "positive"),
        ("--config vpsde --mode sample --steps few", "--steps=few"),
        ("--config vpsde --mode sample --weights best", "<ema|raw>"),
        ("--config vpsde --mode likelihood --split dev", "<train|test>"),
        ("--config vpsde --mode train now", "unexpected argument 'now'"),
        ("--config vpsde --mode profiles --batch_size 3", "--batch_size is for train | sample | tune | likelihood"),
    ],
)
def test_wrong_usage(mode, call, line, words):
    status, lines = call(line)
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert not mode.calls


def test_a_missing_run(call):
    status, (line,) = call("--workdir nowhere --mode sample")
    assert status == 3
    assert line == (
        f"error: no run in nowhere: nowhere/config.json is missing (looked at {Path.cwd()}/nowhere/config.json); "
        "train one with --config NAME --mode train"
    )


def test_a_config_that_the_run_was_not_trained_with(call, tmp_path):
    (tmp_path / "config.json").write_text(to_json(load("vpsde")))
    status, (line,) = call(f"--workdir {tmp_path} --config vesde --mode sample")
    assert status == 2
    assert "sde.name is 'vpsde' there and 'vesde' here" in line


# --- exit statuses ----------------------------------------------------------------------------------------------------


class NotThere(Exception):
    exit_status = 3


class NotFinite(ArithmeticError):
    exit_status = 4


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("dropout is 2;\n  choose one below 1"), 2, "error: dropout is 2; choose one below 1"),
        (CheckpointError("no checkpoint"), 3, "error: no checkpoint"),
        (NotThere("no data"), 3, "error: no data"),
        (NotFinite("loss is nan"), 4, "error: loss is nan"),
        (KeyboardInterrupt(), 130, "interrupted; the last checkpoint is kept, run the same command to go on"),
        (TypeError("3 + 'x'"), 1, "error: TypeError: 3 + 'x'; run with --debug for the traceback"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            3,
            "error: runs/vpsde: No space left on device; free some space and run the same command to go on",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/runs"),
            3,
            "error: /runs: Permission denied; choose a folder that you may write to with --workdir",
        ),
        (OSError("12 requested and 0 written"), 3, "error: runs/vpsde: 12 requested and 0 written"),
    ],
)
def test_one_line_and_a_status_for_each_error(mode, call, error, status, line):
    mode.error = error
    assert call("--config vpsde --mode train") == (status, [line])


def test_debug_shows_the_traceback_and_keeps_line_and_status(mode, call):
    mode.error = CheckpointError("no checkpoint")
    status, lines = call("--config vpsde --mode train --debug")
    assert status == 3
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "error: no checkpoint"


def test_all_names_are_listed_if_none_is_similar():
    assert str(unknown("sampler", "huen", ["heun", "pc"])) == "unknown sampler 'huen'; did you mean 'heun'?"
    assert str(unknown("sampler", "zzz", ["pc", "heun"])) == "unknown sampler 'zzz'; known: heun, pc"


def test_many_names_are_counted_and_the_first_of_them_listed():
    """Names that extend another are left out: cifar10_ncsn extends cifar10."""
    line = str(unknown("config", "zzz", names()))
    assert line.startswith("unknown config 'zzz'; known: cifar10, classifier, clip, conditional, ")
    assert line.endswith(f" and {len(names()) - 8} more")
    assert listed(["b", "a"]) == "b, a"
    assert listed(["a", "a_b", *map(str, range(20))], " | ").startswith("a | 0 | 1 | ")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("sampler", "'sample.sampler'?"),
        ("steps", "'sample.steps'?"),
        ("smaple.sampler", "'sample.sampler'?"),
        ("optim.batch_size", "'bound.batch_size' or 'edit.batch_size' or "),
    ],
)
def test_a_key_of_another_section_is_found_by_its_last_part(mode, call, key, near):
    status, (line,) = call(f"--config vpsde --mode train --config.{key}=3")
    assert status == 2
    assert f"unknown config key {key!r}; did you mean {near}" in line


def test_warnings_are_one_line_on_standard_error(mode, call, monkeypatch):
    monkeypatch.setattr(mode, "run", lambda *_: warnings.warn("first\nsecond \x1b[31m", stacklevel=1))
    assert call("--config vpsde --mode train") == (0, ["warning: first second \\x1b[31m"])


def test_status_and_line_of_an_error():
    assert exit_status(ValueError("x")) == 2
    assert describe(ValueError("x")) == "error: x"


# --- help and start-up ------------------------------------------------------------------------------------------------


def test_help_lists_flags_modes_configs_and_examples(capsys):
    assert command_line.main(["run.py", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in command_line.define_flags():
        assert f"  --{flag}" in text
    for word in [*MODES, *names()]:
        assert word in text
    assert text.count("python run.py") >= 7
    assert max(map(len, text.splitlines())) <= 140


def test_examples_of_the_help_are_accepted(mode, call):
    """Each example of --help, as printed, with the runs that two of them need."""
    for workdir in (Path("runs/vpsde"), Path("runs/mine")):
        workdir.mkdir(parents=True)
        (workdir / "config.json").write_text(to_json(load("vpsde")))
    examples = [
        line.split("python run.py ")[1].split("   ")[0]
        for line in command_line.help_text().splitlines()
        if line.startswith("  python run.py")
    ]
    for example in examples:
        assert call(example) == (0, []), example


def run_process(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_help_works_in_any_folder(tmp_path):
    result = run_process("-h", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == command_line.help_text()


def test_a_mistake_ends_the_process_with_its_status_and_leaves_nothing(tmp_path):
    result = run_process("--config", "vpsde", "--mode", "train", "--config.sde.sigma_max=20", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    reason = "sde 'vpsde' has no option 'sigma_max', its options: beta_max, beta_min, t_min; vesde, edm, ncsn have it"
    assert result.stderr == f"error: {reason}\n"
    assert not list(tmp_path.iterdir())


def test_nothing_heavy_is_imported_before_a_mode_runs():
    code = "import json, sys; from score_sde import run; run.help_text(); print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True))
    assert not {"torch", "numpy", "scipy", "sklearn", "matplotlib"} & set(loaded)
