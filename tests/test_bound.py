"""The bound against closed forms: exact for Gaussian data, above the entropy for others, and its two objectives."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from models import NETWORKS
from samplers import STEPS, Ancestral
from sde_lib import OBJECTIVES, VPSDE, Denoiser, GaussianMixture, Prediction, ddpm, iddpm, variational_bound
from sde_lib.bound import Bound, Hybrid, kl, log_prob_bins, prior_term, step_bound
from sde_lib.losses import WEIGHTS

MEAN, STD = 0.3, 0.5
GAUSSIAN = GaussianMixture(torch.ones(1).double(), torch.tensor([[MEAN]], dtype=torch.float64), STD**2)
CHAINS = {"ddpm": lambda: ddpm(40, 1e-3, 0.3), "iddpm": lambda: iddpm(40)}


@pytest.fixture(params=CHAINS)
def chain(request):
    return CHAINS[request.param]()


def exact(sde, t, s, least=0.0):
    """Denoiser of N(MEAN, STD^2), with the share that makes the move from t to s its true one."""
    gaussian = GAUSSIAN.denoiser(sde)
    alpha, sigma, _ = sde.at(t)
    uncertainty = (STD * sigma) ** 2 / ((alpha * STD) ** 2 + sigma**2)
    of_x0, posterior = sde.bridge(0.0, 1.0, t, s, eta=1.0)
    forward, true = sde.transition(s, t)[1], math.sqrt(posterior**2 + of_x0**2 * uncertainty)
    low = posterior or least
    share = math.log(true / low) / math.log(forward / low)
    return lambda x, t: Prediction(gaussian(x, t).x0, torch.full_like(x, share))


def exact_of_levels(chain):
    """The same for the move from each level to the one below."""
    least = chain.bridge(0.0, 1.0, 2, 1, eta=1.0)[1]
    return lambda x, t: exact(chain, t, t - 1, least)(x, t)


def over_noise(chain, denoise, x0, variance=0.0, bin_width=0.0):
    """The bound of x0 (B, 1) in its mean over the noise: three points are the integral of a square of a normal."""
    nodes = math.sqrt(3) * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64) / 6
    eps = nodes.repeat(len(x0))[:, None]
    found = variational_bound(chain, denoise, x0.repeat_interleave(3, 0), lambda like: eps, variance, bin_width)
    return found.nats.reshape(-1, 3) @ weights


def log_density(x0):
    return -0.5 * ((x0 - MEAN) / STD) ** 2 - math.log(STD * math.sqrt(2 * math.pi))


# --- the reverse kernel -----------------------------------------------------------------------------------------------


def test_the_reverse_kernel_has_the_variance_of_the_posterior_or_of_the_forward_move(sde):
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
    """An affine move N(A x + B, std^2) of N(m_t, v_t) has the law of the earlier time: m_s = A m_t + B, and so on."""
    late = sde.time(torch.tensor(-3.0).double()).item()
    for log_snr in (-2.9, 0.0, 5.0):
        early = sde.time(torch.tensor(log_snr).double()).item()
        x = torch.tensor([[0.0], [1.0], [0.0]]).double()
        z = torch.tensor([[0.0], [0.0], [1.0]]).double()
        move = STEPS["ancestral_learned"](sde)(exact(sde, late, early), x, late, early, lambda like, z=z: z)
        offset, at_one, noisy = move.flatten().tolist()
        slope, std = at_one - offset, noisy - offset
        (a, b, _), (c, d, _) = sde.at(late), sde.at(early)
        assert slope * a * MEAN + offset == pytest.approx(c * MEAN, rel=1e-9)
        assert slope**2 * ((a * STD) ** 2 + b**2) + std**2 == pytest.approx((c * STD) ** 2 + d**2, rel=1e-9)


def test_a_constant_share_is_ancestral(sde, shaped_mixture):
    x = torch.randn(2, *shaped_mixture.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = shaped_mixture.denoiser(sde)
    t, s = sde.time(torch.tensor([0.0, 1.0]).double()).tolist()
    for share in (0.0, 0.3, 1.0):
        told = STEPS["ancestral_learned"](sde)(
            lambda x, t, share=share: Prediction(plain(x, t).x0, torch.full_like(x, share)), x, t, s, torch.ones_like
        )
        torch.testing.assert_close(told, Ancestral(sde, share)(plain, x, t, s, torch.ones_like))


def test_a_network_without_variances_cannot_tell_them(sde, mixture):
    with pytest.raises(ValueError, match="--sampler ancestral, or train --config iddpm"):
        STEPS["ancestral_learned"](sde)(mixture.denoiser(sde), torch.zeros(1, 1), 1.0, 0.5, torch.zeros_like)


# --- divergences and masses -------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_normals():
    mean1, mean2 = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    std1, std2 = torch.rand(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    laws = torch.distributions.Normal(mean1, std1), torch.distributions.Normal(mean2, std2)
    torch.testing.assert_close(kl(mean1, std1, mean2, std2), torch.distributions.kl_divergence(*laws))


def test_the_divergence_of_near_laws_keeps_its_digits():
    """Two variances a thousandth apart are 1e-6 nats apart, which single precision would lose in r^2 - 1 - log r^2."""
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
    """Against scipy, in single precision and on both sides: up to 50 deviations, a mass of e^-1250."""
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
    torch.testing.assert_close(slopes[0][[0, 3]], torch.zeros(2))  # all of the mass is there already


# --- the whole bound --------------------------------------------------------------------------------------------------


def test_the_bound_of_gaussian_data_is_their_density(chain):
    """Exact kernels: what is left is KL(q(x_N | x_0) || prior) - KL(q(x_N | x_0) || q(x_N)), however few levels."""
    x0 = torch.tensor([[-1.0], [0.0], [0.3], [1.2]], dtype=torch.float64)
    alpha, sigma, _ = chain.at(chain.t_max)
    last = kl(alpha * x0, sigma, alpha * MEAN, math.hypot(alpha * STD, sigma)).flatten()
    expected = prior_term(chain, x0) - last - log_density(x0).flatten()
    torch.testing.assert_close(over_noise(chain, exact_of_levels(chain), x0), expected, rtol=1e-10, atol=1e-10)


def test_the_gap_of_the_forward_variance_falls_with_the_number_of_levels():
    """The mean over the data is their entropy and a gap that halves where the levels are twice as many."""
    nodes = MEAN + STD * math.sqrt(3) * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    gaps = []
    for num in (100, 200):
        chain = VPSDE().discretize(num)
        found = over_noise(chain, GAUSSIAN.denoiser(chain), nodes, 1.0) @ torch.tensor([1.0, 4.0, 1.0]).double() / 6
        gaps.append(found.item() - 0.5 * math.log(2 * math.pi * math.e * STD**2))
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.2)


def test_the_bound_of_one_point_is_its_prior_term(chain):
    """Whoever knows the data sends nothing: only the end of the chain tells x_0 from the prior."""
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


def test_bits_of_bins_are_those_of_fine_levels(chain):
    """Levels much finer than the data cost their density and the width of a bin."""
    width = 1e-3
    x0 = torch.tensor([[-0.2005], [0.4005]]).double()
    bins, density = (over_noise(chain, exact_of_levels(chain), x0, bin_width=w) for w in (width, 0.0))
    torch.testing.assert_close(bins, density - math.log(width), rtol=0, atol=1e-2)


def test_each_term_is_ddpms_weighted_error_of_eps(mixture):
    """L_{t-1} = beta^2 / (2 std^2 (1 - beta) (1 - alpha-bar)) |eps - eps_hat|^2 for the variance of the posterior."""
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


# --- objectives -------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """A mean and a variance of each entry, on vectors."""

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


def test_hybrid_teaches_the_mean_by_the_error_and_the_variance_by_the_bound(chain):
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


def test_gradients_of_the_bound_are_those_of_its_values(chain):
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


def test_hybrid_needs_a_variance(chain):
    denoise = Denoiser(Twice(2).mean, chain, "eps", 0.5)
    denoise.network.forward = lambda x, log_snr: torch.zeros_like(x)
    x0 = torch.zeros(1, 2).double()
    with pytest.raises(ValueError, match=r"network\.learned_variance=True"):
        Hybrid(chain, WEIGHTS["simple"], 0.0)(denoise, x0, x0, level([3.0]), None, 0.0)


@pytest.mark.parametrize("make", [lambda sde: Bound(sde, 0.1), lambda sde: Hybrid(sde, WEIGHTS["simple"], 0.1)])
def test_only_a_chain_has_levels(make):
    with pytest.raises(ValueError, match="VPSDE has no levels to bound the likelihood by: use --config ddpm"):
        make(VPSDE())


# --- the mean of the posterior as what a network says -----------------------------------------------------------------


def test_the_mean_of_the_posterior_is_turned_into_the_data(chain, mixture):
    x0, eps = torch.randn(2, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (1.0, 2.0, 17.0):
        x = chain.perturb(x0, eps, t)
        mean, _ = chain.bridge(x, x0, t, t - 1, eta=1.0)
        for time in (t, torch.full((5, 1), t).double()):
            denoise = Denoiser(lambda *_, mean=mean: mean, chain, "mean", 0.5)
            torch.testing.assert_close(denoise(x, time).x0, x0, rtol=1e-8, atol=1e-8)


def test_the_mean_of_the_posterior_needs_a_chain():
    with pytest.raises(ValueError, match="'mean' needs a chain, and VPSDE has no levels"):
        Denoiser(nn.Identity(), VPSDE(), "mean", 0.5)


@pytest.mark.parametrize(("name", "shape"), [("unet", (2, 4, 6)), ("mlp", (3,))])
def test_a_network_that_learns_a_variance_starts_between_the_two(name, shape, chain):
    network = NETWORKS[name](shape, learned_variance=True)
    found = Denoiser(network, chain, "v", 0.5)(torch.ones(2, *shape), 3.0)
    assert found.x0.shape == found.variance.shape == (2, *shape)
    assert torch.equal(found.variance, torch.full((2, *shape), 0.5))
