"""Guidance against the exact posteriors of a mixture whose components are its classes."""

import pytest
import torch

from engine.checks import Setting
from engine.checks.guidance import TwoClasses
from models import MLP
from samplers import DDIM, GRIDS, Heun, Noise, sample
from samplers.guidance import classifier, classifier_free
from sde_lib import SDES, Denoiser, Prediction

SETTING = Setting(torch.device("cpu"), torch.float64)
LABEL = torch.tensor([0, 1, 1, 0, 1])
ALL = torch.ones(5, dtype=torch.bool)


@pytest.fixture
def exact(sde):
    return TwoClasses(sde, SETTING)


def state(sde, l):
    """A time of log-SNR l, and five states that are likely there."""
    t = sde.time(torch.tensor(l, dtype=torch.float64)).item()
    return (sde.at(t).alpha + sde.at(t).sigma) * SETTING.normals(5, 2, seed=9), t


@pytest.mark.parametrize("l", [-5.0, 0.0, 5.0])
def test_scale_one_is_the_conditional_denoiser_and_zero_the_unconditional(sde, exact, l):
    x, t = state(sde, l)
    for scale, keep in ((1.0, ALL), (0.0, ~ALL)):
        expected = exact(x, t, keep, LABEL).x0
        assert torch.equal(classifier_free(exact, scale)(x, t, label=LABEL).x0, expected)
        found = classifier(
            lambda x, t: exact(x, t, ~ALL, LABEL), sde, lambda x, t: exact.log_posterior(x, t, LABEL), scale
        )
        torch.testing.assert_close(found(x, t).x0, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scale", [-0.5, 0.3, 4.0])
def test_both_kinds_are_one_where_the_denoisers_are_exact(sde, exact, scale):
    x, t = state(sde, 1.0)
    free = classifier_free(exact, scale)(x, t, label=LABEL).x0
    leaned = classifier(
        lambda x, t: exact(x, t, ~ALL, LABEL), sde, lambda x, t: exact.log_posterior(x, t, LABEL), scale
    )
    torch.testing.assert_close(leaned(x, t).x0, free, rtol=1e-10, atol=1e-10)


def test_guided_score_is_the_gradient_of_the_sharpened_density(sde, exact):
    """(1 - w) log p(x) + w log p(x | y), by autograd."""
    x, t = state(sde, 0.5)
    leaf, (alpha, sigma, _) = x.clone().requires_grad_(), sde.at(t)
    conditional = torch.stack([mixture.log_prob(leaf, alpha, sigma) for mixture in exact.classes], 1)
    conditional = conditional.gather(1, LABEL[:, None])[:, 0]
    density = -2.0 * exact.whole.log_prob(leaf, alpha, sigma) + 3.0 * conditional
    expected = torch.autograd.grad(density.sum(), leaf)[0]
    guided = classifier_free(exact, 3.0)(x, t, label=LABEL).x0
    torch.testing.assert_close(sde.score(x, guided, t), expected, rtol=1e-9, atol=1e-9)


def test_a_guided_denoiser_samples_the_condition(exact, sde):
    """At scale 1 the flow ends in the class: its mean and spread, within four standard errors."""
    num = 1500
    label = torch.zeros(num, dtype=torch.int64)
    guided = classifier_free(exact, 1.0)
    noise, like = Noise(torch.arange(num)), torch.empty(num, 2, dtype=torch.float64)
    x = sample(
        Heun(sde), lambda x, t: guided(x, t, label=label), sde.prior_std * noise(like), GRIDS["log_snr"](sde, 60), noise
    )
    expected = exact.classes[0]
    std = expected.covariance.diagonal().sqrt()
    assert ((x.mean(0) - expected.mean).abs() < 4 * std / num**0.5).all()
    assert ((x.std(0) / std - 1).abs() < 4 / (2 * num) ** 0.5 + 0.01).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_network_is_guided_without_gradients_around(mode):
    """The network keeps its condition apart by ``keep``; the classifier makes the gradient that it needs."""
    sde = SDES["vpsde"]()
    torch.manual_seed(0)
    network = MLP((2,), width=16, depth=1, num_classes=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    denoise, x, t = Denoiser(network, sde, "edm", 0.5), torch.randn(5, 2), 0.4
    with mode():
        null, both = (denoise(x, t, keep=keep, label=LABEL).x0 for keep in (~ALL, ALL))
        assert not torch.allclose(null, both)
        found = classifier_free(denoise, 2.0)(x, t, label=LABEL).x0
        torch.testing.assert_close(found, 2 * both - null)
        leaned = classifier(denoise, sde, lambda x, t: x.sum(1), 2.0)(x, t, keep=~ALL, label=LABEL).x0
    torch.testing.assert_close(leaned, null + 2 * sde.at(t).sigma ** 2 / sde.at(t).alpha)


def test_each_example_is_guided_by_itself(exact, sde):
    """A sample does not depend on its batch, and times may differ."""
    guided = classifier_free(exact, 2.5)
    x, t = state(sde, 0.0)
    together = DDIM(sde)(lambda x, t: guided(x, t, label=LABEL), x, t, 0.5 * t, torch.zeros_like)
    alone = DDIM(sde)(lambda x, t: guided(x, t, label=LABEL[3:4]), x[3:4], t, 0.5 * t, torch.zeros_like)
    torch.testing.assert_close(together[3:4], alone)
    times = torch.full((5, 1), t, dtype=torch.float64)
    torch.testing.assert_close(guided(x, times, label=LABEL).x0, guided(x, t, label=LABEL).x0)
    assert isinstance(guided(x, t, label=LABEL), Prediction)
