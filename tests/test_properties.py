"""Properties of all parameters, shapes, grids and dtypes in their domains, tested with hypothesis."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from score_sde.data import Identity, Pixels
from score_sde.samplers import GRIDS, STEPS, Noise
from score_sde.sde_lib import PARAMETERIZATIONS, SDES, Denoiser, GaussianMixture
from score_sde.sde_lib.denoiser import Prediction
from tests.trajectories import ALONE

OFTEN = settings(deadline=None, derandomize=True, max_examples=20)
MORE = settings(OFTEN, max_examples=100)
"""Each example draws a random process."""


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers from 10^low to 10^high, uniform in their logarithm."""
    return st.floats(low, high).map(lambda power: 10**power)


RATES = st.builds(
    lambda beta_min, rise, t_min: {"beta_min": beta_min, "beta_max": beta_min + rise, "t_min": t_min},
    powers(-3, 1),
    st.floats(0, 100),
    powers(-6, -1),
)
SIGMAS = st.builds(
    lambda low, ratio: {"sigma_min": low, "sigma_max": low * ratio},
    powers(-4, 1),
    powers(0.1, 6),
)
INSIDE = st.fixed_dictionaries({"t_min": powers(-6, -1), "t_max": st.floats(0.2, 0.9999)})
LAWS = st.fixed_dictionaries({"mean": st.floats(-3, 3), "scale": powers(-0.5, 0.5)})
LEVELS = st.integers(2, 400)
PARAMETERS = {
    "vpsde": RATES,
    "subvpsde": RATES,
    "cosine": st.fixed_dictionaries(
        {"offset": st.floats(0, 0.5), "t_min": powers(-6, -1), "t_max": st.floats(0.2, 0.9999)}
    ),
    "vesde": st.builds(lambda sigmas, t_min: sigmas | {"t_min": t_min}, SIGMAS, st.just(0.0) | powers(-6, -1)),
    "edm": SIGMAS,
    "rectified": INSIDE,
    "sigmoid": st.builds(
        lambda start, rise, tau, inside: {"start": start, "end": start + rise, "tau": tau} | inside,
        st.floats(-5, 3),
        st.floats(0.5, 6),
        powers(-0.5, 0.5),
        INSIDE,
    ),
    "laplace": st.builds(lambda law, inside: law | inside, LAWS, INSIDE),
    "logistic": st.builds(lambda law, inside: law | inside, LAWS, INSIDE),
    "ddpm": st.builds(
        lambda num_levels, beta_min, beta_max: {"num_levels": num_levels, "beta_min": beta_min, "beta_max": beta_max},
        LEVELS,
        powers(-6, -2),
        powers(-3, -0.5),
    ),
    "iddpm": st.fixed_dictionaries({"num_levels": LEVELS, "offset": st.floats(0, 0.5)}),
    "ncsn": st.builds(lambda sigmas, num_levels: sigmas | {"num_levels": num_levels}, SIGMAS, LEVELS),
}
VARIANCE_OF_MATCHING_DATA = dict.fromkeys(
    ["vpsde", "cosine", "sigmoid", "laplace", "logistic", "ddpm", "iddpm"], 1.0
) | dict.fromkeys(["vesde", "edm", "rectified", "ncsn"], 0.0)
"""With data of this variance the marginal at t_max is the prior exactly; sub-VP has no such variance."""

SPACED = sorted(set(GRIDS) - {"edm", "levels", "levels_quadratic"})
"""Grids with arbitrary ends on every process; test_grids.py covers the ones that end at the data."""

SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=5)
DTYPES = st.sampled_from([torch.float32, torch.float64])
UNIT = st.floats(0, 1)


def sdes(name: str) -> st.SearchStrategy:
    return PARAMETERS[name].map(lambda parameters: SDES[name](**parameters))


any_sde = st.sampled_from(sorted(SDES)).flatmap(sdes)


