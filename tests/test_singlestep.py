"""Singlestep solvers: measured orders, published formulas, evaluations, and the effect of the moment-matched
Gaussian.
"""

import math

import pytest
import torch

from score_sde.samplers import GRIDS, Heun, sample
from score_sde.samplers.singlestep import DPM2S, DPM3S, DPMPP2S, RK4, RK45, Singlestep
from score_sde.sde_lib import EDMSDE, SDES, VPSDE, Gaussian, GaussianMixture
from tests.trajectories import Counted, flow, terminal, transported

# Order, evaluations of a step, and the number of steps from which the order shows.
KINDS = [(DPM2S, 2, 2, 128), (DPM3S, 3, 3, 128), (DPMPP2S, 2, 2, 128), (RK4, 4, 4, 64), (RK45, 5, 6, 32)]


def errors(step, mixture, sde, grid, sizes, start, end):
    """Errors, for each number of steps, against the flow from start to end, at 41 states."""
    first, last = sde.marginal(start), sde.marginal(end)
    x = first.alpha * mixture.mean + first.sigma * torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    expected = transported(mixture, x, first, last)
    ends = (flow(step, mixture.denoiser(sde), x, GRIDS[grid](sde, num, start, end)) for num in sizes)
    return [(found - expected).abs() for found in ends]


@pytest.mark.parametrize("grid", ["log_snr", "karras"])
@pytest.mark.parametrize("name", ["vpsde", "vesde", "subvpsde", "iddpm"])
@pytest.mark.parametrize(("kind", "order", "evaluations", "size"), KINDS)
def test_order_is_the_published_one(mixture, kind, order, evaluations, size, name, grid):
    sde = SDES[name]()
    start, end = (sde.time(torch.tensor(l).double()).item() for l in (-6.0, 5.0))
    few, many = errors(kind(sde), mixture, sde, grid, (size, 2 * size), start, end)
    observed = torch.log2(few / many).median().item()
    assert order - 0.15 < observed < order + (1.5 if kind is RK45 else 0.15)  # its leading error is small by design


@pytest.mark.parametrize(("kind", "order", "evaluations", "size"), KINDS)
def test_evaluations_and_times_stay_within_the_step(sde, mixture, kind, order, evaluations, size):
    denoise, times = Counted(mixture.denoiser(sde)), GRIDS["karras"](sde, 5)
    step, asked = kind(sde), []

    def look(x, t):
        asked.append(t)
        return denoise(x, t)

    sample(step, look, terminal(mixture, sde, 2), times, None)
    assert denoise.calls == 5 * evaluations + 1
    for i in range(5):
        mine = asked[i * evaluations : (i + 1) * evaluations]
        assert mine[0] == times[i]
        assert all(times[i] >= t >= times[i + 1] for t in mine)


@pytest.mark.parametrize(("kind", "order", "evaluations", "size"), KINDS)
def test_no_time_is_inverted_during_a_trajectory(sde, mixture, kind, order, evaluations, size, monkeypatch):
    step, times = kind(sde), GRIDS["karras"](sde, 4)
    sde.tabulate(times)
    step.reset(times.tolist())
    monkeypatch.setattr(type(sde), "log_alpha", None)
    for t, s in zip(times.tolist(), times.tolist()[1:]):
        step(mixture.denoiser(sde), mixture.means, t, s, None)


def test_heun_is_a_singlestep_solver_for_noise_over_the_ratio(sde, mixture):
    x, times = terminal(mixture, sde, 5), GRIDS["karras"](sde, 8)
    row = Singlestep(sde, "noise", "ratio", ((1.0, (0,)), (1.0, (0, 1))))
    expected = flow(Heun(sde), mixture.denoiser(sde), x, times)
    torch.testing.assert_close(flow(row, mixture.denoiser(sde), x, times), expected, rtol=1e-7, atol=1e-7)


def move(kind, sde, denoise, x, t, s, **options):
    step = kind(sde, **options)
    step.reset([t, s])
    return step(denoise, x, t, s, None)


def half_log_snr(sde, t):
    return 0.5 * sde.marginal(t).log_snr


