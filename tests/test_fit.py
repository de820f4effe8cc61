"""Training in one function: its loss against the exact denoiser's, its random numbers and its refusals."""

import copy

import pytest
import torch

from score_sde.models import NETWORKS
from score_sde.sde_lib import SDES, WEIGHTS, GaussianMixture, NonFiniteError, denoising_loss, fit
from score_sde.sde_lib.timestep_samplers import lognormal, stratified

MARGIN = 0.005
"""Margin above the exact denoiser's loss of 0.86; an untrained network has 1.00."""


def mlp(dropout=0.0):
    torch.manual_seed(0)
    return NETWORKS["mlp"]((2,), width=32, depth=2, dropout=dropout)


@pytest.fixture(scope="module")
def gaussian():
    """Correlated coordinates with a nonzero mean."""
    mean, covariance = torch.tensor([[0.5, -0.3]]), torch.tensor([[[1.0, 0.6], [0.6, 0.8]]])
    return GaussianMixture.of_covariances(torch.ones(1), mean, covariance)


@pytest.mark.parametrize("name", ["vpsde", "vesde"])
def test_a_fitted_network_has_the_loss_of_the_exact_denoiser(name, gaussian):
    """From a tensor and from batches, on the same fresh examples, noises and times; the exact denoiser is optimal."""
    sde, x = SDES[name](), gaussian.sample(20_000, torch.Generator().manual_seed(1))
    denoise = fit(mlp(), sde, x if name == "vpsde" else x.split(256)[:-1], steps=300)
    generator, num = torch.Generator().manual_seed(5), 20_000
    x0, eps = gaussian.sample(num, generator), torch.randn(num, 2, generator=generator)
    t, _ = lognormal(sde, stratified(0.3, 0, num, num).reshape(-1, 1), mean=-0.5, std=1.0, tail=0.05)

    def losses(denoise):
        with torch.no_grad():
            return denoising_loss(
                sde, denoise, lambda sde, t: WEIGHTS["edm"](sde, t, x.std().item()), x0, eps, t
            ).double()

    excess = losses(denoise) - losses(gaussian.denoiser(sde))
    assert -4 * excess.std() / num**0.5 < excess.mean() < MARGIN


def test_random_numbers_depend_on_the_seed_alone():
    x, network = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)), mlp(dropout=0.3)
    found = []
    for seed, noise in ((3, 7), (3, 8), (4, 7)):
        torch.manual_seed(noise)
        before, trained = torch.random.get_rng_state(), copy.deepcopy(network)
        denoise = fit(trained, SDES["vpsde"](), x, steps=3, batch_size=8, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not trained.training
        found.append(denoise(x, 0.5).x0)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        (torch.zeros(0, 2), {}, "data hold no example"),
        ([], {}, "data hold no batch, or cannot begin again"),
        (iter([torch.randn(4, 2)]), {}, "data hold no batch, or cannot begin again"),
        ([[torch.randn(4, 2)]], {}, r"a batch is list: give float tensors"),
        (torch.ones(4, 2, dtype=torch.uint8), {}, r"a batch is torch\.uint8: give float tensors"),
        (torch.randn(4, 2), {"steps": 0}, "steps 0: need at least 1"),
    ],
)
def test_invalid_data_are_refused(data, more, message):
    with pytest.raises(ValueError, match=message):
        fit(mlp(), SDES["vpsde"](), data, **{"steps": 3, **more})


def test_a_non_finite_loss_is_an_error():
    with pytest.raises(NonFiniteError, match="after 3 steps: take a lower learning_rate"):
        fit(mlp(), SDES["vpsde"](), torch.randn(64, 2), steps=3, learning_rate=1e30)
