"""Log-densities against exact mixtures: every term, process and solver, exact and estimated traces, both directions."""

import functools
import math

import pytest
import torch
from scipy import stats

from score_sde.samplers import Noise
from score_sde.sde_lib import (
    ADAPTIVE,
    PRIORS,
    PROBES,
    SDES,
    SOLVERS,
    Exact,
    Gaussian,
    GaussianMixture,
    Hutchinson,
    NonFiniteError,
    log_prob,
    sample_log_prob,
)
from score_sde.sde_lib.adams_pece import AdamsPECE
from score_sde.sde_lib.denoiser import Prediction
from score_sde.sde_lib.runge_kutta import DormandPrince
from tests.guesses import GUESSES, moment_matched


def data(mixture, sde, num, seed=0):
    """Draws of the marginal at t_min."""
    generator, (alpha, sigma, _) = torch.Generator().manual_seed(seed), sde.marginal(sde.t_min)
    x0 = mixture.sample(num, generator)
    return alpha * x0 + sigma * torch.randn(x0.shape, dtype=x0.dtype, generator=generator)


def low_rank(*shape, components=3, rank=8, seed=0):
    """A mixture of low-rank Gaussians, like images of a few classes: each varies in a few directions of its own."""
    generator, num = torch.Generator().manual_seed(seed), math.prod(shape)
    means = 0.5 * torch.randn(components, *shape, dtype=torch.float64, generator=generator)
    bases = torch.linalg.qr(torch.randn(components, num, num, dtype=torch.float64, generator=generator)).Q
    variances = torch.full((components, num), 0.01, dtype=torch.float64)
    variances[:, :rank] += torch.linspace(1, 0.1, rank).double()
    return GaussianMixture(torch.arange(1.0, components + 1).double(), means, variances, bases)


def seeded(x, num, kind="rademacher", fresh=False, seeds=None, first=0):
    """Probes for the examples x, keyed by the given seeds or by the integers from ``first``."""
    seeds = torch.arange(first, first + len(x)) if seeds is None else torch.tensor(seeds)
    return Hutchinson(Noise(seeds), num, kind, fresh)


def true_law(denoise, sde):
    return functools.partial(denoise.log_prob, t=sde.t_max)


# --- exact densities --------------------------------------------------------------------------------------------------


def test_at_a_later_time_it_is_the_density_of_that_time(sde, mixture):
    t = sde.time(torch.tensor(2.0, dtype=torch.float64)).item()
    denoise, x = mixture.denoiser(sde), torch.tensor([[-0.5], [1.0]], dtype=torch.float64)
    found = log_prob(sde, denoise, x, t=t, prior_log_prob=true_law(denoise, sde))
    torch.testing.assert_close(found.nats, denoise.log_prob(x, t), rtol=0, atol=1e-3)


def test_it_is_the_exact_density_up_to_the_mismatch_of_the_prior(sde, shaped_mixture):
    denoise, x = shaped_mixture.denoiser(sde), data(shaped_mixture, sde, 2)
    found = log_prob(sde, denoise, x, solver=DormandPrince(1e-6, 1e-7))
    mismatch = sde.prior_log_prob(found.latent) - denoise.log_prob(found.latent, sde.t_max)
    torch.testing.assert_close(found.nats - mismatch, denoise.log_prob(x, sde.t_min), rtol=0, atol=1e-4)
    assert (mismatch.abs() < 0.2).all()


