"""The probability flow and its solvers: the slope against drift and score, the tableau's order, every way to fail."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from test_steps import terminal

from samplers import STEPS
from sde_lib import SDES, SOLVERS, NonFiniteError, NotConvergedError
from sde_lib.denoiser import Prediction
from sde_lib.flow import dormand_prince, slope


@pytest.fixture(params=sorted(SOLVERS))
def solver(request):
    return SOLVERS[request.param]


# --- the slope --------------------------------------------------------------------------------------------------------


def test_slope_is_that_of_song_in_other_coordinates(sde, shaped_mixture):
    """dx/dt = f x - g^2 score / 2, with x = alpha y, so that dx/dt = alpha' y + alpha dy/dl dl/dt."""
    denoise = shaped_mixture.denoiser(sde)
    for l in (-4.0, 0.5, 4.0):  # not at 0, where the Laplace schedule has a bend
        t = sde.time(torch.tensor(l, dtype=torch.float64)).item()
        alpha, x = sde.at(t).alpha, terminal(shaped_mixture, sde, 4) / sde.prior_std
        expected = sde.drift(t) * x - 0.5 * sde.diffusion(t) ** 2 * denoise.score(x, t)
        before, after = sde.time(torch.tensor([l + 1e-5, l - 1e-5], dtype=torch.float64)).tolist()
        rate = -2e-5 / (after - before)
        found = slope(denoise, sde, x / alpha, torch.tensor(l, dtype=torch.float64))
        torch.testing.assert_close(sde.drift(t) * x + alpha * found * rate, expected, rtol=1e-6, atol=1e-6)


def test_each_example_may_have_its_own_log_snr(sde, shaped_mixture):
    denoise, y = shaped_mixture.denoiser(sde), terminal(shaped_mixture, sde, 3)
    l = torch.tensor([-3.0, 0.0, 5.0], dtype=torch.float64)
    together = slope(denoise, sde, y, l.reshape(3, *[1] * (y.ndim - 1)))
    alone = torch.cat([slope(denoise, sde, y[k : k + 1], l[k]) for k in range(3)])
    torch.testing.assert_close(together, alone)


# --- solvers ----------------------------------------------------------------------------------------------------------


def spiral(l, state, rows):
    """x' = i w x for a pair of numbers, y' = cos l, each example with its own frequency."""
    x, _ = state
    frequency = (1 + rows.to(x))[:, None]
    return frequency * torch.stack([-x[:, 1], x[:, 0]], 1), torch.cos(l).expand(len(x), 1)


@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (1.0, -1.5)])
@pytest.mark.parametrize("tolerance", [1e-5, 1e-9])
def test_solvers_meet_a_closed_form_in_both_directions(solver, start, end, tolerance):
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, -0.5]], dtype=torch.float64)
    (found, area), calls = solver(spiral, (x, torch.zeros(3, 1).double()), start, end, tolerance, tolerance)
    turned = torch.view_as_complex(x) * torch.exp(1j * (end - start) * torch.tensor([1.0, 2.0, 3.0]).double())
    torch.testing.assert_close(found, torch.view_as_real(turned), rtol=0, atol=50 * tolerance)
    expected = torch.full((3, 1), math.sin(end) - math.sin(start), dtype=torch.float64)
    torch.testing.assert_close(area, expected, rtol=0, atol=50 * tolerance)
    assert 0 < calls < 3000


