"""The probability flow: its velocity against drift and score, its coordinates, and fixed points for Gaussian data."""

import math
import re

import pytest
import torch

from score_sde.sde_lib import Flow, Gaussian, GaussianMixture, NonFiniteError
from score_sde.sde_lib.denoiser import Prediction
from score_sde.sde_lib.likelihood import TracedFlow
from score_sde.sde_lib.trace import Exact
from tests.guesses import GUESSES, moment_matched
from tests.trajectories import terminal


@pytest.fixture(params=GUESSES)
def guess(request, shaped_mixture):
    return moment_matched(request.param, shaped_mixture)


def time_at(sde, log_snr):
    return sde.time(torch.tensor(log_snr, dtype=torch.float64)).item()


# --- the velocity -----------------------------------------------------------------------------------------------------


def test_velocity_is_the_probability_flow_in_other_coordinates(sde, shaped_mixture, guess):
    """dx/dt = f x - g^2 score / 2, eq. 13, by a central difference of x along the velocity."""
    denoise, h = shaped_mixture.denoiser(sde), 1e-5
    flow = Flow(sde, denoise, guess)
    for l in (-4.0, 0.5, 4.0):  # excludes 0, where the Laplace schedule has a kink
        t = time_at(sde, l)
        alpha, sigma, _ = sde.marginal(t)
        x = alpha * terminal(shaped_mixture, sde, 4) / sde.prior_std + sigma
        expected = sde.drift(t) * x - 0.5 * sde.diffusion(t) ** 2 * denoise.score(x, t)
        angle, u = flow.angle(t), flow.enter(x, t)
        velocity, rates = flow(angle, u)
        late, early = (flow.time(angle + step) for step in (h, -h))
        found = (flow.leave(u + h * velocity, late) - flow.leave(u - h * velocity, early)) / (late - early)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
        assert rates.shape == (4, 0)


def test_each_example_may_have_its_own_angle_and_number(sde, shaped_mixture, guess):
    """Together or alone, with an angle as number or tensor; conditions follow the indices of the examples."""

    def denoise(x, t, shift):
        return Prediction(shaped_mixture.denoiser(sde)(x, t).x0 + shift.reshape(-1, *[1] * (x.ndim - 1)))

    shift = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    flow, rows = Flow(sde, denoise, guess, shift=shift), torch.tensor([1, 4, 2])
    u = terminal(shaped_mixture, sde, 3) / sde.prior_std
    angles = torch.tensor([0.1, 0.7, 1.4], dtype=torch.float64)
    together, _ = flow(angles.reshape(3, *[1] * (u.ndim - 1)), u, rows)
    alone = torch.cat([flow(angles[k].item(), u[k : k + 1], rows[k : k + 1])[0] for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-8)


def test_precomputed_stage_coefficients_equal_single_ones(sde, shaped_mixture, guess):
    """Bit for bit, as numbers and as tensors; with gradients, and under inference mode."""
    flow, u = Flow(sde, shaped_mixture.denoiser(sde), guess), terminal(shaped_mixture, sde, 3) / sde.prior_std
    traced, rows = TracedFlow(flow, Exact().start(u)), torch.arange(3)
    angles = torch.tensor([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]], dtype=torch.float64)
    angles = angles.reshape(2, 3, *[1] * (u.ndim - 1))
    for velocity in (flow, traced):
        with torch.inference_mode():
            rates = velocity.ahead(angles, u)
            found = [rate(u, rows) for rate in rates]
        assert len(rates) == 2
        for angle, (moved, divergence) in zip(angles, found):
            expected = velocity(angle, u, rows)
            assert torch.equal(moved, expected[0])
            assert torch.equal(divergence, expected[1])
        assert found[0][1].shape == (3, velocity is traced)


def test_moment_matched_gaussian_data_do_not_move(sde, shaped_mixture):
    """The velocity and its Jacobian vanish for data with the Gaussian's moments, and for no others."""
    whole = moment_matched("full", shaped_mixture)
    mean, covariance = whole.mean[None], shaped_mixture.covariance[None]
    right = GaussianMixture.of_covariances(torch.ones(1, dtype=torch.float64), mean, covariance)
    u = terminal(shaped_mixture, sde, 3) / sde.prior_std
    for name in GUESSES:
        flow, moved = Flow(sde, right.denoiser(sde), moment_matched(name, shaped_mixture)), []
        for angle in (0.05, 0.8, 1.5):
            jacobian = torch.autograd.functional.jacobian(lambda u, f=flow, a=angle: f(a, u)[0].sum(0), u[:1])
            moved += [flow(angle, u)[0].abs().max().item(), jacobian.abs().max().item()]
        assert max(moved) < 1e-11 if name == "full" else max(moved) > 0.01


def test_float32_stays(shaped_mixture, guess, sde):
    flow = Flow(sde, shaped_mixture.denoiser(sde), guess.like(torch.ones(1)))
    u = torch.ones(2, *shaped_mixture.shape)
    for angle in (0.5, torch.full((2, *[1] * (u.ndim - 1)), 0.5, dtype=torch.float64)):
        velocity, rates = flow(angle, u)
        assert velocity.dtype == rates.dtype == torch.float32
    assert flow.enter(u, sde.t_min).dtype == flow.leave(u, sde.t_min).dtype == torch.float32


