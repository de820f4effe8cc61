"""Chains: discretized VP, cosine and VE equal DDPM, improved DDPM and NCSN to rounding."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from score_sde.sde_lib import VESDE, VPSDE, CosineSDE, Discrete, ddpm, iddpm, ladder_ratio, ladder_size, ncsn

BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHA_BARS = np.cumprod(1 - BETAS)


@pytest.fixture(scope="module")
def chain():
    return VPSDE().discretize(1000)


def test_the_chains_are_the_discretised_processes():
    levels = torch.arange(1, 1001, dtype=torch.float64)
    for chain, process in ((ddpm(), VPSDE()), (iddpm(), CosineSDE()), (ncsn(num_levels=1000), VESDE())):
        discrete = process.discretize(1000)
        torch.testing.assert_close(chain.marginal(levels), discrete.marginal(levels), rtol=1e-13, atol=0)
        assert chain.prior_std == discrete.prior_std == process.prior_std
        assert (chain.t_min, chain.t_max) == (1.0, 1000.0)


def test_vp_discretised_is_ddpm(chain):
    for i in [1, 2, 3, 10, 137, 500, 999, 1000]:
        alpha, sigma, _ = chain.marginal(i)
        assert alpha**2 == pytest.approx(ALPHA_BARS[i - 1], rel=1e-12)
        assert sigma**2 == pytest.approx(1 - ALPHA_BARS[i - 1], rel=1e-12)
        a, b = chain.transition(i - 1, i)
        assert a**2 == pytest.approx(1 - BETAS[i - 1], rel=1e-12)
        assert b**2 == pytest.approx(BETAS[i - 1], rel=1e-10)


def test_bridge_is_ddpms_posterior(chain):
    x, x0 = torch.tensor([[1.3]]).double(), torch.tensor([[-0.4]]).double()
    for i in [2, 3, 10, 137, 500, 999, 1000]:
        beta, late, early = BETAS[i - 1], ALPHA_BARS[i - 1], ALPHA_BARS[i - 2]
        of_x0 = np.sqrt(early) * beta / (1 - late)
        of_x = np.sqrt(1 - beta) * (1 - early) / (1 - late)
        mean, std = chain.bridge(x, x0, i, i - 1, eta=1.0)
        assert mean.item() == pytest.approx(of_x0 * x0.item() + of_x * x.item(), abs=1e-12)
        assert std**2 == pytest.approx(beta * (1 - early) / (1 - late), abs=1e-12)


def test_the_step_to_level_zero_is_the_x0_estimate(chain):
    x0 = torch.tensor([[-0.4]]).double()
    mean, std = chain.bridge(torch.ones_like(x0), x0, 1, 0, eta=1.0)
    assert mean.item() == pytest.approx(x0.item(), abs=1e-14)
    assert std == 0


def test_cosine_discretised_is_improved_ddpm():
    angles = (np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    betas = np.minimum(1 - np.cos(angles[1:]) ** 2 / np.cos(angles[:-1]) ** 2, 0.999)
    chain = CosineSDE().discretize(1000)
    bars, alpha = np.cumprod(1 - betas), chain.alpha(torch.arange(1, 1001, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(alpha**2, bars, rtol=1e-11)
    assert chain.transition(999, 1000)[1] ** 2 == pytest.approx(0.999, rel=1e-12)
    for i in (2, 3, 10, 500, 998):
        assert chain.transition(i - 1, i)[1] ** 2 == pytest.approx(betas[i - 1], rel=1e-10)


def test_ve_discretised_is_the_geometric_ladder():
    ladder = np.exp(np.linspace(np.log(0.01), np.log(50.0), 1000))
    chain = VESDE().discretize(1000)
    levels = torch.arange(1, 1001, dtype=torch.float64)
    np.testing.assert_allclose(chain.sigma(levels).numpy(), ladder, rtol=1e-12)
    assert (chain.alpha(levels) == 1).all()
    assert chain.prior_std == pytest.approx(50.0, rel=1e-12)
    a, b = chain.transition(500, 501)
    assert a == 1
    assert b**2 == pytest.approx(ladder[500] ** 2 - ladder[499] ** 2, rel=1e-11)


def test_finer_chains_approach_the_process():
    sde, shares = VPSDE(), torch.linspace(0.05, 1, 20, dtype=torch.float64)
    error = []
    for num in (1000, 4000):
        chain = sde.discretize(num)
        error.append((chain.log_snr(shares * num) - sde.log_snr(shares)).abs().max().item())
    assert error[0] < 0.15
    assert error[1] == pytest.approx(error[0] / 4, rel=0.1)


@pytest.mark.parametrize("chain", [VPSDE().discretize(50), VESDE().discretize(7)], ids=["vp", "ve"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_time_inverts_log_snr_between_levels_too(chain, dtype, tolerance):
    t = torch.linspace(1, chain.t_max, 333, dtype=dtype)
    torch.testing.assert_close(chain.time(chain.log_snr(t)), t, rtol=tolerance, atol=0)
    assert (chain.log_snr(t).diff() < 0).all()


def test_between_levels_log_alpha_and_log_snr_are_linear(chain):
    for i in (1, 600, 999):
        middle, ends = chain.marginal(i + 0.5), (chain.marginal(i), chain.marginal(i + 1))
        assert middle.alpha**2 == pytest.approx(ends[0].alpha * ends[1].alpha, rel=1e-12)
        assert middle.log_snr == pytest.approx(0.5 * (ends[0].log_snr + ends[1].log_snr), rel=1e-12)


def test_below_level_one_log_alpha_and_the_noise_to_signal_ratio_are_linear(chain):
    first = chain.marginal(1)
    for share in (0.001, 0.5, 0.999):
        alpha, sigma, log_snr = chain.marginal(share)
        assert math.log(alpha) == pytest.approx(share * math.log(first.alpha), rel=1e-12)
        assert sigma / alpha == pytest.approx(share * first.sigma / first.alpha, rel=1e-12)
        assert chain.time(torch.tensor(log_snr, dtype=torch.float64)).item() == pytest.approx(share, rel=1e-12)
    assert chain.marginal(0) == (1.0, 0.0, math.inf)
    assert chain.time(torch.tensor(math.inf)) == 0


def test_numbers_and_tensors_agree(chain):
    for t in [0.0, 0.5, 1.0, 1.5, 500.0, 999.5, 1000.0]:
        tensors = chain.marginal(torch.full((2, 1, 1), t, dtype=torch.float64))
        for tensor, number in zip(tensors, chain.marginal(t)):
            torch.testing.assert_close(tensor, torch.full((2, 1, 1), number, dtype=torch.float64))


def test_impossible_chains_are_refused():
    with pytest.raises(ValueError, match=r"beta 2 at level 10.*more steps"):
        VPSDE().discretize(10)
    with pytest.raises(ValueError, match="beta 0 at level 2"):
        Discrete.of_betas(torch.tensor([0.1, 0.0, 0.2]).double())
    for make in (ddpm, iddpm, ncsn):
        with pytest.raises(ValueError, match="num_levels 1: need at least 2"):
            make(num_levels=1)
    with pytest.raises(ValueError, match=r"beta 1\.5 at level 1000"):
        ddpm(beta_max=1.5)
    ladder = torch.tensor([1.0, 3.0, 2.0]).double()
    with pytest.raises(ValueError, match="log-SNR must decrease"):
        Discrete(torch.zeros(3).double(), ladder, prior_std=2.0)


# --- NCSNv2's ladder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [5, 64, 3072, 196_608])
def test_neighbours_on_the_ladder_overlap_by_half(dimensions):
    r, width = ladder_ratio(dimensions), math.sqrt(2 * dimensions)
    assert norm.cdf(width * (r - 1) + 3 * r) - norm.cdf(width * (r - 1) - 3 * r) == pytest.approx(0.5, abs=1e-8)


@pytest.mark.parametrize(
    ("side", "sigma_max", "published"), [(32, 50, 232), (64, 90, 500), (96, 140, 788), (256, 348, 2311)]
)
def test_the_ladder_has_the_published_size(side, sigma_max, published):
    """The published ladders for CIFAR-10, CelebA, LSUN and FFHQ, which have about this spacing."""
    dimensions = 3 * side**2
    assert ladder_ratio(dimensions) == pytest.approx((sigma_max / 0.01) ** (1 / (published - 1)), rel=3e-3)
    assert published * 0.94 < ladder_size(0.01, sigma_max, dimensions) < published


def test_the_ladder_size_is_the_smallest_with_the_ratio():
    num = ladder_size(0.1, 30.0, 192)
    assert (30 / 0.1) ** (1 / (num - 1)) <= ladder_ratio(192) < (30 / 0.1) ** (1 / (num - 2))


def test_few_dimensions_have_no_ladder():
    with pytest.raises(ValueError, match=r"num_levels for 4 dimensions.*set num_levels"):
        ladder_size(0.01, 3.0, 4)
