"""DiT: published sizes, patches, positions, gates, and refused options."""

import math

import pytest
import torch

from score_sde.models import DiT
from score_sde.models.dit import positions

# Peebles, Xie, 2023, table 1 and its repository: width, depth, heads, millions of parameters with patches of 2.
PUBLISHED = {
    "S": (384, 12, 6, 33),
    "B": (768, 12, 12, 130),
    "L": (1024, 24, 16, 458),
    "XL": (1152, 28, 16, 675),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    width, depth, heads, expected = PUBLISHED[name]
    options = {"num_classes": 1000, "learned_variance": True}
    with torch.device("meta"):
        network = DiT((4, 32, 32), patch=2, width=width, depth=depth, heads=heads, **options)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == expected


def test_blocks_are_the_identity_when_new():
    torch.manual_seed(0)
    network = DiT((1, 8, 8), num_classes=3)
    h, c = torch.randn(2, 16, 64), torch.randn(2, 64)
    for block in network.blocks:
        torch.testing.assert_close(block(h, c), h, rtol=0, atol=0)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_return_to_their_position(patch):
    """A network whose blocks do nothing and whose output inverts its stem, up to the normalisation."""
    network, x = DiT((3, 8, 4), patch=patch, width=64, depth=1), torch.randn(2, 3, 8, 4)
    network.positions.zero_()
    length = 3 * patch**2
    directions = torch.linalg.qr(torch.randn(64, 64))[0][:, : min(length, 64)]
    with torch.no_grad():
        network.stem.weight.copy_(directions.reshape(network.stem.weight.shape))
        # (C, p, p) of the stem, (p, p, C) of the output
        undo = directions.T.reshape(3, patch, patch, 64).permute(1, 2, 0, 3).reshape(length, 64)
        network.output.weight.copy_(undo)
        tokens = network.stem(x)
        spread = tokens.var(1, unbiased=False, keepdim=True).add(1e-6).sqrt()
        centred = tokens - tokens.mean(1, keepdim=True)
        expected = torch.nn.functional.fold(
            torch.einsum("nd,bdhw->bnhw", directions.T, centred / spread).flatten(2), (8, 4), patch, stride=patch
        )
        torch.testing.assert_close(network(x, torch.zeros(2)), expected, rtol=1e-4, atol=1e-5)


def test_positions_match_the_paper():
    found = positions([2, 3], 8)
    for row in range(2):
        for column in range(3):
            waves = [f(at * w) for at in (column, row) for f in (math.sin, math.cos) for w in (1, 0.01)]
            torch.testing.assert_close(found[3 * row + column], torch.tensor(waves))


def test_learned_variance_doubles_the_channels():
    assert DiT((3, 8, 8), learned_variance=True)(torch.randn(2, 3, 8, 8), torch.zeros(2)).shape == (2, 6, 8, 8)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shape": (3, 8)}, "takes images"),
        ({"shape": (3, 9, 8)}, "patch 2 does not divide the sides"),
        ({"heads": 5}, "width 64: need a multiple of 4 and of the 5 heads"),
    ],
)
def test_invalid_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        DiT(**{"shape": (3, 8, 8), **options})
