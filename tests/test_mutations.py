"""The selftest passes on the unchanged library and fails on each mistake in mutations.py."""

import pytest
import torch

from score_sde.selftest import Setting
from score_sde.selftest.groups import CHECKS, results
from tests.mutations import MUTATIONS, Mutation, applied, function_of, noticed, source_of

SLOW = {"steps", "sampling", "likelihood", "training"}
"""Groups that take seconds."""


def by_speed(items, group):
    """Test parameters; those of slow groups are marked."""
    marks = [pytest.mark.slow]
    return [
        pytest.param(item, id=str(getattr(item, "name", item)), marks=marks * (group(item) in SLOW)) for item in items
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("group", by_speed(CHECKS, str))
def test_the_library_passes(group, dtype):
    rows = list(results(group, Setting(torch.device("cpu"), dtype)))
    assert rows
    assert [row for row in rows if not row.passed] == []


@pytest.mark.parametrize("mutation", by_speed(MUTATIONS, lambda mutation: mutation.group))
def test_the_selftest_fails(mutation):
    assert noticed(mutation) is not None


def test_mistakes_are_many_and_different():
    assert len(MUTATIONS) >= 35
    assert (
        len({mutation.name for mutation in MUTATIONS})
        == len({mutation[2:] for mutation in MUTATIONS})
        == len(MUTATIONS)
    )
    assert {mutation.group for mutation in MUTATIONS} == set(CHECKS)


def test_every_mistake_can_still_be_made():
    """Takes seconds, including slow groups: each ``old`` text occurs once in the source."""
    assert [m.name for m in MUTATIONS if source_of(m.where).count(m.old) != 1] == []


def test_a_mistake_is_applied_and_reverted():
    mutation = MUTATIONS[0]
    function = function_of(mutation.where)
    code = function.__code__
    with applied(mutation):
        assert function.__code__ is not code
    assert function.__code__ is code


def test_an_outdated_mistake_is_reported():
    old = Mutation("gone", "processes", "sde_lib.processes:VPSDE.sigma", "no such source", "")
    with pytest.raises(LookupError, match="write it anew"), applied(old):
        pass


def test_a_mistake_that_does_not_run_is_reported(monkeypatch):
    monkeypatch.setattr("tests.mutations.CHECKS", {"grids": CHECKS["grids"]})
    old = "lambda t: t, lambda t: t"
    broken = Mutation("broken", "grids", "samplers.grids:uniform", old, "lambda t: none, lambda t: t")
    with pytest.raises(LookupError, match=r"its text does not run, stopped by NameError"):
        noticed(broken)


def test_a_harmless_change_passes(monkeypatch):
    monkeypatch.setattr("tests.mutations.CHECKS", {"grids": CHECKS["grids"]})
    harmless = Mutation(
        "none", "grids", "samplers.grids:uniform", "lambda t: t, lambda t: t", "lambda t: t + 0, lambda t: t - 0"
    )
    assert noticed(harmless) is None
