"""Grids: exact ends, distinct decreasing times, and the spacing that each one promises."""

import math

import pytest
import torch

from score_sde.samplers import GRIDS
from score_sde.samplers.grids import karras, of_ratios
from score_sde.sde_lib import EDMSDE, VESDE, VPSDE, Discrete

# (sde, t) -> the quantity that is evenly spaced between start and end; "edm" continues to the data.
EVEN = {
    "uniform": lambda sde, t: t,
    "quadratic": lambda sde, t: t**0.5,
    "log_snr": lambda sde, t: 2 * torch.log(sde.alpha(t) / sde.sigma(t)),
    "karras": lambda sde, t: (sde.sigma(t) / sde.alpha(t)) ** (1 / 7),
    "edm": lambda sde, t: (sde.sigma(t) / sde.alpha(t)) ** (1 / 7),
    "flow": lambda sde, t: sde.sigma(t) / (sde.alpha(t) + sde.sigma(t)),
    "angle": lambda sde, t: torch.atan(sde.sigma(t) / sde.alpha(t)),
}
LEVELS = ["levels", "levels_quadratic"]


def noisy(name, sde, times):
    """Times before the data's."""
    if name != "edm":
        return times
    assert (sde.alpha(times[-1]), sde.sigma(times[-1])) == (1, 0)
    return times[:-1]


def test_every_grid_has_a_measured_spacing():
    assert set(GRIDS) == {*EVEN, *LEVELS, "logistic"}


@pytest.mark.parametrize(
    ("dimensions", "num", "centre", "share"), [(1.0, 10, 0.35, 0.8), (4.0, 60, 0.7, 0.4), (1e9, 15, 1.4, 0.8)]
)
@pytest.mark.parametrize("std", [0.3, 1.0])
def test_the_logistic_grid_has_its_law(sde, std, dimensions, num, centre, share):
    """Fractions of a logistic law around log(centre std) and of a uniform one, by their distribution functions."""
    times = GRIDS["logistic"](sde, num, std=std, dimensions=dimensions)
    assert (times[0].item(), times[-1].item()) == (sde.t_max, sde.t_min)
    logs = -0.5 * sde.log_snr(times)
    bump = torch.sigmoid(logs - math.log(centre * std))
    cumulated = share * (bump - bump[-1]) / (bump[0] - bump[-1])
    cumulated += (1 - share) * (logs - logs[-1]) / (logs[0] - logs[-1])
    torch.testing.assert_close(cumulated, torch.linspace(1, 0, num + 1).double(), rtol=0, atol=1e-5)


def test_the_angle_is_in_units_of_the_data(sde):
    times = GRIDS["angle"](sde, 12, std=0.4)
    gaps = torch.atan(sde.sigma(times) / sde.alpha(times) / 0.4).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(12), rtol=1e-4, atol=0)


@pytest.fixture(params=sorted(EVEN))
def name(request):
    return request.param


def test_times_fall_between_exact_ends(sde, name):
    for num_steps in (1, 2, 17, 1000):
        times = GRIDS[name](sde, num_steps)
        assert times.shape == (num_steps + 1,)
        assert times.dtype == torch.float64
        assert times.device.type == "cpu"
        assert (times.diff() < 0).all()
        assert times[0].item() == sde.t_max
        if len(ahead := noisy(name, sde, times)) > 1:
            assert ahead[-1].item() == sde.t_min


@pytest.mark.parametrize("partial", [False, True])
def test_spacing_matches_the_name(sde, name, partial):
    ends = (0.7 * sde.t_max, sde.t_min + 0.01 * sde.t_max) if partial else (sde.t_max, sde.t_min)
    times = noisy(name, sde, GRIDS[name](sde, 20, *ends))
    assert times[[0, -1]].tolist() == list(ends)
    steps = EVEN[name](sde, times).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_matches_equation_five(rho):
    sde, num_steps = EDMSDE(0.002, 80.0), 18
    share = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    expected = (80.0 ** (1 / rho) + share * (0.002 ** (1 / rho) - 80.0 ** (1 / rho))) ** rho
    torch.testing.assert_close(karras(sde, num_steps, rho=rho), expected, rtol=1e-10, atol=0)


def test_impossible_grids_are_refused(sde, name):
    grid = GRIDS[name]
    for num_steps in (0, -3):
        with pytest.raises(ValueError, match=f"num_steps {num_steps}"):
            grid(sde, num_steps)
    middle = 0.5 * (sde.t_min + sde.t_max)
    for start, end in [(middle, middle), (middle, sde.t_max), (2 * sde.t_max, None), (None, 0.5 * sde.t_min - 1e-9)]:
        with pytest.raises(ValueError, match="times from"):
            grid(sde, 5, start, end)


