"""Posterior sampling against the exact posteriors of Gaussians and mixtures."""

import functools
import math

import pytest
import torch
from scipy.stats import multivariate_normal

from score_sde.models import MLP
from score_sde.samplers import (
    DDIM,
    DPS,
    GRIDS,
    ODE,
    Adams,
    Ancestral,
    Heun,
    Noise,
    PredictorCorrector,
    block_means,
    classifier,
    moment_matching,
    pigdm,
    sample,
)
from score_sde.samplers.posterior import _conjugate_gradients, _Counted
from score_sde.sde_lib import SDES, Denoiser, Gaussian, GaussianMixture, Prediction

LEVELS = (-8.0, -3.0, 0.0, 3.0, 8.0)


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_covariance(size, seed=0):
    root = normals(size, size, seed=seed)
    return root @ root.mT / size + 0.05 * torch.eye(size).double()


def gaussian_data(*shape, seed=0):
    """One Gaussian with a full covariance, as a mixture and as a moment-matched Gaussian."""
    mean, covariance = normals(*shape, seed=seed), random_covariance(math.prod(shape), seed + 1)
    variances, directions = torch.linalg.eigh(covariance)
    mixture = GaussianMixture.of_covariances(torch.ones(1).double(), mean[None], covariance[None])
    return mixture, Gaussian(mean, 1.0, variances, directions)


def moments(sde):
    """Times of several noise levels."""
    times = sde.time(torch.tensor(LEVELS, dtype=torch.float64)).clamp(sde.t_min, sde.t_max)
    return [(t, sde.marginal(t).alpha, sde.marginal(t).sigma) for t in times.tolist()]


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoise):
        self.denoise, self.calls = denoise, 0

    def __call__(self, x, t, **cond):
        self.calls += 1
        return self.denoise(x, t, **cond)


# --- the exact posterior ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_the_posterior_is_the_prior_weighted_by_the_measurement(plane, rows):
    """Means and covariance by importance weights, for matrices with more rows than columns, too."""
    matrix, std, num = normals(rows, 2, seed=4), 0.4, 400_000
    y = matrix @ torch.tensor([0.3, 0.4]).double()
    posterior = plane.given(matrix, y, std)
    x = plane.sample(num, torch.Generator().manual_seed(0))
    weight = torch.softmax(-0.5 * ((y - x @ matrix.mT) / std).square().sum(1), 0)[:, None]
    offset = x - posterior.mean
    assert ((weight * offset).sum(0).abs() < 4 * (weight * offset).square().sum(0).sqrt()).all()
    products = (offset[:, :, None] * offset[:, None, :]).flatten(1) - posterior.covariance.flatten()
    stderr = (weight * products).square().sum(0).sqrt()
    assert ((weight * products).sum(0).abs() < 4 * stderr).all()
    assert (stderr < 0.01).all()


def test_weights_follow_bayes_rule(shaped_mixture):
    """A component's weight is proportional to the density of the measurement under it, by scipy."""
    size = shaped_mixture.means.shape[1]
    matrix, y = normals(2, size, seed=4), normals(2, seed=5)
    covariances = shaped_mixture.bases @ (shaped_mixture.variances[:, :, None] * shaped_mixture.bases.mT)
    noise = 0.09 * torch.eye(2).double()
    laws = [
        multivariate_normal(matrix @ mean, matrix @ covariance @ matrix.mT + noise)
        for mean, covariance in zip(shaped_mixture.means, covariances)
    ]
    joint = torch.tensor([weight * law.pdf(y) for weight, law in zip([0.2, 0.3, 0.5], laws)])
    posterior = shaped_mixture.given(matrix, y, 0.3)
    torch.testing.assert_close(posterior.log_weights.exp(), joint / joint.sum(), rtol=1e-9, atol=1e-12)
    assert posterior.shape == shaped_mixture.shape
    assert torch.equal(posterior.log_weights, shaped_mixture.given(matrix, y[None], 0.3).log_weights)


