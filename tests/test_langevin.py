"""Annealed Langevin dynamics: published step sizes and recursion, the explicit algorithm, independence of the SDE."""

import math

import pytest
import torch

from score_sde.samplers import GRIDS, AnnealedLangevin, langevin_step_size, sample, trajectory
from score_sde.sde_lib import EDMSDE, VESDE, GaussianMixture
from tests.trajectories import Counted, noises, terminal

# sigma_1, number of levels down to 0.01, steps at each, and the epsilon chosen by Song, Ermon, 2020, appendix B.
PUBLISHED = {
    "CIFAR-10": (50, 232, 5, 6.2e-6),
    "CelebA": (90, 500, 5, 3.3e-6),
    "LSUN bedroom": (190, 1086, 3, 1.8e-6),
    "FFHQ": (348, 2311, 3, 0.9e-6),
}


def after(variance, ratio, num_steps, size):
    """Variance over sigma^2 after a level's steps, from the same ratio at the previous level; step by step."""
    variance *= ratio**2
    for _ in range(num_steps):
        variance = (1 - size) ** 2 * variance + 2 * size
    return variance


@pytest.mark.parametrize("name", PUBLISHED)
def test_step_sizes_match_the_published_ones(name):
    most, num_levels, num_steps, epsilon = PUBLISHED[name]
    ratio = (most / 0.01) ** (1 / (num_levels - 1))
    assert langevin_step_size(ratio, num_steps) * 0.01**2 == pytest.approx(epsilon, rel=0.02)


@pytest.mark.parametrize("ratio", [1.001, 1.04, 1.5, 30.0])
@pytest.mark.parametrize("num_steps", [1, 3, 100])
def test_no_step_size_keeps_the_variance_better(ratio, num_steps):
    size = langevin_step_size(ratio, num_steps)
    found = after(1, ratio, num_steps, size)
    others = [after(1, ratio, num_steps, h) for h in (0.98 * size, 1.02 * size, *torch.linspace(0, 0.999, 99).tolist())]
    assert 1 < found <= min(others)


def test_the_step_size_follows_from_the_mean_ratio_of_neighbours():
    """Over all levels: three uneven ratios from 81 to 3 have the mean ratio 3."""
    step = AnnealedLangevin(EDMSDE(1.0, 100.0), langevin_steps=4)
    step.reset([81.0, 80.0, 9.0, 3.0])
    assert step.size == pytest.approx(langevin_step_size(3.0, 4))


def test_equal_levels_need_no_steps():
    assert langevin_step_size(1.0, 5) == pytest.approx(0, abs=1e-9)


def test_variance_of_a_point_stays_along_the_ladder():
    """NCSNv2's ladder for CIFAR-10: by the recursion, and in samples within four standard errors at every level."""
    num, ratio, num_steps = 2000, 5000 ** (1 / 231), 5
    sde = EDMSDE(1.0, ratio**60)
    times, size = GRIDS["log_snr"](sde, 60), langevin_step_size(ratio, num_steps)
    mixture = GaussianMixture.of_points(torch.zeros(1, 1, dtype=torch.float64))
    x, step = terminal(mixture, sde, num), AnnealedLangevin(sde, langevin_steps=num_steps)
    *states, _ = trajectory(step, mixture.denoiser(sde), x, times, noises(num))
    variance = after(1 / ratio**2, ratio, num_steps, size)
    for t, state in zip(times.tolist(), states, strict=False):
        assert 1 < variance < 1.13
        assert state.square().mean().item() / t**2 == pytest.approx(variance, rel=4 * (2 / num) ** 0.5)
        variance = after(variance, ratio, num_steps, size)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_variance_converges_along_many_close_levels(num_steps):
    ratio, variance = 1.0005, 1.0
    size = langevin_step_size(ratio, num_steps)
    for _ in range(20_000):
        variance = after(variance, ratio, num_steps, size)
    assert variance == pytest.approx(2 * num_steps / (2 * num_steps - 1), rel=2e-3)


def test_the_step_matches_the_published_algorithm(mixture):
    """Song, Ermon, 2020, algorithm 1, on five levels."""
    sde, epsilon = VESDE(0.1, 10.0), 3e-3
    times, draw = GRIDS["uniform"](sde, 4), noises(3)
    x = expected = terminal(mixture, sde, 3)
    for sigma in sde.sigma(times).tolist():
        for _ in range(2):
            size = epsilon * sigma**2 / sde.marginal(sde.t_min).sigma ** 2
            score = (mixture.posterior_mean(expected, 1.0, sigma) - expected) / sigma**2
            expected = expected + size * score + math.sqrt(2 * size) * draw(expected)
    expected = mixture.posterior_mean(expected, 1.0, sigma)
    found = sample(AnnealedLangevin(sde, epsilon, 2), mixture.denoiser(sde), x, times, noises(3))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 2e-4])
def test_the_step_is_the_same_on_every_sde(sde, mixture, epsilon):
    """At equal noise levels it maps equal noisy data x / alpha to equal data."""
    ends = torch.tensor([-4.0, 5.0], dtype=torch.float64)
    y, found = 8 * torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None], []
    for process in (sde, EDMSDE()):
        start, end = process.time(ends).tolist()
        step, times = AnnealedLangevin(process, epsilon, 3), GRIDS["log_snr"](process, 12, start, end)
        found.append(sample(step, mixture.denoiser(process), process.alpha(start) * y, times, noises(5)))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_samples_of_two_modes_have_the_exact_distribution(mixture):
    """From the prior, in 100 levels: the largest distance of the distribution functions."""
    sde, num = EDMSDE(), 1500
    x, times = sde.prior_std * noises(num)(torch.empty(num, 1).double()), GRIDS["log_snr"](sde, 100)
    x = sample(AnnealedLangevin(sde), mixture.denoiser(sde), x, times, noises(num))
    bumps = torch.special.ndtr((x.sort(0).values - mixture.means[:, 0]) / mixture.variances[:, 0].sqrt())
    ranks = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    assert (bumps @ mixture.log_weights.exp() - ranks).abs().max() < 0.05


@pytest.mark.parametrize("grid", ["karras", "edm"])
def test_the_last_level_is_sampled_too(sde, mixture, grid):
    denoise, draw = Counted(mixture.denoiser(sde)), Counted(torch.randn_like)
    times = GRIDS[grid](sde, 5)
    sample(AnnealedLangevin(sde, langevin_steps=3), denoise, terminal(mixture, sde, 2), times, draw)
    levels = {"karras": 6, "edm": 5}[grid]
    assert (denoise.calls, draw.calls) == (3 * levels + 1, 3 * levels)
