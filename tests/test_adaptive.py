"""Adaptive steps: marginals of the stochastic one, errors, cost for each example, and refused options."""

import pytest
import torch

from score_sde.samplers import GRIDS, Noise, sample
from score_sde.samplers.adaptive import AdaptiveSDE, DPMAdaptive
from score_sde.sde_lib import EDMSDE, SDES, VPSDE, NonFiniteError, NotConvergedError, Prediction
from tests.trajectories import Counted, assert_marginal, noises, terminal

BOTH = [AdaptiveSDE, DPMAdaptive]


@pytest.mark.parametrize("process", ["vpsde", "vesde", "subvpsde", "ncsn"])
def test_the_law_is_kept(mixture, process):
    """At the default tolerance, in about a hundred steps."""
    sde = SDES[process]()
    denoise = Counted(mixture.denoiser(sde))
    x = AdaptiveSDE(sde)(denoise, terminal(mixture, sde, 3000, 1), sde.t_max, sde.t_min, noises(3000))
    assert_marginal(mixture, sde, x)
    assert denoise.calls < 400  # for the slowest of 3000 examples


def test_the_law_is_kept_in_the_plane(plane):
    sde = VPSDE()
    x = AdaptiveSDE(sde)(plane.denoiser(sde), terminal(plane, sde, 3000, 1), sde.t_max, sde.t_min, noises(3000))
    assert_marginal(plane, sde, x)


def test_fresh_noise_after_a_rejection_biases_the_marginal(mixture, monkeypatch):
    """Fresh noise after a rejected step biases the marginal by more than five standard errors."""
    sde, x = VPSDE(), terminal(mixture, VPSDE(), 3000, 1)
    denoise = mixture.denoiser(sde)
    generator = torch.Generator().manual_seed(0)

    class Anew(AdaptiveSDE):
        def propose(self, estimate, x, t, s, increment):
            z = torch.randn(x.shape, dtype=x.dtype, generator=generator)
            return super().propose(estimate, x, t, s, lambda: z)

    with pytest.raises(AssertionError):
        assert_marginal(mixture, sde, Anew(sde)(denoise, x, sde.t_max, sde.t_min, noises(3000)), 5)


@pytest.mark.parametrize("process", ["vpsde", "vesde", "subvpsde"])
def test_two_solutions_of_one_path_are_close(mixture, process):
    """Strong error: a tenth of the tolerance gives almost the same sample, other noise a different one."""
    sde = SDES[process]()
    x, denoise = terminal(mixture, sde, 100), mixture.denoiser(sde)

    def solve(tolerance, first):
        step = AdaptiveSDE(sde, tolerance, tolerance)
        return step(denoise, x, sde.t_max, sde.t_min, Noise(torch.arange(first, first + 100)))

    loose, tight = solve(0.01, 0), solve(0.001, 0)
    assert (loose - tight).abs().median() < 0.2 * (loose - solve(0.01, 1000)).abs().median()


@pytest.mark.parametrize(("order", "most"), [(2, 30), (3, 100)])
def test_dpm_adaptive_keeps_its_tolerance(sde, mixture, quantiles, order, most):
    """The largest error is at the start between the modes, where the longer steps of the higher order err more."""
    x, expected, end = quantiles
    for tolerance in (1e-2, 1e-4):
        step = DPMAdaptive(sde, tolerance, tolerance, order)
        error = (step(mixture.denoiser(sde), x, sde.t_max, end, None) - expected).abs()
        assert 0.002 * tolerance < error.median() < 3 * tolerance
        assert error.max() < most * tolerance


def test_the_higher_order_takes_half_the_evaluations_and_errs_less(sde, mixture, quantiles):
    x, expected, end = quantiles
    calls, errors = [], []
    for order in (2, 3):
        denoise = Counted(mixture.denoiser(sde))
        state = DPMAdaptive(sde, 1e-4, 1e-4, order)(denoise, x, sde.t_max, end, None)
        calls.append(denoise.calls)
        errors.append((state - expected).abs().median())
    assert calls[1] < 0.6 * calls[0]
    assert errors[1] < errors[0]


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order 4: dpm_adaptive has orders 2 and 3"):
        DPMAdaptive(VPSDE(), order=4)


def test_dpm_adaptive_draws_nothing(mixture):
    sde, noise = VPSDE(), Counted(torch.randn_like)
    DPMAdaptive(sde)(mixture.denoiser(sde), terminal(mixture, sde, 3), sde.t_max, sde.t_min, noise)
    assert noise.calls == 0


@pytest.mark.parametrize("process", ["vpsde", "vesde"])
@pytest.mark.parametrize("kind", BOTH)
def test_a_sample_does_not_depend_on_its_batch(process, shaped_mixture, kind):
    """To rounding, on every rank; test_steps.py covers every process."""
    sde = SDES[process]()
    x, denoise, times = terminal(shaped_mixture, sde, 12), shaped_mixture.denoiser(sde), GRIDS["log_snr"](sde, 2)

    def run(rows):
        return sample(kind(sde, 0.2, 0.2), denoise, x[rows], times, Noise(torch.arange(12)[rows]))

    whole = run(slice(0, 12))
    for rows in (slice(5, 6), slice(3, 9)):
        torch.testing.assert_close(run(rows), whole[rows], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", BOTH)
def test_float32_states_are_solved_in_float64_and_denoised_in_float32(mixture, kind):
    sde, seen = EDMSDE(), set()

    def look(x, t):
        seen.update([x.dtype, t.dtype])
        return mixture.denoiser(sde)(x, t)

    x = terminal(mixture, sde, 4)
    single = kind(sde)(look, x.float(), sde.t_max, sde.t_min, noises(4))
    assert seen == {torch.float32}
    torch.testing.assert_close(
        single.double(), kind(sde)(mixture.denoiser(sde), x, sde.t_max, sde.t_min, noises(4)), rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("kind", BOTH)
def test_an_unsolvable_example_is_named_with_time_and_step(mixture, kind):
    sde = VPSDE()

    def jumps(x, t):
        return Prediction(mixture.denoiser(sde)(x, t).x0 + (t < 0.5) * 1e6 * torch.sign(torch.sin(1e6 * x)))

    x = terminal(mixture, sde, 3)
    with pytest.raises(
        NotConvergedError, match=r"example \d: .* stuck at t = 0\.[45]\d*, with a step of \S*[1-9]\S* in .*rtol 0.05"
    ):
        kind(sde)(jumps, x, sde.t_max, sde.t_min, noises(3))


@pytest.mark.parametrize("kind", BOTH)
def test_a_non_finite_network_output_is_named_with_example_and_time(mixture, kind):
    sde = VPSDE()

    def broken(x, t):
        x0 = mixture.denoiser(sde)(x, t).x0
        return Prediction(torch.where((torch.arange(len(x))[:, None] == 1) & (len(x) == 3), torch.nan, x0))

    with pytest.raises(NonFiniteError, match="example 1: the network is not finite at t = 1"):
        kind(sde)(broken, terminal(mixture, sde, 3), sde.t_max, sde.t_min, noises(3))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("options", [{"control_rtol": 0.0}, {"control_atol": -1.0}])
def test_bad_options_are_refused_by_value(kind, options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        kind(VPSDE(), **options)
