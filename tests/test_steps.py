"""Steps: the full product with processes and ranks, measured orders, marginals, batches, identities between steps."""

import math
import re
from inspect import signature

import pytest
import torch
from torch import nn

from score_sde.configs.choices import defaults
from score_sde.samplers import (
    DDIM,
    GRIDS,
    STEPS,
    Ancestral,
    EulerMaruyama,
    Heun,
    Noise,
    ReverseDiffusion,
    sample,
    trajectory,
)
from score_sde.sde_lib import SDES, VPSDE, Denoiser, Gaussian, GaussianMixture, Prediction
from tests.trajectories import (
    ALONE,
    OF_TIME,
    ORDERS,
    REPRESENTATIVE,
    Counted,
    assert_marginal,
    evolve,
    flow,
    noises,
    terminal,
)

FAST = {*ORDERS} - {"ddim"}
STOCHASTIC = {
    *("euler_maruyama", "reverse_diffusion", "ancestral", "ancestral_learned", "pc"),
    *("dpmpp_2m_sde", "dpmpp_3m_sde", "sa"),
}
# Steps with other properties have test files of their own: the Langevin steps lag behind every noise level, and
# consistency sampling needs another denoiser.
OTHERS = {"ald", "consistency"}
OPTIONS = [("ancestral", {"v": 1.0}), ("ddim", {"eta": 0.5}), ("plms", {"order": 2}), ("pndm", {"order": 2})]
VARIANTS = [*((name, {}) for name in STEPS), *OPTIONS]
KEEPING = [(name, options) for name, options in VARIANTS if name not in OTHERS]


