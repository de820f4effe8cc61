"""Folders of diffusers: outputs equal to the reference's, schedulers as processes, and refusal of other files."""

import json
import shutil

import numpy as np
import pytest
import torch
from foreign import denoiser, drawn, malicious, network, recorded, without_end
from parity.recordings import COPIES, per_sample
from safetensors.torch import load_file, save_file

from score_sde.models.checkpoints import diffusers
from score_sde.models.checkpoints.safe import ForeignError

CASES = recorded("diffusers")
DDPM = next(path for path in CASES if path.name == "tiny_ddpm")
DEFAULT = next(path for path in CASES if path.name == "tiny_default")
NCSNPP = next(path for path in CASES if path.name == "tiny_ncsnpp")
DRAWN = COPIES / "diffusers" / "drawn_ncsnpp"
"""Attention at one level of NCSN++, with drawn weights."""


@pytest.fixture(params=[*CASES, DRAWN], ids=lambda path: path.name)
def case(request, tmp_path):
    """The imported network and the recording: named arrays."""
    source, answers = request.param, "io.npz"
    if source == DRAWN:
        source, answers = shutil.copytree(DRAWN, tmp_path / "drawn"), "answers.npz"
        shapes = json.loads((source / "shapes.json").read_text())
        save_file(drawn(shapes), source / "unet" / "diffusion_pytorch_model.safetensors")
    with np.load(source / answers) as arrays:
        recording = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return diffusers.read(source), recording


def conditions(foreign, recording):
    return {"label": recording["class_labels"]} if foreign.config["network"]["num_classes"] else {}


@pytest.mark.parametrize("array", ["out", "out_scalar_t"])
def test_the_network_has_the_recorded_outputs(case, array):
    foreign, recording = case
    levels = recording["t"].float()
    levels = levels[1].expand(len(levels)) if array == "out_scalar_t" else levels
    ours = network(foreign)(recording["x"], levels, **conditions(foreign, recording))
    assert per_sample(ours, recording[array]) < 1e-5


def test_the_denoiser_passes_the_level_and_returns_the_recorded_estimate(case):
    foreign, recording = case
    denoise, levels = denoiser(foreign), recording["t"].double()
    times = denoise.sde.time(-2 * levels.log()) if foreign.config["sde"]["name"] == "vesde" else levels + 1
    for i, t in enumerate(times.tolist()):
        one = slice(i, i + 1)
        given = {name: values[one] for name, values in conditions(foreign, recording).items()}
        alpha, sigma, _ = denoise.sde.marginal(t)
        x, out = recording["x"][one], recording["out"][one]
        estimates = {"eps": (x - sigma * out) / alpha, "v": alpha * x - sigma * out, "score": x + sigma**2 * out}
        assert per_sample(denoise(x, t, **given).x0, estimates[foreign.config["denoiser"]["parameterization"]]) < 1e-5
        if foreign.config["sde"]["name"] == "vesde":
            assert per_sample(denoise.score(x, t, **given), out) < 1e-5


@pytest.fixture
def copy(tmp_path):
    """A copy of a pipeline."""
    return shutil.copytree(DDPM, tmp_path / "copy")


def rewritten(path, **changes):
    """Changes keys of a JSON file; None removes one."""
    told = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in told.items() if changes.get(key, 0) is not None}))


# --- content of a folder ----------------------------------------------------------------------------------------------


def test_a_network_without_a_scheduler_is_read_as_ddpm(copy):
    config = diffusers.read(copy / "unet").config
    assert config["sde"] == {"name": "ddpm", "num_levels": 1000, "beta_min": 1e-4, "beta_max": 0.02}
    assert config["denoiser"]["parameterization"] == "eps"


def test_averaged_weights_lie_in_a_folder_of_their_own(copy):
    shutil.copytree(copy / "unet", copy / "unet_ema")
    weights = copy / "unet_ema" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    averaged, raw = diffusers.read(copy), diffusers.read(copy, "raw")
    torch.testing.assert_close(averaged.weights["stem.weight"], 2 * raw.weights["stem.weight"])


