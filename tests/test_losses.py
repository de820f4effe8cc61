"""Losses: weights against closed forms, the optimum and its value, timestep samplers and their corrections."""

from functools import partial

import pytest
import torch
from scipy.stats import truncnorm

from score_sde.sde_lib import (
    PARAMETERIZATIONS,
    SDES,
    TIMESTEP_SAMPLERS,
    WEIGHTS,
    Denoiser,
    Discrete,
    GaussianMixture,
    denoising_loss,
    stratified,
)
from tests.targets import SIGMA_DATA, TARGETS, Fixed, state

OPTIONS = {"edm": {"sigma_data": SIGMA_DATA}}

# (alpha, sigma, g) -> weight on the squared error of x0, as printed in the papers.
TABLE = {
    "simple": lambda alpha, sigma, g: alpha**2 / sigma**2,
    "sigma2": lambda alpha, sigma, g: sigma**2 * (alpha / sigma**2) ** 2,
    "x0": lambda alpha, sigma, g: torch.ones_like(sigma),
    "v": lambda alpha, sigma, g: (alpha**2 + sigma**2) / sigma**2,
    "flow": lambda alpha, sigma, g: (alpha / sigma + 1) ** 2,
    "edm": lambda alpha, sigma, g: ((sigma / alpha) ** 2 + SIGMA_DATA**2) / (sigma / alpha * SIGMA_DATA) ** 2,
    "min_snr": lambda alpha, sigma, g: torch.minimum(alpha**2 / sigma**2, torch.tensor(5.0)),
    "truncated_snr": lambda alpha, sigma, g: torch.maximum(alpha**2 / sigma**2, torch.tensor(1.0)),
    "likelihood": lambda alpha, sigma, g: g**2 * (alpha / sigma**2) ** 2,
}


def weigh(name):
    return partial(WEIGHTS[name], **OPTIONS.get(name, {}))


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_match_the_papers(sde, name):
    _, _, t = state(sde, (1, 1), num=30)
    expected = TABLE[name](sde.alpha(t), sde.sigma(t), sde.diffusion(t))
    weight = weigh(name)(sde, t)
    assert weight.shape == t.shape
    torch.testing.assert_close(weight, expected, rtol=1e-9, atol=0)


def test_likelihood_weight_is_the_fall_of_the_snr(sde):
    l = torch.linspace(-8, 8, 10, dtype=torch.float64)  # excludes 0, where the Laplace schedule has a kink
    t, h = sde.time(l), 1e-5
    later, earlier = sde.time(l - h), sde.time(l + h)
    fall = (torch.exp(sde.log_snr(earlier)) - torch.exp(sde.log_snr(later))) / (later - earlier)
    torch.testing.assert_close(WEIGHTS["likelihood"](sde, t), fall, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "quantity"),
    [("simple", "eps"), ("x0", "x0"), ("v", "v"), ("flow", "flow"), ("edm", "edm"), ("sigma2", "score")],
)
def test_loss_is_the_squared_error_of_the_named_quantity(sde, name, quantity):
    x0, eps, t = state(sde, (2, 3))
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    guess = x0 + 0.1 * torch.sin(5 * eps)
    x = alpha * x0 + sigma * eps
    true, guessed = (TARGETS[quantity](alpha, sigma, SIGMA_DATA, v, (x - alpha * v) / sigma) for v in (x0, guess))
    scale = sigma**2 if quantity == "score" else 1.0
    expected = (scale * (guessed - true) ** 2).mean((1, 2))
    loss = denoising_loss(sde, Denoiser(Fixed(guess), sde, "x0", SIGMA_DATA), weigh(name), x0, eps, t)
    assert loss.shape == (6,)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_parameterization_changes_neither_loss_nor_gradient(sde, weight):
    x0, eps, t = state(sde, (2, 3))
    x, (alpha, sigma, _) = sde.perturb(x0, eps, t), sde.marginal(t)
    found = {}
    for name in PARAMETERIZATIONS:
        guess = (x0 + 0.1 * torch.sin(5 * eps)).requires_grad_()
        output = TARGETS[name](alpha, sigma, SIGMA_DATA, guess, (x - alpha * guess) / sigma)
        loss = denoising_loss(sde, Denoiser(Fixed(output), sde, name, SIGMA_DATA), weigh(weight), x0, eps, t)
        found[name] = loss.detach(), torch.autograd.grad(loss.sum(), guess)[0]
    # Rounding: at the noisy end x0 is a difference of numbers of size sigma / alpha, at the other end it has a large
    # weight.
    for name in PARAMETERIZATIONS:
        for value, expected in zip(found[name], found["x0"]):
            torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-7 * expected.abs().mean().item())


