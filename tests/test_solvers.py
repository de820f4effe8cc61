"""Solvers of the flow: closed forms, measured orders, evaluation points and counts, and every kind of failure."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicSpline, make_interp_spline

from score_sde.samplers import GRIDS, STEPS, sample
from score_sde.sde_lib import ADAPTIVE, SDES, SOLVERS, TORCHDIFFEQ, Flow, NonFiniteError, NotConvergedError
from score_sde.sde_lib.adams_pece import AdamsPECE, integration_weights, spline_weights
from score_sde.sde_lib.denoiser import Prediction
from score_sde.sde_lib.nodes import logistic_uniform as ratios
from score_sde.sde_lib.runge_kutta import DormandPrince
from score_sde.sde_lib.solvers import SINGLE, Torchdiffeq
from score_sde.sde_lib.velocity import Velocity
from tests.guesses import GUESSES, moment_matched
from tests.trajectories import terminal

SPANS = [(0.2, 1.4), (1.4, 0.2)]
ENDS = (1e-3, math.pi / 2 - 1e-3)
"""Angles of a flow: near 0 and pi / 2, where the nodes are dense."""


class Followed(Velocity):
    """A velocity from a function (angle, u, rows) -> (velocity, rates), with a record of its calls."""

    def __init__(self, function):
        self.function, self.angles, self.sizes, self.traced = function, [], [], []

    def __call__(self, angle, u, rows=slice(None), traced=True):
        self.angles.append(angle)
        self.sizes.append(len(u))
        self.traced.append(traced)
        angle = angle if isinstance(angle, torch.Tensor) else torch.tensor(angle, dtype=torch.float64)
        numbers = torch.arange(len(u)) if isinstance(rows, slice) else rows
        velocity, rates = self.function(angle, u, numbers)
        return velocity, rates if traced else u.new_zeros(len(u), 0)

    def locate(self, angle):
        return f"at angle {angle:.3g}"


def spiral(angle, u, rows):
    """u' = i w u for a pair of numbers, each example with its own frequency; rates cos(angle) and sin(angle)."""
    frequency = (1 + rows.to(u))[:, None]
    rates = torch.stack([torch.cos(angle), torch.sin(angle)], -1).reshape(-1, 2).expand(len(u), 2)
    return frequency * torch.stack([-u[:, 1], u[:, 0]], 1), rates.to(u)


def turned(u, by):
    """End point of the spiral."""
    frequencies = torch.arange(1, len(u) + 1).double()
    return torch.view_as_real(torch.view_as_complex(u) * torch.exp(1j * by * frequencies))


PAIRS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, -0.5]], dtype=torch.float64)


@pytest.fixture(params=sorted(ADAPTIVE))
def adaptive(request):
    return ADAPTIVE[request.param]


