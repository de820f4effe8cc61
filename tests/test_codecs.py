"""Codecs: exact round trips, and the log-determinant against automatic differentiation."""

import math

import numpy as np
import pytest
import torch

from score_sde.data import CODECS, Codec, DataError, Dataset, Identity, Pixels, Standardize

LEVELS = {"pixels": (2, 17, 256), "identity": (0,), "standardize": (0,)}
CASES = [(name, levels) for name in CODECS for levels in LEVELS[name]]
SHAPES = [(3,), (2, 4), (1, 3, 2)]


def make(name: str, levels: int, shape: tuple[int, ...]) -> Codec:
    """A codec for examples of this shape, measured on data with unequal channels."""
    scales = torch.linspace(0.5, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    x = values_for(levels, (20, *shape))
    x = x if levels else scales * (x + 3)
    dataset = Dataset(x.numpy(), np.arange(20), levels=levels)
    return CODECS[name](levels=levels, **CODECS[name].measure(dataset))


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
    codec = make(name, levels, shape)
    values = values_for(levels, (5, *shape))
    x = codec.encode(values)
    assert x.dtype == torch.float32
    assert x.shape == values.shape
    assert codec.decode(x).dtype == values.dtype
    torch.testing.assert_close(codec.decode(x), values, rtol=0, atol=1e-6 if name == "standardize" else 0)
    torch.testing.assert_close(codec.values(x.double()), values.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "levels"), CASES)
def test_log_det_matches_the_jacobian(name, levels, shape):
    codec = make(name, levels, shape)
    values = values_for(levels, shape).float()
    jacobian = torch.autograd.functional.jacobian(lambda x: codec.encode(x[None])[0], values).reshape(
        values.numel(), values.numel()
    )
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


@pytest.mark.parametrize("wrong", [-0.51, 16.6, math.nan, math.inf])
def test_an_example_outside_the_bins_is_nan_without_a_synchronisation(wrong):
    values = torch.tensor([[-0.5, 3.0], [2.0, wrong], [7.0, 16.5]])
    found = Pixels(17).encode_unread(values)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], Pixels(17).encode(values[[0, 2]]))
    levels = torch.arange(17, dtype=torch.uint8)[None]
    assert torch.equal(Pixels(17).encode_unread(levels), Pixels(17).encode(levels))


@pytest.mark.parametrize("levels", [0, 1, -3])
def test_pixels_need_two_levels(levels):
    with pytest.raises(ValueError, match="identity"):
        Pixels(levels)


def test_identity_refuses_levels():
    with pytest.raises(ValueError, match="pixels"):
        Identity(levels=256)


def real(x: np.ndarray) -> Dataset:
    """An array as a dataset."""
    return Dataset(x.astype(np.float32), np.arange(len(x)))


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 4)])
def test_standardize_measures_each_channel_over_all_examples_and_positions(shape):
    scales = np.array([1e-3, 1.0, 1e4]).reshape(-1, *[1] * (len(shape) - 1))
    x = scales * (5 + np.random.default_rng(0).standard_normal((1203, *shape)))
    measured, axes = Standardize.measure(real(x)), (0, *range(2, x.ndim))
    np.testing.assert_allclose(measured["means"], x.astype(np.float32).mean(axes, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(measured["stds"], x.astype(np.float32).std(axes, dtype=np.float64), rtol=1e-6)
    encoded = Standardize(0, **measured).encode(torch.from_numpy(x.astype(np.float32))).double()
    torch.testing.assert_close(encoded.mean(axes), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded.std(axes, correction=0), torch.ones(3).double(), rtol=0, atol=1e-5)


def test_a_constant_channel_is_centred_comes_back_exactly_and_has_no_density():
    x = np.random.default_rng(0).standard_normal((50, 3))
    x[:, 1] = 0.1
    codec = Standardize(0, **Standardize.measure(real(x)))
    values = torch.from_numpy(x.astype(np.float32))
    assert torch.equal(codec.encode(values)[:, 1], torch.zeros(50))
    assert torch.equal(codec.decode(torch.full((50, 3), 0.7))[:, 1], values[:, 1])
    with pytest.raises(ValueError, match=r"channel 1 of the training data is always 0\.1 \(1 of 3 .* no density"):
        codec.log_det((3,))


def test_a_channel_that_float32_does_not_resolve_is_refused():
    x = 1e9 + np.random.default_rng(0).standard_normal((50, 2)) * [1e3, 1e6]
    with pytest.raises(DataError, match=r"channel 0 .* subtract an offset"):
        Standardize.measure(real(x))


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
