"""Log-densities against exact mixtures: every term, every process, exact and estimated traces."""

import math

import pytest
import torch

from sde_lib import PROBES, SDES, SOLVERS, GaussianMixture, NonFiniteError, exact_trace, log_prob
from sde_lib.denoiser import Prediction


def data(mixture, sde, num, seed=0):
    """Draws of the marginal at t_min."""
    generator, (alpha, sigma, _) = torch.Generator().manual_seed(seed), sde.at(sde.t_min)
    x0 = mixture.sample(num, generator)
    return alpha * x0 + sigma * torch.randn(x0.shape, dtype=x0.dtype, generator=generator)


def normals(num, x, seed=0):
    return torch.randn(num, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))


# --- exact densities --------------------------------------------------------------------------------------------------


def test_at_a_later_time_it_is_the_density_there(sde, mixture):
    t = sde.time(torch.tensor(2.0, dtype=torch.float64)).item()
    denoise, x = mixture.denoiser(sde), torch.tensor([[-0.5], [1.0]], dtype=torch.float64)
    found = log_prob(sde, denoise, x, exact_trace(x), t, prior_log_prob=lambda x: denoise.log_prob(x, sde.t_max))
    torch.testing.assert_close(found.nats, denoise.log_prob(x, t), rtol=0, atol=1e-3)


def test_it_is_the_exact_density_up_to_the_mismatch_of_the_prior(sde, shaped_mixture):
    denoise, x = shaped_mixture.denoiser(sde), data(shaped_mixture, sde, 2)
    found = log_prob(sde, denoise, x, exact_trace(x), rtol=1e-6, atol=1e-7)
    mismatch = sde.prior_log_prob(found.latent) - denoise.log_prob(found.latent, sde.t_max)
    torch.testing.assert_close(found.nats - mismatch, denoise.log_prob(x, sde.t_min), rtol=0, atol=1e-4)
    assert (mismatch.abs() < 0.2).all()


def test_a_gaussian_by_hand(sde):
    """One dimension, N(0, v): the flow scales by the ratio of deviations, and so does the volume."""
    variance = 0.3
    mixture = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 1).double(), variance)
    x = torch.tensor([[0.2], [-1.0]], dtype=torch.float64)
    first, last = sde.at(sde.t_min), sde.at(sde.t_max)
    ratio = math.sqrt((last.alpha**2 * variance + last.sigma**2) / (first.alpha**2 * variance + first.sigma**2))
    found = log_prob(sde, mixture.denoiser(sde), x, exact_trace(x), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found.latent, ratio * x, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        found.divergence, torch.full((2,), math.log(ratio), dtype=torch.float64), rtol=0, atol=1e-5
    )
    prior = torch.distributions.Normal(0.0, sde.prior_std).log_prob(ratio * x).flatten()
    torch.testing.assert_close(found.prior, prior, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_with_the_true_terminal_law_it_is_the_exact_density(sde, mixture, solver):
    denoise, x = mixture.denoiser(sde), data(mixture, sde, 3)
    found = log_prob(
        sde,
        denoise,
        x,
        exact_trace(x),
        solver=SOLVERS[solver],
        rtol=1e-6,
        atol=1e-7,
        prior_log_prob=lambda x: denoise.log_prob(x, sde.t_max),
    )
    torch.testing.assert_close(found.nats, denoise.log_prob(x, sde.t_min), rtol=0, atol=1e-4)


# --- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", PROBES)
def test_terms_add_up(sde, shaped_mixture, probe):
    x = data(shaped_mixture, sde, 3)
    found = log_prob(sde, shaped_mixture.denoiser(sde), x, PROBES[probe](normals(4, x)), rtol=1e-2, atol=1e-2)
    assert found.nats.shape == found.prior.shape == found.divergence.shape == (3,)
    assert found.estimates.shape == (3, 4)
    assert found.latent.shape == x.shape
    torch.testing.assert_close(found.nats, found.prior + found.divergence)
    torch.testing.assert_close(found.estimates.mean(1), found.nats)
    torch.testing.assert_close(found.prior, sde.prior_log_prob(found.latent))
    assert found.nfe > 0


def test_the_exact_trace_is_one_estimate(shaped_mixture):
    sde, x = SDES["edm"](), shaped_mixture.sample(2, torch.Generator().manual_seed(0))
    probes = exact_trace(x)
    assert probes.shape == (1, x[0].numel(), *x.shape)
    found = log_prob(sde, shaped_mixture.denoiser(sde), x, probes, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.estimates, found.nats[:, None])


def test_calls_of_the_denoiser_are_counted(mixture):
    sde, calls = SDES["vpsde"](), []

    def denoise(x, t):
        calls.append(len(x))
        return mixture.denoiser(sde)(x, t)

    x = data(mixture, sde, 2)
    assert log_prob(sde, denoise, x, exact_trace(x)).nfe == len(calls)


# --- estimated traces -------------------------------------------------------------------------------------------------

COPIES = 300


@pytest.fixture(scope="module")
def correlated():
    """One Gaussian whose Jacobian has large entries beside the diagonal, a process, and one example in many copies."""
    sde = SDES["vpsde"](t_min=1e-3)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.4, 0.0], [-0.8, 0.3, 0.3]], dtype=torch.float64)
    mixture = GaussianMixture.of_covariances(torch.ones(1).double(), torch.zeros(1, 3).double(), (root @ root.T)[None])
    x = torch.tensor([[0.5, 0.2, -0.7]], dtype=torch.float64)
    exact = log_prob(sde, mixture.denoiser(sde), x, exact_trace(x)).nats.item()
    return sde, mixture.denoiser(sde), x.expand(COPIES, 3).contiguous(), exact


