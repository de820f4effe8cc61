"""Guidance against the exact posteriors of a mixture whose components are its classes."""

import math
from itertools import cycle

import numpy as np
import pytest
import torch

from score_sde.models import MLP
from score_sde.samplers import (
    DDIM,
    GRIDS,
    STEPS,
    Heun,
    Noise,
    autoguidance,
    classifier,
    classifier_free,
    dynamic_threshold,
    sample,
    static_threshold,
    within,
)
from score_sde.sde_lib import SDES, Denoiser, GaussianMixture, Prediction
from score_sde.selftest import Setting
from score_sde.selftest.guidance import TwoClasses

SETTING = Setting(torch.device("cpu"), torch.float64)
LABEL = torch.tensor([0, 1, 1, 0, 1])
ALL = torch.ones(5, dtype=torch.bool)


@pytest.fixture
def exact(sde):
    return TwoClasses(sde, SETTING)


def state(sde, l):
    """A time of log-SNR l, and five typical states at that time."""
    t = sde.time(torch.tensor(l, dtype=torch.float64)).item()
    return (sde.marginal(t).alpha + sde.marginal(t).sigma) * SETTING.normals(5, 2, seed=9), t


@pytest.mark.parametrize("l", [-5.0, 0.0, 5.0])
def test_scale_one_is_the_conditional_denoiser_and_zero_the_unconditional(sde, exact, l):
    x, t = state(sde, l)
    for scale, keep in ((1.0, ALL), (0.0, ~ALL)):
        expected = exact(x, t, keep=keep, label=LABEL).x0
        assert torch.equal(classifier_free(exact, scale)(x, t, label=LABEL).x0, expected)
        found = classifier(
            lambda x, t: exact(x, t, keep=~ALL, label=LABEL), sde, lambda x, t: exact.log_posterior(x, t, LABEL), scale
        )
        torch.testing.assert_close(found(x, t).x0, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scale", [-0.5, 0.3, 4.0])
def test_classifier_and_classifier_free_guidance_agree_for_exact_denoisers(sde, exact, scale):
    x, t = state(sde, 1.0)
    free = classifier_free(exact, scale)(x, t, label=LABEL).x0
    leaned = classifier(
        lambda x, t: exact(x, t, keep=~ALL, label=LABEL), sde, lambda x, t: exact.log_posterior(x, t, LABEL), scale
    )
    torch.testing.assert_close(leaned(x, t).x0, free, rtol=1e-10, atol=1e-10)


def test_guided_score_is_the_gradient_of_the_sharpened_density(sde, exact):
    """(1 - w) log p(x) + w log p(x | y), by autograd."""
    x, t = state(sde, 0.5)
    leaf, (alpha, sigma, _) = x.clone().requires_grad_(), sde.marginal(t)
    conditional = torch.stack([mixture.log_prob(leaf, alpha, sigma) for mixture in exact.classes], 1)
    conditional = conditional.gather(1, LABEL[:, None])[:, 0]
    density = -2.0 * exact.whole.log_prob(leaf, alpha, sigma) + 3.0 * conditional
    expected = torch.autograd.grad(density.sum(), leaf)[0]
    guided = classifier_free(exact, 3.0)(x, t, label=LABEL).x0
    torch.testing.assert_close(sde.score(x, guided, t), expected, rtol=1e-9, atol=1e-9)


def test_a_guided_denoiser_samples_the_condition(exact, sde):
    """At scale 1 the flow ends in the class: its mean and standard deviation, within four standard errors."""
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
def test_guidance_works_without_gradient_mode(mode):
    """The network drops its condition by ``keep``; the classifier enables the gradient that it needs."""
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
    torch.testing.assert_close(leaned, null + 2 * sde.marginal(t).sigma ** 2 / sde.marginal(t).alpha)


def test_each_example_is_guided_independently(exact, sde):
    """A sample does not depend on its batch, and each example may have its own time."""
    guided = classifier_free(exact, 2.5)
    x, t = state(sde, 0.0)
    together = DDIM(sde)(lambda x, t: guided(x, t, label=LABEL), x, t, 0.5 * t, torch.zeros_like)
    alone = DDIM(sde)(lambda x, t: guided(x, t, label=LABEL[3:4]), x[3:4], t, 0.5 * t, torch.zeros_like)
    torch.testing.assert_close(together[3:4], alone)
    times = torch.full((5, 1), t, dtype=torch.float64)
    torch.testing.assert_close(guided(x, times, label=LABEL).x0, guided(x, t, label=LABEL).x0)
    assert isinstance(guided(x, t, label=LABEL), Prediction)


class Asked:
    """A denoiser with fixed outputs that records its calls."""

    def __init__(self, x0=None, variance=0.25):
        self.x0, self.variance, self.calls = x0, variance, []

    def __call__(self, x, t, keep=None, **cond):
        self.calls.append((x, t, keep, cond))
        x0 = x if self.x0 is None else self.x0.expand_as(x)
        return Prediction(x0, None if self.variance is None else torch.full_like(x, self.variance))


@pytest.mark.parametrize("shape", [(1, 3), (4, 3), (2, 3, 4, 5)], ids=str)
def test_two_predictions_cost_one_evaluation_of_a_batch_of_twice_the_size(shape):
    x, label = SETTING.normals(*shape), torch.arange(shape[0])
    times = torch.linspace(0.2, 0.8, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    for t in (0.3, torch.tensor(0.3), times):
        ask = Asked()
        classifier_free(ask, 2.5)(x, t, label=label)
        ((asked, time, keep, cond),) = ask.calls
        assert torch.equal(asked, torch.cat([x, x]))
        assert torch.equal(cond["label"], torch.cat([label, label]))
        assert keep.tolist() == [True] * len(x) + [False] * len(x)
        assert torch.equal(time, torch.cat([times, times])) if t is times else time is t


@pytest.mark.parametrize("scale", [0, 1, 0.0, 1.0])
def test_scales_that_need_one_prediction_evaluate_one(scale):
    ask, x = Asked(), SETTING.normals(3, 2)
    classifier_free(ask, scale)(x, 0.3, label=torch.arange(3))
    ((asked, _, keep, _),) = ask.calls
    assert asked is x
    assert keep.tolist() == [scale == 1] * 3
    other = Asked()
    assert autoguidance(ask, other, scale) is (ask if scale else other)


def test_a_learned_variance_is_that_of_the_condition():
    """Wrappers that change the estimate leave it unchanged."""
    sde, x, label = SDES["vpsde"](), SETTING.normals(3, 2), torch.arange(3)

    def ask(x, t, keep, label):
        return Prediction(x, torch.where(keep[:, None], 0.75, 0.25) + 0 * x)

    ahead = classifier_free(ask, 2.0)
    wrapped = {
        "classifier": classifier(ahead, sde, lambda x, t: x.sum(1), 2.0),
        "autoguidance": autoguidance(ahead, Asked(), 2.0),
        "static": static_threshold(ahead),
        "dynamic": dynamic_threshold(ahead),
        "within": within(ahead, Asked(), sde, 0.0, math.inf),
    }
    for name, denoise in wrapped.items():
        for t in (0.3, torch.full((3, 1), 0.3)):
            assert (denoise(x, t, label=label).v == 0.75).all(), name
    silent = Asked(variance=None)
    for denoise in (autoguidance(silent, silent, 2.0), static_threshold(silent), within(silent, Asked(), sde, 0, 1)):
        assert denoise(x, torch.full((3, 1), 0.3)).v is None


def test_autoguidance_has_the_score_of_the_extrapolated_density(sde, exact):
    """Its score is the gradient of w log p + (1 - w) log p_weaker."""
    weaker = GaussianMixture(torch.ones(1).double(), exact.whole.mean[None], exact.whole.covariance.diagonal()[None])
    x, t = state(sde, 0.5)
    leaf, (alpha, sigma, _) = x.clone().requires_grad_(), sde.marginal(t)
    density = 2.5 * exact.whole.log_prob(leaf, alpha, sigma) - 1.5 * weaker.log_prob(leaf, alpha, sigma)
    expected = torch.autograd.grad(density.sum(), leaf)[0]
    guided = autoguidance(exact.whole.denoiser(sde), weaker.denoiser(sde), 2.5)
    torch.testing.assert_close(sde.score(x, guided(x, t).x0, t), expected, rtol=1e-9, atol=1e-9)


def test_an_interval_guides_within_its_noise_levels_and_evaluates_no_more(sde):
    ratios = [0.1, 0.3, 1.0, 2.0, 5.0]
    times = sde.time(-2 * torch.log(torch.tensor(ratios, dtype=torch.float64)))
    x, label = SETTING.normals(5, 2), LABEL
    one, other = Asked(torch.ones(1).double()), Asked(torch.zeros(1).double())
    denoise = within(one, other, sde, 0.29, 2.1)
    inside = [0.0, 1.0, 1.0, 1.0, 0.0]
    assert denoise(x, times[:, None], label=label).x0[:, 0].tolist() == inside
    assert one.calls[0][3]["label"] is other.calls[0][3]["label"] is label
    one.calls.clear(), other.calls.clear()
    assert [denoise(x, t.item()).x0[0, 0].item() for t in times] == inside
    assert (len(one.calls), len(other.calls)) == (3, 2)


def test_static_threshold_clips():
    x = torch.tensor([[-3.0, -1.0, 0.2, 0.5, 7.0]])
    assert static_threshold(Asked(), -1.0, 0.5)(x, 0.3).x0.tolist() == [[-1.0, -1.0, x[0, 2].item(), 0.5, 0.5]]


@pytest.mark.parametrize("quantile", [0.01, 0.4, 0.75, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(1, 7), (4, 3, 4, 5)], ids=str)
def test_dynamic_threshold_matches_the_paper(quantile, shape):
    """By sorting; also for data ranges other than [-1, 1]."""
    x = SETTING.normals(*shape) * torch.linspace(0.2, 3, shape[0], dtype=torch.float64).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    low, high = -0.5, 2.5
    expected = []
    for u in x.numpy().reshape(shape[0], -1):
        size = max(1.0, np.sort(np.abs(u))[math.ceil(quantile * u.size) - 1])
        expected.append(np.clip(u, -size, size) / size)
    expected = torch.tensor(np.stack(expected)).reshape(shape)
    torch.testing.assert_close(dynamic_threshold(Asked(), quantile)(x, 0.3).x0, expected, rtol=1e-12, atol=1e-12)
    found = dynamic_threshold(Asked(), quantile, low, high)(1 + 1.5 * x, 0.3).x0
    torch.testing.assert_close(found, 1 + 1.5 * expected, rtol=1e-12, atol=1e-12)
    assert (found >= low).all()
    assert (found <= high).all()


@pytest.mark.parametrize(("name", "process"), list(zip(STEPS, cycle(["subvpsde", "vesde", "ddpm"]))))
def test_nested_guidance_works_with_every_step(process, name):
    """With scales, an interval and thresholds that leave the conditional denoiser unchanged."""
    sde = SDES[process]()
    exact = TwoClasses(sde, SETTING)

    def ask(x, t, keep, label):
        return Prediction(exact(x, t, keep=keep, label=label).x0, torch.full_like(x, 0.5))

    free = classifier_free(ask, 1.0)
    ready = within(autoguidance(free, free, 2.0), free, sde, 0.5, 3.0)
    ready = dynamic_threshold(static_threshold(ready, -1e6, 1e6), 1.0, -1e6, 1e6)

    def guided(x, t):
        return ready(x, t, label=torch.ones(len(x), dtype=torch.int64))

    def conditional(x, t):
        return ask(x, t, torch.ones(len(x), dtype=torch.bool), torch.ones(len(x), dtype=torch.int64))

    step, times = STEPS[name](sde), GRIDS["log_snr"](sde, 3)
    x = sde.prior_std * Noise(torch.arange(2))(torch.empty(2, 2, dtype=torch.float64))
    found, expected = (sample(step, d, x, times, Noise(torch.arange(2), 1)) for d in (guided, conditional))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_classifier_guidance_is_differentiable(sde, exact):
    """The Jacobian equals the conditional denoiser's."""
    x, t = state(sde, 1.0)
    leaned = classifier(
        lambda x, t: exact(x, t, keep=~ALL, label=LABEL), sde, lambda x, t: exact.log_posterior(x, t, LABEL), 1.0
    )
    found, expected = (
        torch.autograd.functional.vjp(lambda x, d=d: d(x, t).x0, x, torch.ones_like(x))[1]
        for d in (leaned, lambda x, t: exact(x, t, keep=ALL, label=LABEL))
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d, sde: autoguidance(d, d, -0.5), "scale -0.5: need 0"),
        (lambda d, sde: within(d, d, sde, 2.0, 2.0), "noise levels from 2.0 to 2.0"),
        (lambda d, sde: within(d, d, sde, -1.0, 2.0), "need 0 <= low < high"),
        (lambda d, sde: static_threshold(d, 1.0, -1.0), "values from 1.0 to -1.0"),
        (lambda d, sde: dynamic_threshold(d, 0.9, 1.0, 1.0), "need low < high"),
        (lambda d, sde: dynamic_threshold(d, 0.0), "quantile 0.0"),
        (lambda d, sde: dynamic_threshold(d, 1.01), "quantile 1.01"),
        (lambda d, sde: dynamic_threshold(d, math.nan), "quantile nan"),
    ],
)
def test_invalid_values_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make(Asked(), SDES["vpsde"]())