def between(sde, share: float) -> float:
    """Time at this fraction of the log-SNR range, counted from the noise, so that noise changes evenly."""
    high, low = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    return sde.time(low + share * (high - low)).clamp(sde.t_min, sde.t_max).item()


def gaussian(shape: list[int], dtype: torch.dtype) -> GaussianMixture:
    """Data of unit variance around a ramp, for examples of this shape."""
    means = torch.linspace(-1, 1, math.prod(shape), dtype=dtype).reshape(1, *shape)
    return GaussianMixture(torch.ones(1, dtype=dtype), means, 1.0)


def normals(shape: list[int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_every_sde_has_a_strategy_of_parameters():
    assert PARAMETERS.keys() == SDES.keys()


# --- processes --------------------------------------------------------------------------------------------------------


@MORE
@given(sde=any_sde, data=st.data())
def test_log_snr_falls(sde, data):
    times = torch.linspace(sde.t_min, sde.t_max, data.draw(st.integers(2, 1000)), dtype=torch.float64)
    log_snr = sde.log_snr(times)
    assert torch.isfinite(log_snr).all()
    assert (log_snr.diff() < 0).all()


@MORE
@given(sde=any_sde, data=st.data())
def test_time_and_log_snr_are_inverse(sde, data):
    t = sde.t_min + data.draw(UNIT) * (sde.t_max - sde.t_min)
    log_snr = sde.log_snr(torch.tensor(t, dtype=torch.float64))
    back = sde.time(log_snr)
    assert back.item() == pytest.approx(t, rel=1e-9, abs=1e-12)
    assert sde.log_snr(back.clamp_min(sde.t_min)).item() == pytest.approx(log_snr.item(), rel=1e-9, abs=1e-9)


@MORE
@given(sde=any_sde, data=st.data())
def test_numbers_and_tensors_agree(sde, data):
    t = sde.t_min + data.draw(UNIT) * (sde.t_max - sde.t_min)
    tensor = torch.full((2, 1, 1), t, dtype=torch.float64)
    for number, values in zip(sde.marginal(t), sde.marginal(tensor)):
        assert values.shape == tensor.shape
        assert values.flatten().tolist() == pytest.approx([number] * 2, rel=1e-12, abs=1e-300)


@MORE
@given(sde=any_sde, data=st.data())
def test_float32_keeps_its_digits(sde, data):
    t = torch.tensor(sde.t_min + data.draw(UNIT) * (sde.t_max - sde.t_min)).clamp(max=sde.t_max)
    single, double = sde.marginal(t), sde.marginal(t.double())
    # exp(x) has the relative error of x times x: 6e-8 times the logarithm of the result
    spread = 1 + abs(math.log(double.sigma)) + abs(math.log(double.alpha))
    for ours, exact in ((single.alpha, double.alpha), (single.sigma, double.sigma)):
        assert ours.dtype == torch.float32
        assert ours.item() == pytest.approx(exact.item(), rel=5e-7 * spread, abs=1e-37)


@MORE
@given(name=st.sampled_from(sorted(SDES)), data=st.data())
def test_marginal_at_the_start_is_the_prior_up_to_the_signal_left(name, data):
    sde = data.draw(sdes(name))
    grid = GRIDS[data.draw(st.sampled_from(SPACED))]
    alpha, sigma, _ = sde.marginal(grid(sde, data.draw(st.integers(1, 20)))[0].item())
    for variance in (0.0, 1.0):
        mismatch = alpha**2 * variance + sigma**2 - sde.prior_std**2
        assert abs(mismatch) <= 2 * alpha**2 + 1e-12 * sde.prior_std**2
    if name in VARIANCE_OF_MATCHING_DATA:
        variance = alpha**2 * VARIANCE_OF_MATCHING_DATA[name] + sigma**2
        assert variance == pytest.approx(sde.prior_std**2, rel=1e-12)


@MORE
@given(sde=any_sde, shares=st.tuples(UNIT, UNIT, UNIT).map(sorted))
def test_transitions_compose_and_make_the_marginals(sde, shares):
    late, middle, early = (between(sde, share) for share in shares)
    (a1, b1), (a2, b2), (a, b) = (sde.transition(s, t) for s, t in ((early, middle), (middle, late), (early, late)))
    assert a2 * a1 == pytest.approx(a, rel=1e-9)
    assert math.hypot(a2 * b1, b2) == pytest.approx(b, rel=1e-6, abs=1e-6 * sde.marginal(late).sigma)
    assert math.hypot(a * sde.marginal(early).sigma, b) == pytest.approx(sde.marginal(late).sigma, rel=1e-9)


@MORE
@given(sde=any_sde, shares=st.tuples(UNIT, UNIT).map(sorted), eta=UNIT)
def test_bridge_keeps_the_marginal_and_is_the_posterior_at_eta_one(sde, shares, eta):
    t, s = (between(sde, share) for share in shares)
    x0, eps = normals([3, 2], torch.float64), normals([3, 2], torch.float64, seed=1)
    alpha, sigma, _ = sde.marginal(s)
    mean, std = sde.bridge(sde.perturb(x0, eps, t), x0, t, s, eta)
    assert 0 <= std <= sigma * (1 + 1e-12)
    # the kept part of the noise and the new part add up to the variance of the marginal
    kept = (mean - alpha * x0) / eps
    torch.testing.assert_close(kept, kept[0, 0].expand_as(kept), rtol=1e-5, atol=1e-7 * max(alpha, sigma))
    assert math.hypot(kept[0, 0].item(), std) == pytest.approx(sigma, rel=1e-4, abs=1e-7 * max(alpha, sigma))
    a, b = sde.transition(s, t)
    if b > 1e-6 * sde.marginal(t).sigma:
        posterior = (a**2 / b**2 + 1 / sigma**2) ** -0.5
        assert sde.bridge(x0, x0, t, s, 1.0)[1] == pytest.approx(posterior, rel=1e-6)


# --- grids and steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", SPACED)
@MORE
@given(sde=any_sde, num_steps=st.integers(1, 300), shares=st.tuples(UNIT, UNIT))
def test_grids_decrease_from_end_to_end(grid, sde, num_steps, shares):
    start, end = (between(sde, share) for share in sorted(shares))
    if not end < start * (1 - 1e-6):
        start, end = sde.t_max, sde.t_min
    times = GRIDS[grid](sde, num_steps, start, end)
    assert times.shape == (num_steps + 1,)
    assert times.dtype == torch.float64
    assert (times[0].item(), times[-1].item()) == (start, end)
    assert (times.diff() < 0).all()


@pytest.mark.parametrize("step", sorted(STEPS))
@OFTEN
@given(
    sde=any_sde,
    shape=SHAPES,
    dtype=DTYPES,
    shares=st.tuples(UNIT, UNIT).map(sorted),
)
def test_one_step_is_finite_and_keeps_the_dtype(step, sde, shape, dtype, shares):
    t, s = (between(sde, share) for share in shares)
    if not s < t:
        t, s = sde.t_max, sde.t_min
    mixture = gaussian(shape[1:], dtype)
    x = sde.perturb(mixture.means.reshape(1, *shape[1:]) + normals(shape, dtype), normals(shape, dtype, seed=1), t)
    move = STEPS[step](sde, **ALONE.get(step, {}))
    move.reset([t, s])
    moved = move(mixture.denoiser(sde, v=0.5), x, t, s, Noise(torch.arange(shape[0])))
    assert (moved.shape, moved.dtype, moved.device) == (x.shape, dtype, x.device)
    assert torch.isfinite(moved).all()


# --- denoiser and codecs ----------------------------------------------------------------------------------------------


class Target(nn.Module):
    """A network with the exact output: F such that c_skip x + c_out F = x0."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        self.x, self.log_snr = x, log_snr
        return self.output


@pytest.mark.parametrize("parameterization", sorted(PARAMETERIZATIONS))
@MORE
@given(sde=any_sde, shape=SHAPES, share=UNIT, sigma_data=powers(-2, 2))
def test_every_parameterization_recovers_the_data(parameterization, sde, shape, share, sigma_data):
    t = between(sde, share)
    x0, eps = sigma_data * normals(shape, torch.float64), normals(shape, torch.float64, seed=1)
    x = sde.perturb(x0, eps, t)
    alpha, sigma, log_snr = sde.marginal(t)
    radius, preconditioned = math.hypot(alpha, sigma), math.hypot(alpha * sigma_data, sigma)
    target = {
        "x0": x0,
        "eps": eps,
        "score": -eps / sigma,
        "scaled_score": -eps,
        "v": (alpha * eps - sigma * x0) / radius,
        "flow": eps - x0,
        "edm": (sigma * x0 - alpha * sigma_data**2 * eps) / (sigma_data * preconditioned),
    }[parameterization]
    network = Target(target)
    estimate = Denoiser(network, sde, parameterization, sigma_data)(x, t).x0
    torch.testing.assert_close(estimate, x0, rtol=1e-9, atol=1e-13 * (1 + preconditioned / alpha))
    torch.testing.assert_close(network.x, x / preconditioned, rtol=1e-9, atol=0.0)
    assert network.log_snr.tolist() == pytest.approx([log_snr] * shape[0], rel=1e-6)


@MORE
@given(sde=any_sde, shape=SHAPES, share=UNIT)
def test_eps_x0_and_score_are_interchangeable(sde, shape, share):
    t = between(sde, share)
    x, x0 = normals(shape, torch.float64), normals(shape, torch.float64, seed=1)
    alpha, sigma, _ = sde.marginal(t)
    precision = {"rtol": 1e-9, "atol": 1e-14 * (1 + 1 / alpha)}
    torch.testing.assert_close(sde.x0(x, sde.eps(x, x0, t), t), x0, **precision)
    torch.testing.assert_close(sde.x0_of_score(x, sde.score(x, x0, t), t), x0, **precision)
    torch.testing.assert_close(-sigma * sde.score(x, x0, t), sde.eps(x, x0, t))


@MORE
@given(sde=any_sde, data=st.data(), dtype=DTYPES, batch=st.integers(1, 5))
def test_denoising_several_times_at_once_equals_denoising_each(sde, data, dtype, batch):
    times = [between(sde, data.draw(UNIT)) for _ in range(batch)]
    t = torch.tensor(times, dtype=torch.float64).reshape(-1, 1, 1)
    denoise = gaussian([2, 3], torch.float64).denoiser(sde)
    x = sde.perturb(normals([batch, 2, 3], torch.float64), normals([batch, 2, 3], torch.float64, 1), t).to(dtype)
    one_by_one = torch.cat([denoise(row, time).x0 for row, time in zip(x.split(1), times)])
    together = denoise(x, t)
    assert isinstance(together, Prediction)
    assert together.x0.dtype == dtype
    torch.testing.assert_close(together.x0, one_by_one, rtol=1e-6, atol=1e-6)


@OFTEN
@given(data=st.data(), levels=st.integers(2, 256), shape=SHAPES)
def test_pixels_are_recovered_from_anywhere_in_their_bin(data, levels, shape):
    values = torch.randint(levels, shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 1000))))
    offset = data.draw(st.floats(-0.49, 0.49))
    codec = Pixels(levels)
    x = codec.encode(values + offset)
    assert x.dtype == torch.float32
    assert x.shape == values.shape
    assert (x.abs() <= 1).all()
    assert torch.equal(codec.decode(x).long(), values)
    assert codec.log_det(tuple(shape[1:])) == pytest.approx(math.prod(shape[1:]) * math.log(2 / levels))


@OFTEN
@given(shape=SHAPES, scale=powers(-6, 6))
def test_real_values_are_unchanged(shape, scale):
    values = scale * normals(shape, torch.float32)
    assert torch.equal(Identity(0).decode(Identity(0).encode(values)), values)
    assert Identity(0).log_det(tuple(shape[1:])) == 0