@pytest.mark.parametrize("guess", ["standard", "isotropic"])
def test_a_gaussian_by_hand(sde, guess):
    """One dimension, N(0, v): the flow scales by the ratio of standard deviations, and so does the volume."""
    variance = 0.3
    mixture = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 1).double(), variance)
    x = torch.tensor([[0.2], [-1.0]], dtype=torch.float64)
    first, last = sde.marginal(sde.t_min), sde.marginal(sde.t_max)
    ratio = math.sqrt((last.alpha**2 * variance + last.sigma**2) / (first.alpha**2 * variance + first.sigma**2))
    found = log_prob(sde, mixture.denoiser(sde), x, moment_matched(guess, mixture), solver=DormandPrince(1e-7, 1e-8))
    torch.testing.assert_close(found.latent, ratio * x, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        found.divergence, torch.full((2,), math.log(ratio), dtype=torch.float64), rtol=0, atol=1e-5
    )
    prior = torch.distributions.Normal(0.0, sde.prior_std).log_prob(ratio * x).flatten()
    torch.testing.assert_close(found.prior, prior, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_with_the_true_terminal_law_it_is_the_exact_density(sde, mixture, solver):
    denoise, x = mixture.denoiser(sde), data(mixture, sde, 3)
    made = SOLVERS[solver](64) if solver == "adams_pece" else SOLVERS[solver](1e-6, 1e-7)
    found = log_prob(sde, denoise, x, solver=made, prior_log_prob=true_law(denoise, sde))
    torch.testing.assert_close(found.nats, denoise.log_prob(x, sde.t_min), rtol=0, atol=1e-4)


def test_the_moment_matched_gaussian_changes_neither_the_density_nor_its_terms(shaped_mixture):
    sde = SDES["vpsde"]()
    denoise, x = shaped_mixture.denoiser(sde), data(shaped_mixture, sde, 2)
    expected = log_prob(sde, denoise, x, solver=DormandPrince(1e-8, 1e-8))
    for guess in map(functools.partial(moment_matched, mixture=shaped_mixture), GUESSES):
        for solver, atol in ((DormandPrince(1e-6, 1e-7), 3e-6), (AdamsPECE(100), 1e-4)):
            found = log_prob(sde, denoise, x, guess, solver=solver)
            for name in ("nats", "prior", "divergence", "latent"):
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=atol)


def test_the_moment_matched_gaussian_changes_no_process(sde, plane):
    denoise, x, solver = plane.denoiser(sde), data(plane, sde, 2), DormandPrince(1e-6, 1e-7)
    one, other = (
        log_prob(sde, denoise, x, moment_matched(name, plane), solver=solver) for name in ("standard", "full")
    )
    for name in ("nats", "prior", "divergence", "latent"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-6, atol=2e-6)


def test_two_evaluations_are_exact_for_moment_matched_gaussian_data(sde, shaped_mixture):
    guess = moment_matched("full", shaped_mixture)
    right = GaussianMixture.of_covariances(torch.ones(1).double(), guess.mean[None], shaped_mixture.covariance[None])
    denoise, x = right.denoiser(sde), data(shaped_mixture, sde, 3)
    for solver in (AdamsPECE(2), DormandPrince()):
        found = log_prob(sde, denoise, x, guess, solver=solver, prior_log_prob=true_law(denoise, sde))
        torch.testing.assert_close(found.nats, denoise.log_prob(x, sde.t_min), rtol=1e-9, atol=1e-8)
    found = log_prob(sde, denoise, x, guess, solver=AdamsPECE(2))
    assert found.calls.tolist() == [2, 2, 2]
    matched = functools.partial(PRIORS["matched"], sde, guess)
    found = log_prob(sde, denoise, x, guess, seeded(x, 1), solver=AdamsPECE(2), prior_log_prob=matched)
    torch.testing.assert_close(found.nats, denoise.log_prob(x, sde.t_min), rtol=1e-9, atol=1e-8)


