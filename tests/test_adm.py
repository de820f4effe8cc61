"""ADM and its classifier: published sizes, resampling, augmentations, pools, and refused options."""

import pytest
import torch

from score_sde.models import ADM, ADMClassifier

IMAGENET = {"attention": (32, 16, 8), "num_classes": 1000, "learned_variance": True, "num_blocks": 2, "channels": 256}
IMPROVED = {"attention": (16, 8), "learned_variance": True, "num_blocks": 3, "heads": 4, "resample_blocks": False}
LEVELS = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}
TINY = {"channels": 8, "channel_mult": (1, 2), "heads": 2}

# Dhariwal, Nichol, 2021, tables 11 and 13; Nichol, Dhariwal, 2021, names of the released files; Karras et al., 2022.
PUBLISHED = {
    "ImageNet-64": (64, IMAGENET | {"channels": 192, "num_blocks": 3}, 296),
    "ImageNet-128": (128, IMAGENET | {"heads": 4}, 422),
    "ImageNet-256": (256, IMAGENET, 554),
    "ImageNet-512": (512, IMAGENET, 559),
    "LSUN": (256, IMAGENET | {"num_classes": 0}, 552.8),
    "EDM, ImageNet-64": (64, IMAGENET | {"channels": 192, "num_blocks": 3, "learned_variance": False}, 295.9),
    "improved, ImageNet-64": (64, IMPROVED | {"channels": 128}, 121),
    "improved, ImageNet-64 with labels": (64, IMPROVED | {"channels": 192, "num_classes": 1000}, 273),
    "improved, CIFAR-10": (32, IMPROVED | {"channels": 128}, 52.5),
}
CLASSIFIERS = {64: (4, 65.4), 128: (2, 42.6), 256: (2, 54.1), 512: (2, 54.4)}


def millions(network, **options):
    """Number of parameters, in millions, of a network on the meta device."""
    with torch.device("meta"):
        return sum(p.numel() for p in network(**options).parameters()) / 1e6


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    side, options, expected = PUBLISHED[name]
    levels = LEVELS.get(side, (1, 2, 2, 2))
    assert millions(ADM, shape=(3, side, side), channel_mult=levels, **options) == pytest.approx(expected, rel=1.5e-3)


@pytest.mark.parametrize("side", CLASSIFIERS)
def test_published_sizes_of_classifiers(side):
    depth, expected = CLASSIFIERS[side]
    options = {"channels": 128, "num_blocks": depth, "attention": (32, 16, 8), "num_classes": 1000}
    counted = millions(ADMClassifier, shape=(3, side, side), channel_mult=LEVELS[side], **options)
    assert counted == pytest.approx(expected, rel=1.5e-3)


def filled(network):
    """Fills the network's zeros so that every path affects the output."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_augmentations_are_none_by_default():
    network = filled(ADM((3, 8, 8), **TINY, augment_dim=9))
    x, noise = torch.randn(2, 3, 8, 8), torch.zeros(2)
    none = network(x, noise)
    torch.testing.assert_close(network(x, noise, augment=torch.zeros(2, 9)), none, rtol=0, atol=0)
    assert not torch.allclose(network(x, noise, augment=torch.ones(2, 9)), none)


def test_learned_variance_doubles_the_channels():
    assert ADM((3, 8, 8), **TINY, learned_variance=True)(torch.randn(2, 3, 8, 8), torch.zeros(2)).shape == (2, 6, 8, 8)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_does_not_change_the_output(channels_last):
    network = filled(ADM((3, 8, 8), **TINY, attention=(8,)))
    x, noise = torch.randn(2, 3, 8, 8), torch.zeros(2)
    expected = network(x, noise)
    if channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x, noise), expected, rtol=1e-5, atol=1e-5)


def test_blocks_of_fewer_channels_than_a_head_do_not_attend():
    small, large = ({name for name, _ in ADM((3, 8, 8), channels=c).named_parameters()} for c in (16, 32))
    assert not any("attention" in name for name in small)
    assert any("attention" in name for name in large)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_pools(pool):
    network = filled(ADMClassifier((3, 8, 8), **TINY, num_classes=5, pool=pool))
    x, noise = torch.randn(2, 3, 8, 8), torch.tensor([0.0, 500.0])
    features = network.features(x, noise)
    assert features.shape == (2, network.num_features)
    torch.testing.assert_close(network.output(features), network(x, noise))
    assert network(x, noise).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shape": (3, 8)}, r"takes images of shape \(C, H, W\), not \(3, 8\)"),
        ({"shape": (3, 9, 8)}, r"does not divide by 2.* \(3, 8, 8\) and \(3, 10, 8\)"),
        ({"heads": 3}, "3 heads do not divide 16 channels"),
    ],
)
def test_invalid_options_are_refused(options, told):
    for network in (ADM, ADMClassifier):
        with pytest.raises(ValueError, match=told):
            network(**{"shape": (3, 8, 8), **TINY, **options})


@pytest.mark.parametrize(("options", "told"), [({"num_classes": 1}, "at least 2"), ({"pool": "max"}, "unknown pool")])
def test_invalid_classifier_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        ADMClassifier((3, 8, 8), **options)
