"""Chains: the discretised VP is DDPM and the discretised VE is NCSN, to the last digits."""

import numpy as np
import pytest
import torch

from sde_lib import VESDE, VPSDE, Discrete

BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHA_BARS = np.cumprod(1 - BETAS)


@pytest.fixture(scope="module")
def ddpm():
    return VPSDE().discretize(1000)


def test_vp_discretised_is_ddpm(ddpm):
    for i in [1, 2, 3, 10, 137, 500, 999, 1000]:
        alpha, sigma, _ = ddpm.at(i)
        assert alpha**2 == pytest.approx(ALPHA_BARS[i - 1], rel=1e-12)
        assert sigma**2 == pytest.approx(1 - ALPHA_BARS[i - 1], rel=1e-12)
        a, b = ddpm.transition(i - 1, i)
        assert a**2 == pytest.approx(1 - BETAS[i - 1], rel=1e-12)
        assert b**2 == pytest.approx(BETAS[i - 1], rel=1e-10)


def test_bridge_is_ddpms_posterior(ddpm):
    x, x0 = torch.tensor([[1.3]]).double(), torch.tensor([[-0.4]]).double()
    for i in [2, 3, 10, 137, 500, 999, 1000]:
        beta, late, early = BETAS[i - 1], ALPHA_BARS[i - 1], ALPHA_BARS[i - 2]
        of_x0 = np.sqrt(early) * beta / (1 - late)
        of_x = np.sqrt(1 - beta) * (1 - early) / (1 - late)
        mean, std = ddpm.bridge(x, x0, i, i - 1, eta=1.0)
        assert mean.item() == pytest.approx(of_x0 * x0.item() + of_x * x.item(), abs=1e-12)
        assert std**2 == pytest.approx(beta * (1 - early) / (1 - late), abs=1e-12)


def test_the_move_to_level_zero_is_the_estimate_of_the_data(ddpm):
    x0 = torch.tensor([[-0.4]]).double()
    mean, std = ddpm.bridge(torch.ones_like(x0), x0, 1, 0, eta=1.0)
    assert mean.item() == pytest.approx(x0.item(), abs=1e-14)
    assert std == 0


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


def test_between_levels_log_alpha_and_log_snr_are_linear(ddpm):
    for i in (1, 600, 999):
        middle, ends = ddpm.at(i + 0.5), (ddpm.at(i), ddpm.at(i + 1))
        assert middle.alpha**2 == pytest.approx(ends[0].alpha * ends[1].alpha, rel=1e-12)
        assert middle.log_snr == pytest.approx(0.5 * (ends[0].log_snr + ends[1].log_snr), rel=1e-12)


def test_numbers_and_tensors_agree(ddpm):
    for t in [1.0, 1.5, 500.0, 999.5, 1000.0]:
        tensors = ddpm.at(torch.full((2, 1, 1), t, dtype=torch.float64))
        for tensor, number in zip(tensors, ddpm.at(t)):
            torch.testing.assert_close(tensor, torch.full((2, 1, 1), number, dtype=torch.float64))


def test_impossible_chains_are_refused():
    with pytest.raises(ValueError, match=r"beta 2 at level 10.*more steps"):
        VPSDE().discretize(10)
    with pytest.raises(ValueError, match="beta 0 at level 2"):
        Discrete.of_betas(torch.tensor([0.1, 0.0, 0.2]).double())
    ladder = torch.tensor([1.0, 3.0, 2.0]).double()
    with pytest.raises(ValueError, match="log-SNR of a chain must fall"):
        Discrete.of_marginals(torch.zeros(3).double(), ladder)