class Convolutions(nn.Module):
    """Two layers over the pixels of an image, conditioned on the log-SNR; a mean and a variance."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x, log_snr):
        return self.last(torch.tanh(self.first(x) + 0.1 * log_snr.reshape(-1, 1, 1, 1)))


@pytest.mark.parametrize("name", STEPS)
def test_options_have_plain_finite_defaults_and_a_line_in_args(name):
    """Options can be derived from the signature and written to a file or a command; None marks an injected object."""
    sde, *parameters = signature(STEPS[name]).parameters.values()
    assert sde.name == "sde"
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    options = {parameter.name: parameter.default for parameter in parameters if parameter.default is not None}
    assert all(type(default) in (bool, int, float, str, tuple) for default in options.values())
    assert all(math.isfinite(default) for default in options.values() if type(default) is float)
    described = re.findall(r"^ {8}(\w+): \S", STEPS[name].__doc__.partition("    Args:\n")[2], re.MULTILINE)
    assert options.keys() <= set(described)


OTHER = {
    "predictor": "euler_maruyama",
    "corrector": "ald",
    "solver": "torchdiffeq_dopri5",
    "integrand": "noise",
    "integration_variable": "ratio",
    "variant": "bh1",
    "rtol": 1e-2,
    "atol": 1e-2,
    "churn_min": 2.0,
    "churn_max": 1.0,
    "epsilon": 1e-3,
}
"""Another value of an option, where half of its default, or 0.5 or 1 for a default of 0, does not serve."""
WITH = {"churn_min": {"churn": 20.0}, "churn_max": {"churn": 20.0}, "churn_noise": {"churn": 20.0}}
"""Options that act together with others."""
SAMPLERS_WITH_OPTIONS = [name for name in STEPS if defaults("sample.sampler", name)]


@pytest.mark.parametrize("name", SAMPLERS_WITH_OPTIONS)
def test_each_option_changes_the_samples(name, mixture):
    """No option is dropped on its way from a constructor to the steps."""
    sde = SDES["vesde"](sigma_max=20.0)
    denoise, times = mixture.denoiser(sde), GRIDS["log_snr"](sde, 1 if name in ALONE else 8)
    x = terminal(mixture, sde, 4)

    def samples(**options):
        return sample(STEPS[name](sde, **options), denoise, x, times, Noise(range(len(x))))

    for key, value in defaults("sample.sampler", name).items():
        if key in OTHER:
            other = OTHER[key]
        else:
            other = (
                (2 if value == 4 else value + 1)
                if type(value) is int
                else not value
                if type(value) is bool
                else 0.5 * value or 0.5
            )
        assert not torch.equal(samples(**WITH.get(key, {})), samples(**WITH.get(key, {}), **{key: other})), key


def test_every_step_is_measured():
    assert set(STEPS) == ORDERS.keys() | STOCHASTIC | OTHERS | ALONE.keys()


# --- the full product -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_every_pair_keeps_shape_and_dtype_on_every_rank(sde, shaped_mixture, name):
    """The last output is the x0 estimate."""
    step, denoise = STEPS[name](sde, **ALONE.get(name, {})), shaped_mixture.denoiser(sde, 0.5)
    times = GRIDS["log_snr"](sde, 1 if name in ALONE else 8)
    for batch, dtype in ((1, torch.float32), (3, torch.float64)):
        x = terminal(shaped_mixture, sde, batch).to(dtype)
        states = list(trajectory(step, denoise, x, times, noises(batch)))
        assert len(states) == len(times), dtype
        for state in states:
            assert state.shape == x.shape
            assert state.dtype == dtype
            assert state.isfinite().all(), dtype
        if name != "ald":  # it takes steps at the last level, too
            assert torch.equal(states[-1], denoise(states[-2], sde.t_min).x0)


# --- deterministic steps ----------------------------------------------------------------------------------------------


def each_order():
    """Every step on every process; of processes with equal trajectories (test_sde.py), two are in the quick suite."""
    for k, name in enumerate(ORDERS):
        for i, process in enumerate(
            ["vpsde", "vesde", "rectified", *sorted(SDES.keys() - {"vpsde", "vesde", "rectified"})]
        ):
            quick = process in REPRESENTATIVE if name in OF_TIME else i < 3 and (i + k) % 3
            yield pytest.param(name, process, marks=[] if quick else [pytest.mark.slow], id=f"{process}-{name}")


@pytest.mark.parametrize(("name", "sde"), list(each_order()), indirect=["sde"])
def test_order_matches_the_theory(sde, mixture, quantiles, name):
    x, expected, end = quantiles
    errors = []
    for num_steps in (128, 256):
        computed = flow(STEPS[name](sde), mixture.denoiser(sde, 0.5), x, GRIDS["log_snr"](sde, num_steps, end=end))
        errors.append((computed - expected).abs())
    order, tolerance = ORDERS[name]
    fall = (errors[0] / errors[1]).median() if order <= 2 else errors[0].norm() / errors[1].norm()
    assert torch.log2(fall).item() == pytest.approx(order, abs=tolerance)
    assert errors[1].max() < (0.05 if order <= 2 else 0.08) ** order


def test_ode_follows_the_flow_to_its_tolerance(sde, mixture, quantiles):
    x, expected, end = quantiles
    for tolerance in (1e-4, 1e-8):
        computed = STEPS["ode"](sde, rtol=tolerance, atol=tolerance)(
            mixture.denoiser(sde, 0.5), x, sde.t_max, end, None
        )
        error = (computed - expected).abs()
        assert error.median() < 5 * tolerance
        assert error.max() < 100 * tolerance  # between the modes the flow spreads nearby states


def test_ddim_is_exact_for_one_point(sde):
    point = torch.tensor([[0.3, -0.7]]).double()
    eps = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    last = sde.marginal(sde.t_min)
    x = sde.perturb(point, eps, sde.t_max)
    computed = flow(DDIM(sde), GaussianMixture.of_points(point).denoiser(sde, 0.5), x, GRIDS["log_snr"](sde, 3))
    torch.testing.assert_close(computed, last.alpha * point + last.sigma * eps)


@pytest.mark.parametrize("grid", ["karras", "uniform"])
def test_heun_matches_karras_algorithm_for_edm(mixture, grid):
    sde, num_steps = SDES["edm"](), 10
    times, denoise = GRIDS[grid](sde, num_steps), mixture.denoiser(sde, 0.5)
    x = terminal(mixture, sde, 20)
    expected, sigmas = x, times.tolist()
    for i in range(num_steps):  # Karras et al., 2022, algorithm 1, with sigma(t) = t and s(t) = 1
        d = (expected - denoise(expected, sigmas[i]).x0) / sigmas[i]
        euler = expected + (sigmas[i + 1] - sigmas[i]) * d
        d_prime = (euler - denoise(euler, sigmas[i + 1]).x0) / sigmas[i + 1]
        expected = expected + (sigmas[i + 1] - sigmas[i]) * (0.5 * d + 0.5 * d_prime)
    torch.testing.assert_close(flow(Heun(sde), denoise, x, times), expected, rtol=1e-9, atol=1e-9)
    # Its last step, to sigma = 0, is Euler's, which equals the loop's last denoising.
    d = (expected - denoise(expected, sigmas[-1]).x0) / sigmas[-1]
    torch.testing.assert_close(
        sample(Heun(sde), denoise, x, times, torch.randn_like), expected - sigmas[-1] * d, rtol=1e-9, atol=1e-9
    )


# --- marginals --------------------------------------------------------------------------------------------------------


def each_law():
    """Slow without noise, where orders and tolerances already measure the flow."""
    for name, options in KEEPING:
        drawn = name in STOCHASTIC | {"adaptive_sde"} or "eta" in options
        yield pytest.param(name, options, marks=[] if drawn else [pytest.mark.slow], id=f"{name}-{options}")


@pytest.mark.parametrize(("name", "options"), list(each_law()))
def test_marginals_are_kept(sde, mixture, name, options):
    steps = {**dict.fromkeys(ALONE, 1), **dict.fromkeys(FAST, 50)}.get(name, 400)
    assert_marginal(mixture, sde, evolve(mixture, sde, STEPS[name](sde, **options), 3000, steps))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), KEEPING, ids=str)
def test_marginals_are_kept_in_the_plane(sde, plane, name, options):
    steps = {**dict.fromkeys(ALONE, 1), **dict.fromkeys(FAST, 50)}.get(name, 500)
    assert_marginal(plane, sde, evolve(plane, sde, STEPS[name](sde, **options), 3000, steps))


# --- independence of the batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["network", pytest.param("exact", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_a_sample_does_not_depend_on_its_batch(sde, name, options, kind):
    generator = torch.Generator().manual_seed(0)
    if kind == "network":
        denoise = Denoiser(Convolutions(), sde, "edm", 0.5)
    else:
        means = torch.rand(3, 1, 6, 5, generator=generator) - 0.5
        denoise = GaussianMixture(torch.tensor([0.2, 0.3, 0.5]), means, 0.1).denoiser(sde, 0.5)
    x = sde.prior_std * torch.randn(64, 1, 6, 5, generator=generator)
    times = GRIDS["karras"](sde, 1 if name in ALONE else 12)

    def run(rows):
        with torch.no_grad():
            return sample(STEPS[name](sde, **options), denoise, x[rows], times, Noise(torch.arange(64)[rows]))

    whole = run(slice(0, 64))
    tolerance = {"ode": 1e-4, "deis": 2e-3, "vab": 2e-3}.get(name, 2e-5)  # high orders amplify rounding
    for rows in (slice(5, 6), slice(3, 10)):
        torch.testing.assert_close(run(rows), whole[rows], rtol=tolerance, atol=tolerance)


# --- chains -----------------------------------------------------------------------------------------------------------

TWO = GaussianMixture(torch.ones(2).double(), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double(), 0.05)
UNSTABLE = {("euler_maruyama", "ncsn", 8)}  # h g^2 > 2 sigma^2, beyond the stability of the Euler-Maruyama move


@pytest.mark.parametrize("name", sorted(STEPS))
def test_few_steps_on_a_chain_end_near_the_data(name):
    """On the step's own grid. The chain of iDDPM falls from sigma / alpha of 2e4 to a few units in the first step."""
    for chain in ("ddpm", "iddpm", "ncsn"):
        sde, grid = SDES[chain](), GRIDS[STEPS[name].grid or SDES[chain]().grid]
        denoise = TWO.denoiser(sde, v=0.5 if name == "ancestral_learned" else None)
        for num in {8} if name in ALONE else {8, 20, 50}:
            if (name, chain, num) not in UNSTABLE:
                noise = noises(16)
                x = sde.prior_std * noise(torch.empty(16, 2, dtype=torch.float64))
                assert sample(STEPS[name](sde), denoise, x, grid(sde, num), noise).abs().max() < 3.2, (chain, num)