def test_the_density_converges_with_order_four_in_the_budget(sde, plane):
    denoise, x, guess = plane.denoiser(sde), data(plane, sde, 5), moment_matched("full", plane)
    exact, errors = denoise.log_prob(x, sde.t_min), []
    for evaluations in (50, 100):
        found = log_prob(sde, denoise, x, guess, None, None, AdamsPECE(evaluations), true_law(denoise, sde))
        errors.append((found.nats - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > 3.4
    assert errors[1] < 2e-5


# --- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("fresh", [False, True], ids=["frozen", "fresh"])
def test_terms_add_up(sde, shaped_mixture, probe, fresh):
    x = data(shaped_mixture, sde, 3)
    trace = seeded(x, 3, probe, fresh)
    found = log_prob(sde, shaped_mixture.denoiser(sde), x, None, trace, solver=AdamsPECE(3))
    assert found.nats.shape == found.prior.shape == found.divergence.shape == found.variance.shape == (3,)
    assert found.estimates.shape == (3, 3)
    assert found.latent.shape == x.shape
    assert torch.equal(found.x, x)
    torch.testing.assert_close(found.nats, found.prior + found.divergence)
    torch.testing.assert_close(found.estimates.mean(1), found.nats)
    torch.testing.assert_close(found.variance, trace.variance(found.estimates, x[0].numel()))
    torch.testing.assert_close(found.prior, sde.prior_log_prob(found.latent))
    assert found.calls.tolist() == found.traced.tolist() == [3, 3, 3]


def test_the_exact_trace_is_one_estimate(shaped_mixture):
    sde, x = SDES["edm"](), shaped_mixture.sample(2, torch.Generator().manual_seed(0))
    found = log_prob(sde, shaped_mixture.denoiser(sde), x, None, Exact(), solver=DormandPrince(1e-3, 1e-3))
    torch.testing.assert_close(found.estimates, found.nats[:, None])
    assert found.variance.tolist() == [0, 0]


@pytest.mark.parametrize("name", SOLVERS)
def test_calls_of_the_denoiser_are_counted(mixture, name):
    """The counts are by example, so their sum is the number of examples in all batches of the denoiser."""
    sde, calls = SDES["vpsde"](), []

    def denoise(x, t):
        calls.append(len(x))
        return mixture.denoiser(sde)(x, t)

    x = torch.tensor([[-1.0], [-0.05], [3.0]], dtype=torch.float64)
    found = log_prob(sde, denoise, x, solver=SOLVERS[name]())
    assert found.calls.sum().item() == sum(calls)
    assert torch.equal(found.traced, found.calls)
    assert (len(set(found.calls.tolist())) > 1) == (name == "dopri5")


def test_traces_are_counted_separately(mixture):
    sde, x = SDES["vpsde"](), torch.tensor([[-1.0], [3.0]], dtype=torch.float64)
    graphs = []

    def denoise(x, t):
        graphs.append(x.requires_grad)
        return mixture.denoiser(sde)(x, t)

    few = log_prob(sde, denoise, x, solver=AdamsPECE(24, 9))
    assert (few.calls.tolist(), few.traced.tolist()) == ([24, 24], [9, 9])
    assert sum(graphs) == 9
    many = log_prob(sde, denoise, x, solver=AdamsPECE(24))
    torch.testing.assert_close(few.latent, many.latent, rtol=0, atol=1e-3)
    torch.testing.assert_close(few.nats, many.nats, rtol=0, atol=0.05)


# --- priors -----------------------------------------------------------------------------------------------------------


def test_the_standard_prior_is_the_prior_of_the_process(sde, shaped_mixture):
    x = data(shaped_mixture, sde, 3)
    found = PRIORS["standard"](sde, moment_matched("full", shaped_mixture), x)
    assert torch.equal(found, sde.prior_log_prob(x))
    law = torch.distributions.Normal(torch.zeros_like(x), sde.prior_std)
    torch.testing.assert_close(found, law.log_prob(x).flatten(1).sum(1))


@pytest.mark.parametrize("guess", GUESSES)
def test_the_matched_prior_is_the_marginal_of_the_moment_matched_gaussian(sde, shaped_mixture, guess):
    """By dense matrices, and by the exact mixture of one component."""
    gaussian, (alpha, sigma, _) = moment_matched(guess, shaped_mixture), sde.marginal(sde.t_max)
    num = gaussian.mean.numel()
    identity = torch.eye(num, dtype=torch.float64)
    covariance = gaussian.apply(lambda v: v, identity.reshape(num, *shaped_mixture.shape)).reshape(num, num)
    x = (
        alpha * gaussian.mean
        + torch.randn(4, *shaped_mixture.shape, generator=torch.Generator().manual_seed(0)).double()
    )
    found = PRIORS["matched"](sde, gaussian, x)
    law = torch.distributions.MultivariateNormal(
        alpha * gaussian.mean.flatten(), alpha**2 * covariance + sigma**2 * identity
    )
    torch.testing.assert_close(found, law.log_prob(x.flatten(1)), rtol=1e-9, atol=1e-9)
    mixture = GaussianMixture.of_covariances(torch.ones(1).double(), gaussian.mean[None], covariance[None])
    torch.testing.assert_close(found, mixture.log_prob(x, alpha, sigma), rtol=1e-9, atol=1e-9)
    assert PRIORS["matched"](sde, gaussian, x.float()).dtype == torch.float32


def test_the_matched_prior_is_nearer_to_the_truth_than_the_standard_one(sde, plane):
    """It has the data's mean and covariance, and little else of the data is left at t_max."""
    denoise, x, guess = plane.denoiser(sde), data(plane, sde, 200), moment_matched("full", plane)
    x = sde.alpha(sde.t_max) / sde.alpha(sde.t_min) * x + sde.marginal(sde.t_max).sigma * torch.randn(
        x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)
    )
    truth = denoise.log_prob(x, sde.t_max)
    standard, matched = (truth - PRIORS[name](sde, guess, x) for name in ("standard", "matched"))
    assert matched.abs().max() < 1e-4
    assert matched.square().mean() < 0.01 * standard.square().mean()


# --- estimated traces -------------------------------------------------------------------------------------------------

COPIES = 300


@pytest.fixture(scope="module")
def correlated():
    """One Gaussian whose Jacobian has large off-diagonal entries, a process, and many copies of one example."""
    sde = SDES["vpsde"](t_min=1e-3)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.4, 0.0], [-0.8, 0.3, 0.3]], dtype=torch.float64)
    mixture = GaussianMixture.of_covariances(torch.ones(1).double(), torch.zeros(1, 3).double(), (root @ root.T)[None])
    x = torch.tensor([[0.5, 0.2, -0.7]], dtype=torch.float64)
    exact = log_prob(sde, mixture.denoiser(sde), x).nats.item()
    return sde, mixture.denoiser(sde), x.expand(COPIES, 3).contiguous(), exact


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("fresh", [False, True], ids=["frozen", "fresh"])
def test_probes_are_unbiased_with_an_error_of_one_over_root_num(correlated, probe, fresh):
    """Orthogonal probes in D dimensions average like draws without replacement: (D - K) / (K (D - 1)), down to zero."""
    sde, denoise, x, exact = correlated
    solver = AdamsPECE(40) if fresh else DormandPrince(1e-3, 1e-3)
    numbers = (1, 2, 3) if probe == "orthogonal" else (1, 4, 16)
    spreads = []
    for num in numbers:
        found = log_prob(sde, denoise, x, None, seeded(x, num, probe, fresh, first=1000 * num), solver=solver)
        spreads.append(found.nats.std().item())
        assert abs(found.nats.mean().item() - exact) < 3 * spreads[-1] / COPIES**0.5 + 1e-3
        if num == 1:
            assert found.variance.isnan().all()
        else:
            told = found.variance.mean().sqrt().item()
            assert told == pytest.approx(spreads[-1], rel=0.15, abs=1e-4)
    assert spreads[0] > (0.05 if fresh and probe == "rademacher" else 0.1)  # orthogonal probes have less noise
    shares = [1, 0.5, 0] if probe == "orthogonal" else [1, 0.5, 0.25]
    for spread, share in zip(spreads[1:], shares[1:]):
        assert spread == pytest.approx(share * spreads[0], rel=0.2, abs=1e-3)