def test_error_falls_with_the_fifth_order():
    """Over a factor 1000 of tolerance the calls grow by 1000^(1/5)."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    state = (x, torch.zeros(1, 1, dtype=torch.float64))
    calls = [dormand_prince(spiral, state, 0.0, 10.0, tol, tol)[1] for tol in (1e-5, 1e-8, 1e-11)]
    assert calls[1] / calls[0] == pytest.approx(1000**0.2, rel=0.2)
    assert calls[2] / calls[1] == pytest.approx(1000**0.2, rel=0.2)


def test_calls_are_counted(solver):
    seen = []

    def f(l, state, rows):
        seen.append(l)
        return spiral(l, state, rows)

    state = (torch.ones(2, 2).double(), torch.zeros(2, 1).double())
    assert solver(f, state, 0.0, 1.0, 1e-6, 1e-6)[1] == len(seen)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_agree_with_scipy_on_the_flow_of_a_mixture(sde, plane, name):
    denoise, x = plane.denoiser(sde), terminal(plane, sde, 3)
    late, early = sde.at(sde.t_max), sde.at(sde.t_min)

    def right(l, y):
        y = torch.from_numpy(y).reshape(x.shape)
        return slope(denoise, sde, y, torch.tensor(l, dtype=torch.float64)).numpy().ravel()

    y = (x / late.alpha).numpy().ravel()
    end = solve_ivp(right, (late.log_snr, early.log_snr), y, method="DOP853", rtol=1e-9, atol=1e-10).y[:, -1]
    expected = early.alpha * torch.from_numpy(np.ascontiguousarray(end)).reshape(x.shape)
    found = STEPS["ode"](sde, solver=name, rtol=1e-7, atol=1e-7)(denoise, x, sde.t_max, sde.t_min, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_each_example_has_its_own_steps():
    """A harder neighbour changes neither the result, bit for bit, nor is anyone evaluated after the end."""
    sizes = []

    def f(l, state, rows):
        sizes.append(len(rows))
        return spiral(l, state, 5 * rows)

    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    (found, _), _ = dormand_prince(f, (x, torch.zeros(4, 1).double()), 0.0, 2.0, 1e-6, 1e-6)
    assert sizes[0] == 4
    assert sizes[-1] < 4
    for k in range(4):

        def alone(l, state, rows, k=k):
            return spiral(l, state, 5 * (rows + k))

        (single, _), _ = dormand_prince(alone, (x[k : k + 1], torch.zeros(1, 1).double()), 0.0, 2.0, 1e-6, 1e-6)
        assert torch.equal(single[0], found[k])


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rtol", "atol"), [(0.0, 1e-5), (1e-5, 0.0), (-1e-3, 1e-3), (float("nan"), 1e-3)])
def test_tolerances_must_be_positive(solver, rtol, atol, mixture):
    state = (torch.ones(2, 2).double(), torch.zeros(2, 1).double())
    with pytest.raises(ValueError, match=f"rtol {rtol} and atol {atol}: need tolerances above 0"):
        solver(spiral, state, 0.0, 1.0, rtol, atol)
    sde = SDES["vpsde"]()
    with pytest.raises(ValueError, match="tolerances above 0"):
        STEPS["ode"](sde, rtol=rtol, atol=atol)(mixture.denoiser(sde), torch.ones(2, 1), 1.0, 0.5, None)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_flow_that_cannot_be_followed_is_not_converged(name):
    def f(l, state, rows):
        return (torch.where(rows[:, None] == 2, state[0] ** 2, -state[0]),)  # example 2 ends in a pole at l = 1

    message = r"example 2: step below 1e-10 of the interval at log-SNR 1; " if name == "dopri5" else "torchdiffeq: "
    with pytest.raises(NotConvergedError, match=message) as error:
        SOLVERS[name](f, (torch.ones(4, 1).double(),), 0.0, 2.0, 1e-4, 1e-4)
    assert "raise rtol and atol" in str(error.value)
    assert error.value.exit_status == 5


def test_an_example_keeps_its_number_when_others_are_done():
    def f(l, state, rows):
        rough = (rows == 3)[:, None] & (l > 0.9)
        return (torch.where(rough, torch.nan, torch.where(rows == 3, 40.0, 0.1)[:, None] * torch.cos(40 * l)),)

    with pytest.raises(NonFiniteError, match=r"example 3: the flow is not finite at log-SNR 0\.[89]") as error:
        dormand_prince(f, (torch.ones(5, 1).double(),), 0.0, 1.0, 1e-7, 1e-7)
    assert error.value.exit_status == 4


def test_a_network_that_is_not_finite_is_named(sde):
    def denoise(x, t):
        return Prediction(torch.where(x > 100, torch.nan, 0.1 * x))

    x = torch.tensor([[1.0], [200.0]], dtype=torch.float64)
    with pytest.raises(NonFiniteError, match=r"example 1: .* log-SNR -?\d"):
        STEPS["ode"](sde)(denoise, x, sde.t_max, sde.t_min, None)
