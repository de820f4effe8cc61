"""Multistep solvers: integrals by quadrature, measured orders in every integrand and integration variable, exact
cases, and noise.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from score_sde.samplers import DDIM, GRIDS, STEPS, Adams, DPMSolver, Multistep, Noise, UniPC, sample, trajectory
from score_sde.samplers.integrands import INTEGRANDS, INTEGRATION_VARIABLES, Coordinates
from score_sde.sde_lib import SDES, VPSDE, Flow, Gaussian, GaussianMixture
from score_sde.sde_lib.adams_pece import MOST_AMPLIFIED, amplification, integration_weights
from score_sde.sde_lib.runge_kutta import DormandPrince

NODES = np.array([2.0, 3.5, 7.0, 20.0])
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]).double(), torch.tensor([[-0.8], [0.5]]).double(), torch.tensor([[0.04], [0.01]]).double()
)


def flow_end(sde, x, end):
    """Image of x at t_max under the probability flow, to rounding."""
    flow = Flow(sde, MIXTURE.denoiser(sde), Gaussian(MIXTURE.mean, 0.5))
    solve = DormandPrince(1e-10, 1e-10)
    return flow.leave(solve(flow, flow.enter(x, sde.t_max), flow.angle(sde.t_max), flow.angle(end)).u, end)


def last_state(step, denoise, x, times, draw=None):
    *_, x, _ = trajectory(step, denoise, x, times, draw)
    return x


def order_of(make, sde, few=100, end=1e-2):
    """Exponent with which the error falls as the number of steps doubles."""
    x = sde.prior_std * torch.randn(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected, errors = flow_end(sde, x, end), []
    for num in (few, 2 * few):
        times = GRIDS["log_snr"](sde, num, end=end)
        error = last_state(make(), MIXTURE.denoiser(sde), x, times) - expected
        errors.append(error.square().mean().sqrt().item())
    return math.log2(errors[0] / errors[1])


# --- coordinates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("integrand", INTEGRANDS)
def test_weight_and_value_give_the_derivative_of_the_scaled_state(integrand, eta):
    """d(y / scale) / dlog r with dy / dlog r = (1 + eta^2) (y - x0), by finite differences."""
    here, y, x0, h = Coordinates(VPSDE(), integrand, "angle", 0.6, eta), 1.3, -0.4, 1e-5
    for r in (0.01, 0.5, 3.0, 80.0):
        (a, b), pace = here.weights(np.array(r)), here.pace(np.array(r))
        above, below = here.scale(np.array(r * math.exp(h))), here.scale(np.array(r * math.exp(-h)))
        slope = (1 + eta**2) * (y - x0) / here.scale(np.array(r)) + y * (1 / above - 1 / below) / (2 * h)
        assert pace * (a * y + b * x0) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("integration_variable", INTEGRATION_VARIABLES)
@pytest.mark.parametrize("integrand", INTEGRANDS)
def test_integrals_of_the_polynomials_match_quadrature(integrand, integration_variable):
    """Against adaptive quadrature of weight times Lagrange polynomial, inside and beyond the nodes."""
    sde = VPSDE()
    here = Coordinates(sde, integrand, integration_variable, 0.6)
    for num, (start, end) in product([1, 2, 4], [(2.0, 1.2), (3.5, 2.0)]):
        found = here.integrals(NODES[None, :num], np.array([start]), np.array([end]))[0]
        at = here.integration_variable(NODES[:num])
        for j in range(num):

            def rate(log_r, j=j, at=at):
                r = np.exp([log_r])
                others = [k for k in range(len(at)) if k != j]
                return here.pace(r)[0] * math.prod(
                    (here.integration_variable(r)[0] - at[k]) / (at[j] - at[k]) for k in others
                )

            assert found[j] == pytest.approx(quad(rate, math.log(start), math.log(end), epsabs=1e-11)[0], rel=1e-8)


@pytest.mark.parametrize(("integrand", "variance"), [("data", lambda r, s: 1 - (s / r) ** 2), ("noise", None)])
def test_noise_of_a_step_in_closed_form(integrand, variance):
    """SDE-DPM-Solver++: r_s^2 (1 - (r_s / r_t)^2); SDE-DPM-Solver: r_t^2 - r_s^2."""
    start, end = np.array([9.0, 1.0]), np.array([2.0, 0.3])
    expected = end**2 * variance(start, end) if variance else start**2 - end**2
    np.testing.assert_allclose(Coordinates(VPSDE(), integrand, "log_ratio", 1.0, 1.0).noise(start, end) ** 2, expected)
    assert not Coordinates(VPSDE(), integrand, "log_ratio").noise(start, end).any()


# --- orders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integration_variable", INTEGRATION_VARIABLES)
@pytest.mark.parametrize("integrand", INTEGRANDS)
def test_order_in_every_integrand_and_integration_variable(integrand, integration_variable):
    sde = VPSDE()
    gaussian = Gaussian(MIXTURE.mean, 0.36)
    for correct in (False, True):
        found = order_of(
            lambda correct=correct: Multistep(sde, integrand, integration_variable, 2, correct, gaussian=gaussian), sde
        )
        assert found == pytest.approx(2 + correct, abs=0.35)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["vpsde", "rectified"])
def test_order_of_unipc_and_dpm_solver(name, order):
    """The corrector's order is one higher and shows only at many steps."""
    sde = SDES[name]()
    assert order_of(lambda: DPMSolver(sde, order), sde) > order - 0.3
    assert order_of(lambda: UniPC(sde, "data", order), sde, 200) > order + 0.2
    assert order_of(lambda: UniPC(sde, "noise", order, "bh1"), sde, 200) > order + 0.2


