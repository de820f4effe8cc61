"""The mode selftest: table, JSON, exit status and refusals. test_mutations.py covers its rows."""

import errno
import json
import math

import pytest
import torch

from score_sde import run as command_line
from score_sde.engine.log import versions
from score_sde.samplers import GRIDS, STEPS
from score_sde.sde_lib import PARAMETERIZATIONS, SDES, TIMESTEP_SAMPLERS, WEIGHTS
from score_sde.selftest import Row, Setting, denoisers, grids, groups, losses, steps, textbook
from score_sde.selftest.groups import CHECKS
from score_sde.selftest.rows import distance, relative, worst
from score_sde.storage.writing import confined

CPU = Setting(torch.device("cpu"), torch.float64)


@pytest.fixture
def table(monkeypatch):
    """Two small groups instead of all."""
    table = {
        "good": lambda setting: iter(
            [Row("zero in its dtype", setting.tensor([0.0]).item(), 0.0), Row("less", 0.5, 1)]
        ),
        "other": lambda setting: iter([Row("one number", 0.1, 0.2)]),
    }
    monkeypatch.setattr(groups, "CHECKS", table)
    monkeypatch.setattr(groups, "workers", lambda device: 1)  # other processes have the table of the library
    return table


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs --mode selftest with these flags: (exit status, standard output, lines on standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        status = command_line.main(["run.py", "--mode", "selftest", *flags])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return run


# --- output -----------------------------------------------------------------------------------------------------------


def test_table_and_json_agree(table, call, tmp_path):
    status, out, err = call("--device", "cpu", "--dtype", "float64")
    assert (status, err) == (0, [])
    lines = out.splitlines()
    assert len(lines) == 5
    assert all(line.endswith("passed") for line in lines[1:4])
    assert lines[4].startswith("3 checks passed in ")
    assert lines[4].endswith("on cpu, float64")
    report = json.loads((tmp_path / "runs" / "selftest" / "selftest.json").read_text())
    assert report["passed"] is True
    assert (report["device"], report["dtype"]) == ("cpu", "float64")
    assert report["versions"] == versions()
    assert report["seconds"] >= 0
    assert report["rows"][1] == {"group": "good", "what": "less", "measured": 0.5, "allowed": 1, "passed": True}
    assert [row["group"] for row in report["rows"]] == ["good", "good", "other"]


def test_a_failed_row_is_marked_counted_and_ends_with_one(table, call, tmp_path):
    table["bad"] = lambda setting: iter([Row("too much", 2.0, 1.0), Row("not a number", math.nan, 1.0)])
    status, out, (line,) = call("--workdir", "here")
    assert status == 1
    assert line.startswith("error: 2 of 5 checks failed")
    assert line.endswith("the first: bad, too much")
    assert out.count("FAILED") == 2
    assert "checks passed" not in out
    report = json.loads((tmp_path / "here" / "selftest.json").read_text())
    assert report["passed"] is False
    assert [row["measured"] for row in report["rows"]][-2:] == [2.0, None]


def test_an_exception_is_a_failed_row_and_the_others_continue(table, call):
    def broken(setting):
        yield Row("before", 0.0, 1.0)
        raise ArithmeticError("no\nsuch number")

    table.update(broken=broken, last=table["other"])
    status, out, _ = call()
    assert status == 1
    assert "stopped by ArithmeticError: no such number" in out
    assert out.count("one number") == 2


def test_several_processes_give_the_rows_of_one(monkeypatch):
    monkeypatch.setattr(groups, "CHECKS", {group: CHECKS[group] for group in ("grids", "codecs")})
    alone, shared = ([(group, list(rows)) for group, rows in groups.every_group(CPU, num)] for num in (1, 2))
    assert [group for group, _ in alone] == ["grids", "codecs"]
    assert all(rows for _, rows in alone)
    assert shared == alone


def test_rows_do_not_depend_on_the_random_numbers_drawn_before():
    first = list(CHECKS["denoisers"](CPU))
    torch.rand(1)
    assert list(CHECKS["denoisers"](CPU)) == first


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dtype", "float16"), "<float32|float64>"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
        (("--device", "cuda:97"), "device 'cuda:97' cannot be used"),
        (("--config", "vpsd"), "did you mean 'vpsde'"),
    ],
)
def test_wrong_dtype_and_device_are_wrong_usage(table, call, tmp_path, flags, words):
    status, _, (line,) = call(*flags)
    assert status == 2
    assert words in line
    assert not list(tmp_path.iterdir())


def test_a_device_without_such_numbers_is_wrong_usage(table, call, monkeypatch):
    def refuse(self, values):
        raise TypeError("MPS has no float64")

    monkeypatch.setattr(Setting, "tensor", refuse)
    status, _, (line,) = call("--device", "cpu", "--dtype", "float64")
    assert status == 2
    assert line == "error: dtype float64 cannot be used on cpu; try --dtype float32"


def test_a_full_disk_is_reported(table, call, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("score_sde.storage.writing.os.replace", full)
    status, out, (line,) = call("--device", "cpu")
    assert status == 3
    assert out.count("passed") == 3
    assert line.startswith("error: runs/selftest: No space left on device; free some space")


# --- rows -------------------------------------------------------------------------------------------------------------


def test_non_finite_numbers_never_pass():
    assert not Row("nan", math.nan, math.inf).passed
    assert not Row("inf", math.inf, 1e300).passed
    assert math.isnan(worst([0.0, math.nan, 1.0]))
    assert math.isnan(distance([0.0, math.nan], 0.0))
    assert math.isnan(relative(torch.tensor([math.nan]), [1.0]))


def test_distances():
    assert distance([1.0, 2.0], [1.5, 2.0], 0.5) == 1.0
    assert relative([1.1, 0.3], [1.0, 0.0]) == pytest.approx(0.3)
    assert relative(0.1, 0.1) == 0.0
    with pytest.raises(RuntimeError):  # an empty check is an error
        worst([])


def test_every_entry_of_the_library_has_a_closed_form():
    """New entries are checked without one; all entries of the project have one."""
    assert textbook.PROCESSES.keys() == textbook.PRIOR_STD.keys() == textbook.INTERVALS.keys() == SDES.keys()
    assert losses.WEIGHT_FORMS.keys() == WEIGHTS.keys()
    assert losses.LAW_FORMS.keys() == TIMESTEP_SAMPLERS.keys()
    assert steps.MOVES.keys() | steps.WITHOUT_STEPS | steps.PROCESS_FREE == STEPS.keys()
    assert denoisers.TARGETS.keys() == PARAMETERIZATIONS.keys()
    assert grids.EVEN.keys() | grids.LEVELS.keys() == GRIDS.keys()


def test_a_new_step_is_checked_automatically(monkeypatch):
    """A step without its noise fails although no closed form is given for it."""

    class Quiet(STEPS["ancestral"]):
        def __call__(self, denoise, x, t, s, draw):
            return super().__call__(denoise, x, t, s, torch.zeros_like)

    monkeypatch.setitem(steps.CASES, "quiet", lambda sde, num_steps: Quiet(sde))
    failed = next(row for row in CHECKS["steps"](CPU) if "quiet" in row.what)
    assert not failed.passed


def test_checks_write_in_a_temporary_folder(tmp_path):
    """Also when a command may write below its --workdir only, in the process that runs the checks."""
    with confined(tmp_path):
        rows = list(groups.results("training", CPU))
    assert all(row.passed for row in rows), [row.what for row in rows if not row.passed]
    assert list(tmp_path.iterdir()) == []
