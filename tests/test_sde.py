"""Processes: every formula against its textbook form in 40 digits, and every identity that other modules rely on."""

import copy
import math
import pickle
from decimal import Decimal, getcontext
from functools import lru_cache, partial
from inspect import signature
from itertools import pairwise, product
from math import factorial
from types import SimpleNamespace

import pytest
import torch

from score_sde.samplers import GRIDS, STEPS
from score_sde.sde_lib import (
    EDMSDE,
    SDES,
    TIMESTEP_SAMPLERS,
    VESDE,
    VPSDE,
    CosineSDE,
    LaplaceSDE,
    LogisticSDE,
    RectifiedSDE,
    SigmoidSDE,
    SubVPSDE,
    ddpm,
    iddpm,
    ncsn,
)
from tests.trajectories import OF_TIME, ORDERS


@pytest.fixture(params=sorted(SDES))
def sde(request):
    """Every process with its defaults; these are the unit tests of processes."""
    return SDES[request.param]()


getcontext().prec = 40
PI = Decimal("3.141592653589793238462643383279502884197")


def exact(value):
    return Decimal(float(value))


def sin(x):
    return sum((-1) ** k * x ** (2 * k + 1) / factorial(2 * k + 1) for k in range(25))


def cos(x):
    return sum((-1) ** k * x ** (2 * k) / factorial(2 * k) for k in range(25))


# (parameters, t) -> alpha, sigma, f, g of dx = f x dt + g dw, as printed in the papers.


def vp(p, t):
    low, high = exact(p.beta_min), exact(p.beta_max)
    rate, integral = low + t * (high - low), t * low + t**2 * (high - low) / 2
    return (-integral / 2).exp(), (1 - (-integral).exp()).sqrt(), -rate / 2, rate.sqrt()


def subvp(p, t):
    low, high = exact(p.beta_min), exact(p.beta_max)
    rate, integral = low + t * (high - low), t * low + t**2 * (high - low) / 2
    noise = 1 - (-integral).exp()
    return (-integral / 2).exp(), noise, -rate / 2, (rate * (1 - (-2 * integral).exp())).sqrt()


def ve(p, t):
    low, high = exact(p.sigma_min), exact(p.sigma_max)
    sigma = low * (high / low) ** t
    return Decimal(1), sigma, Decimal(0), sigma * (2 * (high / low).ln()).sqrt()


def edm(p, t):
    return Decimal(1), t, Decimal(0), (2 * t).sqrt()


def cosine(p, t):
    speed = PI / 2 / (1 + exact(p.offset))
    angle, start = speed * (t + exact(p.offset)), speed * exact(p.offset)
    alpha = cos(angle) / cos(start)
    rate = 2 * speed * sin(angle) / cos(angle)
    return alpha, (1 - alpha**2).sqrt(), -rate / 2, rate.sqrt()


def rectified(p, t):
    return 1 - t, t, -1 / (1 - t), (2 * t / (1 - t)).sqrt()


def preserving(kept, lost, rate):
    """alpha^2, sigma^2 and -d log alpha^2 / dt."""
    return kept.sqrt(), lost.sqrt(), -rate / 2, rate.sqrt()


def logistic_curve(x):
    return 1 / (1 + (-x).exp())


def sigmoid(p, t):
    start, end, tau = exact(p.start), exact(p.end), exact(p.tau)
    first, here, last = (logistic_curve(u / tau) for u in (start, start + t * (end - start), end))
    kept = (last - here) / (last - first)
    return preserving(kept, 1 - kept, (end - start) / tau * here * (1 - here) / (last - here))


def laplace(p, t):
    side = 1 if t < Decimal("0.5") else -1
    odds = (1 - 2 * abs(Decimal("0.5") - t)).ln()
    kept = logistic_curve(exact(p.mean) - exact(p.scale) * side * odds)
    return preserving(kept, 1 - kept, (1 - kept) * exact(p.scale) / min(t, 1 - t))


def logistic(p, t):
    kept = logistic_curve(exact(p.mean) - exact(p.scale) * (t / (1 - t)).ln())
    return preserving(kept, 1 - kept, (1 - kept) * exact(p.scale) / (t * (1 - t)))


