"""Comparison with the recorded numbers of the references, group by group."""

import math

import pytest
import torch

from parity.groups import GROUPS, SOURCES
from parity.guided_diffusion import published
from parity.recordings import COPIES, Recording
from score_sde.sde_lib.bound import log_prob_data

RECORDED = [(group, name) for group in GROUPS for name in group.files]
CORE = {"sde_math", "sampler_steps", "sampler_runs", "likelihood", "losses", "edm_sampler", "guided_diffusion"}


@pytest.mark.parametrize(("group", "name"), RECORDED, ids=lambda value: getattr(value, "what", value))
def test_numbers_agree_with_the_reference(group, name):
    if group.missing(name):
        pytest.skip(f"{group.missing(name)}: the complete recordings have it")
    deviations = {}
    for array, ours, theirs in group.compare(Recording(name)):
        assert ours.shape == theirs.shape, array
        deviations[array] = group.deviation(ours, theirs)
    assert deviations
    assert {array: d for array, d in deviations.items() if not d <= group.allowed} == {}


def test_the_reference_has_bins_of_equal_width_near_its_outermost_levels():
    """Levels 253 and 254 of 256 from -1 to 1 have bins of equal width, in the reference's distribution of a normal."""
    x0 = torch.tensor([253.0, 254.0], dtype=torch.float64) * 2 / 255 - 1
    found = published(log_prob_data, x0, x0 - 0.01, 0.03, 2 / 255)
    below, above = ((0.01 + half) / 0.03 for half in (-1 / 255, 1 / 255))
    expected = math.log(published_distribution(above) - published_distribution(below))
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-6, atol=0)
    assert round(expected, 4) == -2.3188


def published_distribution(z):
    """The reference's approximation of the normal distribution function."""
    return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


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


def test_a_change_of_twice_the_tolerance_is_detected():
    theirs = torch.linspace(1, 2, 12, dtype=torch.float64).reshape(3, 4)
    for group in GROUPS:
        ours = theirs.clone()
        ours[1, 3] += 4.5 * group.allowed
        assert group.deviation(theirs, theirs) == 0, group.what
        assert group.deviation(ours, theirs) > 2 * group.allowed, group.what
        ours[0, 0] = torch.nan
        assert group.deviation(ours, theirs) == float("inf"), group.what


def test_every_group_names_its_source():
    assert {group.source for group in GROUPS} == set(SOURCES)
