"""NCSN and NCSNv2: recorded normalisation, noise conditioning, and recipes."""

import pytest
import torch
from parity.recordings import Recording, per_sample

from score_sde.engine.config import load
from score_sde.models import NCSN, NETWORKS, NCSNv2
from score_sde.models.checkpoints.foreign import skeleton
from score_sde.models.ncsn import InstanceNormPlus


def filled(kind, **options):
    torch.manual_seed(0)
    network = kind((2, 8, 6), channels=4, **options).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_normalisation_has_the_recorded_outputs():
    recording = Recording("score_sde_models/layers")
    norm = InstanceNormPlus(16)
    norm.load_state_dict({name: recording[f"instancenormplus.param.{name}"] for name in ("alpha", "gamma", "beta")})
    out = norm(recording["instancenormplus.x"], torch.zeros(2, dtype=torch.long)).detach()
    assert per_sample(out, recording["instancenormplus.out"]) < 1e-5


def test_each_level_has_its_own_normalisation():
    norm, x = InstanceNormPlus(3, num_levels=2), torch.randn(2, 3, 4, 4)
    alone = InstanceNormPlus(3)
    for level in range(2):
        values = norm.levels.weight[level].detach().chunk(3)
        alone.load_state_dict(dict(zip(("gamma", "alpha", "beta"), values, strict=True)))
        told = torch.full((2,), level)
        torch.testing.assert_close(norm(x, told), alone(x, told))


def test_means_survive_the_normalisation():
    norm = InstanceNormPlus(4)
    x = torch.randn(2, 4, 8, 8) + torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(4, 1, 1)
    assert norm(x, torch.zeros(2)).mean((0, 2, 3)).diff().min() > 0.5


@pytest.mark.parametrize("kind", [NCSN, NCSNv2])
def test_output_keeps_the_shape_and_starts_at_zero(kind):
    x, noise = torch.randn(3, 2, 8, 6), torch.tensor([0.0, 4.0, 9.0]) + 0.25
    assert not kind((2, 8, 6), channels=4)(x, noise).any()
    out = filled(kind)(x, noise)
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert out.std() > 0


def test_every_parameter_of_the_evaluated_levels_gets_a_gradient():
    network = filled(NCSN, num_levels=2)
    network(torch.randn(4, 2, 8, 6), torch.tensor([0.0, 1.0, 0.0, 1.0])).square().sum().backward()
    assert not [name for name, parameter in network.named_parameters() if not parameter.grad.any()]


def test_ncsn_is_conditioned_on_the_nearest_level():
    network, x = filled(NCSN, num_levels=3), torch.randn(1, 2, 8, 6)
    out = [network(x, torch.tensor([level])) for level in (0.0, 1.0, 0.4, 1.3, 2.0, 7.0)]
    assert torch.equal(out[0], out[2])
    assert torch.equal(out[1], out[3])
    assert torch.equal(out[4], out[5])
    assert not torch.equal(out[0], out[1])


def test_ncsnv2_depends_on_the_noise_by_division_alone():
    network, x = filled(NCSNv2), torch.randn(2, 2, 8, 6)
    torch.testing.assert_close(network(x, torch.full((2,), 0.5)), 2 * network(x, torch.ones(2)))


def test_data_from_zero_to_one_are_centred():
    network, x = filled(NCSNv2, centred=False), torch.rand(2, 2, 8, 6)
    out = network(x, torch.ones(2))
    network.centred = True
    torch.testing.assert_close(out, network(2 * x - 1, torch.ones(2)))


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
def test_recipes_build(name):
    options = load(f"cifar10_{name}").network.to_dict()
    network = skeleton(NETWORKS[options.pop("name")], shape=(3, 32, 32), **options)
    with torch.device("meta"):
        assert network(torch.empty(2, 3, 32, 32), torch.zeros(2)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 7, 8), {}, "does not divide by 2, as 2 levels need"),
        ((1, 8, 12), {"depth": 6}, "does not divide by 8, as 4 levels need"),
        ((1, 8, 8), {"depth": 7}, "depth 7: need one of 4, 5, 6 levels"),
        ((1, 8, 8), {"activation": "tanh"}, "activation 'tanh': need one of elu, relu, lrelu, swish"),
    ],
)
def test_invalid_options_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        NCSN(shape, **options)
