"""Commands in benchmarks: a missing file or a wrong number of arguments gives one line and an exit status."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

MISTAKES = {
    "digits nothing.npz": (3, "error: nothing.npz does not exist: check the path"),
    "digits": (2, "usage: python benchmarks/digits.py SAMPLES.npz"),
    "digits wide.npz": (2, "error: samples of 16 numbers: need digits of 8x8 pixels"),
    "ddim nowhere x.png": (3, "error: no run in nowhere: nowhere/config.json is missing"),
    "networks --edm nowhere": (3, "error: nowhere: No such file or directory"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words, tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "wide.npz", samples=np.zeros((4, 4, 4, 1)))
    name, *given = words.split()
    path = str(ROOT / "benchmarks" / f"{name}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path, *given])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(path, run_name="__main__")
    (status, message), (out, err) = MISTAKES[words], capsys.readouterr()
    assert (ended.value.code, out) == (status, "")
    (said,) = err.splitlines()
    assert said.startswith(message)