def test_files_of_torch_and_older_names_read_the_same(copy):
    expected, path = diffusers.read(copy), copy / "unet" / "diffusion_pytorch_model.safetensors"
    older = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    tensors = load_file(path)
    for new, old in older:
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    path.unlink()
    torch.save(tensors, path.with_suffix(".bin"))
    found = diffusers.read(copy)
    assert all(torch.equal(tensor, found.weights[name]) for name, tensor in expected.weights.items())


@pytest.mark.parametrize(
    ("told", "sde", "estimate"),
    [
        ({}, {"name": "iddpm", "num_levels": 1000, "offset": 0.008}, "v"),
        (
            {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "beta_end": 0.01, "prediction_type": "sample"},
            {"name": "ddpm", "num_levels": 1000, "beta_min": 1e-4, "beta_max": 0.01},
            "x0",
        ),
        (
            {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 50.0},
            {"name": "vesde", "sigma_min": 0.01, "sigma_max": 50.0, "t_min": 1e-5},
            "score",
        ),
    ],
)
def test_schedulers_are_processes(copy, told, sde, estimate):
    rewritten(copy / "scheduler" / "scheduler_config.json", **told)
    config = diffusers.read(copy).config
    assert config["sde"] == sde
    assert config["denoiser"]["parameterization"] == estimate


def test_the_pipeline_of_score_sde_gives_its_process_and_data_range():
    """Images are numbers from 0 to 1, and sampling ends at sampling_eps."""
    config = diffusers.read(NCSNPP).config
    assert config["sde"] == {"name": "vesde", "sigma_min": 0.02, "sigma_max": 90.0, "t_min": 1e-4}
    assert config["denoiser"] == {"parameterization": "score", "sigma_data": 0.25, "c_noise": "sigma", "input": "raw"}
    assert config["codec"] == {"name": "pixels", "low": 0.0}
    assert config["sample"] == {"sampler": {"name": "pc", "snr": 0.17, "corrector_steps": 1}}
    assert diffusers.read(DDPM).config["codec"] == {"name": "pixels"}


def test_frequencies_under_two_names_are_taken_once(tmp_path):
    copy = shutil.copytree(NCSNPP, tmp_path / "copy")
    path = copy / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"time_proj.W": tensors["time_proj.weight"].clone()}, path)
    frequencies = diffusers.read(copy).weights["conditioning.features.frequencies"]
    assert torch.equal(frequencies, tensors["time_proj.weight"].float())
    save_file(tensors | {"time_proj.W": 2 * tensors["time_proj.weight"]}, path)
    with pytest.raises(ForeignError, match=r"unexpected time_proj\.W"):
        diffusers.read(copy)