def test_a_measurement_without_noise_is_certain(plane):
    matrix, y = normals(1, 2, seed=4), torch.tensor([0.2]).double()
    posterior, near = plane.given(matrix, y, 0.0), plane.given(matrix, y, 1e-5)
    x = posterior.sample(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x @ matrix.mT, y.expand(50, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(posterior.mean, near.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(posterior.covariance, near.covariance, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"std 0.0: the measurement has no density under this mixture; use fewer"):
        plane.given(torch.zeros(1, 2), y, 0.0)


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_the_true_classifier_of_a_measurement_guides_to_the_posterior(sde, plane, std):
    """grad log p(y | x_t), from the distribution of x_0 given x_t, component by component."""
    matrix, y = normals(1, 2, seed=4), torch.tensor([0.2]).double()
    bases, variances, means = plane.bases, plane.variances, plane.means
    exact = plane.given(matrix, y, std).denoiser(sde)
    for t, alpha, sigma in moments(sde):
        precision = alpha**2 / sigma**2

        def log_prob(x, t, alpha=alpha, sigma=sigma, precision=precision):
            log_joint = plane._components(x, alpha, sigma)[0]
            spread = variances / (1 + precision * variances)  # for each component, given x_t
            pull = torch.einsum("bki,kij->bkj", x[:, None] / alpha - means, bases) * precision * spread
            mean = means + torch.einsum("bkj,kij->bki", pull, bases)
            seen = torch.einsum("mi,kij->kmj", matrix, bases)
            variance = (seen.square() * spread[:, None]).sum((1, 2)) + std**2
            misfit = y - (mean @ matrix.mT)[..., 0]
            density = -0.5 * (misfit**2 / variance + torch.log(variance))
            return torch.logsumexp(torch.log_softmax(log_joint, 1) + density, 1)

        x = alpha * plane.sample(6, torch.Generator().manual_seed(1)) + sigma * normals(6, 2)
        found = classifier(plane.denoiser(sde), sde, log_prob, 1.0)(x, t).x0
        torch.testing.assert_close(found, exact(x, t).x0, rtol=1e-8, atol=1e-8)


# --- pseudoinverse guidance -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.0, 0.01, 0.5])
def test_guidance_by_a_measurement_is_exact_for_gaussian_data(sde, std):
    """At every noise level, for times as numbers and by example, for one measurement or one for each example."""
    mixture, guess = gaussian_data(6)
    matrix, y = normals(4, 6, seed=3), normals(3, 4, seed=4)
    for t, alpha, sigma in moments(sde):
        x = alpha * mixture.sample(3, torch.Generator().manual_seed(1)) + sigma * normals(3, 6)
        for given in (y, y[:1]):
            measured = mixture.denoiser(sde), sde, lambda x: x @ matrix.mT, given, std
            guided, own = pigdm(*measured, guess), moment_matching(*measured, iterations=100)
            expected = torch.cat(
                [
                    mixture.given(matrix, v, std).denoiser(sde)(x[k, None], t).x0
                    for k, v in enumerate(given.expand(3, 4))
                ]
            )
            for time in (t, torch.full((3, 1), t, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)):
                torch.testing.assert_close(guided(x, time).x0, expected, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(own(x, t).x0, expected, rtol=1e-7, atol=1e-7)


def test_moment_matching_needs_no_gaussian(sde, plane):
    """On a mixture its estimates are nearer to the exact conditional ones than with the best Gaussian."""
    variances, directions = torch.linalg.eigh(plane.covariance)
    guess = Gaussian(plane.mean, 1.0, variances, directions)
    matrix, y, off = torch.tensor([[0.8, -0.6]]).double(), torch.tensor([[0.3]]).double(), [0.0, 0.0]
    for t, alpha, sigma in moments(sde):
        x = alpha * plane.sample(500, torch.Generator().manual_seed(1)) + sigma * normals(500, 2)
        exact = plane.given(matrix, y[0], 0.1).denoiser(sde)(x, t).x0
        measured = plane.denoiser(sde), sde, lambda x: x @ matrix.mT, y, 0.1
        for k, guided in enumerate((pigdm(*measured, guess), moment_matching(*measured))):
            off[k] += (guided(x, t).x0 - exact).square().mean().item()
    assert off[1] < off[0]


def test_moment_matching_refuses_what_it_cannot_do(sde, plane):
    x = torch.zeros(3, 2).double()
    with pytest.raises(ValueError, match="iterations 0: need at least 1"):
        moment_matching(plane.denoiser(sde), sde, lambda x: x, x, 0.1, iterations=0)
    with pytest.raises(ValueError, match="not linear"):
        moment_matching(plane.denoiser(sde), sde, torch.abs, x, 0.1)(x, 0.5)


def blur(x):
    """A kernel over the pixels."""
    kernel = torch.tensor([[0.1, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.05, 0.05]]).to(x)
    weight = kernel.expand(x.shape[1], 1, 3, 3)
    return torch.nn.functional.conv2d(x, weight, padding=1, groups=x.shape[1])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("forward", "std"),
    [(lambda x: block_means(x, 2), 0.0), (blur, 0.1), (lambda x: x.mean(1), 0.05), (lambda x: x[..., 1:3], 0.0)],
    ids=["superres", "deblur", "colourise", "inpaint"],
)
def test_a_function_of_images_suffices_as_measurement(forward, std, batch):
    """Its transpose is not given; the matrix of the exact posterior is assembled from its columns."""
    sde = SDES["vpsde"]()
    mixture, guess = gaussian_data(2, 4, 4)
    matrix = forward(torch.eye(32).double().reshape(32, 2, 4, 4)).flatten(1).mT
    y, x = forward(mixture.sample(1, torch.Generator().manual_seed(2))), normals(batch, 2, 4, 4, seed=7)
    exact = mixture.given(matrix, y, std).denoiser(sde)
    guided = pigdm(mixture.denoiser(sde), sde, forward, y, std, guess)
    for t in (0.01, 0.4, 1.0):
        torch.testing.assert_close(guided(x, t).x0, exact(x, t).x0, rtol=1e-8, atol=1e-8)
        single = guided(x.float(), t).x0
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact(x, t).x0, rtol=5e-3, atol=5e-3)


def test_with_an_isotropic_gaussian_it_matches_the_paper(sde, plane):
    """sigma^2 / alpha J^T a (y - a^T x0) / (r_t^2 |a|^2 + std^2) with r_t^2 = sigma^2 s^2 / (alpha^2 s^2 + sigma^2)."""
    row, y, std, s = normals(2, seed=4), 0.4, 0.2, 0.7
    denoise = plane.denoiser(sde)
    guess = Gaussian(torch.zeros(2).double(), s**2)
    guided = pigdm(denoise, sde, lambda x: x @ row[:, None], torch.tensor([[y]]).double(), std, guess)
    for t, alpha, sigma in moments(sde):
        x = (alpha + sigma) * normals(1, 2, seed=6)
        x0 = denoise(x, t).x0[0]
        jacobian = torch.autograd.functional.jacobian(lambda v, t=t: denoise(v[None], t).x0[0], x[0])
        variance = sigma**2 * s**2 / (alpha**2 * s**2 + sigma**2) * row.square().sum() + std**2
        expected = x0 + sigma**2 / alpha * jacobian.mT @ row * (y - row @ x0) / variance
        torch.testing.assert_close(guided(x, t).x0[0], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["ode", "adams", "ancestral"])
def test_guided_samples_follow_the_posterior(sde, name):
    """Mean and standard deviations, within four standard errors and the discretization error."""
    mixture, guess = gaussian_data(3)
    matrix, y, num = normals(1, 3, seed=3), torch.tensor([[0.4]]).double(), 400
    posterior = mixture.given(matrix, y, 0.1)
    guided = pigdm(mixture.denoiser(sde), sde, lambda x: x @ matrix.mT, y, 0.1, guess)
    step, num_steps = {
        "ode": (ODE(sde, rtol=0.03, atol=0.03), 1),
        "adams": (Adams(sde), 20),
        "ancestral": (Ancestral(sde, v=0.5), 200),
    }[name]
    noise, like = Noise(torch.arange(num)), torch.empty(num, 3, dtype=torch.float64)
    x = sample(step, guided, sde.prior_std * noise(like), GRIDS["log_snr"](sde, num_steps), noise)
    std = posterior.covariance.diagonal().sqrt()
    assert ((x.mean(0) - posterior.mean).abs() < 4 * std / num**0.5 + 0.02).all()
    assert ((x.std(0) / std - 1).abs() < 4 / (2 * num) ** 0.5 + 0.05).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_networks_are_differentiated_without_gradient_mode(mode):
    sde = SDES["vpsde"]()
    torch.manual_seed(0)
    network = MLP((3,), width=16, depth=1, num_classes=2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    denoise, y, label = Denoiser(network, sde, "edm", 0.5), torch.ones(1, 1), torch.tensor([0, 1])
    seen, x, keep = [], torch.randn(2, 3), torch.ones(2, dtype=torch.bool)

    def ask(x, t, **cond):
        seen.append(cond)
        return Prediction(denoise(x, t, **cond).x0, torch.full_like(x, 0.25))

    with mode():
        guided = pigdm(ask, sde, lambda x: x[:, :1], y, 0.1, Gaussian.standard(x))(x, 0.3, keep=keep, label=label)
        lean = DPS(DDIM(sde), lambda x: x[:, :1].square(), y, 0.3)
        moved = lean(lambda x, t: ask(x, t, keep=keep, label=label), x, 0.3, 0.2, torch.zeros_like)
    assert all(cond["label"] is label for cond in seen)
    assert (guided.v == 0.25).all()
    assert not guided.x0.requires_grad
    assert not moved.requires_grad
    assert (guided.x0 - denoise(x, 0.3, keep=keep, label=label).x0).abs().min() > 0


def test_conjugate_gradients_solve_each_example_independently():
    """For many sizes and condition numbers, a system solved at once, and singular systems with a solution."""
    matrices = torch.stack([random_covariance(7, seed) for seed in range(4)])
    matrices[1] = torch.eye(7)
    matrices[2] = matrices[2][:, :3] @ matrices[2][:, :3].mT
    b = torch.einsum("bij,bj->bi", matrices, normals(4, 7, seed=1)) * torch.tensor([1.0, 1.0, 1.0, 1e-6])[:, None]
    b[3, 0] = 0
    found = _conjugate_gradients(lambda v: torch.einsum("bij,bj->bi", matrices, v), b, 100)[0]
    torch.testing.assert_close(torch.einsum("bij,bj->bi", matrices, found), b, rtol=1e-9, atol=1e-13)
    scales = torch.tensor([[1.0] * 7, [1.0, 2.0] * 3 + [2.0], [1.0, 2.0, 3.0] * 2 + [1.0], [*range(1, 8)]]).double()
    together = _conjugate_gradients(lambda v: scales * v, b, 100)[0]
    for k in range(4):
        assert torch.equal(_conjugate_gradients(lambda v, k=k: scales[k] * v, b[k, None], 100)[0][0], together[k])
    assert torch.equal(_conjugate_gradients(lambda v: v, torch.zeros(2, 3), 100)[0], torch.zeros(2, 3))


def test_conjugate_gradients_take_half_again_the_iterations_of_the_previous_level():
    """The system stays the same; after 1 iteration it takes 2, after 4 it takes 6, up to the limit."""
    scales, products = torch.arange(1, 7).double() % 4 + 1, []

    def matrix(v):
        products.append(v)
        return scales * v

    def made(solve, b, ratio):
        products.clear()
        torch.testing.assert_close(solve(matrix, b, ratio), b / scales, rtol=1e-12, atol=0)
        return len(products)

    solve, b = _Counted(100), normals(3, 6)
    assert made(solve, torch.eye(6).double(), 1.0) == 1
    assert made(solve, torch.eye(6).double(), 0.5) == 2
    assert made(solve, b, 2.0) == 4  # from four distinct eigenvalues
    assert [made(solve, b, ratio) for ratio in (2.0, 1.5, torch.ones(3, 1), 3.0)] == [6, 6, 4, 4]
    assert made(solve, b.float().double(), 3.0) == 6
    products.clear()
    assert solve(lambda v: matrix(v.double()).float(), b.float(), 1.0).dtype == torch.float32
    assert len(products) < 6
    few = _Counted(5)
    assert [made(few, b, ratio) for ratio in (1.0, 1.0)] == [4, 5]


# --- diffusion posterior sampling -------------------------------------------------------------------------------------


def test_dps_uses_the_gradient_of_the_misfit_of_the_steps_first_evaluation(sde, plane):
    denoise, x, y = plane.denoiser(sde), normals(3, 2, seed=2), torch.tensor([[0.3]]).double()
    t, s = 0.5 * (sde.t_min + sde.t_max), 0.4 * (sde.t_min + sde.t_max)

    def forward(x):
        return torch.sin(x).prod(1, keepdim=True)

    leaf = x.clone().requires_grad_()
    misfit = (y - forward(denoise(leaf, t).x0)).abs().sum()
    gradient = torch.autograd.grad(misfit, leaf)[0]
    for step, evaluations in ((DDIM(sde), 1), (Ancestral(sde), 1), (Heun(sde), 2), (PredictorCorrector(sde), 2)):
        ask = Counted(denoise)
        found = DPS(step, forward, y, 0.7)(ask, x, t, s, torch.ones_like)
        expected = step(denoise, x, t, s, torch.ones_like) - 0.7 * gradient
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert ask.calls == evaluations
    ask = Counted(denoise)
    found = DPS(DDIM(sde), forward, y, 0.7).finish(ask, x, t, torch.zeros_like)
    torch.testing.assert_close(found, denoise(x, t).x0 - 0.7 * gradient, rtol=1e-9, atol=1e-9)
    assert ask.calls == 1


@pytest.mark.parametrize("kind", [DDIM, Adams, Ancestral, ODE, Heun])
def test_dps_of_zeta_zero_is_the_step(sde, plane, kind):
    """The step is reset with its times and keeps its history."""
    make = functools.partial(kind, **({"rtol": 0.03, "atol": 0.03} if kind is ODE else {}))
    x, times = sde.prior_std * normals(2, 2), GRIDS["log_snr"](sde, 4)
    step = DPS(make(sde), lambda x: x[:, :1], torch.zeros(2, 1).double(), 0.0)
    assert (step.grid, step.num_steps, step.sde) == (kind.grid, kind.num_steps, sde)
    found = sample(step, plane.denoiser(sde), x, times, Noise(torch.arange(2)))
    assert torch.equal(found, sample(make(sde), plane.denoiser(sde), x, times, Noise(torch.arange(2))))


def test_dps_samples_fit_the_measurement():
    """For a nonlinear measurement."""
    sde, num = SDES["vpsde"](), 200
    mixture = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 1.0)
    y, noise, misfits = torch.tensor([[3.0]]).double(), Noise(torch.arange(num)), []
    for zeta in (0.0, 0.05):
        x = noise(torch.empty(num, 2, dtype=torch.float64))
        step = DPS(Ancestral(sde), lambda x: x.square().sum(1, keepdim=True), y, zeta)
        found = sample(step, mixture.denoiser(sde), x, GRIDS["log_snr"](sde, 100), noise)
        misfits.append((y - found.square().sum(1, keepdim=True)).abs().mean().item())
    assert misfits[1] < 0.4 * misfits[0]


def test_the_gradient_of_a_zero_misfit_is_zero():
    """Not a division of zero by zero."""
    sde = SDES["vpsde"]()
    mixture = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), 1.0)
    x, denoise = normals(2, 2), mixture.denoiser(sde)
    y = denoise(x, 0.5).x0
    found = DPS(DDIM(sde), lambda x: x, y, 1.0)(denoise, x, 0.5, 0.4, torch.zeros_like)
    assert torch.equal(found, DDIM(sde)(denoise, x, 0.5, 0.4, torch.zeros_like))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda d, sde, g, x: pigdm(d, sde, torch.abs, x, 0.1, g), "the measurement is not linear: .* use DPS"),
        (lambda d, sde, g, x: pigdm(d, sde, lambda x: x + 1, x, 0.1, g), "not linear"),
        (lambda d, sde, g, x: pigdm(d, sde, torch.tanh, x, 0.1, g), "not linear"),
        (lambda d, sde, g, x: pigdm(d, sde, lambda x: x, x, -0.1, g), "std -0.1: need the standard deviation"),
        (lambda d, sde, g, x: pigdm(d, sde, lambda x: x[:, :1], x, 0.1, g)(x, 0.5), r"y is of shape \(3, 2\), and A"),
        (lambda d, sde, g, x: pigdm(d, sde, lambda x: x, x[:2], 0.1, g)(x, 0.5), r"A gives \(3, 2\): need the same"),
        (lambda d, sde, g, x: DPS(DDIM(sde), lambda x: x, x, -1.0), "zeta -1.0: need 0 or more"),
        (lambda d, sde, g, x: DPS(DDIM(sde), lambda x: x, x[:, :1])(d, x, 0.5, 0.4, None), "y is of shape"),
    ],
)
def test_invalid_arguments_are_refused(plane, call, says):
    sde = SDES["vpsde"]()
    with pytest.raises(ValueError, match=says):
        call(plane.denoiser(sde), sde, Gaussian.standard(normals(3, 2)), normals(3, 2))