@lru_cache
def chain(betas):
    """log alpha and log sigma at the levels of DDPM's chain."""
    kept, table = Decimal(1), []
    for beta in betas:
        kept *= 1 - beta
        table.append((kept.ln() / 2, (1 - kept).ln() / 2))
    return table


def between(levels, t):
    """log alpha and log sigma by linear interpolation between the levels."""
    i = min(int(t), len(levels) - 1)
    (a, b), (next_a, next_b) = levels[i - 1], levels[i]
    f, noise = next_a - a, next_b - b
    sigma = (b + (t - i) * noise).exp()
    return (a + (t - i) * f).exp(), sigma, f, sigma * (2 * (noise - f)).sqrt()


def ddpm_chain(p, t):
    rise = (exact(p.beta_max) - exact(p.beta_min)) / (p.num_levels - 1)
    return between(chain(tuple(exact(p.beta_min) + i * rise for i in range(p.num_levels))), t)


@lru_cache
def cosine_betas(num_levels, offset):
    bars = [cos(PI / 2 * (Decimal(i) / num_levels + offset) / (1 + offset)) ** 2 for i in range(num_levels + 1)]
    return tuple(min(1 - bars[i + 1] / bars[i], exact(0.999)) for i in range(num_levels))


def iddpm_chain(p, t):
    return between(chain(cosine_betas(p.num_levels, exact(p.offset))), t)


def ladder(p, t):
    rise = (exact(p.sigma_max) / exact(p.sigma_min)).ln() / (p.num_levels - 1)
    sigma = exact(p.sigma_min) * (rise * (t - 1)).exp()
    return Decimal(1), sigma, Decimal(0), sigma * (2 * rise).sqrt()


TEXTBOOK = {
    "vpsde": vp,
    "subvpsde": subvp,
    "vesde": ve,
    "edm": edm,
    "cosine": cosine,
    "rectified": rectified,
    "sigmoid": sigmoid,
    "laplace": laplace,
    "logistic": logistic,
    "ddpm": ddpm_chain,
    "iddpm": iddpm_chain,
    "ncsn": ladder,
}
OTHERS = {
    "vpsde": {"beta_min": 0.5, "beta_max": 8.0},
    "subvpsde": {"beta_min": 1.0, "beta_max": 1.0},
    "vesde": {"sigma_min": 0.05, "sigma_max": 378.0},
    "edm": {"sigma_min": 0.02, "sigma_max": 10.0},
    "cosine": {"offset": 0.1, "t_max": 0.9},
    "rectified": {"t_min": 1e-3, "t_max": 0.9},
    "sigmoid": {"start": 0.0, "end": 3.0, "tau": 0.3, "t_max": 0.99},
    "laplace": {"mean": -1.0, "scale": 0.5},
    "logistic": {"mean": 1.5, "scale": 0.7},
    "ddpm": {"num_levels": 50, "beta_min": 1e-3, "beta_max": 0.3},
    "iddpm": {"num_levels": 100, "offset": 0.05},
    "ncsn": {"sigma_min": 0.05, "sigma_max": 378.0, "num_levels": 12},
}


@pytest.fixture(params=sorted(SDES))
def name(request):
    return request.param


@pytest.fixture(params=["defaults", "others"])
def pair(request, name):
    """A process with its textbook form."""
    return with_textbook(name, OTHERS[name] if request.param == "others" else {})


def with_textbook(name, options):
    bound = signature(SDES[name]).bind(**options)
    bound.apply_defaults()
    return SDES[name](**options), partial(TEXTBOOK[name], SimpleNamespace(**bound.arguments))


def interval(sde, num=41, dtype=torch.float64, least=0.0):
    """Times over the whole interval, close to one another at its start."""
    low = max(sde.t_min, least)
    times = low * (sde.t_max / low) ** torch.linspace(0, 1, num, dtype=torch.float64)
    return times.clamp(low, sde.t_max).to(dtype)


def check(computed, expected, rtol):
    torch.testing.assert_close(computed.double(), torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=0)


# --- against the papers -----------------------------------------------------------------------------------------------


