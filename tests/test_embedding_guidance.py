"""Guidance by pairs of encoders, against closed forms."""

import math

import pytest
import torch

from score_sde.samplers import (
    GRIDS,
    ODE,
    STEPS,
    Noise,
    classifier_free,
    clean_embedding_guidance,
    embedding_guidance,
    sample,
    static_threshold,
    within,
)
from score_sde.sde_lib import SDES, GaussianMixture, Prediction
from score_sde.selftest import Setting
from score_sde.selftest.guidance import TwoClasses

SETTING = Setting(torch.device("cpu"), torch.float64)
W = torch.tensor([[0.4, -0.3], [0.2, 0.5], [-0.1, 0.3]], dtype=torch.float64)
TARGET = torch.tensor([[0.7, -0.2, 0.4]], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)


@pytest.fixture
def gaussian():
    return GaussianMixture.of_covariances(torch.ones(1).double(), MEAN[None], COVARIANCE[None])


def linear(x, t=None):
    """f(x) = W x."""
    return x @ W.mT


def bent(x, t=None):
    """A smooth nonlinear encoder."""
    return torch.tanh(x @ W.mT) + 0.1 * x.square().sum(1, keepdim=True)


def state(sde, l=0.5):
    """A time of log-SNR l, and five typical states at that time."""
    t = sde.time(torch.tensor(l, dtype=torch.float64)).item()
    return (sde.marginal(t).alpha + sde.marginal(t).sigma) * SETTING.normals(5, 2, seed=9), t


@pytest.mark.parametrize("scale", [-2.0, 0.0, 1.0, 7.0])
@pytest.mark.parametrize("l", [-4.0, 0.0, 4.0])
def test_the_score_of_a_linear_encoder_moves_by_its_transpose(scale, l, sde, plane):
    """By scale W^T e, for times that are numbers and for times of each example."""
    denoise, (x, t) = plane.denoiser(sde), state(sde, l)
    for times in (t, torch.full((5, 1), t, dtype=torch.float64)):
        found = embedding_guidance(denoise, sde, linear, TARGET, scale)(x, times)
        moved = sde.score(x, found.x0, t) - denoise.score(x, t)
        size = sde.score(x, found.x0, t).abs().max()
        torch.testing.assert_close(moved, scale * (TARGET @ W).expand(5, 2), rtol=0, atol=1e-11 * (1 + size.item()))


@pytest.mark.parametrize("guide", [embedding_guidance, clean_embedding_guidance])
def test_scale_0_is_the_denoiser(guide, sde, plane):
    x, t = state(sde)
    assert torch.equal(guide(plane.denoiser(sde), sde, bent, TARGET, 0.0)(x, t).x0, plane.denoiser(sde)(x, t).x0)


def test_a_linear_encoder_of_the_estimate_moves_gaussian_data_exactly(sde, gaussian):
    """p(x_0) exp(scale <W x_0, e>) is N(m + scale C W^T e, C), so the guided denoiser is exact at any time."""
    moved = MEAN + 3.0 * (COVARIANCE @ W.mT @ TARGET[0])
    tilted = GaussianMixture.of_covariances(torch.ones(1).double(), moved[None], COVARIANCE[None])
    guided = clean_embedding_guidance(gaussian.denoiser(sde), sde, linear, TARGET, 3.0)
    for l in (-8.0, 0.0, 5.0):
        x, t = state(sde, l)
        torch.testing.assert_close(guided(x, t).x0, tilted.denoiser(sde)(x, t).x0, rtol=1e-9, atol=1e-9)


def tilted_samples(step, sde, gaussian, num_steps):
    """Samples of a guided Gaussian, of its closed form, and of the unguided Gaussian."""
    moved = MEAN + 3.0 * (COVARIANCE @ W.mT @ TARGET[0])
    tilted = GaussianMixture.of_covariances(torch.ones(1).double(), moved[None], COVARIANCE[None]).denoiser(sde)
    plain = gaussian.denoiser(sde)
    guided = clean_embedding_guidance(plain, sde, linear, TARGET, 3.0)
    x, times = sde.prior_std * SETTING.normals(4, 2), GRIDS["log_snr"](sde, num_steps)
    return [sample(step, denoise, x, times, Noise(torch.arange(4))) for denoise in (guided, tilted, plain)]


@pytest.mark.parametrize("step", ["adams", "ancestral", "heun", "pc"])
def test_samples_of_a_guided_gaussian(step, sde, gaussian):
    """They equal the tilted Gaussian's, for the same starts and draws."""
    found, expected, plain = tilted_samples(STEPS[step](sde), sde, gaussian, 8)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    assert (found - plain).norm() > 0.1


@pytest.mark.parametrize("name", ["vesde", "vpsde"])
def test_the_ode_of_a_guided_gaussian(name, gaussian):
    sde = SDES[name]()
    found, expected, plain = tilted_samples(ODE(sde, rtol=1e-5, atol=1e-5), sde, gaussian, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain).norm() > 0.1


