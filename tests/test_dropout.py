"""Dropout: fraction, mean, gradient and seed."""

import pytest
import torch

from score_sde.models.layers import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.95])
def test_a_fraction_is_dropped_and_the_mean_stays(p):
    torch.manual_seed(0)
    x = torch.full((1_000_003,), 2.0, requires_grad=True)
    y = Dropout(p)(x)
    kept = y != 0
    deviation = (p * (1 - p) / len(x)) ** 0.5
    assert abs(kept.double().mean().item() - (1 - p)) < 4 * deviation
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 2 / (1 - p)), rtol=1e-4, atol=0)
    assert abs(y.double().mean().item() - 2) < 8 * deviation / (1 - p)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach() / 2)


def test_four_values_from_one_word_are_independent():
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(2**20)) != 0).double().reshape(-1, 4) - 0.5
    correlation = 4 * kept.T @ kept / len(kept)
    assert (correlation - torch.eye(4)).abs().max() < 5 * len(kept) ** -0.5


def test_the_mask_depends_on_the_seed():
    x = torch.ones(5, 7, 3)
    first, second, other = (Dropout(0.5)(x) for _ in map(torch.manual_seed, (3, 3, 4)))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_stays(dtype):
    assert Dropout(0.5)(torch.ones(3, 2, dtype=dtype)).dtype == dtype


def test_nothing_is_dropped_in_evaluation():
    x = torch.randn(4, 3)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros_like(x))
    assert (Dropout(1 - 1e-9)(x) != 0).sum() == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.5)
