"""Noise within the bins of levels: its distribution and density against scipy, and bounds on a bin's mass."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from score_sde.sde_lib import DEQUANTIZATIONS, SDES, GaussianMixture
from score_sde.sde_lib.dequantization import data_time

WIDTH = 0.25
NOISY = [name for name in DEQUANTIZATIONS if name != "none"]
CUTS = [0.3, 1.0, 3.0, 50.0]
"""Half of a bin in standard deviations of the noise, at several times of a process."""


def shares(num):
    """Midpoints of equal strata, one number for each of ``num`` examples."""
    return ((torch.arange(num).double() + 0.5) / num)[:, None]


def time_of(sde, cut):
    """Time at which half of a bin is ``cut`` standard deviations of the noise."""
    return sde.time(torch.tensor(2 * math.log(2 * cut / WIDTH), dtype=torch.float64)).item()


def pair(name, sde, t, num=20_000, centre=0.375):
    """States and log-densities at evenly spaced u; both (num,)."""
    x = torch.full((num, 1), centre, dtype=torch.float64)
    state, log_q = DEQUANTIZATIONS[name](sde, t, x, shares(num), WIDTH)
    return state.flatten(), log_q


# --- distribution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS)
def test_the_truncated_normal_matches_scipy(sde, cut):
    t = time_of(sde, cut)
    if not sde.t_min <= t <= sde.t_max:
        t = sde.t_min
    alpha, sigma, _ = sde.marginal(t)
    cut = alpha * WIDTH / (2 * sigma)
    law, (state, log_q) = stats.truncnorm(-cut, cut), pair("truncated_normal", sde, t)
    z = (state - alpha * 0.375) / sigma
    assert stats.kstest(z.numpy(), law.cdf).statistic < 1e-4
    np.testing.assert_allclose(z.numpy(), law.ppf(shares(20_000).flatten().numpy()), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(log_q.numpy(), law.logpdf(z.numpy()) - math.log(sigma), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("cut", CUTS[:3])
def test_the_density_matches_the_drawn_state(name, cut):
    """It integrates to 1 over the bin and equals du / dstate, by differences of the states at neighbouring u."""
    sde = SDES["vpsde"]()
    state, log_q = pair(name, sde, time_of(sde, cut))
    slope = 2 * (1 / 20_000) / (state[2:] - state[:-2])
    inner = slice(100, -100)
    torch.testing.assert_close(slope[inner], log_q.exp()[1:-1][inner], rtol=2e-4, atol=0)
    assert integrate.trapezoid(log_q.exp().numpy(), state.numpy()) == pytest.approx(1, abs=3e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("cut", CUTS)
def test_the_state_stays_in_its_bin(cut, dtype):
    """For any u, between the edges of alpha times the bin; for uniform noise, between those of the bin itself."""
    sde = SDES["vpsde"]()
    t = time_of(sde, cut)
    alpha, sigma, _ = sde.marginal(t)
    u = torch.tensor([[2.0**-33], [1e-6], [0.5], [1 - 2.0**-24], [1.0]], dtype=dtype)
    x = torch.full((5, 1), 0.375, dtype=dtype)
    for name, scale in (("truncated_normal", alpha), ("uniform", 1.0)):
        state, log_q = DEQUANTIZATIONS[name](sde, t, x, u, WIDTH)
        offset = (state.double() - scale * 0.375) / scale
        assert state.dtype == dtype
        assert log_q.dtype == torch.float64
        assert (offset.abs() <= WIDTH / 2 * (1 + 1e-5)).all()
        assert (offset.diff(dim=0) >= 0).all()
        assert offset[0] < 0 < offset[-1]
        assert offset[2] == pytest.approx(0, abs=1e-7)
    state, log_q = DEQUANTIZATIONS["truncated_normal"](sde, t, x, u, WIDTH)
    z = (state.double() - alpha * 0.375).abs() / sigma
    assert z.max() < 7  # float32 numbers reach no further quantiles of a normal, even where they round to 1


def test_entries_are_independent_and_their_densities_multiply():
    sde, t = SDES["cosine"](), 0.05
    generator = torch.Generator().manual_seed(0)
    x, u = (torch.rand(3, 2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    for name in DEQUANTIZATIONS:
        state, log_q = DEQUANTIZATIONS[name](sde, t, x, u, WIDTH)
        single, each = DEQUANTIZATIONS[name](sde, t, x.reshape(-1, 1), u.reshape(-1, 1), WIDTH)
        assert state.shape == x.shape
        assert log_q.shape == (3,)
        torch.testing.assert_close(state.flatten(), single.flatten())
        torch.testing.assert_close(log_q, each.reshape(3, 8).sum(1))


def test_uniform_noise_fills_the_bin_and_real_numbers_stay():
    sde, t, x, u = SDES["edm"](), 0.01, torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.75]])
    state, log_q = DEQUANTIZATIONS["uniform"](sde, t, x, u, 0.5)
    torch.testing.assert_close(state, torch.tensor([[0.75, 2.125]]))
    assert log_q.item() == pytest.approx(2 * math.log(2))
    state, log_q = DEQUANTIZATIONS["none"](sde, t, x, u, 0.5)
    assert torch.equal(state, x)
    assert log_q.tolist() == [0]


def test_noise_of_the_process_is_added_when_it_fills_the_bin(sde):
    """At a standard deviation of 0.3 bins, or t_min if that has more noise; the other kinds use t_min."""
    for width in (0.25, 1e-6):
        t = data_time("truncated_normal", sde, width)
        alpha, sigma, _ = sde.marginal(t)
        assert t == pytest.approx(sde.t_min, rel=1e-9) or sigma / alpha == pytest.approx(0.3 * width, rel=1e-6)
        assert sigma / alpha >= 0.3 * width * (1 - 1e-6)
        assert data_time("uniform", sde, width) == data_time("none", sde, width) == sde.t_min


# --- bounds of the mass of a bin --------------------------------------------------------------------------------------


def log_weights(name, sde, t, mixture, centre, u):
    """log p - log q of the state, for numbers u (N,)."""
    x = torch.full((len(u), 1), centre, dtype=torch.float64)
    state, log_q = DEQUANTIZATIONS[name](sde, t, x, u[:, None], WIDTH)
    return mixture.denoiser(sde).log_prob(state, t) - log_q


def log_mass(mixture, sde, t, low, high):
    """Logarithm of the mixture's mass between two states at time t, by the error function."""
    alpha, sigma, _ = sde.marginal(t)
    weights, means, variances = (
        v.flatten().numpy() for v in (mixture.log_weights.exp(), mixture.means, mixture.variances)
    )
    laws = stats.norm(alpha * means, np.sqrt(alpha**2 * variances + sigma**2))
    return math.log(weights @ (laws.cdf(high) - laws.cdf(low)))


