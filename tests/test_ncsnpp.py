"""DDPM++ and NCSN++: recorded layers, every option, the published sizes."""

import itertools
import math

import pytest
import torch
from parity.recordings import Recording, per_sample
from torch.nn import functional as F

from score_sde.engine import build, objective
from score_sde.engine.config import load, names, override
from score_sde.models import NCSNpp
from score_sde.models.blocks import SelfAttention, Style
from score_sde.models.checkpoints.foreign import skeleton
from score_sde.models.embeddings import Fourier, Positional
from score_sde.models.ncsnpp import LogFourier
from score_sde.models.resampling import FIR, Down, Up

SMALL = {"channels": 8, "channel_mult": (1, 2, 2), "num_blocks": 1, "attention": (4,), "dropout": 0.0}
FILTER = (1.0, 3.0, 3.0, 1.0)
RECIPES = [name for name in names() if name.startswith("cifar10_")]


def filled(shape=(3, 8, 8), **options):
    """A small network with its zeros filled, so that every path affects the output."""
    torch.manual_seed(0)
    network = NCSNpp(shape, **{**SMALL, **options}).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim == 1 or not parameter.any() else None
    return network


def count(**options):
    return sum(parameter.numel() for parameter in skeleton(NCSNpp, shape=(3, 32, 32), **options).parameters())


# --- recorded layers --------------------------------------------------------------------------------------------------


def test_resampling_has_the_recorded_outputs():
    recording = Recording("score_sde_models/layers")
    x, fir, none = recording["x"], FIR(tuple(recording["fir_kernel"].tolist())), FIR(())
    down = Down(3, 5, fir, learned=True)
    with torch.no_grad():
        down.conv.weight.copy_(recording["w"])
        down.conv.bias.zero_()
    ours = {
        "upsample_2d": fir.upsample(x),
        "downsample_2d": fir.downsample(x),
        "naive_upsample_2d": none.upsample(x),
        "naive_downsample_2d": none.downsample(x),
        "conv_downsample_2d": down(x).detach(),
    }
    for name, y in ours.items():
        assert per_sample(y, recording[name]) < 1e-6, name


def test_embeddings_have_the_recorded_outputs():
    recording = Recording("score_sde_models/layers")
    for width in (8, 12, 13):
        waves = Positional(width, cos_first=False, ends=True)(recording["t"])
        torch.testing.assert_close(waves, recording[f"timestep_embedding_{width}"], rtol=0, atol=1e-5)
    fourier = LogFourier(12)
    fourier.frequencies.copy_(recording["fourier_W"])
    torch.testing.assert_close(fourier(recording["sigma"]), recording["fourier_of_log_sigma"], rtol=0, atol=1e-3)


def test_attention_has_the_recorded_outputs():
    recording = Recording("score_sde_models/layers")
    theirs = {name: recording[f"attn.param.{name}"] for name in ("GroupNorm_0.weight", "GroupNorm_0.bias")}
    nin = [(recording[f"attn.param.NIN_{i}.W"].T, recording[f"attn.param.NIN_{i}.b"]) for i in range(4)]
    attention = SelfAttention(16, 1, Style(scale_shift=False, eps=1e-6, group=4, gain=math.sqrt(0.5)))
    attention.load_state_dict(
        {
            "norm.weight": theirs["GroupNorm_0.weight"],
            "norm.bias": theirs["GroupNorm_0.bias"],
            "qkv.weight": torch.cat([weight for weight, _ in nin[:3]]),
            "qkv.bias": torch.cat([bias for _, bias in nin[:3]]),
            "output.weight": nin[3][0],
            "output.bias": nin[3][1],
        }
    )
    x, expected = recording["attn.x"], recording["attn.out"]
    assert per_sample(attention(x).detach(), expected) < 1e-6