# --- adaptive ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), SPANS)
@pytest.mark.parametrize("tolerance", [1e-5, 1e-9])
def test_adaptive_solvers_meet_a_closed_form_in_both_directions(adaptive, start, end, tolerance):
    velocity = Followed(spiral)
    found = adaptive(tolerance, tolerance)(velocity, PAIRS, start, end)
    torch.testing.assert_close(found.u, turned(PAIRS, end - start), rtol=0, atol=50 * tolerance)
    areas = [math.sin(end) - math.sin(start), math.cos(start) - math.cos(end)]
    expected = torch.tensor(areas, dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(found.integrals, expected, rtol=0, atol=50 * tolerance)
    assert ((found.calls > 0) & (found.calls < 3000)).all()
    assert all(velocity.traced)


def test_error_falls_with_the_fifth_order():
    """Over a factor 1000 of tolerance the calls grow by 1000^(1/5)."""
    calls = [
        DormandPrince(tol, tol)(Followed(spiral), PAIRS[:1], 0.0, 10.0).calls.item() for tol in (1e-5, 1e-8, 1e-11)
    ]
    assert calls[1] / calls[0] == pytest.approx(1000**0.2, rel=0.2)
    assert calls[2] / calls[1] == pytest.approx(1000**0.2, rel=0.2)


def test_the_integral_alone_limits_the_step(adaptive):
    """A constant state and a rate with a peak: the tolerance applies to each integral, too."""

    def peak(angle, u, rows):
        narrow = torch.exp(-0.5 * ((angle.reshape(-1, 1) - 0.4) / 0.1) ** 2).expand(len(u), 1)
        return torch.zeros_like(u), torch.cat([torch.ones_like(narrow), narrow], 1)

    found = adaptive(1e-7, 1e-7)(Followed(peak), PAIRS, 0.1, 1.5)
    assert torch.equal(found.u, PAIRS)
    torch.testing.assert_close(found.integrals[:, 0], torch.full((3,), 1.4).double(), rtol=0, atol=1e-5)
    area = 0.1 * math.sqrt(math.pi / 2) * (math.erf(11 / math.sqrt(2)) + math.erf(3 / math.sqrt(2)))
    torch.testing.assert_close(found.integrals[:, 1], torch.full((3,), area).double(), rtol=0, atol=1e-5)
    assert found.calls.min() > 60


def test_calls_are_counted(adaptive):
    """For each example, including the calls of rejected steps."""
    seen = torch.zeros(3, dtype=torch.int64)

    def counted(angle, u, rows):
        seen[rows] += 1
        velocity, rates = spiral(angle, u, 20 * rows)
        return velocity * torch.cos(20 * angle.reshape(-1, 1)), rates

    found = adaptive(1e-6, 1e-6)(Followed(counted), PAIRS, 0.1, 1.4)
    assert torch.equal(found.calls, seen)
    assert torch.equal(found.traced, seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("start", "end"), [(1e-6, 1.5), (1.5, 1e-6), ENDS, ENDS[::-1]])
def test_no_adaptive_solver_evaluates_beyond_the_ends(adaptive, start, end, dtype):
    """Not by one bit, even for marginals: beyond 0 and pi / 2 no noise level has the angle."""
    low, high = min(start, end), max(start, end)
    velocity = Followed(spiral)
    adaptive(1e-4, 1e-4)(velocity, PAIRS.to(dtype), start, end)
    angles = torch.cat([angle.flatten() for angle in velocity.angles])
    assert angles.dtype == torch.float64
    assert angles.min() >= low - 1e-15
    assert angles.max() <= high + 1e-15
    nearest = 1e-6 if dtype == torch.float32 else 1e-12
    assert angles[0].item() == pytest.approx(start, rel=1e-12)
    assert (angles - end).abs().min() < nearest


def test_solvers_agree_with_scipy_on_the_flow_of_a_mixture(sde, plane):
    """dy/dl = (x0 - y) / 2 in log-SNR is the velocity without a Gaussian; here each solver uses another Gaussian."""
    denoise, x = plane.denoiser(sde), terminal(plane, sde, 3)
    late, early = sde.marginal(sde.t_max), sde.marginal(sde.t_min)

    def right(l, y):
        t, y = sde.time(torch.tensor(l, dtype=torch.float64)).item(), torch.from_numpy(y).reshape(x.shape)
        return 0.5 * (denoise(sde.alpha(t) * y, t).x0 - y).numpy().ravel()

    y = (x / late.alpha).numpy().ravel()
    end = solve_ivp(right, (late.log_snr, early.log_snr), y, method="DOP853", rtol=1e-9, atol=1e-10).y[:, -1]
    expected = early.alpha * torch.from_numpy(np.ascontiguousarray(end)).reshape(x.shape)
    for name, guess in zip(SOLVERS, itertools.cycle(GUESSES)):
        gaussian = moment_matched(guess, plane)
        if name in ADAPTIVE:
            step = STEPS["ode"](sde, solver=name, rtol=1e-7, atol=1e-7, gaussian=gaussian)
            found = step(denoise, x, sde.t_max, sde.t_min, None)
        else:
            flow = Flow(sde, denoise, gaussian)
            u = SOLVERS[name](600)(flow, flow.enter(x, sde.t_max), flow.angle(sde.t_max), flow.angle(sde.t_min)).u
            found = flow.leave(u, sde.t_min)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_torchdiffeq_agrees_with_ours(sde, plane, method):
    flow, x = Flow(sde, plane.denoiser(sde), moment_matched("isotropic", plane)), terminal(plane, sde, 2)
    u, ends = flow.enter(x, sde.t_max), (flow.angle(sde.t_max), flow.angle(sde.t_min))
    ours, theirs = DormandPrince(1e-6, 1e-6)(flow, u, *ends), Torchdiffeq(1e-6, 1e-6, method)(flow, u, *ends)
    torch.testing.assert_close(theirs.u, ours.u, rtol=2e-5, atol=2e-5)
    assert theirs.integrals.shape == ours.integrals.shape == (2, 0)


@pytest.mark.parametrize(("name", "sde_name"), list(zip(TORCHDIFFEQ, itertools.cycle(["vpsde", "vesde", "subvpsde"]))))
def test_the_sampler_takes_the_methods_of_torchdiffeq(sde_name, plane, name):
    """Adaptive ones come near their tolerance; the others have their textbook order in the number of steps."""
    sde, orders = SDES[sde_name](), {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
    denoise, x, gaussian = plane.denoiser(sde), terminal(plane, sde, 4), moment_matched("isotropic", plane)
    expected = STEPS["ode"](sde, rtol=1e-9, atol=1e-9, gaussian=gaussian).follow(denoise, x, sde.t_max, sde.t_min)
    step = STEPS["ode"](sde, solver=name, rtol=1e-5, atol=1e-5, gaussian=gaussian)
    order = orders.get(name.removeprefix("torchdiffeq_"))
    if order is None:
        found = step.follow(denoise, x, sde.t_max, sde.t_min)
        assert (found - expected).abs().max() < (1e-2 if name == "torchdiffeq_fehlberg2" else 1e-3)
        return
    errors = []
    for moves in (40, 80):
        end = x
        for t, s in itertools.pairwise(GRIDS["angle"](sde, moves, std=gaussian.std).tolist()):
            end = step(denoise, end, t, s, None)
        errors.append((end - expected).square().mean().sqrt().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5)


@pytest.mark.parametrize("name", [f"torchdiffeq_{method}" for method in SINGLE])
def test_one_step_from_noise_to_data_is_refused(plane, name):
    sde = SDES["vpsde"]()
    step, denoise, x = STEPS["ode"](sde, solver=name), plane.denoiser(sde), terminal(plane, sde, 2)
    for whole in (
        lambda: sample(step, denoise, x, GRIDS["angle"](sde, 1), torch.randn_like),
        lambda: step.encode(denoise, x),
        lambda: step.decode(denoise, x),
    ):
        with pytest.raises(ValueError, match=f"solver '{name}' takes one step between two times, and the grid has"):
            whole()
    assert sample(step, denoise, x, GRIDS["angle"](sde, 2), torch.randn_like).shape == x.shape


def test_each_example_has_its_own_step_sizes():
    """A harder neighbour changes no bit of the result, and no example is evaluated after its end."""
    seen = []

    def harder(offset):
        def f(angle, u, rows):
            seen.append((rows + offset).tolist())
            return spiral(angle, u, 5 * (rows + offset))

        return Followed(f)

    u = PAIRS[:1].expand(4, 2)
    found = DormandPrince(1e-6, 1e-6)(harder(0), u, 0.0, 2.0)
    together = seen[:]
    assert together[0] == [0, 1, 2, 3]
    assert together[-1] == [3]
    for k in range(4):
        seen.clear()
        single = DormandPrince(1e-6, 1e-6)(harder(k), u[:1], 0.0, 2.0)
        assert torch.equal(single.u[0], found.u[k])
        assert torch.equal(single.integrals[0], found.integrals[k])
        assert single.calls.item() == found.calls[k] == len(seen) == sum(k in rows for rows in together)


# --- AdamsPECE: orders ------------------------------------------------------------------------------------------------


def curved(angle, u, rows):
    """u' = -2 sin(2 angle) u^2, so that 1 / u = 1 / u_0 + cos(2 start) - cos(2 angle): curved, and slow at both ends.

    Rates: u' / u, whose integral is log u, and a function of the angle.
    """
    slope = -2 * torch.sin(2 * angle).reshape(-1, 1)
    return slope * u**2, torch.cat([(slope * u).expand(len(u), 1), (torch.sin(3 * angle)).expand(len(u), 1)], 1)


START = torch.tensor([[0.2], [0.4]], dtype=torch.float64)


def curved_end(start, end, first=START):
    u = 1 / (1 / first + math.cos(2 * start) - math.cos(2 * end))
    areas = torch.log(u / first), torch.full((2, 1), (math.cos(3 * start) - math.cos(3 * end)) / 3, dtype=torch.float64)
    return u, torch.cat(areas, 1)


def exponent(errors):
    """The order that doubled budgets show."""
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize(("start", "end"), [ENDS, ENDS[::-1]], ids=["forward", "backward"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_has_an_order_more_than_its_predictor(order, start, end):
    """The integrals have the order of values of that order, under a spline of a higher one."""
    expected, areas = curved_end(start, end)
    errors, inexact = [], []
    for evaluations in (76, 151, 301):
        found = AdamsPECE(evaluations, order=order)(Followed(curved), START, start, end)
        errors.append((found.u - expected).abs().max().item())
        inexact.append((found.integrals - areas).abs().amax(0).tolist())
    assert exponent(errors) == pytest.approx(order + 1, abs=0.4)
    of_state, of_angle = (exponent(column) for column in zip(*inexact))
    assert of_angle > 4.6
    assert of_state > min(order + 1, 5) - 0.4


@pytest.mark.parametrize(("start", "end", "scale"), [(0.3, 1.2, 4.0), (1.2, 0.3, 1.0)], ids=["forward", "backward"])
def test_adams_has_order_3_when_it_starts_at_a_middle_angle(start, end, scale):
    """The first step has only two velocities, and here it is not a small one."""
    u, errors = scale * START, []
    for evaluations in (151, 301):
        found = AdamsPECE(evaluations)(Followed(curved), u, start, end).u
        errors.append((found - curved_end(start, end, u)[0]).abs().max().item())
    assert exponent(errors) == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(("start", "end"), [ENDS, ENDS[::-1]], ids=["forward", "backward"])
def test_the_reverse_path_recovers_the_start(start, end):
    """On the same nodes; the integrals have the opposite sign."""
    there = AdamsPECE(200)(Followed(curved), START, start, end)
    back = AdamsPECE(200)(Followed(curved), there.u, end, start)
    torch.testing.assert_close(back.u, START, rtol=0, atol=1e-7)
    torch.testing.assert_close(back.integrals, -there.integrals, rtol=0, atol=1e-7)


def polynomial(degree):
    """u' = (angle - 0.4)^degree, and the same as the rate."""

    def f(angle, u, rows):
        value = ((angle - 0.4) ** degree).expand(len(u), 1)
        return value.to(u), value.to(u)

    return Followed(f)


@pytest.mark.parametrize(("start", "end"), SPANS)
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_adams_is_exact_for_polynomials_of_its_order_after_the_start(order, start, end):
    """Step i integrates the polynomial through the velocities at nodes 0 to i, at most order + 1 of them."""
    for degree in range(order + 1):
        velocity = polynomial(degree)
        found = AdamsPECE(12, order=order)(velocity, torch.zeros(2, 1).double(), start, end).u
        expected = ((end - 0.4) ** (degree + 1) - (start - 0.4) ** (degree + 1)) / (degree + 1)
        for i in range(1, degree):
            known, move = np.array(velocity.angles[: i + 1]), velocity.angles[i - 1 : i + 1]
            through = np.polyint(np.polyfit(known, (known - 0.4) ** degree, i))
            truth = np.polyint(np.poly([0.4] * degree))
            expected += np.subtract(*np.polyval(through, move[::-1])) - np.subtract(*np.polyval(truth, move[::-1]))
        torch.testing.assert_close(found, torch.full((2, 1), expected, dtype=torch.float64), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5])
def test_weights_integrate_polynomials(num):
    nodes, rng = np.sort(np.random.default_rng(num).uniform(0, 1.5, num)), np.random.default_rng(9)
    for start, end in [(nodes[-1], nodes[-1] + 0.1), (nodes[0], nodes[-1] + 1e-3), (0.9, 0.2)]:
        polynomial = np.poly1d(rng.standard_normal(num))
        expected = polynomial.integ()(end) - polynomial.integ()(start)
        assert integration_weights(nodes, start, end) @ polynomial(nodes) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("start", [1e-6, 1e-5, 1e-3])
def test_rounding_near_the_data_is_not_amplified(start):
    """The velocity has the float32 rounding errors of x0 - x0_gaussian, divided by sin theta: up to 0.1 at 1e-6.

    Between the first nodes the gaps grow by large factors, and a high-order polynomial would amplify the errors.
    """
    noise, u = torch.Generator().manual_seed(0), torch.zeros(50, 1, dtype=torch.float64)

    def f(angle, u, rows, size=1e-7):
        error = size * torch.randn(u.shape, dtype=u.dtype, generator=noise) / torch.sin(angle)
        return torch.sin(2 * angle) + error, torch.cos(3 * angle) + error

    for evaluations, allowed in ((32, 1e-3), (80, 2e-5), (160, 2e-5)):
        solver = AdamsPECE(evaluations)
        smooth = solver(Followed(functools.partial(f, size=0.0)), u, start, 1.57)
        rough = solver(Followed(f), u, start, 1.57)
        assert (rough.u - smooth.u).abs().max() < allowed
        assert (rough.integrals - smooth.integrals).abs().max() < allowed


def test_the_spline_matches_scipy_on_even_gaps():
    """And the trapezoidal rule where gaps grow by more than four, one after the other, at the start."""
    even = np.array([0.1, 0.3, 0.5, 0.8, 1.1, 1.5])
    values = np.exp(even)
    assert spline_weights(even) @ values == pytest.approx(CubicSpline(even, values).integrate(0.1, 1.5), rel=1e-12)
    grown = np.append([1e-6, 1e-4, 0.01], even)
    values, trapezoids = np.exp(grown), 0.5 * np.diff(grown) * (np.exp(grown[:-1]) + np.exp(grown[1:]))
    expected = trapezoids[:2].sum() + CubicSpline(grown[2:], values[2:]).integrate(0.01, 1.5)
    assert spline_weights(grown) @ values == pytest.approx(expected, rel=1e-12)
    assert spline_weights(grown).sum() == pytest.approx(1.5 - 1e-6, rel=1e-12)
    many = np.linspace(0.1, 1.5, 12) ** 1.5
    quintic = make_interp_spline(many, np.sin(many), 5).integrate(many[0], many[-1])
    assert spline_weights(many) @ np.sin(many) == pytest.approx(quintic, rel=1e-12)


# --- AdamsPECE: nodes and budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), [*SPANS, ENDS, ENDS[::-1]])
@pytest.mark.parametrize("evaluations", [2, 3, 17, 32])
def test_nodes_are_quantiles_of_the_law_of_ratios_with_both_ends(evaluations, start, end):
    velocity = Followed(curved)
    AdamsPECE(evaluations)(velocity, START, start, end)
    angles = np.array(velocity.angles)
    assert all(isinstance(angle, float) for angle in velocity.angles)
    assert (angles[0], angles[-1]) == (start, end)
    assert (np.diff(angles) * np.sign(end - start) > 0).all()
    low, high = math.tan(min(start, end)), math.tan(max(start, end))
    expected = np.arctan(ratios(low, high, np.arange(evaluations) / (evaluations - 1), 1.0)[0])
    np.testing.assert_allclose(np.sort(angles), expected, rtol=1e-12)


def test_nodes_do_not_depend_on_the_scale_of_the_data(plane):
    """Data and noise ten times as large have the same angles: r over the Gaussian's standard deviation."""
    found = []
    for scale in (1.0, 10.0):
        sde = SDES["edm"](sigma_min=0.002 * scale, sigma_max=80.0 * scale)
        guess = moment_matched("isotropic", plane)
        guess.rest *= scale**2
        flow = Flow(sde, plane.denoiser(sde), guess)
        found.append([flow.angle(sde.t_min), flow.angle(sde.t_max)])
    np.testing.assert_allclose(*found, rtol=1e-9)


def test_the_budget_is_kept_exactly():
    """For any number of evaluations and of traces among them; traces are spread evenly and include both ends."""
    for evaluations in range(2, 18):
        for traces in (0, *range(2, evaluations + 1)):
            velocity = Followed(curved)
            found = AdamsPECE(evaluations, traces)(velocity, START, *SPANS[0])
            assert len(velocity.angles) == evaluations
            assert found.calls.tolist() == [evaluations] * 2
            marked = np.flatnonzero(velocity.traced)
            assert found.traced.tolist() == [len(marked)] * 2 == [traces or evaluations] * 2
            assert (marked[0], marked[-1]) == (0, evaluations - 1)
            gaps = np.diff(marked)
            assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("start", "end"), [ENDS, ENDS[::-1]], ids=["forward", "backward"])
def test_fewer_traces_keep_the_path_and_converge_with_order_four(start, end):
    expected, areas = curved_end(start, end)
    errors = []
    for traces in (16, 31):
        found = AdamsPECE(481, traces)(Followed(curved), START, start, end)
        torch.testing.assert_close(found.u, expected, rtol=0, atol=3e-8)
        errors.append((found.integrals - areas).abs().amax(0).tolist())
    for column in zip(*errors):  # with more, the remaining error is the path's
        assert exponent(column) > 3.8


def test_two_evaluations_are_the_trapezoidal_rule():
    """The first velocity predicts and the second corrects, a second-order rule for a linear velocity."""

    def f(angle, u, rows):
        return -u * angle, angle.expand(len(u), 1)

    found = AdamsPECE(2)(Followed(f), START, 0.2, 0.4)
    predicted = START - 0.2 * 0.2 * START
    torch.testing.assert_close(found.u, START - 0.1 * (0.2 * START + 0.4 * predicted))
    torch.testing.assert_close(found.integrals, torch.full((2, 1), 0.06).double())


def test_adams_keeps_the_dtype_and_does_not_mix_examples():
    u = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0))

    def f(angle, u, rows):
        return torch.cos(3 * u) * torch.sin(2 * angle).to(u), u.flatten(1)

    found = AdamsPECE(20)(Followed(f), u, *ENDS)
    assert found.u.dtype == found.integrals.dtype == torch.float32
    assert found.calls.dtype == found.traced.dtype == torch.int64
    alone = AdamsPECE(20)(Followed(f), u[3:4], *ENDS)
    torch.testing.assert_close(alone.u, found.u[3:4], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alone.integrals, found.integrals[3:4], rtol=1e-6, atol=1e-6)


