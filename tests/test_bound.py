"""Bounds against closed forms: exact for Gaussian data, at least the entropy for other data, and two objectives."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad, simpson
from torch import nn

from score_sde.models import NETWORKS
from score_sde.samplers import STEPS, Ancestral
from score_sde.sde_lib import (
    OBJECTIVES,
    VPSDE,
    Denoiser,
    Gaussian,
    GaussianMixture,
    Prediction,
    ddpm,
    diffusion_bound,
    iddpm,
    variational_bound,
)
from score_sde.sde_lib.bound import (
    DECODER_NOISE,
    Bound,
    Hybrid,
    decoder_term,
    decoder_time,
    kl,
    log_prob_bins,
    log_prob_data,
    prior_term,
    step_bound,
)
from score_sde.sde_lib.losses import WEIGHTS
from score_sde.sde_lib.nodes import logistic_uniform as mixture_law

MEAN, STD = 0.3, 0.5
GAUSSIAN = GaussianMixture(torch.ones(1).double(), torch.tensor([[MEAN]], dtype=torch.float64), STD**2)
CHAINS = {"ddpm": lambda: ddpm(40, 1e-3, 0.3), "iddpm": lambda: iddpm(40)}


@pytest.fixture(params=CHAINS)
def chain(request):
    return CHAINS[request.param]()


def exact(sde, t, s, least=0.0):
    """Denoiser of N(MEAN, STD^2), with the variance weight that makes the step from t to s exact."""
    gaussian = GAUSSIAN.denoiser(sde)
    alpha, sigma, _ = sde.marginal(t)
    uncertainty = (STD * sigma) ** 2 / ((alpha * STD) ** 2 + sigma**2)
    of_x0, posterior = sde.bridge(0.0, 1.0, t, s, eta=1.0)
    forward, true = sde.transition(s, t)[1], math.sqrt(posterior**2 + of_x0**2 * uncertainty)
    low = posterior or least
    share = math.log(true / low) / math.log(forward / low)
    return lambda x, t: Prediction(gaussian(x, t).x0, torch.full_like(x, share))


def exact_of_levels(chain):
    """The same for the step from each level to the one below."""
    least = chain.bridge(0.0, 1.0, 2, 1, eta=1.0)[1]
    return lambda x, t: exact(chain, t, t - 1, least)(x, t)


def over_noise(chain, denoise, x0, variance=0.0, bin_width=0.0):
    """The bound of x0 (B, 1), averaged over the noise; three nodes integrate the square of a normal exactly."""
    nodes = math.sqrt(3) * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64) / 6
    eps = nodes.repeat(len(x0))[:, None]
    found = variational_bound(chain, denoise, x0.repeat_interleave(3, 0), lambda like: eps, variance, bin_width)
    return found.nats.reshape(-1, 3) @ weights


def log_density(x0):
    return -0.5 * ((x0 - MEAN) / STD) ** 2 - math.log(STD * math.sqrt(2 * math.pi))


# --- the reverse kernel -----------------------------------------------------------------------------------------------


def test_the_reverse_kernel_has_the_variance_of_the_posterior_or_of_the_forward_step(sde):
    x, x0 = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t, s = sde.time(torch.tensor([-1.0, 1.0]).double()).tolist()
    mean, posterior = sde.bridge(x, x0, t, s, eta=1.0)
    for share, std in ((0, posterior), (1, sde.transition(s, t)[1])):
        found = sde.reverse(x, x0, t, s, share)
        assert torch.equal(found[0], mean)
        assert found[1] == std
    share = torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one_by_one = [[sde.reverse(x, x0, t, s, v)[1] for v in row] for row in share.tolist()]
    torch.testing.assert_close(sde.reverse(x, x0, t, s, share)[1], torch.tensor(one_by_one).double())


def test_the_learned_variance_is_exact_for_gaussian_data_at_any_stride(sde):
    """An affine step N(A x + B, std^2) from N(m_t, v_t) has the earlier marginal: m_s = A m_t + B, and so on."""
    late = sde.time(torch.tensor(-3.0).double()).item()
    for log_snr in (-2.9, 0.0, 5.0):
        early = sde.time(torch.tensor(log_snr).double()).item()
        x = torch.tensor([[0.0], [1.0], [0.0]]).double()
        z = torch.tensor([[0.0], [0.0], [1.0]]).double()
        move = STEPS["ancestral_learned"](sde)(exact(sde, late, early), x, late, early, lambda like, z=z: z)
        offset, at_one, noisy = move.flatten().tolist()
        slope, std = at_one - offset, noisy - offset
        (a, b, _), (c, d, _) = sde.marginal(late), sde.marginal(early)
        assert slope * a * MEAN + offset == pytest.approx(c * MEAN, rel=1e-9)
        assert slope**2 * ((a * STD) ** 2 + b**2) + std**2 == pytest.approx((c * STD) ** 2 + d**2, rel=1e-9)


def test_a_constant_variance_weight_is_ancestral(sde, shaped_mixture):
    x = torch.randn(2, *shaped_mixture.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = shaped_mixture.denoiser(sde)
    t, s = sde.time(torch.tensor([0.0, 1.0]).double()).tolist()
    for share in (0.0, 0.3, 1.0):
        told = STEPS["ancestral_learned"](sde)(
            lambda x, t, share=share: Prediction(plain(x, t).x0, torch.full_like(x, share)), x, t, s, torch.ones_like
        )
        torch.testing.assert_close(told, Ancestral(sde, share)(plain, x, t, s, torch.ones_like))


def test_a_network_without_variances_has_no_reverse_variance(sde, mixture):
    with pytest.raises(ValueError, match="--sampler ancestral, or train --config iddpm"):
        STEPS["ancestral_learned"](sde)(mixture.denoiser(sde), torch.zeros(1, 1), 1.0, 0.5, torch.zeros_like)


# --- divergences and masses -------------------------------------------------------------------------------------------


def test_the_divergence_of_normals_is_exact():
    mean1, mean2 = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    std1, std2 = torch.rand(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    laws = torch.distributions.Normal(mean1, std1), torch.distributions.Normal(mean2, std2)
    torch.testing.assert_close(kl(mean1, std1, mean2, std2), torch.distributions.kl_divergence(*laws))


def test_the_divergence_of_near_laws_keeps_its_digits():
    """Two variances a thousandth apart differ by 1e-6 nats, which single precision would lose in r^2 - 1 - log r^2."""
    found = kl(torch.zeros(1), torch.tensor([1.001]), torch.zeros(1), torch.tensor([1.0])).item()
    assert found == pytest.approx(0.5 * (1.001**2 - 1 - 2 * math.log(1.001)), rel=1e-3)


@pytest.mark.parametrize("std", [1e-3, 0.05, 3.0])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_masses_of_all_bins_add_up_to_one(levels, std):
    centres = (torch.arange(levels).double() + 0.5) * 2 / levels - 1
    for mean in (-1.3, -0.123, 0.0, 0.4, 7.0):
        mass = log_prob_bins(centres, torch.tensor(mean).double(), std, 2 / levels).exp()
        assert mass.sum().item() == pytest.approx(1, abs=1e-12)


def test_bins_from_minus_one_to_one_have_their_edges_outside():
    centres = torch.arange(256).double() * 2 / 255 - 1
    mass = log_prob_bins(centres, torch.tensor(0.9).double(), 0.3, 2 / 255, edge=256 / 255).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("offset", [0.0, 0.3, 2.0, 5.0])
def test_masses_far_away_keep_their_digits(offset):
    """Against scipy, in single precision and on both sides: up to 50 standard deviations, a mass of e^-1250."""
    x0, w = torch.tensor([offset, -offset]), 0.1
    expected = stats.norm.logsf((offset - w / 2) / 0.1)
    expected += math.log1p(-math.exp(stats.norm.logsf((offset + w / 2) / 0.1) - expected))
    mean = torch.zeros(2, requires_grad=True)
    found = log_prob_bins(x0, mean, 0.1, w, edge=10.0)
    torch.testing.assert_close(found.detach(), torch.full((2,), expected), rtol=1e-5, atol=1e-5)
    slope = torch.autograd.grad(found.sum(), mean)[0]
    assert slope.isfinite().all()
    assert slope[0].item() == pytest.approx(-slope[1].item(), rel=1e-5, abs=1e-5)


def test_gradients_at_the_ends_are_finite():
    x0, mean = torch.tensor([-0.9, -0.9, 0.9, 0.9]), torch.tensor([-5.0, 5.0, -5.0, 5.0], requires_grad=True)
    std = torch.full((4,), 0.05, requires_grad=True)
    slopes = torch.autograd.grad(log_prob_bins(x0, mean, std, 0.2).sum(), [mean, std])
    assert all(slope.isfinite().all() for slope in slopes)
    torch.testing.assert_close(slopes[0][[0, 3]], torch.zeros(2))  # these bins hold all of the mass


# --- the whole bound --------------------------------------------------------------------------------------------------


def test_the_bound_of_gaussian_data_is_their_density(chain):
    """Exact kernels leave the gap KL(q(x_N | x_0) || prior) - KL(q(x_N | x_0) || q(x_N)), for any number of levels."""
    x0 = torch.tensor([[-1.0], [0.0], [0.3], [1.2]], dtype=torch.float64)
    alpha, sigma, _ = chain.marginal(chain.t_max)
    last = kl(alpha * x0, sigma, alpha * MEAN, math.hypot(alpha * STD, sigma)).flatten()
    expected = prior_term(chain, x0) - last - log_density(x0).flatten()
    torch.testing.assert_close(over_noise(chain, exact_of_levels(chain), x0), expected, rtol=1e-10, atol=1e-10)


def test_the_gap_of_the_forward_variance_falls_with_the_number_of_levels():
    """The mean over the data is their entropy plus a gap that halves when the number of levels doubles."""
    nodes = MEAN + STD * math.sqrt(3) * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    gaps = []
    for num in (100, 200):
        chain = VPSDE().discretize(num)
        found = over_noise(chain, GAUSSIAN.denoiser(chain), nodes, 1.0) @ torch.tensor([1.0, 4.0, 1.0]).double() / 6
        gaps.append(found.item() - 0.5 * math.log(2 * math.pi * math.e * STD**2))
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.2)


def test_the_bound_of_one_point_is_its_prior_term(chain):
    """For known data every step costs nothing; only the prior term remains."""
    x0 = torch.tensor([[[0.25, -0.25]]]).double()
    denoise = GaussianMixture.of_points(x0).denoiser(chain)
    draw = lambda like: torch.full_like(like, 0.7)  # noqa: E731
    found = variational_bound(chain, denoise, x0, draw, 0.0, 0.5)
    torch.testing.assert_close(found.levels, torch.zeros(1, 40).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.distortion, torch.zeros(1, 40).double())
    torch.testing.assert_close(found.nats, prior_term(chain, x0))


@pytest.mark.parametrize("variance", [0.0, 1.0])
def test_the_bound_is_above_the_entropy_of_a_mixture(mixture, chain, variance):
    generator = torch.Generator().manual_seed(0)
    x0 = mixture.sample(4000, generator)
    draw = lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generator)  # noqa: E731
    gap = variational_bound(chain, mixture.denoiser(chain), x0, draw, variance, 0.0).nats + mixture.log_prob(x0)
    stderr = gap.std() / len(gap) ** 0.5
    assert gap.mean() > 3 * stderr


def test_bits_of_bins_match_the_density_on_fine_levels(chain):
    """Levels much finer than the data cost the density and the width of a bin."""
    width = 1e-3
    x0 = torch.tensor([[-0.2005], [0.4005]]).double()
    bins, density = (over_noise(chain, exact_of_levels(chain), x0, bin_width=w) for w in (width, 0.0))
    torch.testing.assert_close(bins, density - math.log(width), rtol=0, atol=1e-2)


def test_each_term_is_ddpms_weighted_error_of_eps(mixture):
    """L_{t-1} = beta^2 / (2 std^2 (1 - beta) (1 - alpha-bar)) |eps - eps_hat|^2 for the posterior variance."""
    betas = torch.linspace(1e-3, 0.2, 50, dtype=torch.float64)
    bars, chain = torch.cumprod(1 - betas, 0), ddpm(50, 1e-3, 0.2)
    denoise = mixture.denoiser(chain)
    x0, eps = torch.tensor([[0.3], [-1.0]]).double(), torch.tensor([[0.5], [-1.5]]).double()
    for t in (2, 17, 50):
        beta, bar, earlier = betas[t - 1], bars[t - 1], bars[t - 2]
        x = bar.sqrt() * x0 + (1 - bar).sqrt() * eps
        prediction = denoise(x, t)
        error = (eps - chain.eps(x, prediction.x0, t)).square().flatten()
        variance = beta * (1 - earlier) / (1 - bar)
        expected = beta**2 / (2 * variance * (1 - beta) * (1 - bar)) * error  # Ho, Jain, Abbeel, 2020, eq. 12
        torch.testing.assert_close(step_bound(chain, prediction, x0, x, t, 0.0, 0.0), expected, rtol=1e-8, atol=1e-10)


# --- the bound in continuous time -------------------------------------------------------------------------------------


def keyed(seed=0):
    """Normals from a generator independent of ``strata``."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    return lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generator)


