"""Learned timestep samplers: closed-form limits, unchanged expected loss, and resumption from their state."""

import pytest
import torch

from score_sde.sde_lib import LEARNING_TIMESTEP_SAMPLERS, SDES, VPSDE
from score_sde.sde_lib.timestep_samplers import Learned, LossAware, importance

CHAIN = VPSDE().discretize(50)


def column(n, seed=0):
    return torch.rand(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(law, sde, loss, steps, batch=256):
    for step in range(steps):
        t, _ = law(sde, column(batch, step))
        law.observe(sde, t, loss(sde, t).flatten())
    return law


def steep(sde, t):
    """A loss that grows by a factor of a hundred over the interval."""
    return 100 ** sde.fraction(t)


@pytest.mark.parametrize("name", LEARNING_TIMESTEP_SAMPLERS)
def test_the_corrected_mean_equals_the_mean_over_uniform_time(sde, name):
    law = LEARNING_TIMESTEP_SAMPLERS[name]()
    trained(law, sde, steep, 15)
    u = ((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None]
    t, correction = law(sde, u)
    # The integral of a smooth function of time, insensitive to the ends in log-SNR, which take little time.
    found = (correction * steep(sde, t)).mean().item()
    expected = steep(sde, sde.quantile(u)).mean().item()
    assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("bins", [50, 10])
def test_loss_aware_draws_in_proportion_to_the_root_of_the_squared_loss(bins):
    law = trained(LossAware(bins=bins), CHAIN, lambda sde, t: t, 100)
    levels = torch.arange(1, 51, dtype=torch.float64).reshape(bins, -1)
    expected = levels.square().mean(1).sqrt()
    # The mean over a bin's last ten losses scatters by 13 % in the first wide bin, but not for a single level.
    torch.testing.assert_close(
        law.probabilities, expected / expected.sum(), rtol=0.01 if bins == 50 else 0.4, atol=2e-3 / bins
    )
    t, correction = law(CHAIN, column(50_000))
    counts = torch.bincount(t.flatten().long() - 1, minlength=50).reshape(bins, -1).sum(1)
    p = law.probabilities
    assert (((counts - 50_000 * p) ** 2 / (50_000 * p)).sum() < 2 * bins + 30).item()
    torch.testing.assert_close(correction.flatten(), 1 / (bins * p[((t.flatten() - 1) * bins / 50).long()]))


def test_loss_aware_is_uniform_until_every_level_has_its_history():
    law = LossAware(bins=50, history=3)
    t = torch.arange(1.0, 51.0).reshape(-1, 1)
    for _ in range(3):
        assert torch.equal(law.probabilities, torch.full((50,), 1 / 50, dtype=torch.float64))
        law.observe(CHAIN, t, t.flatten() ** 2)
    assert law.probabilities[-1] > 100 * law.probabilities[0] > 0
    law.observe(CHAIN, t[:1], torch.tensor([2500.0]))  # the newest loss replaces the oldest
    assert law.losses[0].tolist() == [2500.0, 1.0, 1.0]


def test_loss_aware_records_a_batch_as_single_losses_in_order():
    """With more losses of a bin in a batch than its history holds; a non-finite batch has no effect."""
    law, draw = LossAware(bins=50, history=3), torch.Generator().manual_seed(0)
    losses, seen = torch.zeros(50, 3, dtype=torch.float64), torch.zeros(50, dtype=torch.int64)
    for step in range(40):
        level = 1 + torch.randint(50, (1 + step,), generator=draw) // (1 + step % 9)
        loss = torch.rand(1 + step, generator=draw)
        law.observe(CHAIN, level.double()[:, None], loss)
        law.observe(CHAIN, level.double()[:, None], torch.where(loss == loss[0], torch.inf, loss))
        for bin, value in zip((level - 1).tolist(), loss.tolist(), strict=True):
            losses[bin, seen[bin] % 3] = value
            seen[bin] += 1
        assert torch.equal(law.losses, losses)
        assert torch.equal(law.seen, seen)


def test_learned_finds_the_law_of_least_variance():
    """Weighted by a loss whose integrand in log-SNR is a bump, the learned distribution is that bump."""
    sde = SDES["vpsde"]()
    lowest, highest = (sde.marginal(t).log_snr for t in (sde.t_max, sde.t_min))

    def bump(place):
        return 0.05 + torch.exp(-0.5 * ((place - 0.6) / 0.1) ** 2)

    def loss(sde, t):
        place = (sde.log_snr(t) - lowest) / (highest - lowest)
        rate = (highest - lowest) * (sde.sigma(t) / sde.diffusion(t)) ** 2 / (sde.t_max - sde.t_min)
        return bump(place) / rate

    law = trained(Learned(learning_rate=0.1), sde, loss, 150)
    place = torch.linspace(0.005, 0.995, 100, dtype=torch.float64)
    expected = bump(place) / bump(place).mean()
    torch.testing.assert_close(law.schedule.density(place), expected, rtol=0.1, atol=0.1)
    t, correction = law(sde, column(20_000))
    corrected = correction * loss(sde, t)
    t, correction = importance(sde, column(20_000))
    assert corrected.std() < 0.1 * (correction * loss(sde, t)).std()


def test_the_process_of_a_learned_schedule_has_its_law_at_uniform_times():
    sde = SDES["subvpsde"]()
    law = trained(Learned(learning_rate=0.1), sde, steep, 5)
    u = column(200)
    expected = sde.log_snr(law(sde, u)[0])
    torch.testing.assert_close(law.process(sde).log_snr(u), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LEARNING_TIMESTEP_SAMPLERS)
def test_a_sampler_resumes_from_its_state(name):
    whole = trained(LEARNING_TIMESTEP_SAMPLERS[name](), CHAIN, steep, 20)
    half = trained(LEARNING_TIMESTEP_SAMPLERS[name](), CHAIN, steep, 10)
    again = LEARNING_TIMESTEP_SAMPLERS[name]()
    again.load_state_dict(half.state_dict())
    for step in range(10, 20):
        t, _ = again(CHAIN, column(256, step))
        again.observe(CHAIN, t, steep(CHAIN, t).flatten())
    for found, expected in zip(again(CHAIN, column(99)), whole(CHAIN, column(99))):
        assert torch.equal(found, expected)


def test_bins_out_of_range():
    with pytest.raises(ValueError, match=r"loss\.timestep_sampler\.bins 0"):
        LossAware(bins=0)
