"""Codecs against their definition: exact round trips, and the log-determinant that automatic differentiation gives."""

import math

import pytest
import torch

from data import CODECS, Identity, Pixels

LEVELS = {"pixels": (2, 17, 256), "identity": (0,)}
CASES = [(name, levels) for name in CODECS for levels in LEVELS[name]]
SHAPES = [(3,), (2, 4), (1, 3, 2)]


def values_for(levels: int, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if levels == 0:
        return torch.randn(shape, generator=generator)
    return torch.randint(levels, shape, generator=generator, dtype=torch.uint8)


def test_pixels_return_every_value():
    for levels in range(2, 257):
        values = torch.arange(levels, dtype=torch.uint8)
        codec = Pixels(levels)
        decoded = codec.decode(codec.encode(values))
        assert decoded.dtype == torch.uint8
        assert torch.equal(decoded, values), levels


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_pixels_are_the_centres_of_equal_bins_that_fill_the_interval(levels):
    codec = Pixels(levels)
    edges = codec.encode(torch.arange(levels + 1) - 0.5)
    torch.testing.assert_close(edges, torch.linspace(-1, 1, levels + 1))
    torch.testing.assert_close(codec.encode(torch.arange(levels)), (edges[1:] + edges[:-1]) / 2)


def test_pixels_decode_rounds_and_clamps():
    codec = Pixels(4)
    x = torch.tensor([-5.0, -1.0, -0.51, -0.49, 0.01, 0.99, 1.0, 5.0])
    assert codec.decode(x).tolist() == [0, 0, 0, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "levels"), CASES)
def test_round_trip_keeps_batch_and_shape(name, levels, shape):
    codec = CODECS[name](levels=levels)
    values = values_for(levels, (5, *shape))
    x = codec.encode(values)
    assert x.dtype == torch.float32
    assert x.shape == values.shape
    assert torch.equal(codec.decode(x), values)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "levels"), CASES)
def test_log_det_is_that_of_the_jacobian(name, levels, shape):
    codec = CODECS[name](levels=levels)
    values = values_for(levels, shape).float()
    jacobian = torch.autograd.functional.jacobian(codec.encode, values).reshape(values.numel(), values.numel())
    assert codec.log_det(shape) == pytest.approx(torch.linalg.slogdet(jacobian.double()).logabsdet.item(), abs=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([-0.51, 3.0]),
        torch.tensor([0.0, 16.6]),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([0, 17], dtype=torch.uint8),
        torch.tensor([-1, 3]),
    ],
)
def test_pixels_refuse_values_outside_their_bins(values):
    with pytest.raises(ValueError, match=r"outside \[-0.5, 16.5\]"):
        Pixels(17).encode(values)


@pytest.mark.parametrize("levels", [0, 1, -3])
def test_pixels_need_two_levels(levels):
    with pytest.raises(ValueError, match="identity"):
        Pixels(levels)


def test_identity_refuses_levels():
    with pytest.raises(ValueError, match="pixels"):
        Identity(levels=256)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_pixels_from_zero(levels):
    codec, values = Pixels(levels, low=0.0), torch.arange(levels, dtype=torch.uint8)
    edges = codec.encode(torch.arange(levels + 1) - 0.5)
    torch.testing.assert_close(edges, torch.linspace(0, 1, levels + 1))
    torch.testing.assert_close(2 * codec.encode(values) - 1, Pixels(levels).encode(values))
    assert torch.equal(codec.decode(codec.encode(values)), values)
    assert codec.log_det((3,)) == pytest.approx(Pixels(levels).log_det((3,)) - 3 * math.log(2))


def test_pixels_begin_below_their_end():
    with pytest.raises(ValueError, match=r"codec\.low 1\.0: need a number below 1"):
        Pixels(256, low=1.0)