def test_marginals_drift_and_diffusion_match_the_textbook(pair):
    sde, textbook = pair
    times = interval(sde)
    alpha, sigma, f, g = zip(*([float(v) for v in textbook(exact(t))] for t in times))
    check(sde.alpha(times), alpha, 1e-13)
    check(sde.sigma(times), sigma, 1e-11)
    check(sde.log_alpha(times), [float(textbook(exact(t))[0].ln()) for t in times], 2e-9)
    check(sde.drift(times), f, 1e-10)
    check(sde.diffusion(times), g, 1e-10)


def test_float32_keeps_its_digits_down_to_a_millionth(name):
    sde, textbook = with_textbook(name, {"t_min": 1e-6} if "t_min" in signature(SDES[name]).parameters else {})
    times = interval(sde, dtype=torch.float32)
    alpha, sigma, f, g = zip(*([float(v) for v in textbook(exact(t))] for t in times))
    check(sde.alpha(times), alpha, 1e-6)
    check(sde.sigma(times), sigma, 1e-6)
    check(sde.drift(times), f, 2e-5)
    check(sde.diffusion(times), g, 2e-5)
    assert sde.sigma(times).dtype == sde.drift(times).dtype == torch.float32


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_the_simulated_process_has_the_marginals(sde, share):
    generator = torch.Generator().manual_seed(0)
    num, steps = 3000, 3000
    times = torch.linspace(sde.t_min, sde.t_min + share * (sde.t_max - sde.t_min), steps + 1, dtype=torch.float64)
    first, last = sde.marginal(sde.t_min), sde.marginal(times[-1].item())
    x = first.alpha * 1.5 + first.sigma * torch.randn(num, generator=generator, dtype=torch.float64)
    h = times[1].item() - times[0].item()
    for f, g in zip(sde.drift(times[:-1]).tolist(), sde.diffusion(times[:-1]).tolist()):
        x = x + h * f * x + h**0.5 * g * torch.randn(num, generator=generator, dtype=torch.float64)
    assert abs(x.mean().item() - 1.5 * last.alpha) < 3 * last.sigma / num**0.5
    assert abs(x.std().item() - last.sigma) < 3 * last.sigma / (2 * num) ** 0.5


# --- log-SNR ----------------------------------------------------------------------------------------------------------


def test_log_snr_matches_the_textbook_and_falls(pair):
    sde, textbook = pair
    times = interval(sde)
    expected = [float(2 * (moments[0] / moments[1]).ln()) for t in times for moments in [textbook(exact(t))]]
    torch.testing.assert_close(sde.log_snr(times), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)
    assert (sde.log_snr(torch.linspace(sde.t_min, sde.t_max, 5001, dtype=torch.float64)).diff() < 0).all()


def test_time_inverts_log_snr(pair):
    sde, _ = pair
    times = interval(sde)
    torch.testing.assert_close(sde.time(sde.log_snr(times)), times, rtol=1e-9, atol=0)


def test_ratio_is_sigma_over_alpha_and_time_of_ratio_inverts_it(pair):
    sde, textbook = pair
    times = interval(sde)
    expected = [float(moments[1] / moments[0]) for t in times for moments in [textbook(exact(t))]]
    check(sde.ratio(times), expected, 1e-11)
    check(sde.marginal(times).ratio, expected, 1e-11)
    check(torch.tensor([sde.ratio(t) for t in times.tolist()], dtype=torch.float64), expected, 1e-11)
    torch.testing.assert_close(sde.time_of_ratio(sde.ratio(times)), times, rtol=1e-9, atol=0)
    for t in times.tolist():
        assert sde.time_of_ratio(sde.ratio(t)) == pytest.approx(t, rel=1e-9)
        assert sde.marginal(t).ratio == pytest.approx(sde.ratio(t), rel=1e-13)


def test_time_inverts_log_snr_in_float32(pair):
    sde, _ = pair
    ends = sde.log_snr(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)).tolist()
    l = torch.linspace(*ends, 101)
    t = sde.time(l)
    assert t.dtype == torch.float32
    expected = sde.time(l.double())
    # Times are accurate to a few units in the last place of the float32 log-SNR, at the local slope.
    unit = 4e-7 * (1 + l.abs())
    slope = (sde.sigma(expected) / sde.diffusion(expected)) ** 2
    assert ((t - expected).abs() <= 4 * (unit * slope + 1e-7 * expected)).all()