def strata(num_rows, num, seed=0):
    """Stratified numbers u, uniform in N intervals."""
    within = torch.rand(num_rows, num, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (torch.arange(num) + within) / num


def hermite(num):
    """Nodes and weights for the mean over a normal."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(num))
    return nodes, weights / weights.sum()


def law(num, shape, seed=0):
    """A Gaussian with a full covariance on examples of a shape, as a mixture of one component."""
    generator = torch.Generator().manual_seed(seed)
    roots = 0.4 * torch.randn(num, num, num, dtype=torch.float64, generator=generator)[:1]
    covariance = roots @ roots.mT + 0.05 * torch.eye(num, dtype=torch.float64)
    mean = torch.randn(1, *shape, dtype=torch.float64, generator=generator)
    return GaussianMixture.of_covariances(torch.ones(1).double(), mean, covariance)


def guess_of(mixture):
    """The Gaussian with the mean and covariance of a mixture."""
    values, vectors = torch.linalg.eigh(mixture.covariance)
    return Gaussian(mixture.mean.view(mixture.shape), values[0].item(), values, vectors)


@pytest.mark.parametrize("num", [1, 5])
def test_the_continuous_bound_of_gaussian_data_is_their_density(sde, num):
    """For any u and noise, the gap is KL(q(x_T | x_0) || prior) - KL(q(x_T | x_0) || q(x_T)) plus one term: the decoder
    uses N(x_0; y, r^2) as the distribution of x_0 given y, whose variances are v r^2 / (v + r^2).
    """
    data, x0 = law(6, (2, 3)), torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    found = diffusion_bound(sde, data.denoiser(sde), x0, guess_of(data), strata(4, num), keyed(), 0.0)
    (alpha, sigma, _), first = sde.marginal(sde.t_max), sde.marginal(sde.t_min)
    eye, normal, flat = torch.eye(6).double(), torch.distributions.MultivariateNormal, x0.flatten(1)
    end = normal(alpha * flat, sigma**2 * eye)
    prior = normal(torch.zeros(6).double(), sde.prior_std**2 * eye)
    last = normal(alpha * data.mean, alpha**2 * data.covariance + sigma**2 * eye)
    off, known = (torch.distributions.kl_divergence(end, law) for law in (prior, last))
    values, vectors = torch.linalg.eigh(data.covariance)
    v, square, s = values, ((flat - data.mean) @ vectors).square(), (first.sigma / first.alpha) ** 2
    taken = 0.5 * (torch.log1p(s / v) + 1 - (s * square / v + v) / (v + s)).sum(1)
    expected = off - known - normal(data.mean, data.covariance).log_prob(flat) + taken
    torch.testing.assert_close(found.nats, expected, rtol=1e-7, atol=1e-7)


GUESSES = {
    "right": lambda data: guess_of(data),
    "standard": lambda data: Gaussian.standard(data.means.view(-1, 1)),
    "far": lambda data: Gaussian(torch.tensor([-2.0]).double(), 0.01),
    "wide": lambda data: Gaussian(
        torch.tensor([0.5]).double(), 4.0, torch.tensor([9.0]).double(), torch.ones(1, 1).double()
    ),
}


@pytest.mark.parametrize("name", GUESSES)
def test_the_moment_matched_gaussian_does_not_change_the_continuous_bound(mixture, name):
    """By quadrature over u and eps, against the paper's integral of the error over log r."""
    sde, x0, num = VPSDE(), torch.tensor([[-1.3], [0.4]]).double(), 300
    nodes, weights = hermite(20)
    denoise, eps = mixture.denoiser(sde), nodes.repeat(2)[:, None]
    rows, u = x0.repeat_interleave(20, 0), ((torch.arange(num) + 0.5) / num).double().expand(40, -1)
    found = diffusion_bound(sde, denoise, rows, GUESSES[name](mixture), u, lambda like: eps, 0.0).diffusion.sum(1)
    log_ratio, errors = np.linspace(*(-0.5 * sde.marginal(t).log_snr for t in (sde.t_min, sde.t_max)), 301), []
    for log_r in log_ratio:
        t = sde.time(torch.tensor(-2 * log_r)).item()
        error = (denoise(sde.perturb(rows, eps, t), t).x0 - rows).square() * math.exp(-2 * log_r)
        errors.append((error.reshape(2, 20) @ weights).numpy())
    expected = torch.from_numpy(simpson(np.stack(errors), x=log_ratio, axis=0))
    torch.testing.assert_close(found.reshape(2, 20) @ weights, expected, rtol=1e-3, atol=0)


SHAPES = {"2": (2,), "64": (64,), "3 x 8 x 8": (3, 8, 8)}


def clusters(shape, variance=1.0):
    """Eight Gaussians with covariances of low rank, up to a little noise, times a factor."""
    num, generator = math.prod(shape), torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(8, *shape, dtype=torch.float64, generator=generator)
    rank = max(2, num // 8)
    roots = 0.3 / math.sqrt(rank) * torch.randn(8, num, rank, dtype=torch.float64, generator=generator)
    covariances = roots @ roots.mT + 0.01 * torch.eye(num, dtype=torch.float64)
    return GaussianMixture.of_covariances(torch.ones(8).double(), means, variance * covariances)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_continuous_bound_is_the_density_of_the_denoiser(shape):
    """On average the bound equals the model's density: the data's for the exact denoiser, lower for another one."""
    data, sde, num = clusters(shape), VPSDE(), 256
    x0, other = data.sample(num, torch.Generator().manual_seed(0)), clusters(shape, variance=4.0)
    for model in (data, other):
        found = diffusion_bound(sde, model.denoiser(sde), x0, guess_of(data), strata(num, 32), keyed(), 0.0).nats
        gap = found + model.log_prob(x0)
        stderr = gap.std() / num**0.5
        assert stderr < 0.03 * math.prod(shape)
        assert abs(gap.mean()) < 3 * stderr
    excess = found + data.log_prob(x0)
    assert excess.mean() > 3 * excess.std() / num**0.5


def test_the_moment_matched_gaussian_removes_most_of_the_variance():
    """Compared with the bound without a guess: the weighted sum of the denoiser's errors, ``distortion``."""
    data, sde, num = clusters((64,)), VPSDE(), 8
    x0, guess = data.sample(64, torch.Generator().manual_seed(0)), guess_of(data)
    ends = [math.exp(-0.5 * sde.marginal(t).log_snr) for t in (sde.t_min, sde.t_max)]
    nats, plain = [], []
    for seed in (0, 1):
        u = strata(64, num, seed)
        found = diffusion_bound(sde, data.denoiser(sde), x0, guess, u, keyed(seed), 0.0)
        ratio, rise = (torch.from_numpy(v) for v in mixture_law(*ends, u.numpy(), guess.std))
        nats.append(found.nats)
        plain.append((64 * found.distortion**2 * rise / num / ratio**2).sum(1) + found.prior + found.decoder)
    spread, without = ((first - second).square().mean().sqrt() for first, second in (nats, plain))
    assert spread < 0.1 * without
    assert (plain[0] - nats[0]).mean().abs() < 3 * without / 64**0.5


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_intervals_hold_the_entropy(shape):
    """Coverage of 200 intervals of 95 %: the deviation over the examples includes the estimator's."""
    data, sde, num = clusters(shape), VPSDE(), 64
    generator = torch.Generator().manual_seed(0)
    entropy = -torch.cat([data.log_prob(data.sample(2000, generator)) for _ in range(10)]).mean()
    guess, inside = guess_of(data), 0
    for seed in range(200):
        x0 = data.sample(num, generator)
        nats = diffusion_bound(sde, data.denoiser(sde), x0, guess, strata(num, 8, seed), keyed(seed), 0.0).nats
        inside += abs(nats.mean() - entropy).item() < 2 * nats.std().item() / math.sqrt(num)
    assert 0.93 <= inside / 200 <= 0.99


def test_terms_of_the_continuous_bound_are_at_their_reported_log_snr(sde, shaped_mixture):
    seen, exact = [], shaped_mixture.denoiser(sde)
    x0 = shaped_mixture.sample(3, torch.Generator().manual_seed(0))

    def denoise(x, t, label):
        assert torch.equal(label, torch.arange(3))
        seen.append(sde.log_snr(t).flatten())
        return exact(x, t)

    t = sde.time(torch.tensor(5.0).double()).item()
    found = diffusion_bound(
        sde, denoise, x0, guess_of(shaped_mixture), strata(3, 6), keyed(), 0.0, t, label=torch.arange(3)
    )
    assert found.diffusion.shape == found.distortion.shape == (3, 6)
    assert found.log_snr[0].item() == pytest.approx(5.0)
    assert found.log_snr[-1].item() == pytest.approx(sde.marginal(sde.t_max).log_snr)
    where = torch.stack(seen, 1)
    assert (where <= found.log_snr[:-1] + 1e-9).all()
    assert (where >= found.log_snr[1:] - 1e-9).all()
    torch.testing.assert_close(found.nats, found.prior + found.diffusion.sum(1) + found.decoder)
    assert (found.distortion[:, -1] > found.distortion[:, 0]).all()


def test_examples_have_bounds_of_their_own(shaped_mixture):
    sde, x0 = VPSDE(), shaped_mixture.sample(4, torch.Generator().manual_seed(0))
    eps, u = torch.randn(5, *x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), strata(4, 5)

    def of(rows):
        draws = iter(eps[:, rows])
        denoise = shaped_mixture.denoiser(sde)
        return diffusion_bound(
            sde, denoise, x0[rows], guess_of(shaped_mixture), u[rows], lambda x: next(draws), 0.0
        ).nats

    torch.testing.assert_close(of(slice(0, 4))[1:3], of(slice(1, 3)), rtol=1e-12, atol=1e-12)


def test_single_precision_has_the_same_continuous_bound(sde, shaped_mixture):
    x0, t = shaped_mixture.sample(8, torch.Generator().manual_seed(0)), sde.time(torch.tensor(9.0).double()).item()
    eps, guess, found = (
        torch.randn(16, *x0.shape, generator=torch.Generator().manual_seed(1)),
        guess_of(shaped_mixture),
        [],
    )
    for dtype in (torch.float32, torch.float64):
        draws, x, denoise = iter(eps.to(dtype)), x0.float().to(dtype), shaped_mixture.denoiser(sde)
        draw = lambda like, draws=draws: next(draws)  # noqa: E731
        found.append(diffusion_bound(sde, denoise, x, guess.like(x), strata(8, 16), draw, 0.0, t))
    torch.testing.assert_close(found[0].nats.double(), found[1].nats, rtol=0, atol=0.02)
    assert found[0].diffusion.dtype == found[0].distortion.dtype == torch.float32


# --- decoder of the continuous bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3, 2.0])
@pytest.mark.parametrize("levels", [2, 17])
def test_the_decoder_of_levels_is_the_integral_over_the_noise(levels, ratio):
    centres = (np.arange(levels) + 0.5) * 2 / levels - 1
    for k in {0, levels // 2, levels - 1}:

        def surprise(z, k=k):
            log_p = stats.norm.logpdf(centres[k] + ratio * z, centres, ratio)
            return stats.norm.pdf(z) * (np.logaddexp.reduce(log_p) - log_p[k])

        expected, _ = quad(surprise, -12, 12, limit=200, points=[0])
        found = decoder_term(torch.tensor([[centres[k]]]), ratio, 2 / levels).item()
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_the_decoder_adds_up_over_entries_and_is_uniform_in_much_noise():
    x0 = torch.tensor([[[-0.75, 0.25], [0.75, 0.75]], [[-0.25, -0.25], [0.25, 0.75]]])
    entries = decoder_term(x0.flatten()[:, None], 0.2, 0.5)
    torch.testing.assert_close(decoder_term(x0, 0.2, 0.5), entries.view(2, 4).sum(1))
    torch.testing.assert_close(decoder_term(x0, 1e4, 0.5), torch.full((2,), 4 * math.log(4)), rtol=1e-6, atol=0)
    normal = torch.distributions.Normal(0.0, 0.2)
    torch.testing.assert_close(decoder_term(x0, 0.2, 0.0), (4 * normal.entropy()).expand(2))


def test_levels_are_decoded_where_they_are_distinguishable(sde):
    t = decoder_time(sde, 2 / 17)
    assert sde.marginal(t).sigma / sde.marginal(t).alpha == pytest.approx(DECODER_NOISE * 2 / 17, rel=1e-9)
    assert decoder_time(sde, 0.0) == sde.t_min
    assert sde.t_min <= decoder_time(sde, 1e-9) <= (1 + 1e-9) * sde.t_min


def test_the_continuous_bound_of_levels_is_their_entropy():
    """On a line of four levels, by quadrature; at the default time the decoder costs a little."""
    sde, p = VPSDE(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    x0, num = torch.tensor([[-0.75], [-0.25], [0.25], [0.75]]).double(), 200
    data, (nodes, weights) = GaussianMixture(p, x0, 0.0), hermite(40)
    u, rows, eps = (
        ((torch.arange(num) + 0.5) / num).expand(160, -1),
        x0.repeat_interleave(40, 0),
        nodes.repeat(4)[:, None],
    )
    entropy, gaps = -(p * p.log()).sum().item(), []
    for t in (sde.time(torch.tensor(-2 * math.log(0.05)).double()).item(), None):
        found = diffusion_bound(sde, data.denoiser(sde), rows, guess_of(data), u, lambda like: eps, 0.5, t).nats
        gaps.append((p @ (found.reshape(4, 40) @ weights)).item() - entropy)
    assert gaps[0] == pytest.approx(0, abs=1e-3)
    assert 1e-3 < gaps[1] < 0.05


@pytest.mark.parametrize("t", [1e-6, 1.0, 2.0])
def test_a_decoder_outside_of_the_process_is_refused(mixture, t):
    x0 = torch.zeros(1, 1).double()
    with pytest.raises(ValueError, match=r"decoder at t = .*: the network was trained on \[1e-05, 1\.0\]"):
        diffusion_bound(VPSDE(), mixture.denoiser(VPSDE()), x0, guess_of(mixture), strata(1, 2), keyed(), 0.0, t)


# --- objectives -------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Network on vectors with a mean and a variance for each entry."""

    def __init__(self, dimensions):
        super().__init__()
        torch.manual_seed(0)
        self.mean, self.variance = (nn.Linear(dimensions + 1, dimensions).double() for _ in range(2))

    def forward(self, x, log_snr):
        told = torch.cat([x, 0.1 * log_snr[:, None].double()], 1)
        return torch.cat([self.mean(told), torch.tanh(self.variance(told))], 1)


def level(values):
    return torch.tensor(values).double()[:, None]


def test_the_mean_over_levels_is_the_bound_without_its_prior(chain):
    x0 = torch.tensor([[-0.25, 0.75]]).double().expand(40, 2)
    eps = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoise, draws = Denoiser(Twice(2), chain, "eps", 0.5), iter(eps[:, None])
    t = chain.quantile(torch.arange(40).double() / 40)[:, None]
    losses = OBJECTIVES["bound"](chain, bin_width=0.5)(denoise, x0, eps, t, None, 0.0)
    whole = variational_bound(chain, denoise, x0[:1], lambda like: next(draws), 0.0, 0.5)
    torch.testing.assert_close(losses.mean(), (whole.nats - whole.prior)[0] / (2 * math.log(2)), rtol=1e-6, atol=1e-6)


def test_hybrid_trains_the_mean_by_the_error_and_the_variance_by_the_bound(chain):
    x0, eps = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network, t = Twice(2), level([1.0, 7.0, 40.0])
    denoise = Denoiser(network, chain, "v", 0.5)

    def gradients(objective):
        network.zero_grad()
        objective(denoise, x0, eps, t, None, 0.0).mean().backward()
        return [[None if p.grad is None else p.grad.clone() for p in part.parameters()] for part in network.children()]

    weight = WEIGHTS["simple"]
    simple, bound = gradients(OBJECTIVES["denoising"](chain, weight)), gradients(Bound(chain, 0.0))
    hybrid = gradients(Hybrid(chain, weight, 0.0))
    assert all(part is None or not part.any() for part in simple[1])
    for found, expected in zip(hybrid[0], simple[0]):
        torch.testing.assert_close(found, expected)
    for found, expected in zip(hybrid[1], bound[1]):
        torch.testing.assert_close(found, 1e-3 * expected)


def test_hybrid_is_the_error_and_a_thousandth_of_the_bound(chain):
    """At the first level, with data at either edge of the range, for levels from -1 or from 0."""
    x0, eps, t = torch.tensor([[-1.0, 1.0], [0.0, 1.0]]).double(), torch.full((2, 2), 0.3).double(), level([1.0, 1.0])
    denoise, weight = Denoiser(Twice(2), chain, "v", 0.5), WEIGHTS["simple"]
    simple = OBJECTIVES["denoising"](chain, weight)(denoise, x0, eps, t, None, 0.0)
    for given in ({}, {"low": 0.0}):
        bound = Bound(chain, 0.1, low=given.get("low", -1.0))(denoise, x0, eps, t, None, 0.0)
        found = Hybrid(chain, weight, 0.1, **given)(denoise, x0, eps, t, None, 0.0)
        torch.testing.assert_close(found, simple + 1e-3 * bound)


def test_gradients_of_the_bound_match_finite_differences(chain):
    x0, eps = torch.randn(2, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network, t = Twice(2), level([1.0, 2.0, 20.0, 40.0])
    denoise, objective = Denoiser(network, chain, "v", 0.5), Bound(chain, 0.1)
    parameter = network.variance.bias

    def value(shift):
        with torch.no_grad():
            parameter.add_(shift)
            loss = objective(denoise, x0.clamp(-0.9, 0.9), eps, t, None, 0.0).sum().item()
            parameter.sub_(shift)
        return loss

    objective(denoise, x0.clamp(-0.9, 0.9), eps, t, None, 0.0).sum().backward()
    assert parameter.grad.sum().item() == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-5)


def test_conditions_reach_the_network(chain):
    x0, label, met = torch.zeros(2, 2).double(), torch.tensor([0, 1]), []

    def denoise(x, t, **cond):
        met.append(cond)
        return Prediction(x, torch.full_like(x, 0.5))

    for objective in (Bound(chain, 0.1), Hybrid(chain, WEIGHTS["simple"], 0.1)):
        objective(denoise, x0, x0, level([3.0, 4.0]), None, 0.0, label=label)
    assert met == [{"label": label}, {"label": label}]


def test_hybrid_needs_a_variance(chain):
    denoise = Denoiser(Twice(2).mean, chain, "eps", 0.5)
    denoise.network.forward = lambda x, log_snr: torch.zeros_like(x)
    x0 = torch.zeros(1, 2).double()
    with pytest.raises(ValueError, match=r"network\.learned_variance=True"):
        Hybrid(chain, WEIGHTS["simple"], 0.0)(denoise, x0, x0, level([3.0]), None, 0.0)


@pytest.mark.parametrize("make", [lambda sde: Bound(sde, 0.1), lambda sde: Hybrid(sde, WEIGHTS["simple"], 0.1)])
def test_only_a_chain_has_levels(make):
    with pytest.raises(
        ValueError, match="the bound by level needs a discrete-time process, and VPSDE has no levels: use"
    ):
        make(VPSDE())


# --- parameterization by the mean of the posterior --------------------------------------------------------------------


def test_the_mean_of_the_posterior_is_turned_into_the_data(chain, mixture):
    x0, eps = torch.randn(2, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (1.0, 2.0, 17.0):
        x = chain.perturb(x0, eps, t)
        mean, _ = chain.bridge(x, x0, t, t - 1, eta=1.0)
        for time in (t, torch.full((5, 1), t).double()):
            denoise = Denoiser(lambda *_, mean=mean: mean, chain, "mean", 0.5)
            torch.testing.assert_close(denoise(x, time).x0, x0, rtol=1e-8, atol=1e-8)


def test_the_mean_of_the_posterior_needs_a_chain():
    with pytest.raises(ValueError, match="'mean' needs a discrete-time process, and VPSDE has no levels"):
        Denoiser(nn.Identity(), VPSDE(), "mean", 0.5)


@pytest.mark.parametrize(("name", "shape"), [("unet", (2, 4, 6)), ("mlp", (3,))])
def test_a_network_that_learns_a_variance_starts_between_the_two(name, shape, chain):
    network = NETWORKS[name](shape, learned_variance=True)
    found = Denoiser(network, chain, "v", 0.5)(torch.ones(2, *shape), 3.0)
    assert found.x0.shape == found.v.shape == (2, *shape)
    assert torch.equal(found.v, torch.full((2, *shape), 0.5))


def test_levels_from_zero_are_those_of_half_the_scale():
    """Bins of [0, 1] are bins of [-1, 1] halved and shifted; masses and decoders agree."""
    x0, mean = torch.tensor([[-0.75, -0.25, 0.75]]).double(), torch.tensor([[-0.9, 0.1, 1.4]]).double()
    half = [0.5 * (1 + value) for value in (x0, mean)]
    torch.testing.assert_close(
        log_prob_data(half[0], half[1], 0.05, 0.25, low=0.0), log_prob_data(x0, mean, 0.1, 0.5), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(decoder_term(half[0], 0.1, 0.25, low=0.0), decoder_term(x0, 0.2, 0.5))