# --- number of values in each step ------------------------------------------------------------------------------------


def images() -> GaussianMixture:
    """Eight modes in 256 dimensions with the spectrum of small photographs: brightness has 9 times the mean width."""
    dimensions, modes, within = 256, 8, 0.6
    rest = torch.arange(1, dimensions, dtype=torch.float64) ** -1.5
    variances = 0.45**2 * torch.cat([torch.tensor([81.0]), rest * (dimensions - 81) / rest.sum()]).double()
    means = torch.randn(modes, dimensions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = (means - means.mean(0)) / means.std(0, unbiased=False) * ((1 - within) * variances).sqrt()
    return GaussianMixture(torch.ones(modes).double(), means, (within * variances).expand_as(means))


@pytest.mark.parametrize("name", ["vpsde", "subvpsde", "edm"])
def test_the_error_of_adams_never_rises_with_the_number_of_evaluations(name):
    """Median distance to the exact flow, on data with one direction nine times as wide as the mean."""
    sde, data = SDES[name](), images()
    covariance = data.covariance
    dimensions = (covariance.trace() ** 2 / covariance.square().sum()).item()
    gaussian = Gaussian(data.mean, covariance.trace().item() / 256)
    x = sde.prior_std * torch.randn(32, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flow, solve = Flow(sde, data.denoiser(sde), gaussian), DormandPrince(1e-7, 1e-7)
    angles = flow.angle(sde.t_max), flow.angle(sde.t_min)
    exact, errors = flow.leave(solve(flow, flow.enter(x, sde.t_max), *angles).u, sde.t_min), []
    for num in (8, 10, 12, 16, 20, 24, 30, 50):
        times = GRIDS["logistic"](sde, num, std=gaussian.std, dimensions=dimensions)
        end = last_state(Adams(sde, gaussian=gaussian), data.denoiser(sde), x, times)
        errors.append((end - exact).square().mean(1).sqrt().median().item())
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("growth", "two", "three"), [(1.0, 2.0, 11 / 3), (1.5, 2.5, 7.0)])
def test_amplification_of_predictions_after_gaps_that_grow(growth, two, three):
    """Relative to even gaps, where the weights are Adams-Bashforth's: 3/2 + 1/2, (23 + 16 + 5) / 12."""
    nodes = np.cumsum([0, 1, growth, growth**2])
    for count, expected, even in ((2, two, 2), (3, three, 11 / 3)):
        weights = integration_weights(nodes[3 - count : 3], nodes[2], nodes[3])
        assert amplification(weights, 0) == pytest.approx(expected / even)


def test_a_step_after_much_shorter_ones_uses_fewer_values():
    """Each step uses as many values as keep the amplification of errors within the bound; on even gaps, all."""
    sde = VPSDE()
    times = GRIDS["logistic"](sde, 24, std=0.45, dimensions=7.0).tolist()
    step = Adams(sde, gaussian=Gaussian(torch.zeros(1), 0.45**2))
    step.reset(times)
    ratio, moves = np.exp([-0.5 * sde.marginal(t).log_snr for t in times]), np.arange(24)
    for ahead, counts in enumerate(step.counts(times)):
        whole = np.minimum(step.orders(24), 1 + moves) + ahead
        fewer = counts < whole
        assert 0 < fewer.sum() < 12
        for move in moves:
            found = step.integrals(ratio, moves + ahead, counts + fewer)[move, : (counts + fewer)[move]]
            kept = step.integrals(ratio, moves + ahead, counts)[move, : counts[move]]
            assert amplification(kept, ahead) <= MOST_AMPLIFIED
            assert not fewer[move] or amplification(found, ahead) > MOST_AMPLIFIED
    assert Multistep(sde, "velocity", "flow", 4, True).counts(times)[0].tolist() == [1, 2, 3, *[4] * 21]
    even = sde.time(-2 * torch.log(0.45 / (1 / torch.linspace(0.99, 0.01, 25, dtype=torch.float64) - 1))).tolist()
    step = Adams(sde, 5, gaussian=step.gaussian)
    assert step.counts(even)[0].tolist() == [1, 2, 3, 4, *[5] * 20]


# --- equalities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrand", ["data", "noise"])
def test_order_1_is_ddim(sde, integrand):
    x = sde.prior_std * torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = GRIDS["log_snr"](sde, 7)
    ours = list(trajectory(Multistep(sde, integrand, "log_ratio", 1), MIXTURE.denoiser(sde), x, times, None))
    for state, expected in zip(ours, trajectory(DDIM(sde), MIXTURE.denoiser(sde), x, times, None), strict=True):
        torch.testing.assert_close(state, expected, rtol=1e-9, atol=1e-9)


def test_unipc_of_order_3_equals_corrected_adams_except_in_its_second_step():
    """Its variants differ only in steps through two values; from equal states on, the rule is the same."""
    sde, ratio = VPSDE(), np.geomspace(50, 0.1, 21)
    adams, published = Multistep(sde, "data", "log_ratio", 3, True), UniPC(sde, "data", 3)
    late = np.arange(2, 20)
    for latest, count in ((late, 3), (late + 1, 4)):
        orders = np.full(len(late), count)
        pairs = [step.integrals(ratio[2:], latest - 2, orders)[3:] for step in (adams, published)]
        np.testing.assert_array_equal(*pairs)


def test_the_order_of_unipc_falls_only_with_few_steps():
    step = UniPC(VPSDE(), order=3)
    assert step.orders(6).tolist() == [3, 3, 3, 3, 3, 2]
    assert step.orders(14).tolist() == [3] * 14


# --- exact cases ------------------------------------------------------------------------------------------------------


def test_one_step_is_exact_for_gaussian_data(sde):
    """With the residual integrand, and denoised to the posterior mean."""
    gaussian = Gaussian(torch.tensor([0.7, -0.2]).double(), 0.09)
    law = GaussianMixture.of_points(gaussian.mean[None]).denoiser(sde)
    exact = lambda x, t: law(x, t)._replace(  # noqa: E731
        x0=gaussian.posterior_mean(x / sde.marginal(t).alpha, math.exp(-0.5 * sde.marginal(t).log_snr))
    )
    step = Multistep(sde, "residual", "angle", 2, gaussian=gaussian)
    x = sde.prior_std * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = GRIDS["log_snr"](sde, 1)
    first, last = sde.marginal(sde.t_max), sde.marginal(sde.t_min)
    early, late = (math.exp(-0.5 * m.log_snr) for m in (last, first))
    y = gaussian.colour(gaussian.whiten(x / first.alpha, late), early)
    *_, state, x0 = trajectory(step, exact, x, times, None)
    torch.testing.assert_close(state, last.alpha * y, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(x0, gaussian.posterior_mean(y, early), rtol=1e-7, atol=1e-8)


def test_the_reverse_sde_of_gaussian_data_keeps_the_marginals_in_any_number_of_steps():
    """The variance s^2 + r^2 maps to itself for any eta and any number of steps."""
    here = [Coordinates(VPSDE(), "residual", "angle", 0.6, eta) for eta in (0.5, 1.0, 2.0)]
    start, end = np.array([100.0, 3.0, 0.5]), np.array([3.0, 0.5, 0.01])
    for coordinates in here:
        kept = coordinates.scale(end) / coordinates.scale(start)
        variance = kept**2 * (0.36 + start**2) + coordinates.noise(start, end) ** 2
        np.testing.assert_allclose(variance, 0.36 + end**2, rtol=1e-6)


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adams", "unipc", "dpm", "sa"])
def test_each_step_takes_one_evaluation_and_the_end_one_more(name):
    sde, calls = VPSDE(), []

    def denoise(x, t):
        calls.append(t)
        return MIXTURE.denoiser(sde)(x, t)

    times = GRIDS["log_snr"](sde, 9)
    sample(STEPS[name](sde), denoise, torch.zeros(2, 1).double(), times, Noise(torch.arange(2)))
    assert calls == times.tolist()


@pytest.mark.parametrize("name", ["adams", "unipc", "sa"])
def test_a_trajectory_is_independent_of_the_previous_one(name):
    """Values of the previous trajectory are dropped."""
    sde, step = VPSDE(), STEPS[name](VPSDE())
    x, times = torch.randn(3, 1, dtype=torch.float64), GRIDS["log_snr"](sde, 6)
    runs = [sample(step, MIXTURE.denoiser(sde), x, times, Noise(torch.arange(3))) for _ in range(2)]
    assert torch.equal(*runs)


def test_a_correction_is_added_to_the_constrained_state():
    """A constraint between the steps stays in effect; its state is not overwritten."""
    sde, times = VPSDE(), GRIDS["log_snr"](VPSDE(), 12)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixture = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 2).double(), torch.full((1, 2), 0.25).double())

    def known(x, alpha, sigma):
        return torch.cat([torch.full_like(x[:, :1], alpha * 0.3), x[:, 1:]], 1)

    ended = sample(Adams(sde), mixture.denoiser(sde), x, times, None, known)
    assert (ended[:, 0] == 0.3).all()
    free = sample(Adams(sde), mixture.denoiser(sde), x, times, None)
    torch.testing.assert_close(ended[:, 1], free[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_are_not_amplified(sde, dtype):
    """Many steps of the highest order differ little between float32 and float64."""
    x = sde.prior_std * torch.randn(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = GRIDS["logistic"](sde, 60, std=0.6)
    ends = [
        sample(Adams(sde, gaussian=Gaussian(MIXTURE.mean, 0.36).like(z)), MIXTURE.denoiser(sde), z, times, None)
        for z in (x.to(dtype), x)
    ]
    torch.testing.assert_close(ends[0].double(), ends[1], rtol=0, atol=1e-4)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda sde: Multistep(sde, "dat"), "unknown integrand 'dat'; known: data, noise, velocity, residual"),
        (lambda sde: Multistep(sde, "data", "hour"), "unknown integration variable 'hour'"),
        (lambda sde: Multistep(sde, order=7), "order 7: need 1 to 6"),
        (lambda sde: Multistep(sde, order=0), "order 0: need 1 to 6"),
        (lambda sde: Multistep(sde, eta=-1.0), "eta -1.0"),
        (lambda sde: UniPC(sde, order=5), "order 5: UniPC has orders 1 to 4"),
        (lambda sde: UniPC(sde, variant="bh3"), "variant 'bh3'"),
        (lambda sde: UniPC(sde, "velocity"), "integrand 'velocity'"),
    ],
)
def test_bad_input(make, said):
    with pytest.raises(ValueError, match=said):
        make(VPSDE())
