"""The denoiser: parameterizations against their definition, shapes of time, precision."""

from itertools import cycle

import pytest
import torch
from torch import nn

from score_sde.sde_lib import PARAMETERIZATIONS, SDES, VPSDE, Denoiser
from score_sde.sde_lib.denoiser import C_NOISE
from tests.targets import SIGMA_DATA, TARGETS, Fixed, state


class Wave(nn.Module):
    """A smooth function of input and log-SNR."""

    def forward(self, x, log_snr):
        return torch.sin(2 * x + 0.1 * log_snr.to(x).reshape(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize(("name", "shape"), list(zip(PARAMETERIZATIONS, cycle([(3,), (2, 4), (1, 2, 3)]))), ids=str)
def test_the_exact_network_gives_the_exact_data(sde, name, shape):
    x0, eps, t = state(sde, shape)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    network = Fixed(TARGETS[name](alpha, sigma, SIGMA_DATA, x0, eps))
    denoise = Denoiser(network, sde, name, SIGMA_DATA)
    prediction = denoise(alpha * x0 + sigma * eps, t).x0
    # At the noisy end x0 is a difference of numbers of size sigma, divided by alpha.
    assert ((prediction - x0).abs() <= 1e-13 * (1 + sigma / alpha) * 10).all()
    torch.testing.assert_close(
        network.x, (alpha * x0 + sigma * eps) / torch.sqrt((alpha * SIGMA_DATA) ** 2 + sigma**2), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(network.log_snr, sde.log_snr(t).flatten().float())
    assert network.log_snr.dtype == torch.float32


def test_edm_has_the_preconditioning_of_the_paper():
    sde, sigma = SDES["edm"](), 3.0
    x, output = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    radius = (sigma**2 + SIGMA_DATA**2) ** 0.5
    expected = SIGMA_DATA**2 / radius**2 * x + sigma * SIGMA_DATA / radius * output
    network = Fixed(output)
    torch.testing.assert_close(Denoiser(network, sde, "edm", SIGMA_DATA)(x, sigma).x0, expected)
    torch.testing.assert_close(network.x, x / radius)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_score_matches_the_x0_estimate(sde, name):
    x0, eps, t = state(sde, (2, 3))
    denoise = Denoiser(Wave(), sde, name, SIGMA_DATA)
    x = sde.perturb(x0, eps, t)
    expected = (sde.alpha(t) * denoise(x, t).x0 - x) / sde.sigma(t) ** 2
    rounding = 1e-15 * (x / sde.sigma(t) ** 2).abs()  # rounding of the difference
    assert ((denoise.score(x, t) - expected).abs() <= 1e-9 * expected.abs() + rounding).all()


def test_float32_score_at_little_noise_is_the_network_output():
    sde, t = SDES["subvpsde"](), torch.full((4, 1), 1e-3)
    x, output = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    score = Denoiser(Fixed(output), sde, "eps", SIGMA_DATA, "time", "raw").score(x, t)
    torch.testing.assert_close(score, (-output / sde.sigma(t.double())).float(), rtol=1e-6, atol=0)


# The scale of score and flow depends on the process, so their networks do not carry over.
@pytest.mark.parametrize("name", sorted(set(PARAMETERIZATIONS) - {"score", "flow"}))
def test_the_estimate_at_a_log_snr_is_the_same_for_every_process(name):
    l = torch.linspace(-8, 8, 5, dtype=torch.float64).reshape(5, 1, 1)
    x = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, *others = (
        Denoiser(Wave(), sde, name, SIGMA_DATA)(sde.alpha(sde.time(l)) * x, sde.time(l)).x0
        for sde in (SDES[process]() for process in SDES)
    )
    for x0 in others:
        torch.testing.assert_close(x0, first, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_number_and_every_shape_of_time_agree(sde, name):
    x0, eps, t = state(sde, (2, 3))
    x, t = sde.perturb(x0, eps, t[2:3]), t[2].item()
    denoise = Denoiser(Wave(), sde, name, SIGMA_DATA)
    expected = denoise(x, t).x0
    for same in (torch.tensor(t).double(), torch.full((6, 1, 1), t, dtype=torch.float64)):
        torch.testing.assert_close(denoise(x, same).x0, expected)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_number_keeps_float32(sde, name):
    x = torch.randn(2, 3)
    network = Wave()
    prediction = Denoiser(network, sde, name, SIGMA_DATA)(x, 0.5 * sde.t_max).x0
    assert prediction.dtype == torch.float32
    expected = Denoiser(network, sde, name, SIGMA_DATA)(x.double(), 0.5 * sde.t_max).x0
    torch.testing.assert_close(prediction.double(), expected, rtol=1e-4, atol=1e-4)


def test_twice_the_channels_give_a_variance(sde):
    x0, eps, t = state(sde, (2, 3))
    x, (estimate, share) = sde.perturb(x0, eps, t), torch.randn(2, *x0.shape, dtype=torch.float64)
    both = Denoiser(Fixed(torch.cat([estimate, 2 * share - 1], 1)), sde, "v", SIGMA_DATA)(x, t)
    alone = Denoiser(Fixed(estimate), sde, "v", SIGMA_DATA)(x, t)
    torch.testing.assert_close(both.x0, alone.x0, rtol=0, atol=0)
    torch.testing.assert_close(both.v, share)
    assert alone.v is None


@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 3, 3), (2, 6, 3), (2, 2, 6), (2, 4, 6), (4, 2, 3), (2, 4)])
def test_an_output_of_any_other_shape_is_refused(shape):
    denoise = Denoiser(Fixed(torch.zeros(shape)), VPSDE(), "eps", SIGMA_DATA)
    for call in (denoise, denoise.score):
        with pytest.raises(ValueError, match=r"returns shape .* for x of shape \(2, 2, 3\): need the same, or exactly"):
            call(torch.zeros(2, 2, 3), 0.5)


def test_conditions_reach_the_network():
    network = Fixed(torch.zeros(2, 3))
    label, keep = torch.tensor([1, 2]), torch.tensor([True, False])
    Denoiser(network, VPSDE(), "eps", 1.0)(torch.zeros(2, 3), 0.5, label=label, keep=keep)
    assert network.cond == {"label": label, "keep": keep}


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_autocast_leaves_coefficients_and_log_snr_alone(sde, name):
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False)
            nn.init.zeros_(self.layer.weight)

        def forward(self, x, log_snr):
            self.log_snr, self.x = log_snr, x
            output = self.layer(x)
            self.dtype = output.dtype
            return output

    x0, eps, t = (v.float() for v in state(sde, (3,)))
    network = Recorder()
    denoise, x = Denoiser(network, sde, name, SIGMA_DATA), sde.perturb(x0, eps, t)
    expected, log_snr, scaled = denoise(x, t).x0, network.log_snr, network.x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = denoise(x, t).x0
    assert network.dtype == torch.bfloat16
    assert prediction.dtype == network.log_snr.dtype == torch.float32
    assert torch.equal(network.log_snr, log_snr)
    assert torch.equal(network.x, scaled)
    assert torch.equal(prediction, expected)  # c_skip x, as the network returns zero


