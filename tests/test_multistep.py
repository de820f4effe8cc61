"""PNDM and PLMS: orders where the weights are right and where they are not, evaluations, what they remember."""

import pytest
import torch
from test_steps import Counted, flow, noises, terminal, transported

from samplers import DDIM, GRIDS, PLMS, PNDM, Heun, sample
from sde_lib import EDMSDE, GaussianMixture

BOTH = [(PLMS, 2), (PLMS, 3), (PLMS, 4), (PNDM, 2), (PNDM, 4)]


def errors(step, mixture, sde, grid, sizes, start, end):
    """Distance from where the probability flow goes, by numbers of steps."""
    first, last = sde.at(start), sde.at(end)
    x = first.alpha * mixture.mean + first.sigma * torch.linspace(-2, 2, 21, dtype=torch.float64)[:, None]
    expected = transported(mixture, x, first, last)
    moved = (flow(step, mixture.denoiser(sde), x, GRIDS[grid](sde, n, start, end)) for n in sizes)
    return [(computed - expected).abs() for computed in moved]


@pytest.mark.parametrize(
    ("kind", "order", "expected"), [(PLMS, 2, 2), (PLMS, 3, 3), (PLMS, 4, 3), (PNDM, 2, 2), (PNDM, 4, 4)]
)
def test_order_where_times_are_even_in_sigma_over_alpha(mixture, kind, order, expected):
    few, many = errors(kind(EDMSDE(), order), mixture, EDMSDE(), "uniform", (128, 256), 0.6, 0.1)
    assert torch.log2(few / many).median().item() == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("grid", ["log_snr", "karras"])
@pytest.mark.parametrize(("kind", "order"), BOTH)
def test_order_elsewhere_is_second(mixture, kind, order, grid):
    few, many = errors(kind(EDMSDE(), order), mixture, EDMSDE(), grid, (128, 256), 20.0, 0.05)
    assert torch.log2(few / many).median().item() == pytest.approx(2, abs=0.05)


def test_memory_pays_on_every_sde(sde, mixture):
    """At 100 evaluations, against the same move without a past."""
    end = sde.time(torch.tensor(5.0, dtype=torch.float64)).item()
    steps = [DDIM(sde), *(kind(sde, order) for kind, order in BOTH)]
    alone, *found = (errors(step, mixture, sde, "log_snr", (100,), sde.t_max, end)[0].median() for step in steps)
    assert max(found) < 0.04 * alone


def test_the_start_of_pndm_is_the_classical_runge_kutta_rule(mixture):
    """For EDM, where x and sigma are the coordinates of the flow."""
    sde, t, s = EDMSDE(), 2.0, 1.2
    x, denoise = torch.tensor([[0.7], [-1.1]]).double(), mixture.denoiser(EDMSDE())

    def slope(x, sigma):
        return (x - denoise(x, sigma).x0) / sigma

    h = s - t
    first = slope(x, t)
    second = slope(x + h / 2 * first, t + h / 2)
    third = slope(x + h / 2 * second, t + h / 2)
    fourth = slope(x + h * third, s)
    expected = x + h / 6 * (first + 2 * second + 2 * third + fourth)
    torch.testing.assert_close(PNDM(sde)(denoise, x, t, s, None), expected, rtol=1e-12, atol=1e-12)


def test_the_first_move_of_the_others_is_heuns(sde, mixture):
    x, t = terminal(mixture, sde, 3), sde.t_max
    s = GRIDS["karras"](sde, 6)[1].item()
    expected = Heun(sde)(mixture.denoiser(sde), x, t, s, None)
    for step in (PLMS(sde), PLMS(sde, 2), PNDM(sde, 2)):
        assert torch.equal(step(mixture.denoiser(sde), x, t, s, None), expected)


@pytest.mark.parametrize(("kind", "order"), BOTH)
@pytest.mark.parametrize("num_steps", [5, 12])
def test_evaluations_of_a_grid_that_ends_at_the_data(sde, mixture, kind, order, num_steps):
    """F-PNDM: N + 9. All others: N + 1."""
    denoise = Counted(mixture.denoiser(sde))
    sample(kind(sde, order), denoise, terminal(mixture, sde, 2), GRIDS["edm"](sde, num_steps), None)
    assert denoise.calls == num_steps + (9 if (kind, order) == (PNDM, 4) else 1)


@pytest.mark.parametrize(("kind", "order"), BOTH)
def test_exact_for_one_point_in_few_steps(sde, kind, order):
    point = torch.tensor([[0.3, -0.7]]).double()
    eps = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    last, x = sde.at(sde.t_min), sde.perturb(point, eps, sde.t_max)
    computed = flow(kind(sde, order), GaussianMixture.of_points(point).denoiser(sde), x, GRIDS["log_snr"](sde, 6))
    torch.testing.assert_close(computed, last.alpha * point + last.sigma * eps, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind", "order"), BOTH)
def test_a_trajectory_remembers_nothing_of_the_one_before(mixture, kind, order):
    sde = EDMSDE()
    x, times, step = terminal(mixture, sde, 3), GRIDS["karras"](sde, 7), kind(sde, order)
    first = sample(step, mixture.denoiser(sde), x, times, noises(3))
    sample(step, mixture.denoiser(sde), 2 * x, times, noises(3))
    assert torch.equal(sample(step, mixture.denoiser(sde), x, times, noises(3)), first)
