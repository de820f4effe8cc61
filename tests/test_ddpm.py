"""DDPM's network: its published size and the meaning of its options."""

import pytest
import torch

from score_sde.engine.config import load
from score_sde.models import DDPM
from score_sde.models.checkpoints.foreign import skeleton
from score_sde.models.resampling import Down, Up

SMALL = {"channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attention": (4,), "dropout": 0.0, "norm_groups": 8}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("shape", "options", "parameters"),
    [
        ((3, 32, 32), {}, 35_746_307),  # 35.7 M for CIFAR-10
        ((3, 256, 256), {"channel_mult": (1, 1, 2, 2, 4, 4)}, 113_673_219),  # 114 M for LSUN and CelebA-HQ
    ],
)
def test_published_sizes(shape, options, parameters):
    assert count(skeleton(DDPM, shape=shape, **options)) == parameters


def test_recipe_attends_once_a_level():
    options = load("cifar10_ddpm_vp").network.to_dict()
    assert options.pop("name") == "ddpm"
    network = skeleton(DDPM, shape=(3, 32, 32), **options)
    assert count(network) == 35_746_307 - 2 * (4 * 256 * 257 + 2 * 256)


def test_zero_at_initialisation():
    assert not DDPM((3, 8, 8), **SMALL)(torch.randn(2, 3, 8, 8), torch.ones(2)).any()


def test_normalisation_has_the_configured_groups():
    network = DDPM((3, 8, 8), **SMALL, norm_eps=1e-5)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {8}
    assert {norm.eps for norm in norms} == {1e-5}


@pytest.mark.parametrize("learned", [True, False])
def test_layers_between_resolutions(learned):
    network = DDPM((3, 8, 8), **SMALL, resample_conv=learned)
    for layer in (network.encoder[0].change, network.decoder[0].change):
        assert isinstance(layer, (Down, Up))
        assert (layer.conv is not None) == learned


def test_padding_before_downsampling_is_at_the_end():
    down = DDPM((3, 8, 8), **SMALL).encoder[0].change
    with torch.no_grad():
        down.conv.weight.zero_()
        down.conv.weight[0, 0, 0, 0] = 1
        down.conv.bias.zero_()
    x = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(down(x)[0, 0], x[0, 0, ::2, ::2])


def test_heads_divide_the_channels():
    network = DDPM((3, 8, 8), **SMALL, head_channels=8)
    assert [stage.attention.heads for stage in network.middle[:1]] == [4]
    assert DDPM((3, 8, 8), **SMALL).middle[0].attention.heads == 1


def test_shapes_that_do_not_divide():
    with pytest.raises(ValueError, match="does not divide by 2"):
        DDPM((3, 7, 8), **SMALL)
