"""Guided and improved diffusion's weights: outputs equal to the references', and refusal of other files."""

import json
import shutil

import numpy as np
import pytest
import torch
from foreign import denoiser, malicious, network, recorded, without_end
from parity.recordings import Recording, parameters, per_sample

from score_sde.models import ADM, ADMClassifier
from score_sde.models.blocks import Block, SelfAttention, Style
from score_sde.models.checkpoints import guided_diffusion
from score_sde.models.checkpoints.parts import as_it_is, head_first
from score_sde.models.checkpoints.safe import ForeignError
from score_sde.models.embeddings import Positional
from score_sde.models.layers import halve
from score_sde.sde_lib import SDES, Classifier


def of_class(folder):
    """Name of the reference's class."""
    return json.loads((folder / "config.json").read_text())["cls"]


CASES = recorded("guided_diffusion")
UNET = next(path for path in CASES if path.name == "tiny_improved")
CLASSIFIER = next(path for path in CASES if path.name == "tiny_classifier_adaptive")


UNETS, CLASSIFIERS = ([path for path in CASES if of_class(path) == name] for name in ("UNetModel", "EncoderUNetModel"))


def of(folder):
    """The imported network and the recording: named arrays."""
    with np.load(folder / "io.npz") as arrays:
        recording = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return guided_diffusion.read(folder / "state_dict.pt"), recording


@pytest.mark.parametrize("folder", CASES, ids=lambda path: path.name)
def test_the_network_has_the_recorded_outputs(folder):
    foreign, recording = of(folder)
    given = {"label": recording["y"]} if folder in UNETS else {}
    ours = network(foreign)(recording["x"], recording["timesteps"], **given)
    assert per_sample(ours, recording["out"]) < 1e-5


@pytest.mark.parametrize("folder", UNETS, ids=lambda path: path.name)
def test_the_denoiser_inverts_the_recorded_process(folder):
    """x0 = (x - sigma eps) / alpha at integer and fractional levels, and the learned variance."""
    foreign, recording = of(folder)
    denoise = denoiser(foreign)
    noise, share = recording["out"].chunk(2, dim=1)
    for i, t in enumerate((recording["timesteps"].double() + 1).tolist()):
        one = slice(i, i + 1)
        found = denoise(recording["x"][one], t, label=recording["y"][one])
        alpha, sigma, _ = denoise.sde.marginal(t)
        assert per_sample(found.x0, (recording["x"][one] - sigma * noise[one]) / alpha) < 1e-5
        assert per_sample(found.v, 0.5 * (share[one] + 1)) < 1e-5