def test_small_budgets_have_a_lower_order():
    """Unless a higher order is given."""
    assert [AdamsPECE(n).order for n in (2, 23, 24, 100)] == [2, 2, 3, 3]
    assert AdamsPECE(8, order=4).order == 4


# --- refinement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_the_refined_solver_is_better(name):
    made = SOLVERS[name](40) if name == "adams_pece" else SOLVERS[name](1e-4, 1e-5)
    better, (expected, areas) = made.refined(), curved_end(*ENDS)
    errors = []
    for solver in (made, better):
        found = solver(Followed(curved), START, *ENDS)
        errors.append(max((found.u - expected).abs().max().item(), (found.integrals - areas).abs().max().item()))
    assert errors[1] < 0.3 * errors[0]
    assert type(better) is type(made)
    assert made.adaptive == (name in ADAPTIVE)
    assert str(better) == ("80 evaluations" if name == "adams_pece" else "rtol 1e-05, atol 1e-06")


def test_refinement_keeps_the_other_settings():
    better = AdamsPECE(24, 8, edge=0.2).refined()
    assert (better.evaluations, better.traces, better.edge) == (48, 16, 0.2)
    assert Torchdiffeq(method="dopri8").refined().method == "dopri8"


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rtol", "atol"), [(0.0, 1e-5), (1e-5, 0.0), (-1e-3, 1e-3), (float("nan"), 1e-3)])
def test_tolerances_must_be_positive(adaptive, rtol, atol):
    with pytest.raises(ValueError, match=f"rtol {rtol} and atol {atol}: need tolerances above 0"):
        adaptive(rtol, atol)
    with pytest.raises(ValueError, match="tolerances above 0"):
        STEPS["ode"](SDES["vpsde"](), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluations": 1}, "evaluations 1: need at least 2, one at each end"),
        ({"evaluations": -3}, "evaluations -3: need at least 2"),
        ({"evaluations": 8, "traces": 1}, r"traces 1: need 0 \(all\), or 2 to 8, the number of evaluations"),
        ({"evaluations": 8, "traces": 9}, r"traces 9: need 0 \(all\), or 2 to 8"),
        ({"traces": -1}, r"traces -1: need 0 \(all\), or 2 to 32"),
        ({"order": 0}, "order 0: need at least 1"),
        ({"edge": 1.0}, r"edge 1.0: need a fraction of the nodes, in \[0, 1\)"),
    ],
)
def test_invalid_budgets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdamsPECE(**options)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_unsolvable_velocity_is_reported_as_not_converged(name):
    def f(angle, u, rows):
        return torch.where(rows[:, None] == 2, u**2, -u), u[:, :0]  # example 2 has a pole at 1

    with pytest.raises(NotConvergedError) as error:
        ADAPTIVE[name](1e-4, 1e-4)(Followed(f), torch.ones(4, 1).double(), 0.0, 2.0)
    message = str(error.value)
    if name == "dopri5":
        assert message.startswith("example 2: the solver is stuck at angle 1, with a step of ")
    else:
        assert message.startswith("torchdiffeq: ")
    assert message.endswith("raise the tolerances (rtol 0.0001, atol 0.0001)")
    assert error.value.exit_status == 5


