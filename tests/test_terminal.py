"""Ends of a command outside the code of its mode: one line that names the cause, and the right exit status."""

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from score_sde import run as command_line
from score_sde.engine import terminal
from score_sde.engine.log import check_name
from score_sde.engine.modes import Mode

ROOT = Path(__file__).parent.parent
HELP = [sys.executable, "run.py", "--help"]


def ended(**options):
    """Runs --help with this standard output: (status, lines on standard error)."""
    done = subprocess.run(HELP, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False, **options)
    return done.returncode, done.stderr.splitlines()


def test_a_closed_pipe_ends_a_command():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        status, (line,) = ended(stdout=closed)
    assert status == 141
    assert line.startswith("error: standard output: Broken pipe: the reader closed it")


def test_a_full_disk_behind_the_output_is_reported_as_such():
    with open("/dev/full", "wb") as full:
        status, (line,) = ended(stdout=full)
    assert status == 3
    assert line.startswith("error: standard output: No space left on device; free some space")


def test_a_closed_output_is_no_error():
    assert ended(preexec_fn=lambda: os.close(1)) == (0, [])


def interrupted_at_import(tmp_path, **options):
    """A command that gets Ctrl-C while it imports a package, replaced by a stub."""
    (tmp_path / "absl").mkdir()
    interrupt = "import os, signal, sys; os.kill(os.getpid(), signal.SIGINT); sys.exit(7)"
    (tmp_path / "absl" / "__init__.py").write_text(interrupt)
    options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # the suite may ignore it
    return ended(env={**os.environ, "PYTHONPATH": str(tmp_path)}, stdout=subprocess.DEVNULL, **options)


def test_ctrl_c_during_the_imports_is_one_line(tmp_path):
    assert interrupted_at_import(tmp_path) == (130, ["error: interrupted before anything was done"])


def test_a_command_that_ignores_ctrl_c_continues(tmp_path):
    """As a command in the background does."""
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    assert interrupted_at_import(tmp_path, **ignore) == (7, [])


def test_a_mode_gets_ctrl_c_as_an_exception(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        terminal.end_on_interrupt()
        assert signal.getsignal(signal.SIGINT) is terminal._end
        terminal.raise_on_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Runs a function as a mode: (status, the line on standard error)."""

    def command(mode):
        monkeypatch.setitem(command_line.MODES, "data", Mode("a_mode"))
        monkeypatch.setitem(sys.modules, "a_mode", types.SimpleNamespace(run=lambda *given: mode()))
        status = command_line.main(["run.py", "--config=points", "--mode=data", f"--workdir={tmp_path}/run"])
        (line,) = capsys.readouterr().err.splitlines()
        return status, line

    return command


def test_out_of_memory_in_numpy_is_reported(call):
    status, line = call(lambda: np.empty(2**58, np.float64))
    assert status == 3
    assert line.startswith("error: out of memory: Unable to allocate 2.00 EiB for an array")


def test_out_of_memory_in_torch_is_reported(call):
    status, line = call(lambda: torch.empty(2**58, dtype=torch.float64))
    assert status == 3
    assert line.startswith("error: out of memory; take a smaller network")


ENVIRONMENTS = [
    ({"RANK": "3"}, "RANK 3, WORLD_SIZE not set: RANK runs from 0 to WORLD_SIZE - 1"),
    ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2, WORLD_SIZE 2"),
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE 2 and lacks RANK, MASTER_ADDR, MASTER_PORT"),
    ({"RANK": "x"}, "RANK='x', which is no number"),
]


@pytest.mark.parametrize(("given", "message"), ENVIRONMENTS)
def test_variables_of_torchrun_that_contradict_each_other_are_named(monkeypatch, call, given, message):
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    status, line = call(lambda: None)
    assert status == 2
    assert message in line
    assert line.endswith("start the processes with torchrun, or unset RANK and WORLD_SIZE to run one")


def test_a_run_whose_name_tensorboard_cannot_write_is_refused_at_once(tmp_path, capsys):
    workdir = tmp_path / os.fsdecode(b"w\xff")
    words = ["run.py", "--config=points", "--mode=train", "--device=cpu", f"--workdir={workdir}"]
    assert command_line.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "w\\udcff is not UTF-8, as TensorBoard needs it" in line
    assert not workdir.exists()
    check_name(tmp_path / "é")


def test_names_that_are_not_unicode_are_printed_with_escapes():
    program = "from score_sde.engine.terminal import open_output; open_output(); print('\\udcff')"
    shown = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert shown == "\\udcff\n"