@pytest.mark.parametrize("probe", PROBES)
def test_fresh_probes_have_a_third_of_the_noise_of_frozen_ones(probe):
    """On a mixture in 64 dimensions, with the same solver and budget: errors cancel along the trajectory."""
    sde, mixture = SDES["vpsde"](), low_rank(64)
    x = data(mixture, sde, 100)
    guess = Gaussian(torch.zeros(64).double(), mixture.covariance.trace().item() / 64)
    denoise, noise, solver = mixture.denoiser(sde), [], AdamsPECE(32)
    exact = log_prob(sde, denoise, x, guess, solver=solver).nats
    for fresh in (False, True):
        noise.append((log_prob(sde, denoise, x, guess, seeded(x, 1, probe, fresh), solver=solver).nats - exact).std())
    assert noise[0] > 3 * noise[1] > 0.1


def test_probes_depend_on_the_seed_and_not_on_the_batch(shaped_mixture):
    """An example alone or in a batch has the same probes at every evaluation, fresh or frozen."""
    sde, denoise = SDES["cosine"](), shaped_mixture.denoiser(SDES["cosine"]())
    x, seeds = data(shaped_mixture, sde, 4), [5, 2, 11, 7]
    for solver in (AdamsPECE(8), DormandPrince(1e-2, 1e-2)):
        for probe in PROBES:
            fresh = not solver.adaptive
            whole = log_prob(sde, denoise, x, None, seeded(x, 2, probe, fresh, seeds), solver=solver)
            alone = log_prob(sde, denoise, x[2:3], None, seeded(x[2:3], 2, probe, fresh, seeds[2:3]), solver=solver)
            torch.testing.assert_close(alone.estimates, whole.estimates[2:3], rtol=1e-8, atol=1e-8)
            other = log_prob(sde, denoise, x[2:3], None, seeded(x[2:3], 2, probe, fresh, [12]), solver=solver)
            assert (other.estimates - alone.estimates).abs().max() > 1e-3