@pytest.mark.parametrize(("num", "error"), [(8, 3e-2), (20, 2e-3), (50, 5e-4)])
@pytest.mark.parametrize("name", ["plms", "pndm"])
def test_chains_that_start_in_pure_noise_follow_the_flow(name, num, error):
    """Median distance from the exact flow on iDDPM's chain."""
    sde = SDES["iddpm"]()
    times, denoise = GRIDS[sde.grid](sde, num), TWO.denoiser(sde)
    x = sde.prior_std * noises(16)(torch.empty(16, 2, dtype=torch.float64))
    exact = sample(STEPS["ode"](sde, rtol=1e-8, atol=1e-8), denoise, x, times[[0, -1]], None)
    assert (sample(STEPS[name](sde), denoise, x, times, None) - exact).abs().median() < error


# --- identities and counts --------------------------------------------------------------------------------------------


def test_ddim_at_eta_one_is_ancestral(sde, shaped_mixture):
    x, times = terminal(shaped_mixture, sde, 4), GRIDS["log_snr"](sde, 10)
    denoise = shaped_mixture.denoiser(sde, 0.5)
    ddim, ancestral = (sample(step, denoise, x, times, noises(4)) for step in (DDIM(sde, 1.0), Ancestral(sde)))
    torch.testing.assert_close(ddim, ancestral, rtol=1e-12, atol=1e-12)