# --- refused folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"beta_schedule": "scaled_linear"}, "beta_schedule 'scaled_linear' is not supported"),
        ({"prediction_type": "flow"}, "unknown prediction_type 'flow'; known: epsilon"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr are not supported"),
        ({"_class_name": "KarrasVeScheduler", "beta_schedule": None}, "KarrasVeScheduler has no beta_schedule"),
    ],
)
def test_unsupported_schedules_are_refused(copy, told, message):
    rewritten(copy / "scheduler" / "scheduler_config.json", **told)
    with pytest.raises(ForeignError, match=message):
        diffusers.read(copy)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier' is not supported"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "blocks SkipDownBlock2D are not supported"),
        ({"down_block_types": None}, "lacks down_block_types"),
        ({"up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}, "do not mirror"),
        ({"sample_size": None}, "lacks sample_size"),
        ({"freq_shift": 0}, r"\(False, 0, 0\) are not supported"),
        ({"out_channels": 6}, "ddpm needs as many outputs as inputs"),
        ({"block_out_channels": [8, 12]}, "whole multiples of 8"),
        ({"block_out_channels": [8, 24]}, "misshapen"),
        ({"layers_per_block": 2}, "missing"),
        ({"sample_size": 7}, "does not divide by 2"),
    ],
)
def test_unsupported_networks_are_refused(copy, told, message):
    rewritten(copy / "unet" / "config.json", **told)
    with pytest.raises(ForeignError, match=message) as error:
        diffusers.read(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"time_embedding_type": "positional"},
            "'positional' is not supported with SkipDownBlock2D; only 'fourier'",
        ),
        ({"mid_block_scale_factor": 1}, "mid_block_scale_factor 1 is not supported with SkipDownBlock2D"),
        ({"norm_num_groups": 2}, "norm_num_groups 2 is not supported"),
        ({"down_block_types": ["SkipDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D"]}, "blocks Resnet"),
        ({"up_block_types": ["SkipUpBlock2D", "UpBlock2D", "SkipUpBlock2D"]}, "blocks UpBlock2D are not supported"),
        (
            {
                "down_block_types": ["SkipDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"],
                "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D", "SkipUpBlock2D"],
            },
            "AttnSkipDownBlock2D of 8 channels is not supported; it needs at least 128",
        ),
        ({"block_out_channels": [4, 6, 8]}, "whole multiples of 4"),
        ({"scheduler": "DDPMScheduler"}, "needs a ScoreSdeVeScheduler, which gives its sigmas"),
    ],
)
def test_unsupported_networks_of_sigma_are_refused(tmp_path, told, message):
    copy = shutil.copytree(NCSNPP, tmp_path / "copy")
    if "scheduler" in told:
        rewritten(copy / "scheduler" / "scheduler_config.json", _class_name=told["scheduler"])
    else:
        rewritten(copy / "unet" / "config.json", **told)
    with pytest.raises(ForeignError, match=message) as error:
        diffusers.read(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("mid_block.resnets.0.conv1.weight"), "missing mid_block.resnets.0.conv1.weight"),
        (lambda tensors: tensors.pop("up_blocks.1.attentions.0.to_k.bias"), "missing up_blocks.1.attentions.0.to_k"),
        (lambda tensors: tensors.pop("conv_in.weight"), "which has a tensor conv_in.weight"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "unexpected extra"),
        (
            lambda tensors: tensors.update({"conv_out.bias": torch.ones(4)}),
            r"misshapen conv_out.bias \(4,\) for \(3,\)",
        ),
    ],
)
@pytest.mark.parametrize("source", [DDPM, DEFAULT], ids=["ddpm", "default"])
def test_an_unexpected_or_missing_tensor_is_named(tmp_path, source, change, message):
    shutil.copytree(source, tmp_path / "copy")
    path = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ForeignError, match=message):
        diffusers.read(tmp_path / "copy")


def test_a_file_that_calls_other_code_is_refused_and_not_run(copy, tmp_path):
    path, mark = copy / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "ran"
    malicious(path.with_suffix(".bin"), mark, load_file(path))
    path.unlink()
    with pytest.raises(ForeignError, match=r"would run .*pathlib"):
        diffusers.read(copy)
    assert not mark.exists()


def test_folders_that_lack_something_are_refused(copy):
    with pytest.raises(ForeignError, match="does not exist"):
        diffusers.read(copy / "nowhere")
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    without_end(path)
    with pytest.raises(ForeignError, match="truncated"):
        diffusers.read(copy)
    path.unlink()
    with pytest.raises(ForeignError, match="contains no weights"):
        diffusers.read(copy)
    (copy / "unet" / "config.json").write_text("[")
    with pytest.raises(ForeignError, match="is not a diffusers config"):
        diffusers.read(copy)
    (copy / "unet" / "config.json").unlink()
    with pytest.raises(ForeignError, match="does not exist"):
        diffusers.read(copy)