# --- coordinates ------------------------------------------------------------------------------------------------------


def test_leave_inverts_enter_and_the_volume_matches_its_jacobian(sde, shaped_mixture, guess):
    flow, x = Flow(sde, shaped_mixture.denoiser(sde), guess), terminal(shaped_mixture, sde, 3)
    for t in (sde.t_min, time_at(sde, 0.5), sde.t_max):
        u, num = flow.enter(x, t), x[0].numel()
        torch.testing.assert_close(flow.leave(u, t), x, rtol=1e-9, atol=1e-9)
        jacobian = torch.autograd.functional.jacobian(lambda u, t=t: flow.leave(u, t), u[:1]).reshape(num, num)
        expected = torch.linalg.slogdet(jacobian).logabsdet.item()
        assert flow.log_volume(t) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_moment_matched_data_have_unit_variance_at_all_times(sde, shaped_mixture):
    """By the exact covariance of x, through the matrix of the coordinates."""
    flow = Flow(sde, shaped_mixture.denoiser(sde), moment_matched("full", shaped_mixture))
    num = len(shaped_mixture.covariance)
    for t in (sde.t_min, time_at(sde, 0.5), sde.t_max):
        alpha, sigma, _ = sde.marginal(t)
        covariance = alpha**2 * shaped_mixture.covariance + sigma**2 * torch.eye(num, dtype=torch.float64)
        mean = alpha * shaped_mixture.mean.reshape(1, *shaped_mixture.shape)
        root = torch.linalg.cholesky(covariance)
        whitened = flow.enter(mean + root.mT.reshape(num, *shaped_mixture.shape), t).reshape(num, num)
        torch.testing.assert_close(whitened.mT @ whitened, torch.eye(num, dtype=torch.float64), rtol=0, atol=1e-8)
        assert flow.enter(mean, t).abs().max() < 1e-12


def test_the_angle_is_the_arc_tangent_of_noise_over_signal(sde, shaped_mixture, guess):
    flow = Flow(sde, shaped_mixture.denoiser(sde), guess)
    variances = torch.cat([guess.variances, torch.full((guess.mean.numel() - len(guess.variances),), guess.rest)])
    for l in (-4.0, 0.5, 4.0):
        t = time_at(sde, l)
        assert math.tan(flow.angle(t)) == pytest.approx(math.exp(-l / 2) / math.sqrt(variances.mean()), rel=1e-6)
        assert flow.ratio(flow.angle(t)) == pytest.approx(math.exp(-l / 2), rel=1e-9)


def test_time_inverts_angle(sde, shaped_mixture, guess):
    """As a number and as a tensor; to the precision of the log-SNR at both ends, and never beyond them."""
    flow = Flow(sde, shaped_mixture.denoiser(sde), guess)
    times = [sde.t_min, *(time_at(sde, l) for l in (-4.0, 0.5, 4.0)), sde.t_max]
    for t in times:
        assert flow.time(flow.angle(t)) == pytest.approx(t, rel=1e-8)
    angles = torch.tensor([flow.angle(t) for t in times], dtype=torch.float64)
    found = flow.time(angles)
    torch.testing.assert_close(found, torch.tensor(times, dtype=torch.float64), rtol=1e-8, atol=0)
    assert [flow.time(angle) for angle in angles.tolist()] == pytest.approx(found.tolist(), rel=1e-12)
    assert flow.time(0.5 * angles[0].item()) == sde.t_min
    assert flow.time(0.5 * (angles[-1].item() + math.pi / 2)) == sde.t_max


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [slice(None), torch.tensor([3, 7])], ids=["whole", "rest"])
@pytest.mark.parametrize("each", [False, True], ids=["number", "tensor"])
def test_a_non_finite_network_output_is_named(sde, rows, each):
    def denoise(x, t):
        return Prediction(torch.where(x > 100 * sde.alpha(t), torch.nan, 0.1 * x))

    flow = Flow(sde, denoise, Gaussian.standard(torch.ones(1, 1, dtype=torch.float64)))
    u = torch.tensor([[1.0], [500.0]], dtype=torch.float64)
    angle = torch.tensor([[0.2], [0.7]], dtype=torch.float64) if each else 0.7
    who, t = 1 if isinstance(rows, slice) else 7, flow.time(0.7)
    message = f"example {who}: the network is not finite at t = {t:.4g}, log-SNR 0.3433; check the weights and the data"
    flags = torch.tensor([[True, False]])
    flow(angle, 0 * u, rows)
    assert torch.equal(flow.read(flags), flags)
    for state in (0 * u, u, 0 * u):
        flow(angle, state, rows)
    with pytest.raises(NonFiniteError, match=re.escape(message)) as error:
        flow.read(flags)
    assert error.value.exit_status == 4
    assert torch.equal(flow.read(flags), flags)