GUIDED = [("rk4", {}), ("rk45", {}), ("adams", {}), ("ode", {}), ("multistep", {"integrand": "residual"})]


def test_every_step_with_a_gaussian_has_a_shift_test():
    assert {name for name, _ in GUIDED} == {name for name in STEPS if "gaussian" in signature(STEPS[name]).parameters}


@pytest.mark.parametrize(("name", "options"), GUIDED, ids=str)
def test_shifting_data_and_gaussian_by_c_shifts_the_state_by_alpha_c(sde, plane, name, options):
    c, mean = torch.tensor([0.7, -1.3]).double(), torch.tensor([0.2, 0.5]).double()
    denoise, x, times = plane.denoiser(sde), terminal(plane, sde, 4), GRIDS["log_snr"](sde, 5)
    here = STEPS[name](sde, **options, gaussian=Gaussian(mean, 0.3))
    there = STEPS[name](sde, **options, gaussian=Gaussian(mean + c, 0.3))

    def moved(x, t):
        return Prediction(denoise(x - sde.marginal(t).alpha * c, t).x0 + c)

    expected = flow(here, denoise, x, times) + sde.marginal(sde.t_min).alpha * c
    found = flow(there, moved, x + sde.marginal(sde.t_max).alpha * c, times)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-8)