# --- the optimum ------------------------------------------------------------------------------------------------------

VARIANCES = torch.tensor([0.2, 0.5, 1.5], dtype=torch.float64)


@pytest.fixture
def gaussian():
    """N(m, diag v) in three dimensions."""
    return GaussianMixture(torch.ones(1).double(), torch.tensor([[0.5, -1.0, 0.0]]).double(), VARIANCES)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_loss_of_the_exact_denoiser_is_the_posterior_variance(sde, gaussian, weight):
    num, generator = 20_000, torch.Generator().manual_seed(0)
    x0 = gaussian.sample(num, generator)
    eps = torch.randn(num, 3, dtype=torch.float64, generator=generator)
    for l in (-4.0, 0.0, 4.0):
        t = sde.time(torch.full((num, 1), l, dtype=torch.float64))
        alpha, sigma = sde.alpha(t[0]).item(), sde.sigma(t[0]).item()
        expected = (VARIANCES * sigma**2 / (alpha**2 * VARIANCES + sigma**2)).mean().item()
        loss = denoising_loss(sde, gaussian.denoiser(sde), weigh(weight), x0, eps, t)
        factor = TABLE[weight](sde.alpha(t[0]), sde.sigma(t[0]), sde.diffusion(t[0])).item()
        assert abs(loss.mean().item() - factor * expected) < 3 * loss.std().item() / num**0.5


def test_no_change_of_the_exact_denoiser_lowers_the_loss(sde, mixture):
    """The derivative of the expected loss vanishes in every direction, and the loss is convex."""
    num, generator = 40_000, torch.Generator().manual_seed(1)
    x0 = mixture.sample(num, generator)
    eps = torch.randn(num, 1, dtype=torch.float64, generator=generator)
    for l in (-3.0, 0.0, 3.0):
        t = sde.time(torch.full((num, 1), l, dtype=torch.float64))
        x = sde.perturb(x0, eps, t)
        residual = mixture.denoiser(sde)(x, t).x0 - x0
        y = x / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt()
        for direction in (torch.ones_like(y), y, torch.sin(3 * y), y**2):
            slope = residual * direction
            assert abs(slope.mean().item()) < 3 * slope.std().item() / num**0.5


# --- timestep samplers ------------------------------------------------------------------------------------------------


def share_of_log_snr(sde, t):
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    first, last = sde.log_snr(ends)
    return (first - sde.log_snr(t)) / (first - last)


def share_of_lognormal(sde, t):
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    low, high = ((-0.5 * sde.log_snr(ends) + 1.2) / 1.2).tolist()
    return torch.tensor(truncnorm(low, high).cdf(((-0.5 * sde.log_snr(t) + 1.2) / 1.2).numpy()))


# (sde, t) -> probability of an earlier time.
DISTRIBUTION = {
    "uniform": lambda sde, t: (t - sde.t_min) / (sde.t_max - sde.t_min),
    "importance": share_of_log_snr,
    "log_snr": share_of_log_snr,
    "lognormal": share_of_lognormal,
    "logit_normal": share_of_lognormal,
}