def test_a_failing_solver_counts_its_evaluations(monkeypatch):
    monkeypatch.setattr("score_sde.sde_lib.runge_kutta._MAX_STEPS", 2)
    with pytest.raises(NotConvergedError, match=r"example 0: the solver is stuck at angle .* after 13 evaluations"):
        DormandPrince()(Followed(spiral), PAIRS, 0.0, 2.0)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_example_keeps_its_index_when_others_have_finished(name, mixture):
    """One network fails for one example late on its path; it is named even if other examples finish earlier."""
    sde = SDES["edm"]()

    def denoise(x, t, who):
        broken = (who == 3).reshape(-1, 1) & (torch.as_tensor(t) < 0.01)
        return Prediction(torch.where(broken, torch.nan, mixture.denoiser(sde)(x, t).x0))

    flow = Flow(sde, denoise, moment_matched("isotropic", mixture), who=torch.arange(5))
    u = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    solver = SOLVERS[name]() if name == "adams_pece" else SOLVERS[name](1e-7, 1e-7)
    with pytest.raises(NonFiniteError, match=r"example 3: the network is not finite at t = 0\.00") as error:
        solver(flow, u, flow.angle(sde.t_max), flow.angle(sde.t_min))
    assert error.value.exit_status == 4


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_non_finite_network_output_is_named(sde, name):
    def denoise(x, t):
        return Prediction(torch.where(x > 100, torch.nan, 0.1 * x))

    x = torch.tensor([[1.0], [200.0]], dtype=torch.float64)
    with pytest.raises(NonFiniteError, match=r"example 1: .* log-SNR -?\d"):
        STEPS["ode"](sde, solver=name)(denoise, x, sde.t_max, sde.t_min, None)


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="unknown solver 'rk4'; known: dopri5, torchdiffeq_dopri5, torchdiffeq_dopri8"):
        STEPS["ode"](SDES["vpsde"](), solver="rk4")