@pytest.mark.parametrize("folder", CLASSIFIERS, ids=lambda path: path.name)
def test_the_gradient_of_the_classifier_is_the_recorded_one(folder):
    foreign, recording = of(folder)
    spec, told = dict(foreign.config["sde"]), foreign.config["denoiser"]
    sde = SDES[spec.pop("name")](**spec)
    classify = Classifier(network(foreign), sde, told["sigma_data"], told["c_noise"], told["input"])
    for i, t in enumerate((recording["timesteps"].double() + 1).tolist()):
        x = recording["x"][i : i + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(classify.log_prob(recording["y"][i : i + 1])(x, t).sum(), x)
        assert per_sample(gradient, recording["grad_log_prob"][i : i + 1]) < 1e-5


# --- single layers ----------------------------------------------------------------------------------------------------


LAYERS = Recording("guided_diffusion/layers")


def loaded(name, module, dialect):
    """The module with the recorded weights under their names."""
    named = {ours: f"{name}.param.{theirs}" for ours, theirs in dialect.items()}
    found = {}
    for key, tensor in module.state_dict().items():
        part, _, leaf = key.rpartition(".")
        found[key] = LAYERS[f"{named[part]}.{leaf}"].reshape(tensor.shape)
    module.load_state_dict(found)
    return module.eval()


@pytest.mark.parametrize("name", ["resblock_down_film", "resblock_plain_skip"])
def test_blocks_have_the_recorded_outputs(name):
    keywords = parameters("guided_diffusion/layers")["cases"][name]["kwargs"]
    channels, emb = keywords["channels"], LAYERS[f"{name}.emb"]
    style = Style(scale_shift=keywords.get("use_scale_shift_norm", False))
    resample = halve if keywords.get("down") else None
    block = Block(channels, keywords.get("out_channels", channels), emb.shape[1], 0.0, style, resample)
    block = loaded(name, block, guided_diffusion.DIALECT.block)
    assert per_sample(block(LAYERS[f"{name}.x"], torch.nn.functional.silu(emb)), LAYERS[f"{name}.out"]) < 1e-5


@pytest.mark.parametrize(("name", "order"), [("attention_legacy_h4", head_first), ("attention_new_h4", as_it_is)])
def test_both_orders_of_attention_have_the_recorded_outputs(name, order):
    attention = loaded(name, SelfAttention(32, 4, Style()), guided_diffusion.DIALECT.attention)
    for parameter in (attention.qkv.weight, attention.qkv.bias):
        parameter.data = order(parameter.data, 4)
    assert per_sample(attention(LAYERS[f"{name}.x"]), LAYERS[f"{name}.out"]) < 1e-5


@pytest.mark.parametrize("width", [8, 12, 13])
def test_embeddings_of_levels_have_the_recorded_outputs(width):
    found = Positional(width, cos_first=True, ends=False)(LAYERS["t"])
    assert per_sample(found, LAYERS[f"timestep_embedding_{width}"]) < 1e-5


# --- settings that shapes do not determine ----------------------------------------------------------------------------


def published(kind, **options):
    """Weights of one of our networks under the reference's names, none of them zero."""
    ours = kind(**options)
    modules = guided_diffusion.encoder_modules(ours)
    if kind is ADM:
        modules |= guided_diffusion.decoder_modules(ours, options["num_blocks"])
    else:
        modules |= guided_diffusion.classifier_modules(options.get("pool", "attention"))
    theirs = {}
    for ours_name, name in guided_diffusion.names(ours, modules).items():
        tensor = torch.randn_like(ours.state_dict()[ours_name])
        if name == "label_emb.weight":
            tensor = tensor[:-1]
        elif name.endswith(("qkv.weight", "proj_out.weight", "qkv_proj.weight", "c_proj.weight")):
            tensor = tensor[..., None]
        elif name.endswith("positional_embedding"):
            tensor = tensor.T
        theirs[name] = tensor.clone()
    return theirs


SMALL = {"shape": (3, 64, 64), "channels": 32, "channel_mult": (1, 2, 3, 4), "attention": (32, 16, 8)}


@pytest.mark.parametrize("beside", ["name", "flags", "json"])
def test_settings_come_from_a_json_file_or_from_the_published_model(tmp_path, beside):
    options = {**SMALL, "num_blocks": 1, "num_classes": 7, "learned_variance": True, "norm_group": 1, "heads": 1}
    path = tmp_path / ("64x64_diffusion.pt" if beside == "name" else "mine.pt")
    torch.save(published(ADM, **options), path)
    if beside == "flags":
        told = 'MODEL_FLAGS="--image_size 64 --num_heads 2 --noise_schedule cosine --learn_sigma True"'
        path.with_suffix(".flags").write_text(told)
    elif beside == "json":
        path.with_suffix(".json").write_text(json.dumps({"image_size": 64, "num_heads": 2, "noise_schedule": "cosine"}))
    found = guided_diffusion.read(path)
    named = found.config["network"]
    assert {key: named[key] for key in options if key not in ("shape", "heads")} == {
        key: value for key, value in options.items() if key not in ("shape", "heads")
    }
    assert found.shape == (3, 64, 64)
    assert found.config["sde"] == {"name": "iddpm", "num_levels": 1000}
    assert (named.get("heads"), named.get("head_channels")) == ((None, 64) if beside == "name" else (2, None))
    label = found.weights["conditioning.label.table.weight"]
    assert label.shape == (8, 128)
    assert not label[-1].any()


@pytest.mark.parametrize("levels", [(1, 2, 3, 4), (1, 1, 2), (1,)])
@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_levels_of_an_encoder_follow_from_shapes(tmp_path, levels, pool):
    options = SMALL | {"channel_mult": levels, "num_blocks": 2, "pool": pool, "num_classes": 6, "norm_group": 1}
    torch.save(published(ADMClassifier, **options), tmp_path / "mine.pt")
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 64, "classifier_pool": pool}))
    found = guided_diffusion.read(tmp_path / "mine.pt").config["network"]
    assert (found["channel_mult"], found["num_blocks"], found["pool"]) == (levels, 2, pool)


