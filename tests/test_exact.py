"""Exact mixtures, the ground truth of other tests: against scipy, autograd, Monte Carlo and
the Gaussian closed form."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from score_sde.sde_lib import GaussianMixture


def covariances(mixture):
    """Covariances (K, D, D) of the components."""
    return torch.einsum("kij,kj,klj->kil", mixture.bases, mixture.variances, mixture.bases)


def around(mixture, num=8):
    scale = torch.randn(num, *mixture.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return 2 * scale


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.8, 0.3), (1.0, 20.0)])
def test_density_matches_scipy(shaped_mixture, alpha, sigma):
    x = around(shaped_mixture)
    num = x[0].numel()
    parts = [
        np.log(weight) + multivariate_normal(alpha * mean, alpha**2 * cov + sigma**2 * np.eye(num)).logpdf(x.flatten(1))
        for weight, mean, cov in zip([0.2, 0.3, 0.5], shaped_mixture.means.numpy(), covariances(shaped_mixture).numpy())
    ]
    expected = torch.tensor(logsumexp(np.stack(parts), axis=0))
    torch.testing.assert_close(shaped_mixture.log_prob(x, alpha, sigma), expected, rtol=1e-10, atol=1e-10)


def test_score_is_the_gradient_of_the_density(sde, shaped_mixture):
    denoise = shaped_mixture.denoiser(sde)
    for t in sde.time(torch.linspace(-8, 10, 5, dtype=torch.float64)).tolist():
        x = sde.marginal(t).alpha * around(shaped_mixture) + sde.marginal(t).sigma
        x.requires_grad_()
        expected = torch.autograd.grad(denoise.log_prob(x, t).sum(), x)[0]
        x = x.detach()
        score = denoise.score(x, t)
        assert score.shape == x.shape
        torch.testing.assert_close(score, expected, rtol=1e-7, atol=1e-7 * expected.abs().max().item())


def test_posterior_mean_matches_monte_carlo(shaped_mixture):
    alpha, sigma, num = 0.7, 1.5, 200_000
    x0 = shaped_mixture.sample(num, torch.Generator().manual_seed(2)).flatten(1)
    x = around(shaped_mixture, 4) / 2
    estimate = shaped_mixture.posterior_mean(x, alpha, sigma).flatten(1)
    for k in range(4):
        likelihood = torch.softmax(-0.5 * ((x[k].flatten() - alpha * x0) / sigma).square().sum(1), 0)[:, None]
        error = (likelihood * (x0 - estimate[k])).sum(0).abs()
        stderr = (likelihood * (x0 - estimate[k])).square().sum(0).sqrt()
        assert (error < 4 * stderr).all()
        assert (stderr < 0.03).all()


def test_one_component_is_gaussian_conditioning(sde):
    generator = torch.Generator().manual_seed(0)
    root, mean = torch.randn(4, 4, dtype=torch.float64, generator=generator), torch.arange(4.0).double()
    covariance = root @ root.T + 0.1 * torch.eye(4).double()
    mixture = GaussianMixture.of_covariances(torch.ones(1).double(), mean[None], covariance[None])
    x = 3 * torch.randn(6, 4, dtype=torch.float64, generator=generator)
    for t in sde.time(torch.linspace(-8, 10, 5, dtype=torch.float64)).tolist():
        alpha, sigma, _ = sde.marginal(t)
        marginal = alpha**2 * covariance + sigma**2 * torch.eye(4).double()
        expected = mean + alpha * torch.linalg.solve(marginal, (x - alpha * mean).T).T @ covariance
        torch.testing.assert_close(mixture.denoiser(sde)(x, t).x0, expected, rtol=1e-9, atol=1e-9)


def test_points_are_weighted_by_distance():
    points = torch.tensor([[[0.0, 1.0]], [[2.0, -1.0]], [[-1.0, -1.0]]]).double()
    x, alpha, sigma = torch.tensor([[[0.5, 0.2]], [[-3.0, 1.0]]]).double(), 0.6, 0.8
    distance = (x[:, None] - alpha * points).square().sum((2, 3))
    expected = torch.einsum("bk,k...->b...", torch.softmax(-0.5 * distance / sigma**2, 1), points)
    torch.testing.assert_close(GaussianMixture.of_points(points).posterior_mean(x, alpha, sigma), expected)


def test_samples_have_the_moments(shaped_mixture):
    num = 100_000
    x = shaped_mixture.sample(num, torch.Generator().manual_seed(3))
    assert x.shape == (num, *shaped_mixture.shape)
    offset = x.flatten(1) - shaped_mixture.mean
    assert (offset.mean(0).abs() < 4 * offset.std(0) / num**0.5).all()
    products = offset[:, :, None] * offset[:, None, :]
    error = (products.mean(0) - shaped_mixture.covariance).abs()
    assert (error < 4 * products.std(0) / num**0.5).all()


def test_moments_match_the_components(shaped_mixture):
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    mean = (weights[:, None] * shaped_mixture.means).sum(0)
    second = covariances(shaped_mixture) + torch.einsum("ki,kj->kij", shaped_mixture.means, shaped_mixture.means)
    torch.testing.assert_close(shaped_mixture.mean, mean)
    expected = (weights[:, None, None] * second).sum(0) - torch.outer(mean, mean)
    torch.testing.assert_close(shaped_mixture.covariance, expected)


def test_each_example_may_have_its_own_time(sde, shaped_mixture):
    denoise, x = shaped_mixture.denoiser(sde), around(shaped_mixture, 5)
    t = sde.time(torch.linspace(-6, 8, 5, dtype=torch.float64))
    together = denoise(x, t.reshape(5, *[1] * (x.ndim - 1))).x0
    alone = torch.cat([denoise(x[k : k + 1], t[k].item()).x0 for k in range(5)])
    torch.testing.assert_close(together, alone)


def test_the_estimate_has_the_dtype_of_the_state(sde, shaped_mixture):
    x = around(shaped_mixture)
    estimate = shaped_mixture.denoiser(sde)(x.float(), 0.5 * sde.t_max).x0
    assert estimate.dtype == torch.float32
    expected = shaped_mixture.denoiser(sde)(x, 0.5 * sde.t_max).x0.float()
    torch.testing.assert_close(estimate, expected, rtol=1e-5, atol=1e-5)
