"""Predictor and corrector: all pairs, step sizes against the papers, and independence of the batch."""

import pytest
import torch

from score_sde.samplers import GRIDS, Noise, sample
from score_sde.samplers.predictor_corrector import PREDICTORS, STEP_SIZES, Corrector, PredictorCorrector
from score_sde.sde_lib import SDES, GaussianMixture
from tests.trajectories import assert_marginal, evolve, noises, terminal

# Langevin steps alone lag behind the noise levels and are not meant to keep the marginal.
MOVING = sorted(set(PREDICTORS) - {"none"})


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_without_steps_it_is_the_predictor(sde, shaped_mixture, predictor):
    x, times, denoise = terminal(shaped_mixture, sde, 3), GRIDS["log_snr"](sde, 6), shaped_mixture.denoiser(sde)
    alone = sample(PREDICTORS[predictor](sde), denoise, x, times, noises(3))
    for corrector in STEP_SIZES:
        step = PredictorCorrector(sde, predictor, corrector, corrector_steps=0)
        assert torch.equal(sample(step, denoise, x, times, noises(3)), alone), corrector


@pytest.mark.slow
@pytest.mark.parametrize("corrector", STEP_SIZES)
@pytest.mark.parametrize("predictor", MOVING)
def test_every_pair_keeps_the_marginals(sde, mixture, predictor, corrector):
    step = PredictorCorrector(sde, predictor, corrector)
    assert_marginal(mixture, sde, evolve(mixture, sde, step, 3000, num_steps=500))


@pytest.mark.parametrize("corrector", STEP_SIZES)
def test_correctors_preserve_the_marginal(sde, mixture, corrector):
    """From exact draws at a middle time, with enough steps to move them far from their start."""
    t = sde.time(torch.tensor(1.0, dtype=torch.float64)).item()
    alpha, sigma, _ = sde.marginal(t)
    num, generator = 3000, torch.Generator().manual_seed(0)
    x = alpha * mixture.sample(num, generator)
    x = x + sigma * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    x = Corrector(sde, corrector, snr=0.1, num_steps=100)(mixture.denoiser(sde), x, t, 0.99 * t, noises(num))
    variance = alpha**2 * mixture.covariance.item() + sigma**2
    square = (x - alpha * mixture.mean) ** 2
    assert abs(x.mean().item() - alpha * mixture.mean.item()) < 3 * (variance / num) ** 0.5
    assert abs(square.mean().item() - variance) < 3 * square.std().item() / num**0.5


@pytest.mark.parametrize("corrector", STEP_SIZES)
def test_correctors_converge_to_the_marginal(sde, mixture, corrector):
    t = sde.time(torch.tensor(0.0, dtype=torch.float64)).item()
    alpha, sigma, _ = sde.marginal(t)
    num = 1500
    x = torch.full((num, 1), 2.0 * sigma, dtype=torch.float64)
    x = Corrector(sde, corrector, snr=0.16, num_steps=300)(mixture.denoiser(sde), x, t, 0.99 * t, noises(num))
    variance = alpha**2 * mixture.covariance.item() + sigma**2
    assert abs(x.mean().item() - alpha * mixture.mean.item()) < 0.08 * variance**0.5
    # A step size that depends on the state biases the marginal by about 1 / (D + 64); here D = 1.
    assert x.var().item() == pytest.approx(variance, rel=0.1)


# --- explicit step sizes ----------------------------------------------------------------------------------------------


def rule(name, score, z, sigma):
    """Squared ratio of noise to score of each example, by loops over the formulas."""
    rows = range(len(score))
    if name == "langevin":
        return [(score[i].numel() + 64) / (score[i].square().sum() + 64 / sigma**2) for i in rows]
    if name == "langevin_batch":
        mean = [sum(v[i].square().sum() ** 0.5 for i in rows) / len(score) for v in (z, score)]
        return [(mean[0] / mean[1]) ** 2 for _ in rows]
    return [{"ald": sigma**2}[name] for _ in rows]


@pytest.mark.parametrize("name", STEP_SIZES)
def test_one_langevin_step_matches_the_algorithm(sde, shaped_mixture, name):
    snr, t, s = 0.16, 0.5 * sde.t_max, 0.45 * sde.t_max
    x, denoise = terminal(shaped_mixture, sde, 4, seed=2), shaped_mixture.denoiser(sde)
    score, z = denoise.score(x, t), noises(4)(x)
    a, sigma = (sde.marginal(t).alpha / sde.marginal(s).alpha), sde.marginal(t).sigma
    expected = []
    for i, ratio in enumerate(rule(name, score, z, sigma)):
        step = 2 * a**2 * snr**2 * ratio  # Song et al., 2021, algorithms 4 and 5
        expected.append(x[i] + step * score[i] + (2 * step) ** 0.5 * z[i])
    moved = Corrector(sde, name, snr, 1)(denoise, x, t, s, noises(4))
    torch.testing.assert_close(moved, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_the_rule_by_norm_approaches_the_papers_in_many_dimensions():
    """|z|^2 / |score|^2, up to the 64 dimensions that the rule adds."""
    generator = torch.Generator().manual_seed(0)
    score, z = torch.randn(2, 5, 3, 64, 64, dtype=torch.float64, generator=generator)
    paper = (z.flatten(1).norm(dim=1) / (2 * score).flatten(1).norm(dim=1)) ** 2
    torch.testing.assert_close(STEP_SIZES["langevin"](2 * score, z, 0.5).flatten(), paper, rtol=0.05, atol=0)


def test_only_the_published_rule_mixes_the_batch():
    sde = SDES["vpsde"]()
    generator = torch.Generator().manual_seed(0)
    mixture = GaussianMixture(torch.ones(2), torch.randn(2, 1, 4, 4, generator=generator), 0.1)
    x, times = torch.randn(7, 1, 4, 4, generator=generator), GRIDS["karras"](sde, 8)
    for corrector in STEP_SIZES:
        step = PredictorCorrector(sde, corrector=corrector)
        whole = sample(step, mixture.denoiser(sde), x, times, Noise(torch.arange(7)))
        alone = sample(step, mixture.denoiser(sde), x[2:3], times, Noise(torch.tensor([2])))
        assert torch.allclose(alone[0], whole[2], atol=1e-5) == (corrector != "langevin_batch")


def test_the_corrector_comes_first():
    """Langevin steps are evaluated at time t, and the predictor then moves from t to s."""
    sde, asked = SDES["vpsde"](), []
    mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 1.0)

    def denoise(x, t):
        asked.append(t)
        return mixture.denoiser(sde)(x, t)

    step = PredictorCorrector(sde, corrector_steps=2)
    x = step(denoise, torch.ones(3, 2), 0.5, 0.4, noises(3))
    assert asked == [0.5, 0.5, 0.5]
    corrected = step.correct(mixture.denoiser(sde), torch.ones(3, 2), 0.5, 0.4, noises(3))
    draw = Noise(torch.arange(3), start=2)
    assert torch.equal(x, step.predict(mixture.denoiser(sde), corrected, 0.5, 0.4, draw))


def test_unknown_names_list_the_available_ones():
    with pytest.raises(ValueError, match=r"unknown corrector 'norm'; known: ald, langevin, langevin_batch"):
        PredictorCorrector(SDES["vpsde"](), corrector="norm")
    with pytest.raises(ValueError, match=r"unknown predictor 'heun'; known:.*reverse_diffusion"):
        PredictorCorrector(SDES["vpsde"](), predictor="heun")