@pytest.mark.parametrize("probe", PROBES)
def test_probes_are_unbiased_and_their_error_falls_with_the_root_of_their_number(correlated, probe):
    sde, denoise, x, exact = correlated
    spreads = []
    for num in (1, 4, 16):
        found = log_prob(sde, denoise, x, PROBES[probe](normals(num, x, seed=num)), rtol=1e-3, atol=1e-3)
        spreads.append(found.nats.std().item())
        assert abs(found.nats.mean().item() - exact) < 3 * spreads[-1] / COPIES**0.5
        if num > 1:
            told = (found.estimates.var(1) / num).mean().sqrt().item()
            assert told == pytest.approx(spreads[-1], rel=0.15)
    assert spreads[0] > 0.1
    assert spreads[1] == pytest.approx(spreads[0] / 2, rel=0.2)
    assert spreads[2] == pytest.approx(spreads[0] / 4, rel=0.2)


def test_probes_are_what_they_say():
    z = normals(5, torch.zeros(3, 2, 4).double())
    signs = PROBES["rademacher"](z)
    assert signs.shape == (5, 1, 3, 2, 4)
    assert torch.equal(signs[:, 0], z.sign())
    assert PROBES["rademacher"](z.float()).dtype == torch.float32
    assert torch.equal(PROBES["gauss"](z)[:, 0], z)


@pytest.mark.parametrize("probe", PROBES)
def test_probes_have_unit_covariance(probe):
    v = PROBES[probe](normals(1, torch.zeros(50_000, 3).double()))[0, 0]
    error = v.T @ v / len(v) - torch.eye(3).double()
    assert error.abs().max() < 4 * math.sqrt(2 / len(v))


# --- each example by itself -------------------------------------------------------------------------------------------


def test_a_density_does_not_depend_on_the_batch(sde, shaped_mixture):
    x = data(shaped_mixture, sde, 7)
    probes = PROBES["rademacher"](normals(2, x))

    def run(rows):
        return log_prob(sde, shaped_mixture.denoiser(sde), x[rows], probes[:, :, rows], rtol=1e-2, atol=1e-2)

    whole = run(slice(0, 7))
    for rows in (slice(4, 5), slice(2, 5)):
        found = run(rows)
        torch.testing.assert_close(found.nats, whole.nats[rows], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.estimates, whole.estimates[rows], rtol=1e-8, atol=1e-8)


def test_conditions_follow_their_examples(mixture):
    """Examples end at different calls; each keeps its own condition, here an offset and a scale of the data."""
    sde = SDES["cosine"]()

    def denoise(x, t, scale):
        alpha, sigma, _ = sde.at(t)
        scale = scale[:, None]
        return Prediction(scale * mixture.posterior_mean(x / scale, alpha, sigma / scale))

    scale = torch.tensor([0.1, 1.0, 3.0, 0.3], dtype=torch.float64)
    x = scale[:, None] * torch.tensor([[0.5], [-1.0], [1.2], [0.0]], dtype=torch.float64)
    found = log_prob(sde, denoise, x, exact_trace(x), rtol=1e-6, atol=1e-6, scale=scale)
    for k in range(4):
        alone = log_prob(
            sde, denoise, x[k : k + 1], exact_trace(x[k : k + 1]), rtol=1e-6, atol=1e-6, scale=scale[k, None]
        )
        torch.testing.assert_close(alone.nats, found.nats[k, None], rtol=1e-8, atol=1e-8)
    expected = mixture.denoiser(sde).log_prob(x / scale[:, None], sde.t_min) - scale.log()
    torch.testing.assert_close(found.nats, expected, rtol=0, atol=0.05)  # up to prior and noise at t_min


def test_works_inside_inference_mode_and_keeps_float32(sde, plane):
    x = data(plane, sde, 2)
    expected = log_prob(sde, plane.denoiser(sde), x, exact_trace(x), rtol=1e-4, atol=1e-4).nats
    with torch.inference_mode():
        x = x.float()
        found = log_prob(sde, plane.denoiser(sde), x, exact_trace(x), rtol=1e-4, atol=1e-4)
    assert found.nats.dtype == found.latent.dtype == torch.float32
    torch.testing.assert_close(found.nats.double(), expected, rtol=0, atol=5e-3)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_times_outside_the_training_are_refused(sde, mixture):
    x = torch.zeros(1, 1, dtype=torch.float64)
    for t in (0.5 * sde.t_min, sde.t_max, 2 * sde.t_max):
        with pytest.raises(ValueError, match=f"likelihood at t = {t}"):
            log_prob(sde, mixture.denoiser(sde), x, exact_trace(x), t)


def test_a_density_that_is_not_finite_is_named(mixture):
    sde = SDES["vpsde"]()

    def prior(x):
        return torch.tensor([0.0, -torch.inf], dtype=x.dtype)

    x = torch.zeros(2, 1, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match="log-density of example 1 is -inf"):
        log_prob(sde, mixture.denoiser(sde), x, exact_trace(x), prior_log_prob=prior)
