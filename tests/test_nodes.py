"""Noise-to-signal ratios as quantiles: the distribution against its integral, and the slope against differences."""

import numpy as np
import pytest
from scipy.integrate import cumulative_simpson

from score_sde.sde_lib.nodes import CENTRE, EDGE_WIDTH, TRACE_CENTRE, TRACE_WEIGHT, WEIGHT, logistic_uniform, nested

INTERVALS = {
    "vp": (5e-3, 150.0, 0.7),
    "edm": (2e-3, 80.0, 0.5),
    "wide": (1e-5, 1e3, 0.02),
    "one side of the centre": (0.8, 50.0, 0.1),
    "other side": (1e-3, 0.1, 1.0),
    "angles": (np.tan(0.00123), np.tan(1.5), 1.0),
}


@pytest.fixture(params=INTERVALS)
def interval(request):
    return INTERVALS[request.param]


def test_the_ends_are_exact_and_bound_all_ratios(interval):
    low, high, std = interval
    u = np.concatenate([[0.0, 1e-300, 1e-17], np.linspace(0, 1, 1001)[1:-1], [1 - 1e-16, 1.0]])
    ratio, _ = logistic_uniform(low, high, u, std)
    assert (ratio[0], ratio[-1]) == (low, high)
    assert ratio.min() == low
    assert ratio.max() == high
    assert (np.diff(ratio[3:-2]) > 0).all()


def test_quantiles_invert_the_law(interval):
    """The density integrated on a fine grid: d/dx of 1 / (1 + e^-x) is 1 / (4 cosh^2(x / 2))."""
    low, high, std = interval
    grid = np.linspace(np.log(low), np.log(high), 100_001)
    logistic = cumulative_simpson(0.25 / np.cosh(0.5 * (grid - np.log(CENTRE * std))) ** 2, x=grid, initial=0)
    share = WEIGHT * logistic / logistic[-1] + (1 - WEIGHT) * (grid - grid[0]) / (grid[-1] - grid[0])
    u = np.linspace(0, 1, 999)
    ratio, _ = logistic_uniform(low, high, u, std)
    np.testing.assert_allclose(np.interp(np.log(ratio), grid, share), u, rtol=0, atol=1e-9)


def test_the_slope_is_the_derivative_and_integrates_to_the_interval(interval):
    low, high, std = interval
    u, h = np.linspace(1e-4, 1 - 1e-4, 999), 1e-6
    _, slope = logistic_uniform(low, high, u, std)
    above, below = (np.log(logistic_uniform(low, high, u + d, std)[0]) for d in (h, -h))
    np.testing.assert_allclose((above - below) / (2 * h), slope, rtol=1e-6)
    middles = (np.arange(20_000) + 0.5) / 20_000
    assert logistic_uniform(low, high, middles, std)[1].mean() == pytest.approx(np.log(high / low), rel=1e-4)


def test_the_edge_has_its_fraction_of_the_nodes(interval):
    """The lower half of a logistic law, integrated on a fine grid; the rest keeps its form."""
    low, high, std = interval
    grid, edge = np.linspace(np.log(low), np.log(high), 100_001), 0.3
    first = cumulative_simpson(0.25 / np.cosh(0.5 * (grid - grid[0]) / EDGE_WIDTH) ** 2, x=grid, initial=0)
    u = np.linspace(0, 1, 999)
    plain, found = logistic_uniform(low, high, u, std)[0], logistic_uniform(low, high, u, std, edge=edge)[0]
    below = np.interp(np.log(found), np.log(plain), u)
    reached = (1 - edge) * below + edge * np.interp(np.log(found), grid, first / first[-1])
    np.testing.assert_allclose(reached, u, rtol=0, atol=1e-4)
    slope = logistic_uniform(low, high, (np.arange(20_000) + 0.5) / 20_000, std, edge=edge)[1]
    assert slope.mean() == pytest.approx(np.log(high / low), rel=1e-4)
    angles = nested(np.arctan(low), np.arctan(high), 48, 16, edge)[0]
    assert (np.diff(angles) > 0).all()


@pytest.mark.parametrize("shape", [(), (5,), (3, 4)])
def test_shapes(shape):
    u = np.random.default_rng(0).random(shape)
    ratio, slope = logistic_uniform(1e-3, 80.0, u, 0.5)
    assert ratio.shape == np.shape(slope) == shape
    assert ratio.dtype == slope.dtype == np.float64
    np.testing.assert_array_equal(ratio.ravel(), logistic_uniform(1e-3, 80.0, u.ravel(), 0.5)[0])


@pytest.mark.parametrize(("num", "traces"), [(2, 2), (3, 2), (48, 16), (48, 47), (72, 24), (200, 3)])
def test_traces_are_at_quantiles_of_their_own_law_among_the_nodes(num, traces):
    low, high = 0.00123, 1.5
    angles, marked = nested(low, high, num, traces)
    assert (len(angles), angles[0], angles[-1]) == (num, low, high)
    assert (np.diff(angles) > 0).all()
    assert (len(marked), marked[0], marked[-1]) == (traces, 0, num - 1)
    if traces < num:
        law = TRACE_CENTRE, TRACE_WEIGHT
        own, _ = logistic_uniform(np.tan(low), np.tan(high), np.linspace(0, 1, traces), 1.0, *law)
        np.testing.assert_allclose(np.tan(angles[marked]), own, rtol=1e-3)
    else:
        np.testing.assert_array_equal(marked, np.arange(num))


def test_the_nodes_between_traces_follow_the_law_of_the_path():
    angles, marked = nested(0.00123, 1.5, 480, 16)
    path, _ = logistic_uniform(np.tan(0.00123), np.tan(1.5), np.linspace(0, 1, 480), 1.0)
    inside = np.searchsorted(np.arctan(path), angles[marked])
    assert np.abs(np.diff(inside) - np.diff(marked)).max() <= 1.5
