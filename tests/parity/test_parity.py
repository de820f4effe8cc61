"""Ours against the recorded numbers of the references, group by group."""

import pytest
import torch

from parity.groups import GROUPS, SOURCES
from parity.recordings import COPIES, Recording

RECORDED = [(group, name) for group in GROUPS for name in group.recordings()]
CORE = {"sde_math", "sampler_steps", "sampler_runs", "likelihood", "losses", "edm_sampler", "guided_diffusion"}


@pytest.mark.parametrize(("group", "name"), RECORDED, ids=lambda value: getattr(value, "what", value))
def test_ours_is_theirs(group, name):
    deviations = {}
    for array, ours, theirs in group.compare(Recording(name)):
        assert ours.shape == theirs.shape, array
        deviations[array] = group.deviation(ours, theirs)
    assert deviations
    assert {array: d for array, d in deviations.items() if not d <= group.allowed} == {}


def test_every_checkout_has_the_core():
    files = [path.relative_to(COPIES) for path in COPIES.rglob("*.npz")]
    assert {path.parts[0] for path in files} >= CORE
    assert sum(path.stat().st_size for path in COPIES.rglob("*.*")) < 5e6


def test_copies_are_verbatim():
    for path in COPIES.rglob("*.npz"):
        name = path.relative_to(COPIES).with_suffix("").as_posix()
        complete = Recording(name)
        copy = Recording(name, COPIES)
        for key, values in copy.arrays.items():
            assert values.dtype == complete[key].dtype
            assert torch.equal(values, complete[key]), f"{name}: {key}"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.what)
def test_deviation_sees_a_change_of_twice_what_is_allowed(group):
    theirs = torch.linspace(1, 2, 12, dtype=torch.float64).reshape(3, 4)
    ours = theirs.clone()
    ours[1, 3] += 4.5 * group.allowed
    assert group.deviation(theirs, theirs) == 0
    assert group.deviation(ours, theirs) > 2 * group.allowed
    ours[0, 0] = torch.nan
    assert group.deviation(ours, theirs) == float("inf")


def test_every_group_names_its_source():
    assert {group.source for group in GROUPS} == set(SOURCES)