def test_ancestral_at_both_ends_is_ddpm(mixture):
    """Mean and both variances of one step of the chain, from its betas."""
    chain, i, x = VPSDE().discretize(100), 40, torch.tensor([[0.7], [-1.1]]).double()
    betas = torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)
    bars = torch.cumprod(1 - betas, 0)
    beta, bar, earlier = betas[i - 1], bars[i - 1], bars[i - 2]
    x0 = mixture.posterior_mean(x, bar.sqrt(), (1 - bar).sqrt())
    eps = (x - bar.sqrt() * x0) / (1 - bar).sqrt()
    mean = (x - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()  # Ho, Jain, Abbeel, 2020, eq. 11
    z = torch.tensor([[0.3], [-2.0]]).double()
    for share, variance in [(0.0, beta * (1 - earlier) / (1 - bar)), (1.0, beta)]:
        moved = Ancestral(chain, share)(mixture.denoiser(chain), x, float(i), float(i - 1), lambda x: z)
        torch.testing.assert_close(moved, mean + variance.sqrt() * z, rtol=1e-10, atol=1e-10)


def test_euler_maruyama_and_reverse_diffusion_match_the_paper(mixture):
    """One explicit step for VP: beta and its two discretizations."""
    sde, t, s = VPSDE(), 0.5, 0.49
    beta = 0.1 + t * 19.9
    x, z = torch.tensor([[0.7], [-1.1]]).double(), torch.tensor([[0.3], [-2.0]]).double()
    denoise = mixture.denoiser(sde, 0.5)
    score = denoise.score(x, t)
    drift = -0.5 * beta * x - beta * score
    expected = x - drift * 0.01 + (beta * 0.01) ** 0.5 * z
    torch.testing.assert_close(EulerMaruyama(sde)(denoise, x, t, s, lambda x: z), expected, rtol=1e-9, atol=1e-9)
    integral = 0.01 * (0.1 + 0.495 * 19.9)  # of beta between the two
    a, b = torch.tensor(-0.5 * integral).double().exp(), (1 - torch.tensor(-integral).double().exp()).sqrt()
    expected = (2 - a) * x + b**2 * score + b * z
    torch.testing.assert_close(ReverseDiffusion(sde)(denoise, x, t, s, lambda x: z), expected, rtol=1e-6, atol=1e-6)


# Evaluations and draws of noise in each step.
COSTS = [
    ("euler_maruyama", {}, 1, 1),
    ("reverse_diffusion", {}, 1, 1),
    ("ancestral", {}, 1, 1),
    ("ancestral_learned", {}, 1, 1),
    ("ddim", {}, 1, 0),
    ("ddim", {"eta": 0.5}, 1, 1),
    ("heun", {}, 2, 0),
    ("dpm_2s", {}, 2, 0),
    ("dpm_3s", {}, 3, 0),
    ("dpmpp_2s", {}, 2, 0),
    ("rk4", {}, 4, 0),
    ("rk45", {}, 6, 0),
    ("pc", {}, 2, 2),
    ("pc", {"corrector_steps": 3, "predictor": "ddim"}, 4, 3),
    ("consistency", {}, 1, 1),
]


@pytest.mark.parametrize(("name", "options", "evaluations", "draws"), COSTS, ids=str)
def test_evaluations_and_draws_are_counted(sde, mixture, name, options, evaluations, draws):
    denoise, noise = Counted(mixture.denoiser(sde, 0.5)), Counted(torch.randn_like)
    sample(STEPS[name](sde, **options), denoise, terminal(mixture, sde, 2), GRIDS["karras"](sde, 7), noise)
    assert denoise.calls == 7 * evaluations + 1
    assert noise.calls == 7 * draws


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_the_last_step_of_a_grid_that_ends_at_the_data_is_the_denoising(sde, mixture, name, options, monkeypatch):
    """No state without noise reaches the step or the table, and nothing else changes."""
    x, denoise, moved, tabled = terminal(mixture, sde, 3), mixture.denoiser(sde, 0.5), [], []
    options = ALONE.get(name, options)

    class Asked(STEPS[name]):
        def __call__(self, denoise, x, t, s, draw):
            moved.extend([t, s])
            return super().__call__(denoise, x, t, s, draw)

    monkeypatch.setattr(sde, "tabulate", lambda times, tabulate=sde.tabulate: (tabled.extend(times), tabulate(times)))
    times = GRIDS["edm"](sde, 5)
    with_data = list(trajectory(Asked(sde, **options), denoise, x, times, noises(3)))
    assert sde.sigma(times)[-1] == 0
    assert len(moved) == 2 * 4
    assert tabled[:5] == times[:-1].tolist()  # a step with precomputed stages adds their times
    assert all(sde.marginal(t).sigma > 0 for t in moved + tabled)
    without = list(trajectory(STEPS[name](sde, **options), denoise, x, GRIDS["karras"](sde, 4), noises(3)))
    assert len(with_data) == len(without) == 5
    for ours, theirs in zip(with_data, without, strict=True):
        assert torch.equal(ours, theirs)


def test_one_step_to_the_data_is_one_evaluation(sde, mixture):
    denoise = Counted(mixture.denoiser(sde, 0.5))
    x = terminal(mixture, sde, 3)
    (data,) = trajectory(DDIM(sde), denoise, x, GRIDS["edm"](sde, 1), noises(3))
    assert denoise.calls == 1
    assert torch.equal(data, mixture.denoiser(sde, 0.5)(x, sde.t_max).x0)


@pytest.mark.parametrize("grid", ["uniform", "edm"])
def test_a_constraint_acts_after_each_step_and_on_the_data(mixture, grid):
    sde, seen = VPSDE(), []

    def constrain(x, alpha, sigma):
        seen.append((alpha, sigma))
        return torch.full_like(x, alpha * 0.25)

    times, denoise = GRIDS[grid](sde, 3), mixture.denoiser(sde, 0.5)
    states = list(trajectory(DDIM(sde), denoise, terminal(mixture, sde, 2), times, torch.randn_like, constrain))
    noisy = [t for t in times.tolist()[1:] if t > 0]
    assert seen == [*((sde.marginal(t).alpha, sde.marginal(t).sigma) for t in noisy), (1.0, 0.0)]
    assert [state[0].item() for state in states] == [alpha * 0.25 for alpha, _ in seen]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {"eta": -0.1}),
        ("ddim", {"eta": 1.1}),
        ("ancestral", {"v": 2.0}),
        ("ode", {"solver": "rk4"}),
        ("pc", {"predictor": "langevin"}),
        ("pc", {"corrector": "none"}),
        ("pc", {"snr": 0.0}),
        ("pc", {"corrector_steps": -1}),
        ("plms", {"order": 1}),
        ("plms", {"order": 5}),
        ("pndm", {"order": 3}),
        ("ald", {"epsilon": -0.1}),
        ("ald", {"langevin_steps": 0}),
    ],
)
def test_bad_options_are_refused_by_value(name, options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        STEPS[name](VPSDE(), **options)
