"""A denoiser with per-example conditions, under solvers that drop finished examples."""

import pytest
import torch

from score_sde.samplers import DPS, GRIDS, STEPS, Noise, classifier_free, pigdm, sample
from score_sde.sde_lib import SDES, Gaussian, GaussianMixture, PerExample, Prediction, for_examples

MEANS = torch.tensor([[-2.0, 0.5], [0.3, -1.0], [1.5, 2.0]]).double()


def labelled(sde):
    """(x, t, label, keep) -> the exact denoiser of the point with that label, or of the mixture of all points."""
    points, whole = [GaussianMixture.of_points(mean[None]).denoiser(sde) for mean in MEANS], None
    whole = GaussianMixture.of_points(MEANS).denoiser(sde)

    def denoise(x, t, label, keep):
        found = torch.stack([point(x, t).x0 for point in points])[label, torch.arange(len(x))]
        return Prediction(torch.where(keep[:, None], found, whole(x, t).x0))

    return denoise


@pytest.mark.parametrize("name", ["ode", "dpm_adaptive", "adaptive_sde", "adams", "pc"])
def test_labels_follow_their_examples(name):
    """Each example ends at the point of its own label, whichever examples have finished."""
    sde, label = SDES["vpsde"](t_min=1e-3), torch.arange(30) % 3
    denoise = labelled(sde)

    def some(rows):
        return lambda x, t: classifier_free(denoise, 2.0)(x, t, label=label[rows])

    x = Noise(torch.arange(30))(torch.empty(30, 2, dtype=torch.float64))
    step = STEPS[name](sde)
    num = step.num_steps if step.num_steps < 50 else 50
    found = sample(step, PerExample(some), x, GRIDS["log_snr"](sde, num), Noise(torch.arange(30)))
    assert (found - MEANS[label]).abs().max() < 0.05


@pytest.mark.parametrize("name", ["ode", "dpm_adaptive"])
def test_measurements_follow_their_examples(name):
    """PiGDM on Gaussian data with a measurement for each example, against each example alone."""
    sde, guess = SDES["vpsde"](t_min=1e-3), Gaussian(torch.zeros(2).double(), 0.5)
    law = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 0.5)
    y = torch.linspace(-2, 2, 9).double()[:, None]
    x = Noise(torch.arange(9))(torch.empty(9, 2, dtype=torch.float64))

    def lean(rows):
        return pigdm(law.denoiser(sde), sde, lambda x: x[:, :1], y[rows], 0.0, guess)

    times = GRIDS["log_snr"](sde, 1)
    found = sample(STEPS[name](sde), PerExample(lean), x, times, Noise(torch.arange(9)))
    alone = [
        sample(STEPS[name](sde), lean(slice(k, k + 1)), x[k : k + 1], times, Noise(torch.arange(1))) for k in (0, 4)
    ]
    torch.testing.assert_close(found[[0, 4]], torch.cat(alone), rtol=1e-6, atol=1e-6)
    assert (found[:, :1] - y).abs().max() < 0.01


def test_for_examples_leaves_other_denoisers_unchanged():
    def denoise(x, t):
        return Prediction(x)

    assert for_examples(denoise, slice(1, 2)) is denoise
    each = PerExample(lambda rows: lambda x, t: Prediction(torch.arange(5.0)[rows]))
    assert for_examples(each, torch.tensor([3, 1]))(None, None).x0.tolist() == [3.0, 1.0]
    assert for_examples(for_examples(each, torch.tensor([3, 1])), slice(0, 2))(None, None).x0.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["ode", "dpm_adaptive"])
def test_a_wrapped_step_that_drops_examples_keeps_their_labels(name):
    """DPS evaluates a network with a label for each example; with zero misfit it equals the step."""
    sde, label = SDES["vpsde"](t_min=1e-3), torch.arange(6) % 3
    denoise = labelled(sde)

    def some(rows):
        return lambda x, t: classifier_free(denoise, 1.0)(x, t, label=label[rows])

    x, times = Noise(torch.arange(6))(torch.empty(6, 2, dtype=torch.float64)), GRIDS["log_snr"](sde, 1)
    leaning = DPS(STEPS[name](sde), lambda x: 0 * x, torch.zeros(1, 2).double())
    found = sample(leaning, PerExample(some), x, times, Noise(torch.arange(6)))
    assert (found - MEANS[label]).abs().max() < 0.05