# --- transitions and bridges ------------------------------------------------------------------------------------------


def triples(sde):
    """Early, middle and late times, near one another and far apart."""
    times = interval(sde, 13).tolist()
    return [(times[i], times[j], times[k]) for i, j, k in [(0, 1, 2), (0, 6, 12), (3, 7, 9), (8, 11, 12), (10, 11, 12)]]


def test_transitions_compose_and_carry_marginals(sde):
    for r, s, t in triples(sde):
        (a1, b1), (a2, b2), (a, b) = sde.transition(r, s), sde.transition(s, t), sde.transition(r, t)
        assert a == pytest.approx(a1 * a2, rel=1e-12)
        assert b**2 == pytest.approx((a2 * b1) ** 2 + b2**2, rel=1e-12)
        early, late = sde.marginal(s), sde.marginal(t)
        assert late.alpha == pytest.approx(a2 * early.alpha, rel=1e-12)
        assert late.sigma**2 == pytest.approx((a2 * early.sigma) ** 2 + b2**2, rel=1e-12)


def test_a_short_transition_is_an_euler_step(sde):
    """b^2 is a difference of nearly equal numbers here and must keep all its digits."""
    for t in interval(sde, 8).tolist()[1:-1]:  # none of them a level, where the rates of a chain jump
        h = 1e-7 * t
        a, b = sde.transition(t - h / 2, t + h / 2)
        assert b == pytest.approx(sde.diffusion(t) * h**0.5, rel=1e-5)
        assert a - 1 == pytest.approx(sde.drift(t) * h, rel=1e-4, abs=1e-15)