def covered(shape, solver, probe, seeds, num=8):
    """Fraction of 95 % Student intervals that cover an example's exact density; the largest error; the variances."""
    sde, mixture = SDES["vpsde"](), low_rank(*shape, rank=min(8, math.prod(shape) // 2))
    denoise, x = mixture.denoiser(sde), data(mixture, sde, seeds)
    guess = Gaussian(torch.zeros(shape).double(), mixture.covariance.trace().item() / math.prod(shape))
    made = AdamsPECE(48) if solver == "adams_pece" else DormandPrince()
    trace = seeded(x, num, probe, fresh=not made.adaptive)
    found = log_prob(sde, denoise, x, guess, trace, None, made, true_law(denoise, sde))
    error = (found.nats - denoise.log_prob(x, sde.t_min)).abs()
    half = stats.t.ppf(0.975, num - 1) * found.variance.sqrt()
    return (error <= half).double().mean().item(), error.max().item(), found.variance


@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("solver", ["adams_pece", "dopri5"])
@pytest.mark.parametrize(("shape", "seeds"), [((64,), 1000), ((3, 8, 8), 400)], ids=str)
def test_intervals_cover_the_exact_density(shape, seeds, solver, probe):
    """Eight probes: 93 to 99 of 100 intervals of 95 %, each for another seed and example."""
    share, _, _ = covered(shape, solver, probe, seeds)
    assert 0.93 <= share <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["rademacher", "gauss"])
def test_intervals_cover_the_exact_density_in_the_plane(probe):
    """With fresh probes."""
    share, _, _ = covered((2,), "adams", probe, 2000)
    assert 0.93 <= share <= 0.99


def test_frozen_probes_in_the_plane_are_not_normal():
    """Student's t is not their distribution, so the plane needs the exact trace.

    A Rademacher estimate has two values, tr J + 2 J_12 and tr J - 2 J_12, and eight of them miss the mean if at least
    seven agree: in 18 of 256 cases. Gauss estimates are skewed, like a chi square of one or two degrees of freedom.
    """
    share, _, _ = covered((2,), "dopri5", "rademacher", 2000)
    assert share == pytest.approx(1 - 18 / 256, abs=3 * math.sqrt(0.07 * 0.93 / 2000))
    share, _, _ = covered((2,), "dopri5", "gauss", 2000)
    assert 0.84 < share < 0.91


@pytest.mark.parametrize("solver", ["adams_pece", "dopri5"])
def test_orthogonal_probes_of_all_dimensions_leave_the_error_of_the_solver(solver):
    """They report a variance of zero."""
    _, error, variance = covered((2,), solver, "orthogonal", 100, num=2)
    assert error < 0.02
    assert variance.abs().max() == 0


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [AdamsPECE(128), DormandPrince(1e-7, 1e-7)], ids=["adams_pece", "dopri5"])
def test_sampling_is_the_inverse(sde, mixture, solver):
    """The same terms in either direction, and x itself."""
    denoise, x, guess = mixture.denoiser(sde), data(mixture, sde, 3), moment_matched("isotropic", mixture)
    there = log_prob(sde, denoise, x, guess, solver=solver)
    back = sample_log_prob(sde, denoise, there.latent, guess, solver=solver)
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-6)
    assert torch.equal(back.latent, there.latent)
    for name in ("nats", "prior", "divergence", "estimates", "variance"):
        torch.testing.assert_close(getattr(back, name), getattr(there, name), rtol=0, atol=1e-6)