def test_dpm_solver_matches_the_paper(mixture):
    """Explicit algorithms 1 and 2 for VP, with lambda = log(alpha / sigma)."""
    sde, t, s = VPSDE(), 0.6, 0.4
    denoise, x = mixture.denoiser(sde), torch.tensor([[0.7], [-1.1]]).double()
    start, h = half_log_snr(sde, t), half_log_snr(sde, s) - half_log_snr(sde, t)

    def place(share):
        return sde.time(torch.tensor(2 * (start + share * h), dtype=torch.float64)).item()

    def eps(x, t):
        return sde.eps(x, denoise(x, t).x0, t)

    def first(t, s, share, noise):
        return sde.marginal(s).alpha / sde.marginal(t).alpha * x - sde.marginal(s).sigma * math.expm1(share * h) * noise

    e = eps(x, t)
    middle = place(0.5)
    expected = first(t, s, 1, eps(first(t, middle, 0.5, e), middle))
    torch.testing.assert_close(move(DPM2S, sde, denoise, x, t, s), expected, rtol=1e-11, atol=1e-11)
    one, two = place(1 / 3), place(2 / 3)
    d1 = eps(first(t, one, 1 / 3, e), one) - e
    rest = math.expm1(2 / 3 * h) / (2 / 3 * h) - 1
    d2 = eps(first(t, two, 2 / 3, e) - sde.marginal(two).sigma * 2 * rest * d1, two) - e
    expected = first(t, s, 1, e) - sde.marginal(s).sigma * 1.5 * (math.expm1(h) / h - 1) * d2
    torch.testing.assert_close(move(DPM3S, sde, denoise, x, t, s), expected, rtol=1e-11, atol=1e-11)


def test_dpm_solver_plus_plus_2s_matches_the_paper(mixture):
    """Its algorithm 1 with r = 1/2: it uses the estimate in the middle and not the one at the start."""
    sde, t, s = EDMSDE(), 2.0, 1.0
    denoise, x = mixture.denoiser(sde), torch.tensor([[0.7], [-1.1]]).double()
    middle = 2.0**0.5
    u = middle / t * x + (1 - middle / t) * denoise(x, t).x0
    expected = s / t * x + (1 - s / t) * denoise(u, middle).x0
    torch.testing.assert_close(move(DPMPP2S, sde, denoise, x, t, s), expected, rtol=1e-11, atol=1e-11)


def test_rk4_matches_the_classical_rule(mixture):
    """In the coordinates u = y / sqrt(1 + r^2) over log r, for EDM, where y is x and r is t."""
    sde, t, s = EDMSDE(), 2.0, 1.2
    denoise, x = mixture.denoiser(sde), torch.tensor([[0.7], [-1.1]]).double()

    def slope(u, log_r):
        r = math.exp(log_r)
        y = u * math.hypot(r, 1)
        return (y - denoise(y, r).x0) / math.hypot(r, 1) - r**2 / (1 + r**2) * u

    u, start, h = x / math.hypot(t, 1), math.log(t), math.log(s / t)
    k1 = slope(u, start)
    k2 = slope(u + h / 2 * k1, start + h / 2)
    k3 = slope(u + h / 2 * k2, start + h / 2)
    k4 = slope(u + h * k3, start + h)
    expected = (u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)) * math.hypot(s, 1)
    torch.testing.assert_close(move(RK4, sde, denoise, x, t, s), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", [RK4, RK45])
def test_the_flow_of_moment_matched_gaussian_data_is_exact(sde, kind):
    """In any number of steps, the flow of data N(mean, s^2) is exact with their own Gaussian, and only with it."""
    mean = torch.tensor([0.4, -0.3]).double()
    guess, data = Gaussian(mean, 0.09), GaussianMixture(torch.ones(1).double(), mean[None], 0.09)
    first, last = sde.marginal(sde.t_max), sde.marginal(sde.t_min)
    z = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, expected = (m.alpha * mean + math.hypot(0.3 * m.alpha, m.sigma) * z for m in (first, last))
    times = GRIDS["log_snr"](sde, 2)
    computed = flow(kind(sde, gaussian=guess), data.denoiser(sde), x, times)
    torch.testing.assert_close(computed, expected, rtol=1e-7, atol=1e-7)
    assert (flow(kind(sde), data.denoiser(sde), x, times) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "order", "evaluations", "size"), KINDS[:3])
def test_exact_for_one_point_in_few_steps(sde, kind, order, evaluations, size):
    point = torch.tensor([[0.3, -0.7]]).double()
    eps = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    last, x = sde.marginal(sde.t_min), sde.perturb(point, eps, sde.t_max)
    computed = flow(kind(sde), GaussianMixture.of_points(point).denoiser(sde), x, GRIDS["log_snr"](sde, 4))
    torch.testing.assert_close(computed, last.alpha * point + last.sigma * eps, rtol=1e-6, atol=1e-7)
