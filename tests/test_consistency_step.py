"""Consistency sampling: exact in any number of steps with the exact consistency function."""

import pytest
import torch

from score_sde import run as command_line
from score_sde.samplers import GRIDS, STEPS, ConsistencyStep, Noise, sample, trajectory
from score_sde.samplers.draw import remark
from score_sde.sde_lib import SDES, Denoiser, GaussianMixture, Prediction
from score_sde.sde_lib.consistency import ConsistencyModel
from score_sde.sde_lib.process import Marginal
from tests.trajectories import Counted, noises, terminal, transported

DATA = Marginal(1.0, 0.0, float("inf"))


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_samples_with_the_exact_function_have_the_law_of_the_data(sde, mixture, num_steps):
    """Mean and variance within three standard errors, and the largest distance of the distribution functions."""
    num = 2000

    def end_of_flow(x, t):
        return Prediction(transported(mixture, x, sde.marginal(t), DATA))

    x, times = terminal(mixture, sde, num), GRIDS["edm"](sde, num_steps)
    x = sample(ConsistencyStep(sde), end_of_flow, x, times, noises(num))
    square = (x - mixture.mean) ** 2
    assert abs(x.mean() - mixture.mean) < 3 * (mixture.covariance.item() / num) ** 0.5
    assert abs(square.mean() - mixture.covariance.item()) < 3 * square.std() / num**0.5
    bumps = torch.special.ndtr((x.sort(0).values - mixture.means[:, 0]) / mixture.variances[:, 0].sqrt())
    ranks = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    assert (bumps @ mixture.log_weights.exp() - ranks).abs().max() < 1.95 / num**0.5


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_one_evaluation_a_step_and_exact_for_one_point(sde, num_steps):
    point = torch.tensor([[0.3, -0.7]]).double()
    mixture = GaussianMixture.of_points(point)
    denoise = Counted(mixture.denoiser(sde))
    x = sample(ConsistencyStep(sde), denoise, terminal(mixture, sde, 5), GRIDS["edm"](sde, num_steps), noises(5))
    assert denoise.calls == num_steps
    torch.testing.assert_close(x, point.expand(5, 2), rtol=1e-12, atol=0)


def test_states_are_the_estimates_noised_afresh(sde, mixture):
    """Song et al., 2023, algorithm 1, on any SDE."""
    x, times, draw = terminal(mixture, sde, 3), GRIDS["edm"](sde, 4), noises(3)
    denoise, expected = mixture.denoiser(sde), []
    x0 = denoise(x, sde.t_max).x0
    for s in times.tolist()[1:-1]:
        alpha, sigma, _ = sde.marginal(s)
        expected.append(alpha * x0 + sigma * draw(x))
        x0 = denoise(expected[-1], s).x0
    found = list(trajectory(ConsistencyStep(sde), denoise, x, times, noises(3)))
    torch.testing.assert_close(torch.stack(found), torch.stack([*expected, x0]), rtol=1e-12, atol=1e-12)


def test_samplers_of_other_runs_are_noted():
    """For models that are not consistency functions, and by the process; the configs' own samplers give no note."""
    sde, network = SDES["vpsde"](), torch.nn.Identity()
    ends, mean = ConsistencyModel(network, sde, 0.5), Denoiser(network, sde, "eps", 0.5)
    assert "samples have too little variance; choose another sampler" in remark("consistency", mean, sde)
    assert "use --sampler consistency" in remark("ddim", ends, sde)
    assert "on VPSDE other samplers need far fewer evaluations" in remark("ald", mean, sde)
    assert [remark("consistency", ends, sde), remark("ald", mean, SDES["ncsn"]())] == ["", ""]
    assert [name for name in STEPS if remark(name, mean, sde)] == ["ald", "consistency"]


@pytest.mark.parametrize("num_steps", [5, 50])
def test_consistency_steps_with_posterior_means_lose_half_of_the_variance(num_steps):
    """For data N(0, 1), the estimate alpha x has variance v = alpha^2 (alpha^2 v + sigma^2) <= 1/2 in the limit."""
    sde = SDES["vpsde"]()
    denoise = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1)).denoiser(sde)
    noise = Noise(torch.arange(4000))
    x = noise(torch.empty(4000, 1))
    found = sample(ConsistencyStep(sde), denoise, x, GRIDS["uniform"](sde, num_steps), noise)
    assert found.var().item() < 0.5


def test_a_command_notes_its_sampler_before_it_draws(digits, capsys, tmp_path):
    words = ["run.py", "--mode=sample", f"--workdir={digits}", "--sampler=consistency", "--steps=2", "--num_samples=2"]
    assert command_line.main(words) == 0
    assert capsys.readouterr().out.startswith("note: consistency needs the ends of the probability flow")