@pytest.mark.parametrize(
    ("flags", "c_noise"),
    [
        ({"diffusion_steps": 4000, "rescale_timesteps": True}, "level_of_1000"),
        ({"diffusion_steps": 4000, "rescale_timesteps": False}, "level"),
        ({}, "level"),
    ],
)
def test_levels_have_the_unit_of_the_flags(tmp_path, flags, c_noise):
    shutil.copy(UNET / "state_dict.pt", tmp_path / "mine.pt")
    flags = {"image_size": 8, "num_heads": 2, **flags}
    (tmp_path / "mine.json").write_text(json.dumps(flags))
    foreign = guided_diffusion.read(tmp_path / "mine.pt")
    assert foreign.config["denoiser"]["c_noise"] == c_noise
    denoise, steps = denoiser(foreign), flags.get("diffusion_steps", 1000)
    told = denoise.c_noise(denoise.sde, float(steps), denoise.sde.marginal(float(steps)))
    assert told == pytest.approx((steps - 1) * (1000 / steps if c_noise == "level_of_1000" else 1))
    assert denoise.sde.alpha(torch.tensor(float(steps)).double()).log() == pytest.approx(-5.05, abs=0.03)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (None, "does not contain its number of heads"),
        ("[1", "has no JSON object of flags"),
        ({"num_heads": 2}, "lack image_size"),
        ({"image_size": 8, "num_heads": 2, "diffusion_steps": 4000}, "lack rescale_timesteps"),
        ({"image_size": 8, "num_heads": 2, "noise_schedule": "sqrt"}, "unknown noise_schedule 'sqrt'"),
        ({"image_size": 8, "num_heads": 3}, "3 heads do not divide 32 channels"),
    ],
)
def test_missing_or_wrong_flags_are_refused(tmp_path, flags, message):
    shutil.copy(UNET / "state_dict.pt", tmp_path / "mine.pt")
    if flags is not None:
        (tmp_path / "mine.json").write_text(flags if isinstance(flags, str) else json.dumps(flags))
    with pytest.raises(ForeignError, match=message):
        guided_diffusion.read(tmp_path / "mine.pt")


# --- refused files ----------------------------------------------------------------------------------------------------


CONV = "input_blocks.1.0.in_layers.2.weight"


@pytest.mark.parametrize("source", [UNET, CLASSIFIER], ids=["unet", "classifier"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(CONV), f"missing {CONV}"),
        (lambda tensors: tensors.pop("input_blocks.0.0.weight"), "missing input_blocks.0.0.weight"),
        (lambda tensors: tensors.update({"out.9.weight": torch.ones(1)}), "unexpected out.9.weight"),
        (lambda tensors: tensors.update({CONV: torch.ones(32, 4, 3, 3)}), r"misshapen .*\(32, 4, 3, 3\) for \(32, 32"),
        (lambda tensors: tensors.pop("time_embed.0.weight"), "no state dict of guided diffusion"),
        (lambda tensors: tensors.update(step=3), "no state dict of guided diffusion"),
    ],
)
def test_an_unexpected_or_missing_tensor_is_named(tmp_path, source, change, message):
    tensors = torch.load(source / "state_dict.pt", weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / "state_dict.pt")
    shutil.copy(source / "config.json", tmp_path)
    with pytest.raises(ForeignError, match=message) as error:
        guided_diffusion.read(tmp_path / "state_dict.pt")
    assert "\n" not in str(error.value)


def test_a_file_that_calls_other_code_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "64x64_diffusion.pt", tmp_path / "ran"
    malicious(path, mark, torch.load(UNET / "state_dict.pt", weights_only=True))
    with pytest.raises(ForeignError, match=r"would run .*pathlib"):
        guided_diffusion.read(path)
    assert not mark.exists()


def test_truncated_and_missing_files_are_refused(tmp_path):
    shutil.copytree(UNET, tmp_path / "copy")
    path = tmp_path / "copy" / "state_dict.pt"
    without_end(path)
    with pytest.raises(ForeignError, match="truncated"):
        guided_diffusion.read(path)
    with pytest.raises(ForeignError, match="no such file"):
        guided_diffusion.read(path.with_name("nothing.pt"))