@pytest.mark.parametrize("law", TIMESTEP_SAMPLERS)
def test_laws_turn_uniform_numbers_into_their_quantiles(sde, law):
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    t, _ = TIMESTEP_SAMPLERS[law](sde, u)
    if law == "uniform" and isinstance(sde, Discrete):
        assert torch.equal(t, torch.floor(u * sde.t_max) + 1)
    else:
        torch.testing.assert_close(DISTRIBUTION[law](sde, t), u, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("law", TIMESTEP_SAMPLERS)
def test_a_histogram_in_float32_is_even_in_probability(sde, law):
    u = torch.rand(50_000, 1, 1, generator=torch.Generator().manual_seed(0))
    t, correction = TIMESTEP_SAMPLERS[law](sde, u)
    assert t.shape == correction.shape == u.shape
    assert t.dtype == correction.dtype == torch.float32
    share, bins = DISTRIBUTION[law](sde, t.double().flatten()), 20
    if law == "uniform" and isinstance(sde, Discrete):
        share, bins = sde.fraction(t.double().flatten()), int(sde.t_max)
    counts, even = torch.histc(share, bins, min=0.0, max=1.0), len(u) / bins
    # Chi-squared with bins - 1 degrees of freedom exceeds this once in some thousands.
    assert ((counts - even) ** 2 / even).sum() < bins + 4 * (2 * bins) ** 0.5


@pytest.mark.parametrize("law", TIMESTEP_SAMPLERS)
def test_times_stay_in_the_interval(sde, law):
    u = torch.cat([torch.linspace(0, 1, 10_001), torch.tensor([2.0**-30, 1 - 2.0**-24])])
    t, correction = TIMESTEP_SAMPLERS[law](sde, u)
    assert (t >= torch.tensor(sde.t_min)).all()
    assert (t <= torch.tensor(sde.t_max)).all()
    assert (correction > 0).all()
    assert correction.isfinite().all()
    for weight in WEIGHTS:
        assert weigh(weight)(sde, t).isfinite().all()


@pytest.mark.parametrize("tail", [0.05, 0.3])
def test_a_tail_of_the_lognormal_law_is_uniform_in_log_snr(sde, tail):
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    t, _ = TIMESTEP_SAMPLERS["lognormal"](sde, u, tail=tail)
    num = round(tail * 1000)
    evenly = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    torch.testing.assert_close(share_of_log_snr(sde, t[:num]), evenly, rtol=1e-8, atol=1e-8)
    evenly = (torch.arange(1000 - num, dtype=torch.float64) + 0.5) / (1000 - num)
    torch.testing.assert_close(share_of_lognormal(sde, t[num:]), evenly, rtol=1e-8, atol=1e-8)


def test_uncorrected_laws_have_correction_one(sde):
    u = torch.rand(5, generator=torch.Generator().manual_seed(0))
    for law in ("uniform", "log_snr", "lognormal"):
        assert (TIMESTEP_SAMPLERS[law](sde, u)[1] == 1).all()


def bound(sde, t):
    """The weight ``likelihood`` times the posterior variance of N(0, 1) data."""
    return WEIGHTS["likelihood"](sde, t) * sde.sigma(t) ** 2 / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2)


@pytest.mark.parametrize("law", ["uniform", "importance"])
def test_correction_keeps_the_mean_over_uniform_time(sde, law):
    """The mean of ``bound`` over t is a difference of logarithms, because ``bound`` is d log(1 + SNR) / dt."""
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    expected = (torch.log1p(ends.exp()).diff().neg() / (sde.t_max - sde.t_min)).item()
    u = (torch.arange(500_000, dtype=torch.float64) + 0.5) / 500_000
    t, correction = TIMESTEP_SAMPLERS[law](sde, u)
    # Uniform times sample the steep start of the interval at a few points only.
    assert (correction * bound(sde, t)).mean().item() == pytest.approx(expected, rel=2e-2 if law == "uniform" else 1e-6)


def test_importance_sampling_reduces_the_variance_of_the_likelihood_loss(sde):
    u = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spread = {}
    for law in ("uniform", "importance"):
        t, correction = TIMESTEP_SAMPLERS[law](sde, u)
        spread[law] = (correction * bound(sde, t)).var().item()
    steps = sde.log_snr(torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64)).diff()
    if torch.allclose(steps, steps.mean().expand(8), rtol=1e-6):
        assert spread["importance"] == pytest.approx(spread["uniform"], rel=2e-3)  # already linear in time
    else:  # a chain starts at its first level, beyond the steepest part
        assert spread["importance"] < (0.2 if isinstance(sde, Discrete) else 0.05) * spread["uniform"]


def test_stratified_numbers_fall_one_in_each_stratum():
    total = 48
    for offset in (0.0, 0.3, 0.999):
        parts = [stratified(offset, start, 12, total) for start in range(0, total, 12)]
        whole = torch.cat(parts)
        assert torch.equal(whole, stratified(offset, 0, total, total))
        assert ((whole >= 0) & (whole < 1)).all()
        assert torch.equal((whole * total).floor().sort().values, torch.arange(float(total)))


def test_stratified_times_make_the_loss_vary_less():
    sde, generator = SDES["cosine"](), torch.Generator().manual_seed(0)
    offsets = torch.rand(200, generator=generator, dtype=torch.float64).tolist()

    def mean(u):
        t, correction = TIMESTEP_SAMPLERS["importance"](sde, u.double())
        return (correction * bound(sde, t)).mean()

    even = torch.stack([mean(stratified(o, 0, 64, 64)) for o in offsets])
    independent = torch.stack([mean(torch.rand(64, generator=generator)) for _ in offsets])
    assert even.mean() == pytest.approx(independent.mean().item(), rel=0.02)
    assert even.std() < 0.1 * independent.std()