def test_sampling_is_the_inverse_for_examples_of_any_shape(shaped_mixture):
    sde, guess, solver = SDES["edm"](), moment_matched("full", shaped_mixture), DormandPrince(1e-8, 1e-8)
    denoise, x = shaped_mixture.denoiser(sde), data(shaped_mixture, sde, 3)
    there = log_prob(sde, denoise, x, guess, solver=solver)
    back = sample_log_prob(sde, denoise, there.latent, guess, solver=solver)
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(back.nats, there.nats, rtol=0, atol=1e-6)


def test_samples_have_their_exact_density(sde, plane):
    """From the prior, without data."""
    denoise, guess = plane.denoiser(sde), moment_matched("full", plane)
    latent = sde.prior_std * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = sample_log_prob(sde, denoise, latent, guess, solver=AdamsPECE(100), prior_log_prob=true_law(denoise, sde))
    torch.testing.assert_close(found.nats, denoise.log_prob(found.x, sde.t_min), rtol=0, atol=1e-4)
    assert found.calls.tolist() == found.traced.tolist() == [100] * 5


def test_trace_estimates_of_samples_and_data_have_the_same_sign(plane):
    """With frozen probes each estimate is a function of the path, and the path is the same in both directions."""
    sde, guess = SDES["vpsde"](), moment_matched("isotropic", plane)
    denoise, x, solver = plane.denoiser(sde), data(plane, sde, 3), DormandPrince(1e-8, 1e-8)
    there = log_prob(sde, denoise, x, guess, seeded(x, 3, "gauss"), solver=solver)
    back = sample_log_prob(sde, denoise, there.latent, guess, seeded(x, 3, "gauss"), solver=solver)
    torch.testing.assert_close(back.estimates, there.estimates, rtol=0, atol=1e-5)
    assert there.estimates.std(1).min() > 0.01


def test_samples_may_end_at_a_later_time(sde, mixture):
    t = sde.time(torch.tensor(2.0, dtype=torch.float64)).item()
    denoise, latent = mixture.denoiser(sde), sde.prior_std * torch.tensor([[-0.5], [1.0]], dtype=torch.float64)
    found = sample_log_prob(sde, denoise, latent, t=t, prior_log_prob=true_law(denoise, sde))
    torch.testing.assert_close(found.nats, denoise.log_prob(found.x, t), rtol=0, atol=1e-3)


# --- independence of the batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [AdamsPECE(4), DormandPrince(1e-2, 1e-2)], ids=["adams_pece", "dopri5"])
def test_a_density_does_not_depend_on_the_batch(sde, shaped_mixture, solver):
    x, fresh = data(shaped_mixture, sde, 7), not solver.adaptive

    def run(rows):
        trace = seeded(x[rows], 2, fresh=fresh, seeds=list(range(7))[rows])
        return log_prob(sde, shaped_mixture.denoiser(sde), x[rows], None, trace, solver=solver)

    whole = run(slice(0, 7))
    for rows in (slice(4, 5), slice(2, 5)):
        found = run(rows)
        torch.testing.assert_close(found.nats, whole.nats[rows], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.estimates, whole.estimates[rows], rtol=1e-8, atol=1e-8)
        assert torch.equal(found.calls, whole.calls[rows])


@pytest.mark.parametrize("solver", [AdamsPECE(80), DormandPrince(1e-6, 1e-6)], ids=["adams_pece", "dopri5"])
def test_conditions_follow_their_examples(mixture, solver):
    """Examples finish at different calls; each keeps its own condition, here an offset and a scale of the data."""
    sde = SDES["cosine"]()

    def denoise(x, t, scale):
        alpha, sigma, _ = sde.marginal(t)
        scale = scale[:, None]
        return Prediction(scale * mixture.posterior_mean(x / scale, alpha, sigma / scale))

    scale = torch.tensor([0.1, 1.0, 3.0, 0.3], dtype=torch.float64)
    x = scale[:, None] * torch.tensor([[0.5], [-1.0], [1.2], [0.0]], dtype=torch.float64)
    found = log_prob(sde, denoise, x, solver=solver, scale=scale)
    for k in range(4):
        alone = log_prob(sde, denoise, x[k : k + 1], solver=solver, scale=scale[k, None])
        torch.testing.assert_close(alone.nats, found.nats[k, None], rtol=1e-8, atol=1e-8)
    expected = mixture.denoiser(sde).log_prob(x / scale[:, None], sde.t_min) - scale.log()
    torch.testing.assert_close(found.nats, expected, rtol=0, atol=0.05)  # up to the prior and the noise at t_min


