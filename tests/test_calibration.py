"""Calibration on exact mixtures: the gain in error, on held-out examples, and that the measured plan is the one run."""

import pytest
import torch

from score_sde.samplers import GRIDS, ODE, Adams, DPMSolver, UniPC, sample
from score_sde.samplers.calibration import Tuned, _end, _table, calibrate, errors, follow
from score_sde.sde_lib import EDMSDE, VPSDE, Gaussian


def problem(mixture, sde, num_steps, num):
    """A moment-matched Gaussian, states of the prior, their images under the flow, and a grid."""
    guess = Gaussian(mixture.mean, mixture.covariance.diagonal().mean().item())
    times = GRIDS["logistic"](sde, num_steps, end=max(sde.t_min, 1e-3 * sde.t_max), std=guess.std).tolist()
    z = torch.randn(num, len(mixture.mean), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow = ODE(sde, rtol=1e-5, atol=1e-5, gaussian=guess)
    return guess, sde.prior_std * z, flow.follow(mixture.denoiser(sde), sde.prior_std * z, times[0], times[-1]), times


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "num_steps", "factor"),
    [("mixture", EDMSDE, 6, 8), ("plane", VPSDE, 10, 3)],
)
def test_mean_error_on_fresh_examples_falls(name, kind, num_steps, factor, request):
    mixture, sde = request.getfixturevalue(name), kind()
    guess, x, target, times = problem(mixture, sde, num_steps, 520)
    denoise, step = mixture.denoiser(sde), Adams(sde, gaussian=guess)
    start = follow(step, denoise, x[320:], times)
    plan, before, after = calibrate(step, denoise, x[:320], target[:320], times)
    found = follow(Tuned(step, plan), denoise, x[320:], plan.times)
    assert factor * errors(found, target[320:]).mean() < errors(start, target[320:]).mean()
    assert factor * after.mean() < before.mean()


def test_a_short_fit_reduces_the_error_on_every_sde(sde, mixture):
    guess, x, target, times = problem(mixture, sde, 4, 60)
    plan, before, after = calibrate(Adams(sde, 3, gaussian=guess), mixture.denoiser(sde), x, target, times, 20, 48)
    assert (plan.times[0], plan.times[-1]) == (times[0], times[-1])
    assert all(s < t for t, s in zip(plan.times, plan.times[1:]))
    assert after.mean() < before.mean()


def test_a_single_step_has_coefficients_too(mixture):
    sde = VPSDE()
    guess, x, target, times = problem(mixture, sde, 1, 60)
    plan, before, after = calibrate(Adams(sde, 3, gaussian=guess), mixture.denoiser(sde), x, target, times, 20, 48)
    assert plan.times == times
    assert after.mean() < before.mean()


def test_a_fit_that_does_not_help_is_not_taken(mixture):
    """The targets of the held-out examples are shifted against the fitted ones."""
    sde = VPSDE()
    guess, x, target, times = problem(mixture, sde, 5, 50)
    step, denoise = Adams(sde, 3, gaussian=guess), mixture.denoiser(sde)
    wrong = torch.cat([target[:10], target[10:] + 0.5])
    plan, before, after = calibrate(step, denoise, x, wrong, times, 20, 40)
    assert plan.times == times
    assert torch.equal(before, after)
    grid = torch.tensor(times, dtype=torch.float64)
    ours, theirs = (sample(step, denoise, x, grid, None) for step in (Tuned(step, plan), step))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [Adams, UniPC, DPMSolver])
def test_the_optimised_trajectory_is_the_one_run(plane, kind):
    """The differentiable trajectory ends where the step does and has the same gradient."""
    sde = VPSDE()
    guess, x, target, times = problem(plane, sde, 5, 8)
    step = kind(sde, 3, gaussian=guess) if kind is Adams else kind(sde)
    step.reset(times)
    logs = -0.5 * sde.log_snr(torch.tensor(times, dtype=torch.float64))
    gaps = torch.log(-logs.diff()).requires_grad_()
    table = _table(step, times, gaps, torch.zeros(5, 2 + step.order + 1, dtype=torch.float64))
    found = _end(step, plane.denoiser(sde), x, table)
    torch.testing.assert_close(found, follow(step, plane.denoiser(sde), x, times), rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(errors(found, target).mean(), gaps)

    def moved(k, by):
        logs_ = logs[0] + (logs[-1] - logs[0]) * torch.softmax(gaps.detach() + by * torch.eye(5).double()[k], 0).cumsum(
            0
        )
        near = [times[0], *sde.time(-2 * logs_[:-1]).tolist(), times[-1]]
        return errors(follow(step, plane.denoiser(sde), x, near), target).mean()

    expected = torch.stack([(moved(k, 1e-4) - moved(k, -1e-4)) / 2e-4 for k in range(5)])
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_the_same_examples_give_the_same_plan(mixture):
    sde = EDMSDE()
    guess, x, target, times = problem(mixture, sde, 4, 40)
    first, second = (
        calibrate(Adams(sde, 3, gaussian=guess), mixture.denoiser(sde), x, target, times, 5, 16)[0] for _ in range(2)
    )
    assert first == second
