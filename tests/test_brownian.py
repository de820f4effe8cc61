"""Brownian noise: additive increments, their distribution, draws within a step, and refinement of one path."""

import math

import pytest
import torch
from scipy.stats import kstest

from score_sde.samplers import GRIDS, STEPS, EulerMaruyama, Noise, sample
from score_sde.samplers.brownian import RESOLUTION, Brownian, brownian_path
from score_sde.sde_lib import SDES, VPSDE
from tests.trajectories import noises, terminal


def path(num, seeds=(0, 1, 2), shape=(4,), **options):
    """All increments of a grid, (num, B, *)."""
    like = torch.zeros(len(seeds), *shape, dtype=torch.float64)
    return torch.stack([draw(like) for draw in Brownian(torch.tensor(seeds), **options).moves(num)])


# --- increments of a grid ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 5, 18, 20, 50])
def test_increments_of_a_finer_grid_add_up(num):
    for finer in (2, 8):
        sums = path(finer * num).unflatten(0, (num, finer)).sum(1) / finer**0.5
        torch.testing.assert_close(sums, path(num), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num", [5, 12, 16])
def test_increments_are_independent_normals(num):
    z = path(num, range(4000), (1,))[..., 0]
    assert kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    for power in (1, 2):
        v = z**power
        correlation = torch.corrcoef(v) - torch.eye(num)
        assert correlation.abs().max() < 4.5 / 4000**0.5


def test_increments_depend_on_seed_and_position_alone():
    brownian, like = Brownian(torch.tensor([7, 3])), torch.zeros(2, 5)
    forward = [brownian.increment(i, 24, like) for i in range(24)]
    for i in (23, 4, 11):
        assert torch.equal(brownian.increment(i, 24, like), forward[i])
        assert torch.equal(Brownian(torch.tensor([3])).increment(i, 24, like[:1])[0], forward[i][1])
        assert not torch.equal(Brownian(torch.tensor([7, 3]), stream=1).increment(i, 24, like), forward[i])


def test_only_the_first_draw_of_a_step_is_from_the_path():
    like, independent = torch.zeros(2, 3), Noise(torch.tensor([0, 1]))
    brownian = Brownian(torch.tensor([0, 1]))
    assert torch.equal(brownian(like), independent(like))  # before the first step
    for i, draw in enumerate(brownian.moves(3)):
        assert torch.equal(draw(like), brownian.increment(i, 3, like))
        assert torch.equal(draw(like), independent(like))
        assert torch.equal(draw(like), independent(like))


def test_memory_does_not_grow_with_the_number_of_steps():
    brownian, like = Brownian(torch.arange(2)), torch.zeros(2, 3)
    for draw in brownian.moves(640):
        draw(like)
    assert len(brownian._halvings) == 8  # 640 = 5 * 2^7


# --- samplers on a path -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euler_maruyama", "reverse_diffusion", "ancestral"])
@pytest.mark.parametrize("process", ["vpsde", "vesde", "subvpsde"])
def test_twice_the_steps_give_nearly_the_same_sample(mixture, process, name):
    """Strong error: it falls with the number of steps and is far below the distance between two paths."""
    sde = SDES[process]()
    x, denoise = terminal(mixture, sde, 200), mixture.denoiser(sde)

    def distance(num, of):
        few, many = (sample(STEPS[name](sde), denoise, x, GRIDS["karras"](sde, n), of(n)) for n in (num, 2 * num))
        return (few - many).abs().median()

    seeds = torch.arange(200)
    same, finer = (distance(num, lambda n: Brownian(seeds)) for num in (80, 320))
    assert same < 0.3 * distance(80, lambda n: Noise(seeds, stream=n))
    assert finer < 0.5 * same


def test_twenty_and_forty_steps_of_euler_maruyama_are_closer_than_by_chance(mixture):
    sde, seeds = VPSDE(), torch.arange(400)
    x, denoise = terminal(mixture, sde, 400), mixture.denoiser(sde)
    few, many, other = (
        sample(EulerMaruyama(sde), denoise, x, GRIDS["log_snr"](sde, num), noise)
        for num, noise in [(20, Brownian(seeds)), (40, Brownian(seeds)), (40, Noise(seeds))]
    )
    assert (few - many).abs().median() < 0.4 * (few - other).abs().median()


def test_a_step_without_noise_is_unaffected(sde, mixture):
    x, times = terminal(mixture, sde, 3), GRIDS["karras"](sde, 6)
    expected = sample(STEPS["heun"](sde), mixture.denoiser(sde), x, times, noises(3))
    assert torch.equal(sample(STEPS["heun"](sde), mixture.denoiser(sde), x, times, Brownian(torch.arange(3))), expected)


# --- a Brownian path at any time --------------------------------------------------------------------------------------


def test_motion_has_the_covariance_of_brownian_motion():
    keys, like = torch.arange(20_000), torch.zeros(20_000, 1, dtype=torch.float64)
    shares = [0.0, 1 / RESOLUTION, 0.1, 0.5, 0.73, 1.0]
    places = [torch.full((20_000,), round(share * RESOLUTION)) for share in shares]
    w = torch.cat([brownian_path(keys, place, like) for place in places], 1)
    exact = torch.tensor([place[0] / RESOLUTION for place in places], dtype=torch.float64)
    expected = torch.minimum(exact[:, None], exact)
    spread = torch.sqrt((torch.outer(exact, exact) + expected**2) / 20_000)
    assert ((w.T @ w / 20_000 - expected).abs() <= 4 * spread).all()
    assert kstest((w[:, 3] - w[:, 2]).numpy() / (exact[3] - exact[2]).sqrt().item(), "norm").pvalue > 0.01


def test_motion_of_each_key_is_its_own():
    keys, places = torch.tensor([5, -9, 5]), torch.tensor([100, 40_000, 777])
    like = torch.zeros(3, 2, 3)
    together = brownian_path(keys, places, like)
    for i in range(3):
        assert torch.equal(brownian_path(keys[i : i + 1], places[i : i + 1], like[:1])[0], together[i])
    torch.testing.assert_close(
        brownian_path(keys, places + 1, like), together, rtol=0, atol=6 * RESOLUTION**-0.5
    )  # paths are continuous


# --- few moves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euler_maruyama", "reverse_diffusion", "ancestral", "pc"])
def test_stochastic_samplers_end_near_the_data_in_any_number_of_steps(sde, mixture, name):
    for num in (1, 2, 5, 10, 20):
        x, times = terminal(mixture, sde, 4), GRIDS["uniform"](sde, num)
        moved = sample(STEPS[name](sde), mixture.denoiser(sde), x.float(), times, noises(4))
        assert moved.abs().max() < (3.0 if num >= 5 else math.inf)
