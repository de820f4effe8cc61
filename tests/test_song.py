"""EDM's DDPM++ and NCSN++: published sizes, options, and refusals."""

import pytest
import torch

from score_sde.models import Song

EDM = {"channels": 128, "num_blocks": 4, "attention": (16,), "augment_dim": 9}
NCSNPP = {"embedding": "fourier", "noise_mult": 2, "encoder": "residual", "fir": (1, 3, 3, 1)}

# Rounded in table 8 of Karras et al., 2022.
PUBLISHED = {
    "CIFAR-10, VP": (32, (2, 2, 2), {}, 55.733891),
    "CIFAR-10, VP, with labels": (32, (2, 2, 2), {"num_classes": 10}, 55.735299),
    "CIFAR-10, VE": (32, (2, 2, 2), NCSNPP, 56.397827),
    "FFHQ, VP": (64, (1, 2, 2, 2), {}, 61.805571),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    side, levels, options, expected = PUBLISHED[name]
    with torch.device("meta"):
        network = Song((3, side, side), channel_mult=levels, **EDM, **options)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == expected


@pytest.mark.parametrize("decoder", ["standard", "skip"])
@pytest.mark.parametrize("encoder", ["standard", "skip", "residual"])
@pytest.mark.parametrize("fir", [(), (1, 3, 3, 1)])
def test_a_shift_of_the_input_shifts_the_output(encoder, decoder, fir):
    """By a cell of the coarsest grid, far from the border, which the receptive field hardly reaches."""
    torch.manual_seed(0)
    network = Song((1, 32, 32), channels=8, encoder=encoder, decoder=decoder, fir=fir).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    network.middle[0].attention = torch.nn.Identity()
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    x, noise = torch.zeros(1, 1, 32, 32), torch.zeros(1)
    x[..., 15:17, 15:17] = 1
    there, here = network(x.roll(2, dims=3), noise), network(x, noise).roll(2, dims=3)
    torch.testing.assert_close(there[..., 14:18, 14:18], here[..., 14:18, 14:18], rtol=1e-3, atol=1e-3)


def test_augmentations_are_none_by_default():
    network = Song((3, 8, 8), augment_dim=9).eval()
    torch.nn.init.normal_(network.writers[0][2].weight)
    x, noise = torch.randn(2, 3, 8, 8), torch.zeros(2)
    for block in (network.middle[0].block, network.middle[1].block):
        torch.nn.init.normal_(block.conv2.weight)
    none = network(x, noise)
    torch.testing.assert_close(network(x, noise, augment=torch.zeros(2, 9)), none, rtol=0, atol=0)
    assert not torch.allclose(network(x, noise, augment=torch.ones(2, 9)), none)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shape": (3, 8)}, "takes images"),
        ({"shape": (3, 9, 8)}, "does not divide by 2"),
        ({"encoder": "sum"}, "unknown encoder 'sum'"),
        ({"decoder": "residual"}, "unknown decoder 'residual'"),
        ({"embedding": "learned"}, "unknown embedding 'learned'"),
    ],
)
def test_invalid_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Song(**{"shape": (3, 8, 8), **options})
