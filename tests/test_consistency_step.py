"""Consistency sampling: exact in any number of steps for whoever knows the end of the trajectory."""

import pytest
import torch
from test_steps import Counted, noises, terminal, transported

from samplers import GRIDS, ConsistencyStep, sample, trajectory
from sde_lib import GaussianMixture, Prediction
from sde_lib.process import Moment

DATA = Moment(1.0, 0.0, float("inf"))


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_law_is_that_of_the_data_where_the_end_of_the_flow_is_known(sde, mixture, num_steps):
    """Mean and variance within three standard errors, and the largest distance of the distribution functions."""
    num = 2000

    def end_of_flow(x, t):
        return Prediction(transported(mixture, x, sde.at(t), DATA))

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
        alpha, sigma, _ = sde.at(s)
        expected.append(alpha * x0 + sigma * draw(x))
        x0 = denoise(expected[-1], s).x0
    found = list(trajectory(ConsistencyStep(sde), denoise, x, times, noises(3)))
    torch.testing.assert_close(torch.stack(found), torch.stack([*expected, x0]), rtol=1e-12, atol=1e-12)