@pytest.mark.parametrize("name", ["edm", "rectified", "vpsde"])
def test_the_flow_of_a_noised_linear_encoder_of_a_gaussian(name):
    """In y = x / alpha and r = sigma / alpha, with f = W y: dy/dr = r (y / (c + r^2) - scale W^T e), solved by hand."""
    sde, c, scale = SDES[name](), 0.4, 0.05
    data = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), c)
    guided = embedding_guidance(data.denoiser(sde), sde, lambda x, t: linear(x) / sde.marginal(t).alpha, TARGET, scale)
    times = GRIDS["log_snr"](sde, 1)
    (start, end), x = times.tolist(), sde.prior_std * SETTING.normals(3, 2)
    (high, low), (alpha, *_) = (
        (sde.marginal(t).sigma / sde.marginal(t).alpha for t in (start, end)),
        sde.marginal(start),
    )
    roots = [math.sqrt(c + r**2) for r in (high, low)]
    y = roots[1] * (x / alpha / roots[0] + scale * (TARGET @ W) * (roots[0] - roots[1]))
    expected = c / (c + low**2) * y + low**2 * scale * (TARGET @ W)
    found = sample(ODE(sde, rtol=1e-7, atol=1e-7), guided, x, times, torch.zeros_like)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_goes_through_the_denoiser(plane):
    """By finite differences of the similarity of the estimate."""
    sde = SDES["vpsde"]()
    denoise, (x, t), h = plane.denoiser(sde), state(sde), 1e-5
    alike = lambda x: (bent(denoise(x, t).x0) * TARGET).sum(1)  # noqa: E731
    slope = torch.stack([(alike(x + h * e) - alike(x - h * e)) / (2 * h) for e in torch.eye(2).double()], 1)
    found = clean_embedding_guidance(denoise, sde, bent, TARGET, 1.0)(x, t).x0 - denoise(x, t).x0
    alpha, sigma, _ = sde.marginal(t)
    torch.testing.assert_close(found, sigma**2 / alpha * slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("guide", [embedding_guidance, clean_embedding_guidance])
def test_it_composes(guide, sde):
    """With labels, an interval and a threshold: conditions pass through, and nothing changes outside the interval."""
    exact, label = TwoClasses(sde, SETTING), torch.tensor([0, 1, 1, 0, 1])
    plain = classifier_free(exact, 2.0)
    leaned = guide(plain, sde, bent, TARGET, 1.5)
    whole = static_threshold(within(leaned, plain, sde, 0.5, 2.0), -1.0, 1.0)
    for l, inside in ((0.0, True), (4.0, False), (-4.0, False)):
        x, t = state(sde, l)
        expected = (leaned if inside else plain)(x, t, label=label).x0.clamp(-1, 1)
        assert torch.equal(whole(x, t, label=label).x0, expected)
    x, t = state(sde, 0.0)
    assert not torch.allclose(leaned(x, t, label=label).x0, plain(x, t, label=label).x0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("guide", [embedding_guidance, clean_embedding_guidance])
def test_guidance_works_in_every_gradient_mode(guide, mode, plane):
    """No gradient graph is left behind, and a second derivative of the result is available on request."""
    sde = SDES["vpsde"]()
    guided, (x, t) = guide(plane.denoiser(sde), sde, bent, TARGET, 1.5), state(SDES["vpsde"]())
    with mode():
        inside = guided(x, t).x0
    outside = guided(x, t).x0
    assert not outside.requires_grad
    torch.testing.assert_close(inside.clone(), outside)
    assert torch.autograd.gradcheck(lambda x: guided(x, t).x0, x.clone().requires_grad_())


def test_the_estimate_costs_one_evaluation_and_keeps_the_variance(plane):
    sde, calls = SDES["vpsde"](), []

    def denoise(x, t, **cond):
        calls.append(cond)
        return Prediction(plane.denoiser(sde)(x, t).x0, 0.3 * x)

    x, t = state(sde)
    found = clean_embedding_guidance(denoise, sde, bent, TARGET, 1.0)(x, t, label=3)
    assert calls == [{"label": 3}]
    assert torch.equal(found.v, 0.3 * x)


def test_each_example_has_a_target_of_its_own(plane):
    sde = SDES["vpsde"]()
    targets, (x, t) = SETTING.normals(5, 3, seed=4), state(sde)
    for guide in (embedding_guidance, clean_embedding_guidance):
        whole = guide(plane.denoiser(sde), sde, bent, targets, 2.0)(x, t).x0
        for k in range(5):
            alone = guide(plane.denoiser(sde), sde, bent, targets[k : k + 1], 2.0)(x[k : k + 1], t).x0
            torch.testing.assert_close(whole[k : k + 1], alone)