@pytest.mark.parametrize("shape", [(3,), (4,), (4, 1), (1, 1, 1), (3, 1, 1), (4, 2, 1), (4, 1, 1, 1)])
def test_a_time_of_another_shape_is_refused(shape):
    denoise = Denoiser(Wave(), VPSDE(), "eps", 1.0)
    with pytest.raises(ValueError, match="time of shape"):
        denoise(torch.zeros(4, 2, 3), torch.full(shape, 0.5))


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"unknown parameterization 'epsilon'.*eps"):
        Denoiser(Wave(), VPSDE(), "epsilon", 1.0)
    for sigma_data in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"sigma_data {sigma_data}"):
            Denoiser(Wave(), VPSDE(), "eps", sigma_data)


def test_noise_conditioning_by_nearest_level_or_in_thousandths():
    """EDM's rounding for improved DDPM's networks, and improved DDPM's rescaling for more than 1,000 levels."""
    sde = SDES["iddpm"](num_levels=50)

    def ratio(t):
        return sde.sigma(t) / sde.alpha(t)

    levels = torch.arange(1, 51, dtype=torch.float64)
    between = torch.linspace(1, 50, 200, dtype=torch.float64)
    expected = (ratio(between)[:, None] - ratio(levels)).abs().argmin(1)
    for t, nearest in ((levels, levels - 1), (between, expected)):
        told = C_NOISE["nearest_level"](sde, t, sde.marginal(t))
        torch.testing.assert_close(told, nearest.double(), rtol=0, atol=0)
        assert [C_NOISE["nearest_level"](sde, one, sde.marginal(one)) for one in t.tolist()] == nearest.tolist()
    assert C_NOISE["nearest_level"](sde, 0.1, sde.marginal(0.1)) == -1
    torch.testing.assert_close(C_NOISE["level_of_1000"](sde, levels, sde.marginal(levels)), 20 * (levels - 1))


def test_noise_conditioning_by_log_half_sigma():
    sde = SDES["vesde"]()
    t = torch.tensor([0.1, 0.9], dtype=torch.float64)
    torch.testing.assert_close(C_NOISE["log_half_sigma"](sde, t, sde.marginal(t)), torch.log(sde.sigma(t) / 2))
