"""The warning about a process whose last level is not noise, and the divergence behind it."""

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from score_sde import run as command_line
from score_sde.engine.prior import warn
from score_sde.sde_lib import SDES, Gaussian, prior_divergence

SHORT = {"ddpm": {"num_levels": 100}, "vpsde": {"beta_max": 2.0}, "vesde": {"sigma_max": 1.0}, "cosine": {"t_max": 0.6}}


@pytest.fixture
def gaussian():
    """An anisotropic covariance in four dimensions, with two directions resolved."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64, generator=generator)).Q
    mean, variances = torch.tensor([0.5, -1.0, 0.2, 0.9]).double(), torch.tensor([2.0, 0.7]).double()
    return Gaussian(mean, 0.3, variances, directions)


def test_the_divergence_matches_the_closed_form_of_two_normals(sde, gaussian):
    alpha, sigma, _ = sde.marginal(sde.t_max)
    left_out = torch.eye(4).double() - gaussian.directions @ gaussian.directions.T
    covariance = gaussian.directions @ torch.diag(gaussian.variances) @ gaussian.directions.T + 0.3 * left_out
    marginal = MultivariateNormal(alpha * gaussian.mean, alpha**2 * covariance + sigma**2 * torch.eye(4))
    prior = MultivariateNormal(torch.zeros(4).double(), sde.prior_std**2 * torch.eye(4).double())
    assert prior_divergence(sde, gaussian) == pytest.approx(kl_divergence(marginal, prior).item(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", SHORT)
def test_a_process_that_ends_early_is_named_with_its_alpha(name, gaussian, capsys):
    sde = SDES[name](**SHORT[name])
    warn(name, sde, gaussian)
    error = capsys.readouterr().err
    assert (
        f"warning: the last level of {name} is not noise: alpha(T) = {sde.marginal(sde.t_max).alpha:.3g}, sigma"
        in error
    )


@pytest.mark.parametrize("name", sorted(set(SDES) - {"ncsn"}))
def test_processes_with_their_defaults_end_in_noise(name, gaussian, capsys):
    warn(name, SDES[name](), gaussian)
    assert capsys.readouterr().err == ""


def test_training_sampling_and_likelihood_start_with_the_warning(tmp_path, capsys):
    words = ("--config=ddpm", "--config.sde.num_levels=100", "--config.network.channels=8", "--device=cpu")
    short = ("--config.train.total_images=16", "--config.train.batch_size=8", "--config.train.sample_every=0")
    measure = ("--config.likelihood.evaluations=2", "--config.likelihood.num_examples=2", "--config.likelihood.t_min=1")
    for line in (
        ("--mode=train", *words, *short),
        ("--mode=sample", "--num_samples=2", "--sampler=ddim", "--steps=2"),
        ("--mode=likelihood", "--config.likelihood.check_examples=0", *measure),
    ):
        assert command_line.main(["run.py", f"--workdir={tmp_path}", *line]) == 0
        assert "the last level of ddpm is not noise: alpha(T) = 0.603" in capsys.readouterr().err
