"""Churn: Heun without it, Karras's levels with it, marginals on every SDE, and the range of noise levels."""

import math
from itertools import pairwise

import pytest
import torch

from score_sde.samplers import GRIDS, Heun, sample, trajectory
from score_sde.samplers.churn import Churn
from score_sde.sde_lib import EDMSDE, VPSDE
from tests.trajectories import Counted, assert_marginal, evolve, noises, terminal


def test_without_churn_it_is_heun(sde, mixture):
    x, times = terminal(mixture, sde, 3), GRIDS["karras"](sde, 6)
    denoise = mixture.denoiser(sde)
    expected = list(trajectory(Heun(sde), denoise, x, times, None))
    for ours, theirs in zip(trajectory(Churn(sde), denoise, x, times, None), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("churn", "low", "high"), [(3.0, 0.0, math.inf), (100.0, 0.0, math.inf), (3.0, 0.05, 2.0)])
def test_levels_are_the_published_ones(sde, mixture, churn, low, high):
    """Raised by the published factor within the range only; the level of t_max is the highest."""
    step, times, asked = Churn(sde, churn, low, high), GRIDS["log_snr"](sde, 8), []

    def look(x, t):
        asked.append(t)
        return mixture.denoiser(sde)(x, t)

    noise = Counted(torch.randn_like)
    sample(step, look, terminal(mixture, sde, 2), times, noise)
    ratios = torch.exp(-0.5 * sde.log_snr(times)).tolist()
    acts = [low <= ratio <= high for ratio in ratios]
    factor = 1 + min(churn / 9, 2**0.5 - 1)
    seen = [math.exp(-0.5 * sde.marginal(t).log_snr) for t in asked[::2]]
    expected = [min(ratio * factor, ratios[0]) if act else ratio for ratio, act in zip(ratios, acts)]
    assert seen == pytest.approx(expected, rel=1e-6)
    assert noise.calls == sum(acts[1:])
    assert asked[1::2] == times[1:].tolist()


def test_the_noise_is_a_scaled_forward_step():
    """A state of known data: y stays, and its noise grows from r to r (1 + gamma)."""
    sde = VPSDE()
    step, x, t = Churn(sde, 1.0, churn_noise=1.5), torch.ones(2, 1).double(), 0.5
    step.reset([0.6, t, 0.4])
    z = torch.tensor([[1.0], [0.0]]).double()
    moved, later = step.add_noise(x, t, lambda like: z)
    (alpha, _, log_snr), (high_alpha, _, high_log_snr) = sde.marginal(t), sde.marginal(later)
    ratio, high = math.exp(-0.5 * log_snr), math.exp(-0.5 * high_log_snr)
    assert high == pytest.approx(4 / 3 * ratio, rel=1e-9)
    expected = 1 / alpha + 1.5 * math.sqrt(high**2 - ratio**2) * z
    torch.testing.assert_close(moved / high_alpha, expected, rtol=1e-9, atol=1e-9)


def test_marginals_are_kept(sde, mixture):
    """With a fifth more noise in each step; with few steps Heun's own error shows, 2 % of the variance at 60."""
    assert_marginal(mixture, sde, evolve(mixture, sde, Churn(sde, 40.0), 3000, 200))


def test_more_noise_than_the_published_widens(mixture):
    """1.3 times the noise widens the variance by more than one per cent."""
    sde = EDMSDE()
    spread = [evolve(mixture, sde, Churn(sde, 10.0, churn_noise=noise), 3000, 60).var().item() for noise in (1.0, 1.3)]
    assert spread[1] > 1.01 * spread[0]


def test_a_trajectory_does_not_depend_on_the_one_before(mixture):
    sde = VPSDE()
    step, x, denoise = Churn(sde, 5.0), terminal(mixture, sde, 3), mixture.denoiser(VPSDE())
    few, many = (GRIDS["karras"](sde, num) for num in (5, 9))
    first = sample(step, denoise, x, few, noises(3))
    sample(step, denoise, x, many, noises(3))
    assert torch.equal(sample(step, denoise, x, few, noises(3)), first)


@pytest.mark.parametrize(
    "options", [{"churn": -1.0}, {"churn_min": -0.1}, {"churn_max": 0.0}, {"churn_noise": 0.0}, {"churn": math.nan}]
)
def test_bad_options_are_refused_by_value(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        Churn(VPSDE(), **options)


def test_no_time_is_worked_out_on_the_way(sde, mixture, monkeypatch):
    step, times = Churn(sde, 3.0), GRIDS["log_snr"](sde, 8)
    sde.tabulate(times)
    step.reset(times.tolist())
    monkeypatch.setattr(type(sde), "log_alpha", None)
    for t, s in pairwise(times.tolist()):
        step(mixture.denoiser(sde), mixture.means, t, s, torch.randn_like)
    step.finish(mixture.denoiser(sde), mixture.means, times[-1].item(), torch.randn_like)