@pytest.mark.parametrize("solver", [AdamsPECE(24), DormandPrince(1e-3, 1e-3)], ids=["adams_pece", "dopri5"])
def test_works_inside_inference_mode_and_keeps_float32(sde, plane, solver):
    """With data, moment-matched Gaussian, conditions and probes created in inference mode."""
    x, guess = data(plane, sde, 2), moment_matched("isotropic", plane)

    def denoise(x, t, scale):
        x0 = plane.denoiser(sde)(x, t).x0
        return Prediction(torch.lerp(guess.mean.to(x), x0, scale[:, None].to(x)))

    expected = log_prob(sde, denoise, x, guess, solver=solver, scale=torch.ones(2)).nats
    with torch.inference_mode():
        made = Gaussian(guess.mean.clone(), guess.rest, guess.variances.clone(), guess.directions.clone())
        found = log_prob(sde, denoise, x.float(), made, solver=solver, scale=torch.ones(2))
        estimated = log_prob(
            sde, denoise, x.float(), made, seeded(x, 2, "orthogonal"), solver=solver, scale=torch.ones(2)
        )
        back = sample_log_prob(sde, denoise, found.latent, made, solver=solver, scale=torch.ones(2))
    for result in (found, estimated, back):
        assert {part.dtype for part in (result.nats, result.latent, result.x, result.variance)} == {torch.float32}
        torch.testing.assert_close(result.nats.double(), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("solver", [AdamsPECE(80), DormandPrince()], ids=["adams_pece", "dopri5"])
def test_float32_is_enough(sde, plane, solver):
    """From t_min of every process, where noise over signal may be a millionth."""
    denoise, x, guess = plane.denoiser(sde), data(plane, sde, 5), moment_matched("isotropic", plane)
    single = log_prob(sde, denoise, x.float(), guess, solver=solver)
    double = log_prob(sde, denoise, x, guess, solver=solver)
    for name in ("nats", "divergence", "prior"):
        found = getattr(single, name).double()
        torch.testing.assert_close(found, getattr(double, name), rtol=0, atol=2e-3, msg=name)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [log_prob, sample_log_prob])
def test_times_outside_the_training_are_refused(sde, mixture, ask):
    x = torch.zeros(1, 1, dtype=torch.float64)
    for t in (0.5 * sde.t_min, sde.t_max, 2 * sde.t_max):
        with pytest.raises(ValueError, match=f"likelihood at t = {t}"):
            ask(sde, mixture.denoiser(sde), x, t=t)


@pytest.mark.parametrize("ask", [log_prob, sample_log_prob])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_solvers_refuse_fresh_probes(mixture, name, ask):
    sde, x = SDES["vpsde"](), torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs the same probes in all evaluations: set fresh=False"):
        ask(sde, mixture.denoiser(sde), x, None, seeded(x, 1, fresh=True), solver=SOLVERS[name]())


@pytest.mark.parametrize("ask", [log_prob, sample_log_prob])
def test_a_non_finite_density_is_named(mixture, ask):
    sde = SDES["vpsde"]()

    def prior(x):
        return torch.tensor([0.0, -torch.inf], dtype=x.dtype)

    x = torch.zeros(2, 1, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="example 1: the log-density is -inf") as error:
        ask(sde, mixture.denoiser(sde), x, prior_log_prob=prior)
    assert error.value.exit_status == 4


@pytest.mark.parametrize("solver", [AdamsPECE(), DormandPrince()], ids=["adams_pece", "dopri5"])
def test_a_non_finite_network_output_is_named(mixture, solver):
    """By example and time, with a trace or without."""
    sde = SDES["vpsde"]()

    def denoise(x, t, who):
        return Prediction(torch.where(who[:, None] == 1, torch.nan, mixture.denoiser(sde)(x, t).x0))

    x = torch.zeros(3, 1, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match=r"example 1: the network is not finite at t = 1e-05, log-SNR 13\.8"):
        log_prob(sde, denoise, x, solver=solver, who=torch.arange(3))