@pytest.mark.parametrize("centre", [-0.875, 0.125, 1.375])
@pytest.mark.parametrize("name", NOISY)
def test_the_bound_holds_and_importance_weighted_copies_close_it(name, centre, mixture):
    """E log of a mean of K weights: the plain bound for K = 1, rising with K to the mass itself.

    The gap tends to var / (2 K), the variance of the weights relative to the mass.
    """
    sde = SDES["vpsde"]()
    t = time_of(sde, 1.5)
    edges = np.array([centre - WIDTH / 2, centre + WIDTH / 2]) * (sde.alpha(t) if name == "truncated_normal" else 1)
    mass = log_mass(mixture, sde, t, *edges)
    weights = log_weights(name, sde, t, mixture, centre, shares(20_000).flatten())
    plain = weights.mean().item()
    assert plain < mass
    assert torch.logsumexp(weights, 0).item() - math.log(20_000) == pytest.approx(mass, abs=1e-6)

    order = torch.randperm(16_384, generator=torch.Generator().manual_seed(0))
    drawn = log_weights(name, sde, t, mixture, centre, shares(16_384).flatten()[order])
    bounds = []
    for num in (1, 2, 4, 16, 64, 1024):
        copies = torch.logsumexp(drawn.unflatten(0, (-1, num)), 1) - math.log(num)
        bounds.append(copies.mean().item())
    assert bounds[0] == pytest.approx(drawn.mean().item(), abs=1e-12)
    assert bounds == sorted(bounds)
    gaps = mass - np.array(bounds)
    assert (gaps > -1e-6).all()
    spread = torch.exp(weights - mass).var().item()
    assert 0.01 < spread < 1
    np.testing.assert_allclose(gaps[3:5], spread / np.array([32, 128]), rtol=0.2)
    assert gaps[-1] < 0.01 * gaps[0]


def test_noise_of_a_later_time_gives_a_looser_bound(mixture):
    """Uniform noise is far from the posterior within a bin where the process's noise is narrow, but not vice versa."""
    sde = SDES["vpsde"]()
    t = time_of(sde, 4.0)
    points = GaussianMixture.of_points(torch.tensor([[-0.875], [0.125], [1.375]], dtype=torch.float64))
    for centre in (-0.875, 0.125, 1.375):
        found = {name: log_weights(name, sde, t, points, centre, shares(1000).flatten()).mean() for name in NOISY}
        assert found["truncated_normal"].item() == pytest.approx(math.log(1 / 3), abs=1e-3)
        assert found["uniform"] < math.log(1 / 3) - 1