def bridge_coefficients(sde, t, s, eta):
    """Factors of x and x0 in the mean, and the standard deviation."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    of_x, std = sde.bridge(one, zero, t, s, eta)
    of_x0, _ = sde.bridge(zero, one, t, s, eta)
    return of_x.item(), of_x0.item(), std


def test_bridge_keeps_the_marginal(sde):
    for eta, (_, s, t) in product([0.0, 0.3, 1.0], triples(sde)):
        of_x, of_x0, std = bridge_coefficients(sde, t, s, eta)
        early, late = sde.marginal(s), sde.marginal(t)
        assert of_x * late.alpha + of_x0 == pytest.approx(early.alpha, rel=1e-12)
        assert (of_x * late.sigma) ** 2 + std**2 == pytest.approx(early.sigma**2, rel=1e-12)
        assert std == pytest.approx(eta * early.sigma * sde.transition(s, t)[1] / late.sigma, rel=1e-12)


def test_bridge_is_the_gaussian_posterior_at_eta_one(sde):
    for _, s, t in triples(sde):
        (a, b), early = sde.transition(s, t), sde.marginal(s)
        variance = 1 / (early.sigma**-2 + (a / b) ** 2)  # Bayes: N(alpha_s x0, sigma_s^2) times N(x_t; a x_s, b^2)
        of_x, of_x0, std = bridge_coefficients(sde, t, s, 1.0)
        assert of_x == pytest.approx(variance * a / b**2, rel=1e-9)
        assert of_x0 == pytest.approx(variance * early.alpha / early.sigma**2, rel=1e-9)
        assert std**2 == pytest.approx(variance, rel=1e-9)


def test_conversions_are_the_definitions_and_invert_each_other(sde):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=generator)
    t = interval(sde, 5).reshape(5, 1, 1)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = alpha * x0 + sigma * eps
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(sde.perturb(x0, eps, t), x)
    torch.testing.assert_close(sde.eps(x, x0, t), eps, **close)
    torch.testing.assert_close(alpha * sde.x0(x, eps, t), alpha * x0, **close)
    torch.testing.assert_close(sde.score(x, x0, t) * sigma, -eps, **close)
    torch.testing.assert_close(alpha * sde.x0_of_score(x, -eps / sigma, t), alpha * x0, **close)


def test_prior_is_the_limit_of_the_noise(sde):
    x = 2 * torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(0.0, sde.prior_std).log_prob(x).sum((1, 2))
    torch.testing.assert_close(sde.prior_log_prob(x), expected)
    assert sde.marginal(sde.t_max).sigma == pytest.approx(sde.prior_std, rel=1e-3)
    assert sde.marginal(sde.t_max).alpha < 0.04 * sde.prior_std


def test_the_time_without_noise_is_valid(sde):
    for dtype, eta in product([torch.float32, torch.float64], [0.0, 1.0]):
        t = sde.time(torch.tensor(math.inf, dtype=dtype))
        assert sde.marginal(t) == pytest.approx((1.0, 0.0, math.inf))
        assert sde.marginal(t.item()) == pytest.approx((1.0, 0.0, math.inf))
        x, x0 = torch.ones(2, 3, dtype=dtype), torch.full((2, 3), 0.5, dtype=dtype)
        mean, std = sde.bridge(x, x0, sde.t_min, t.item(), eta)
        torch.testing.assert_close(mean, x0)
        assert std == 0


# --- times as numbers and as tensors ----------------------------------------------------------------------------------


def answers(sde, s, t):
    """Every quantity that depends on time alone."""
    return [*sde.marginal(t), sde.alpha(t), sde.drift(t), sde.diffusion(t), *sde.transition(s, t)]


def test_numbers_and_tensors_agree(sde):
    times = interval(sde, 9)
    s, t = times[:-1], times[1:]
    together = torch.stack(answers(sde, s.reshape(-1, 1, 1), t.reshape(-1, 1, 1))).flatten(1)
    for k in range(len(t)):
        alone = answers(sde, s[k].item(), t[k].item())
        assert all(type(v) is float for v in alone)
        check(together[:, k], alone, 1e-12)
        check(torch.stack(answers(sde, s[k], t[k])), alone, 1e-12)


def test_tabulate_changes_nothing(name):
    times = interval(SDES[name](), 6).flip(0)
    tabulated = SDES[name]()
    tabulated.tabulate(times)
    for t, s in zip(times.tolist(), times.tolist()[1:]):
        assert answers(tabulated, s, t) == pytest.approx(answers(SDES[name](), s, t), rel=1e-13)
    between = 0.5 * (times[2] + times[3]).item()
    assert tabulated.marginal(between) == SDES[name]().marginal(between)


def test_tabulated_values_stay_when_others_are_added(sde, monkeypatch):
    first, second = interval(sde, 5), interval(sde, 8)
    expected = [answers(sde, s, t) for s, t in pairwise(first.tolist())]
    sde.tabulate(first)
    sde.tabulate(second)
    monkeypatch.setattr(type(sde), "log_alpha", None)
    found = [answers(sde, s, t) for s, t in pairwise(first.tolist())]
    assert found == [pytest.approx(values, rel=1e-13) for values in expected]


def test_the_oldest_tabulated_times_are_dropped(monkeypatch):
    monkeypatch.setattr("score_sde.sde_lib.process.MOST_TABULATED", 6)
    sde, times = VPSDE(), torch.linspace(0.1, 1, 10, dtype=torch.float64)
    sde.tabulate(times[:5])
    sde.tabulate(times[:2])  # these are now the newest
    sde.tabulate(times[5:7])
    assert sorted(sde._table) == [times[k].item() for k in (0, 1, 3, 4, 5, 6)]
    sde.tabulate(times)  # more than the bound, for a grid is never cut
    assert len(sde._table) == 10


def test_copies_begin_without_tabulated_values(sde):
    times = interval(sde, 5)
    sde.tabulate(times)
    for made in (copy.deepcopy(sde), pickle.loads(pickle.dumps(sde))):
        assert not made._table
        assert made.marginal(times[2].item()) == sde.marginal(times[2].item())


def test_works_inside_inference_mode(sde):
    times = interval(sde, 3)
    expected = answers(sde, times[0], times[1])
    with torch.inference_mode():
        torch.testing.assert_close(answers(sde, times[0], times[1]), expected)
        inside = interval(sde, 3)
        torch.testing.assert_close(answers(sde, inside[0], inside[1]), expected)


# --- rectified flow ---------------------------------------------------------------------------------------------------


def test_the_velocity_of_rectified_flow_equals_the_probability_flow(shaped_mixture):
    sde, denoise = RectifiedSDE(), shaped_mixture.denoiser(RectifiedSDE())
    x = torch.randn(6, *shaped_mixture.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.001, 0.1, 0.4, 0.7, 0.95, 0.999], dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))
    x0 = denoise(x, t).x0
    velocity = sde.eps(x, x0, t) - x0
    flow = sde.drift(t) * x - 0.5 * sde.diffusion(t) ** 2 * denoise.score(x, t)
    torch.testing.assert_close(velocity, flow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", sorted(ORDERS.keys() - OF_TIME | {"ode"}))
def test_a_step_in_log_snr_is_the_same_for_every_process(sde, plane, step):
    """For equal scaled states at equal log-SNR; rectified flow is diffusion in other coordinates."""
    y = 10 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends, last = torch.tensor([-4.0, 6.0], dtype=torch.float64), []
    for process in (sde, VPSDE()):
        denoise, move = plane.denoiser(process), STEPS[step](process)
        times = GRIDS["log_snr"](process, 4, *process.time(ends).tolist()).tolist()
        x = process.alpha(times[0]) * y
        move.reset(times)
        for t, s in pairwise(times):
            noise = math.exp(-0.5 * process.marginal(t).log_snr)
            torch.testing.assert_close(denoise(x, t).x0, plane.posterior_mean(x / process.alpha(t), 1.0, noise))
            x = move(denoise, x, t, s, None)
        last.append(x / process.alpha(times[-1]))
    torch.testing.assert_close(*last, rtol=1e-6, atol=1e-6)


def test_the_lognormal_law_of_rectified_flow_is_logit_normal():
    u = torch.tensor([0.1, 0.3, 0.5, 0.8], dtype=torch.float64)
    t, _ = TIMESTEP_SAMPLERS["lognormal"](RectifiedSDE(), u, mean=0.4, std=0.9)
    torch.testing.assert_close(torch.logit(t), 0.4 + 0.9 * torch.special.ndtri(u), rtol=1e-6, atol=1e-6)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "options"),
    [
        (VPSDE, {"beta_min": 0.0}),
        (VPSDE, {"beta_min": 2.0, "beta_max": 1.0}),
        (VPSDE, {"t_min": 0.0}),
        (VPSDE, {"t_min": 1.0}),
        (VPSDE, {"beta_max": float("nan")}),
        (SubVPSDE, {"beta_min": -1.0}),
        (SubVPSDE, {"t_min": -1e-3}),
        (CosineSDE, {"offset": -0.1}),
        (CosineSDE, {"t_min": 0.0}),
        (CosineSDE, {"t_max": 1.0}),
        (CosineSDE, {"t_min": 0.6, "t_max": 0.5}),
        (VESDE, {"sigma_min": 0.0}),
        (VESDE, {"sigma_min": 2.0, "sigma_max": 1.0}),
        (VESDE, {"t_min": -0.1}),
        (VESDE, {"t_min": 1.0}),
        (EDMSDE, {"sigma_min": 0.0}),
        (EDMSDE, {"sigma_min": 80.0, "sigma_max": 80.0}),
        (RectifiedSDE, {"t_min": 0.0}),
        (RectifiedSDE, {"t_max": 1.0}),
        (SigmoidSDE, {"t_max": 1.0}),
        (SigmoidSDE, {"start": 3.0, "end": 3.0}),
        (SigmoidSDE, {"tau": 0.0}),
        (LaplaceSDE, {"scale": 0.0}),
        (LogisticSDE, {"scale": -1.0}),
        (LogisticSDE, {"t_min": 0.0}),
        (ddpm, {"num_levels": 1}),
        (iddpm, {"num_levels": -3}),
        (iddpm, {"offset": -0.1}),
        (ncsn, {"num_levels": 0}),
        (ncsn, {"sigma_min": 2.0, "sigma_max": 1.0}),
    ],
)
def test_bad_parameters_are_refused_by_name_and_value(process, options):
    key, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{key} {value}"):
        process(**options)