# --- resampling against its definition --------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [(1, 1), (1, 2, 1), (1, 3, 3, 1), (1, 2, 5, 1), (1, 4, 6, 4, 1)])
def test_constants_stay_inside(taps):
    x = torch.ones(1, 2, 12, 12)
    fir = FIR(taps)
    torch.testing.assert_close(fir.downsample(x)[..., 2:-2, 2:-2], torch.ones(1, 2, 2, 2))
    even = sum(taps[::2]) == sum(taps[1::2])
    inside = fir.upsample(x)[..., 4:-4, 4:-4]
    torch.testing.assert_close(inside.mean(), torch.tensor(1.0))
    assert not even or torch.allclose(inside, torch.ones_like(inside))


@pytest.mark.parametrize("taps", [(1.0, 1.0), FILTER])
def test_doubling_is_the_transpose_of_halving(taps):
    fir, x, y = FIR(taps).to(torch.float64), torch.randn(1, 2, 8, 8).double(), torch.randn(1, 2, 4, 4).double()
    torch.testing.assert_close((fir.downsample(x) * y).sum() * 4, (fir.upsample(y) * x).sum())


def test_two_taps_are_no_filter():
    x = torch.randn(2, 3, 8, 6)
    torch.testing.assert_close(FIR((1, 1)).downsample(x), FIR(()).downsample(x))
    torch.testing.assert_close(FIR((1, 1)).upsample(x), FIR(()).upsample(x))


@pytest.mark.parametrize("taps", [(), (1, 2, 1), FILTER])
@pytest.mark.parametrize("learned", [True, False])
def test_down_and_up_change_the_sides_by_two(taps, learned):
    x = torch.randn(2, 4, 8, 6)
    assert Down(4, 4, FIR(taps), learned)(x).shape == (2, 4, 4, 3)
    assert Up(4, 4, FIR(taps), learned)(x).shape == (2, 4, 16, 12)


def test_fourier_features_are_waves_of_unit_power():
    waves = Fourier(64)(torch.linspace(-3, 3, 5))
    torch.testing.assert_close(waves.square().sum(1), torch.full((5,), 32.0))
    assert "frequencies" in Fourier(4).state_dict()


# --- options ----------------------------------------------------------------------------------------------------------


PROGRESSIVE = [("none", "none"), ("input_skip", "none"), ("residual", "none"), ("residual", "output_skip")]
PROGRESSIVE += [("residual", "residual")]


@pytest.mark.parametrize(("progressive_input", "progressive"), PROGRESSIVE)
def test_every_combination_keeps_the_shape_and_uses_all_weights(progressive_input, progressive):
    for blocks, fir in itertools.product(("biggan", "ddpm"), ((), FILTER)):
        network = filled(blocks=blocks, fir=fir, progressive_input=progressive_input, progressive=progressive)
        x, noise = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 500.0])
        out = network(x, noise)
        assert out.shape == x.shape
        out.square().sum().backward()
        assert not [name for name, parameter in network.named_parameters() if not parameter.grad.any()]


@pytest.mark.parametrize("options", [{}, {"progressive": "output_skip"}, {"progressive": "residual"}])
def test_zero_at_initialisation(options):
    network = NCSNpp((3, 8, 8), **SMALL, **options)
    assert not network(torch.randn(2, 3, 8, 8), torch.ones(2)).any()


def test_cat_and_sum_differ_in_their_channels():
    network = filled(progressive_input="input_skip", combine="cat")
    assert network.encoder[0].pyramid.concatenate
    x = torch.randn(2, 3, 8, 8)
    assert network(x, torch.ones(2)).shape == x.shape


def test_data_from_zero_to_one_are_centred():
    network = filled(centred=False)
    x, noise = torch.rand(2, 3, 8, 8), torch.ones(2)
    out = network(x, noise)
    network.centred = True
    torch.testing.assert_close(out, network(2 * x - 1, noise))


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
def test_output_is_divided_by_the_noise_level(embedding):
    network = filled(embedding=embedding, by_sigma=True)
    x, noise = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 20.0])
    out = network(x, noise)
    network.by_sigma = False
    torch.testing.assert_close(out, network(x, noise) / noise.reshape(2, 1, 1, 1))


