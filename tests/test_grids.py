"""Grids: exact ends, distinct decreasing times, the spacing that each promises."""

import pytest
import torch

from samplers import GRIDS
from samplers.grids import karras
from sde_lib import EDMSDE, VPSDE

# (sde, t) -> what is evenly spaced.
EVEN = {
    "uniform": lambda sde, t: t,
    "quadratic": lambda sde, t: t**0.5,
    "log_snr": lambda sde, t: 2 * torch.log(sde.alpha(t) / sde.sigma(t)),
    "karras": lambda sde, t: (sde.sigma(t) / sde.alpha(t)) ** (1 / 7),
}


@pytest.fixture(params=sorted(GRIDS))
def name(request):
    return request.param


@pytest.mark.parametrize("num_steps", [1, 2, 17, 1000])
def test_times_fall_between_exact_ends(sde, name, num_steps):
    times = GRIDS[name](sde, num_steps)
    assert times.shape == (num_steps + 1,)
    assert times.dtype == torch.float64
    assert times.device.type == "cpu"
    assert times[0].item() == sde.t_max
    assert times[-1].item() == sde.t_min
    assert (times.diff() < 0).all()
    assert len(times.unique()) == num_steps + 1


@pytest.mark.parametrize("partial", [False, True])
def test_spacing_is_what_the_name_says(sde, name, partial):
    ends = (0.7 * sde.t_max, sde.t_min + 0.01 * sde.t_max) if partial else (sde.t_max, sde.t_min)
    times = GRIDS[name](sde, 20, *ends)
    assert times[[0, -1]].tolist() == list(ends)
    steps = EVEN[name](sde, times).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_is_equation_five(rho):
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


def test_more_steps_than_numbers_between_the_ends_are_refused(name):
    start = 0.5
    end = torch.nextafter(torch.tensor(start).double(), torch.tensor(0.0).double()).item()
    with pytest.raises(ValueError, match=r"4 steps from 0.5.*use fewer"):
        GRIDS[name](VPSDE(), 4, start, end)