def test_more_steps_than_distinct_times_are_refused(name):
    start = 0.5
    end = torch.nextafter(torch.tensor(start).double(), torch.tensor(0.0).double()).item()
    with pytest.raises(ValueError, match=r"[34] steps from 0.5.*use fewer"):
        GRIDS[name](VPSDE(), 4, start, end)


def test_one_step_of_edm_goes_from_the_prior_to_the_data():
    assert GRIDS["edm"](EDMSDE(), 1).tolist() == [80.0, 0.0]


# --- integer levels of a chain ----------------------------------------------------------------------------------------


@pytest.fixture(params=[10, 232, 1000])
def chain(request):
    return VPSDE(0.01, 2.0).discretize(request.param)


def divisors(num):
    return [d for d in range(1, num + 1) if num % d == 0]


def test_levels_have_an_integer_stride_down_to_the_data(chain):
    num = int(chain.t_max)
    for steps in divisors(num):
        times = GRIDS["levels"](chain, steps)
        assert times.dtype == torch.float64
        assert times.tolist() == list(range(num, -1, -num // steps))
        assert chain.sigma(times)[-1] == 0


def test_levels_between_others():
    chain = VPSDE().discretize(1000)
    assert GRIDS["levels"](chain, 3, start=901, end=1).tolist() == [901, 601, 301, 1]
    assert GRIDS["levels_quadratic"](chain, 3, start=901, end=1).tolist() == [901, 401, 101, 1]


def test_quadratic_levels_match_ddim(chain):
    num = int(chain.t_max)
    for steps in (1, 3, 7, num):
        times = GRIDS["levels_quadratic"](chain, steps)
        assert times.dtype == torch.float64
        assert times.tolist() == [max(i, num * i**2 // steps**2) for i in range(steps, -1, -1)]
        assert (times.diff() < 0).all()


def test_a_fractional_stride_names_the_nearest_integers():
    chain = VPSDE().discretize(1000)
    for steps, near in [(300, "250 or 500"), (3, "2 or 4"), (1001, "1000"), (999, "500 or 1000")]:
        with pytest.raises(ValueError, match=f"num_steps {steps} does not divide the 1000 levels.*; use {near}$"):
            GRIDS["levels"](chain, steps)
    with pytest.raises(ValueError, match="num_steps 1001: more than the 1000 levels"):
        GRIDS["levels_quadratic"](chain, 1001)


@pytest.mark.parametrize("name", LEVELS)
def test_impossible_levels_are_refused(name, chain):
    grid = GRIDS[name]
    for num_steps in (0, -3):
        with pytest.raises(ValueError, match=f"num_steps {num_steps}: need"):
            grid(chain, num_steps)
    for start, end in [(5, 5), (5, 7), (chain.t_max + 1, None), (None, -1), (None, 0.5), (4.5, None)]:
        with pytest.raises(ValueError, match=r"times from.*whole levels"):
            grid(chain, 1, start, end)


@pytest.mark.parametrize("name", LEVELS)
def test_a_continuous_process_has_no_levels(name, sde):
    if isinstance(sde, Discrete):
        assert len(GRIDS[name](sde, 2)) == 3
    else:
        with pytest.raises(ValueError, match=f"{type(sde).__name__} has no levels; use a discrete-time process"):
            GRIDS[name](sde, 2)


# --- given noise levels -----------------------------------------------------------------------------------------------


def test_times_have_the_given_levels(sde):
    """With exact ends; a ratio of 0 is the data."""
    low, high = (math.exp(-0.5 * sde.marginal(t).log_snr) for t in (sde.t_min, sde.t_max))
    ratios = [high * 1.0005, *(math.sqrt(low * high) * factor for factor in (1.5, 1.0, 0.7)), low]
    times = of_ratios(sde, ratios)
    assert times.dtype == torch.float64
    assert times[0].item() == sde.t_max
    assert times[-1].item() == pytest.approx(sde.t_min, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(torch.exp(-0.5 * sde.log_snr(times[1:4])), torch.tensor(ratios[1:4]).double())
    assert sde.sigma(of_ratios(sde, [*ratios[:-1], 0.0]))[-1] == 0


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([], "two or more"),
        ([50.0], "two or more"),
        ([50.0, 2.0, 2.0], "level 3 is 2 after 2"),
        ([50.0, 2.0, 3.0], "level 3 is 3 after 2"),
        ([50.0, math.nan, 1.0], "level 2 is nan"),
        ([80.0, 1.0], "begins at sigma / alpha = 50"),
        ([20.0, 1.0], "begins at sigma / alpha = 50"),
        ([50.0, 0.001], "at least 0.01"),
        ([50.0, 1.0, -1.0], "at least 0.01"),
    ],
)
def test_invalid_noise_levels_are_refused(ratios, words):
    with pytest.raises(ValueError, match=words):
        of_ratios(VESDE(sigma_min=0.01, sigma_max=50.0, t_min=0.0), ratios)