def test_a_level_of_a_ladder_gives_its_noise():
    network = filled(by_sigma=True, ladder=(0.01, 50.0, 5.0))
    x, levels = torch.randn(5, 3, 8, 8), torch.arange(5.0)
    out = network(x, levels)
    network.by_sigma = False
    sigmas = torch.logspace(torch.tensor(50.0).log10(), -2, 5)
    torch.testing.assert_close(out, network(x, levels) / sigmas.reshape(5, 1, 1, 1))


def test_labels_and_their_absence():
    network = filled(num_classes=3)
    x, noise, label = torch.randn(3, 3, 8, 8), torch.ones(3), torch.tensor([0, 1, 2])
    keep = torch.tensor([True, False, True])
    labelled, null, mixed = network(x, noise, label=label), network(x, noise), network(x, noise, keep, label)
    torch.testing.assert_close(mixed[keep], labelled[keep])
    torch.testing.assert_close(mixed[~keep], null[~keep])
    assert (labelled - null).abs().flatten(1).amax(1).min() > 1e-5


def test_noise_unconditional():
    network, x = filled(noise_unconditional=True), torch.randn(2, 3, 8, 8)
    assert torch.equal(network(x, torch.zeros(2)), network(x, torch.full((2,), 9.0)))


def test_memory_format_and_precision():
    network, x = filled(fir=FILTER, progressive_input="residual"), torch.randn(2, 3, 8, 8)
    noise = torch.tensor([1.0, 30.0])
    out = network(x, noise)
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), noise)
    torch.testing.assert_close(last, out, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x, noise)
        assert torch.equal(network.conditioning(noise, None, None), network.conditioning(noise, None, None).float())
    assert F.mse_loss(rough.float(), out).sqrt() < 0.05 * out.std()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2,), {}, r"takes images of shape \(C, H, W\)"),
        ((3, 10, 8), {}, "does not divide by 4, as 3 levels need"),
        ((3, 8, 8), {"blocks": "vit"}, "unknown blocks 'vit'; known: biggan, ddpm"),
        ((3, 8, 8), {"progressive": "sum"}, "unknown progressive 'sum'"),
        ((3, 8, 8), {"embedding": "sine"}, "unknown embedding 'sine'"),
    ],
)
def test_invalid_options_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        NCSNpp(shape, **SMALL, **options)


# --- published sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ("cifar10_ddpmpp_vp", 61_804_419),  # 61.8 M
        ("cifar10_ddpmpp_vp_deep", 106_632_579),
        ("cifar10_ncsnpp_vp", 62_693_251),
        ("cifar10_ncsnpp_ve", 62_758_787),  # 62.8 M
        ("cifar10_ncsnpp_ve_deep", 107_586_947),  # 107.6 M
        ("cifar10_ncsnpp_ve_discrete", 62_693_251),
    ],
)
def test_recipes_have_the_published_sizes(config, parameters):
    options = load(config).network.to_dict()
    assert options.pop("name") == "ncsnpp"
    assert count(**options) == parameters


def test_recipes_differ():
    recipes = {name: load(name).to_json() for name in RECIPES}
    assert len(recipes) == 19
    assert len(set(recipes.values())) == len(recipes)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_build_and_weight_the_error_of_the_noise(name):
    """The output of a new network is zero, so its error is the noise, whose mean square is 1 at every noise level."""
    config = load(name)
    blocks = [("network.num_blocks", "1")] if "num_blocks" in config.network else []
    width = "32" if config.network.name == "ddpm" else "8"
    override(config, [("network.channels", width), ("device", "cpu"), *blocks])
    experiment = build.build(config, build.DataFacts((3, 32, 32), 256, 0.5, 60.0))
    denoise, law = (
        experiment.denoiser(experiment.network, config),
        objective.make_timestep_sampler(config.loss.timestep_sampler),
    )
    t, _ = law(experiment.sde, torch.tensor([0.1, 0.5, 0.9]))
    x0 = experiment.codec.encode(torch.randint(256, (3, 3, 32, 32)))
    assert (x0.min() < 0) == config.network.centred
    loss = objective.make_objective(config, experiment)(
        denoise, x0, torch.randn_like(x0), t.float().reshape(-1, 1, 1, 1), None, 0.0
    )
    torch.testing.assert_close(loss, torch.ones(3), rtol=0, atol=0.1)
