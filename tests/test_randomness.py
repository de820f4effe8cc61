"""Random numbers by address: equal addresses give equal numbers, different addresses independent ones."""

import itertools

import pytest
import torch

from score_sde.engine import randomness
from score_sde.engine.randomness import (
    DEQUANTIZATION,
    DITHER,
    HELD_OUT,
    PROBES,
    TRAINING,
    noise,
    positions,
    uniform,
)
from score_sde.samplers import Noise

PURPOSES = (TRAINING, DITHER, HELD_OUT, DEQUANTIZATION, PROBES)
SHAPES = [(1,), (3,), (2, 5), (1, 3, 3)]


def uniforms(seed, purpose, where, shape):
    return uniform(seed, purpose, where, torch.empty(len(where), *shape))


def normals(seed, purpose, where, shape):
    return noise(seed, purpose, where)(torch.empty(len(where), *shape))


@pytest.fixture(params=[uniforms, normals])
def numbers(request):
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
def test_an_example_has_the_same_numbers_in_any_batch(numbers, shape):
    whole = numbers(3, DITHER, positions(0, 10), shape)
    assert torch.equal(whole[4:7], numbers(3, DITHER, positions(4, 3), shape))
    assert torch.equal(whole[[7]], numbers(3, DITHER, positions(7, 1), shape))


def test_every_seed_purpose_and_position_has_different_numbers(numbers):
    addresses = itertools.product(range(20), PURPOSES)
    drawn = torch.cat([numbers(seed, purpose, positions(0, 20), (2,)) for seed, purpose in addresses])
    assert len(drawn.unique(dim=0)) == 20 * len(PURPOSES) * 20


def test_no_purpose_shares_its_numbers_with_sampling():
    where = positions(0, 50)
    sampled = Noise(where)(torch.empty(50, 2))
    for seed, purpose in itertools.product(range(20), PURPOSES):
        assert not (normals(seed, purpose, where, (2,)) == sampled).all(1).any()


def test_purposes_are_uncorrelated():
    """Correlations of 20,000 pairs have a standard error of 0.007."""
    where = positions(0, 20_000)
    columns = [draw(0, purpose, where, (1,)) for draw in (uniforms, normals) for purpose in PURPOSES]
    correlations = torch.corrcoef(torch.cat(columns, 1).T)
    assert (correlations - torch.eye(len(columns))).abs().max() < 4 / 20_000**0.5


def test_uniform_numbers_are_uniform():
    """By Kolmogorov's law the distribution functions are 1.95 / sqrt(n) apart one time in 1,000."""
    values = uniforms(0, DITHER, positions(0, 2_000), (2, 5)).flatten().sort().values
    ideal = (torch.arange(len(values)) + 0.5) / len(values)
    assert (values - ideal).abs().max() < 1.95 / len(values) ** 0.5


@pytest.mark.parametrize(("bits", "least", "most"), [(0, 1e-10, 2e-10), (2**32 - 1, 1 - 1e-7, 1)])
def test_uniform_numbers_stay_between_0_and_1(monkeypatch, bits, least, most):
    monkeypatch.setattr(randomness, "random_bits", lambda *args: torch.full((2, 1, 1, 1), bits))
    assert least <= uniforms(0, DITHER, positions(0, 1), (2,)).min()
    assert uniforms(0, DITHER, positions(0, 1), (2,)).max() <= most


def test_the_numbers_of_an_address_are_fixed():
    """Fixed values for seed 3 and position 5, so that resumed runs get the same noise in every version."""
    (normal,) = normals(3, TRAINING, positions(5, 1), (3,)).tolist()
    assert normal == pytest.approx([-0.7743596434593201, 0.2475031316280365, 0.3277149200439453], abs=1e-6)
    (even,) = uniforms(3, DITHER, positions(5, 1), (3,)).tolist()
    assert even == pytest.approx([0.3849051892757416, 0.28475111722946167, 0.3574084937572479], abs=1e-6)
