"""Export from the command line: a folder that imports as the same network and process, or the reason why not."""

import json

import pytest
import torch
from parity.recordings import COPIES
from safetensors.torch import load_file

from score_sde import run as command_line
from score_sde.engine.config import Options, stored
from score_sde.engine.load import load
from score_sde.models.checkpoints.diffusers import ADM, FIXED, SKIP_OPTIONS

SMALL = {"channels": 8, "num_blocks": 2, "attention": (4,), "norm_groups": 4, "head_channels": 4}
PLAIN = {"name": "adm", "channel_mult": (1, 1.5), "scale_shift": False, "resample_blocks": False, "norm_group": 1}
RUNS = {
    "chain": ("ddpm", {"name": "ddpm", "channel_mult": (1, 3), **SMALL}, {"c_noise": "level"}),
    "vp": (
        "vpsde",
        {"name": "ddpm", "channel_mult": (1, 2), **SMALL, "head_channels": 0},
        {"c_noise": "time", "parameterization": "eps"},
    ),
    "cosine": ("iddpm", {**PLAIN, **SMALL, "learned_variance": True}, {"c_noise": "level"}),
}
"""Config, and keys of its network and denoiser."""

TRAINING = {"total_images": 16, "batch_size": 8, "sample_every": 0, "evaluate_every": 0}


def command(*words):
    """Runs a command in this process and returns its exit status."""
    return command_line.main(["run.py", *map(str, words)])


def trained(workdir, config, network, denoiser):
    """Folder of a run of two steps whose weights have moved away from zero."""
    sections = {"network": network, "denoiser": {"input": "raw", **denoiser}, "train": TRAINING}
    sections["optim"] = {"learning_rate": 1e-2, "warmup_images": 0}
    words = [f"--config.{section}.{key}={value}" for section, keys in sections.items() for key, value in keys.items()]
    assert command("--mode=train", f"--config={config}", "--device=cpu", f"--workdir={workdir}", *words) == 0
    return workdir


@pytest.fixture(scope="module", params=RUNS)
def exported(request, tmp_path_factory):
    """A run, and the folder exported from it."""
    workdir = trained(tmp_path_factory.mktemp("run") / request.param, *RUNS[request.param])
    assert command("--mode=export", "--format=diffusers", f"--workdir={workdir}") == 0
    return workdir, workdir / "export" / "diffusers"


def loaded(workdir, weights="ema"):
    """The denoiser of a run."""
    return load(stored(workdir), workdir, Options(weights=weights))[1]


# --- exported files ---------------------------------------------------------------------------------------------------


def test_an_exported_run_imports_unchanged(exported, tmp_path):
    workdir, folder = exported
    assert command("--mode=import", f"--source={folder}", f"--workdir={tmp_path / 'back'}", "--device=cpu") == 0
    ours, back = loaded(workdir), loaded(tmp_path / "back")
    weights = back.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.network.state_dict().items())
    x = torch.randn(2, 1, 8, 8)
    for level in (0.0, 500.0, 999.0):
        told = torch.full((2,), level)
        answer = ours.network(x, told)
        assert answer.abs().max() > 0.05
        assert torch.equal(answer, back.network(x, told))
    if stored(workdir).sde.name != "vpsde":
        for t in (1, 250, 1000):
            torch.testing.assert_close(ours(x, t).x0, back(x, t).x0)


@pytest.mark.parametrize("name", ["tiny_ddpm", "tiny_ncsnpp"])
def test_an_imported_pipeline_is_exported_unchanged(tmp_path, name):
    """Tensors are equal bit for bit, and so is the network; of the schedulers, the settings
    that this library supports."""
    source, workdir = COPIES / "diffusers" / name, tmp_path / "run"
    assert command("--mode=import", f"--source={source}", f"--workdir={workdir}", "--device=cpu") == 0
    assert command("--mode=export", "--format=diffusers", f"--workdir={workdir}") == 0
    folder = workdir / "export" / "diffusers"
    (path,) = (source / "unet").glob("*.safetensors")
    theirs, ours = load_file(path), load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name].float()) for name, tensor in ours.items())
    for path in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        told, written = (json.loads((top / path).read_text()) for top in (source, folder))
        written.pop("clip_sample", None)  # is our guidance.threshold, which an import leaves unset
        assert written.items() <= told.items()
        left_out = {"_diffusers_version", "num_train_timesteps"}
        assert path.startswith("scheduler") or told.keys() - written.keys() <= left_out


def test_the_chain_of_a_continuous_process_approximates_it(tmp_path):
    """Level k of the chain is t = k / 999: equal noise conditioning and nearly equal signal-to-noise ratio."""
    workdir = trained(tmp_path / "run", *RUNS["vp"])
    assert command("--mode=export", "--format=diffusers", f"--workdir={workdir}") == 0
    assert command("--mode=import", f"--source={workdir / 'export'}", f"--workdir={tmp_path / 'back'}") == 3
    assert (
        command("--mode=import", f"--source={workdir / 'export' / 'diffusers'}", f"--workdir={tmp_path / 'back'}") == 0
    )
    continuous, chain = loaded(workdir).sde, loaded(tmp_path / "back").sde
    for level in (10, 100, 500, 999):
        theirs, ours = chain.marginal(level + 1).log_snr, continuous.marginal(level / 999).log_snr
        assert abs(theirs - ours) < 0.2


def test_the_files_match_the_signatures_of_their_classes(exported):
    workdir, folder = exported
    index, unet, scheduler = (
        json.loads((folder / name).read_text())
        for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
    )
    assert index == {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    network = stored(workdir).network
    assert FIXED.items() <= unet.items()
    assert (unet["sample_size"], unet["in_channels"]) == (8, 1)
    assert unet["block_out_channels"] == [int(8 * multiple) for multiple in network.channel_mult]
    assert unet["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    assert unet["up_block_types"] == ["AttnUpBlock2D", "UpBlock2D"]
    assert unet["attention_head_dim"] == (network.head_channels or None)
    assert scheduler["num_train_timesteps"] == 1000
    tensors = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert tensors["conv_in.weight"].shape == (8, 1, 3, 3)
    assert "down_blocks.1.attentions.1.to_q.weight" in tensors


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chain", {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}),
        ("vp", {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "variance_type": "fixed_small"}),
        (
            "cosine",
            {
                "beta_schedule": "squaredcos_cap_v2",
                "prediction_type": "v_prediction",
                "variance_type": "learned_range",
            },
        ),
    ],
)
def test_the_scheduler_matches_the_run(tmp_path, name, expected):
    workdir = trained(tmp_path / "run", *RUNS[name])
    assert command("--mode=export", "--format=diffusers", f"--workdir={workdir}") == 0
    path = workdir / "export" / "diffusers" / "scheduler" / "scheduler_config.json"
    told = json.loads(path.read_text())
    assert {key: told[key] for key in expected} == pytest.approx(expected)
    assert told["clip_sample"] is False
    words = ("--config.guidance.threshold=static", "--sampler=ancestral", "--config.sample.sampler.v=1.0")
    assert command("--mode=export", "--format=diffusers", f"--workdir={workdir}", *words) == 0
    told = json.loads(path.read_text())
    assert told["clip_sample"] is True
    assert told["variance_type"] == ("learned_range" if name == "cosine" else "fixed_large")


def test_either_weights(exported):
    workdir, folder = exported
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    averaged = load_file(path)["conv_in.weight"]
    assert command("--mode=export", "--format=diffusers", f"--workdir={workdir}", "--weights=raw") == 0
    raw = load_file(path)["conv_in.weight"]
    assert command("--mode=export", "--format=diffusers", f"--workdir={workdir}") == 0
    assert torch.equal(raw, loaded(workdir, "raw").network.stem.weight)
    assert torch.equal(averaged, loaded(workdir).network.stem.weight)
    assert not torch.equal(raw, averaged)


def test_output_of_the_command(exported, capsys):
    workdir, folder = exported
    capsys.readouterr()
    assert command("--mode=export", "--format=diffusers", f"--workdir={workdir}") == 0
    first, second = capsys.readouterr().out.splitlines()
    name = "adm" if isinstance(loaded(workdir).network, ADM) else "ddpm"
    assert first.startswith(f"{name} as a UNet2DModel, {stored(workdir).sde.name} as a DDPMScheduler of 1000 levels, ")
    assert first.endswith("ema weights of step 2")
    assert second == f"files are in {folder}"


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(capsys, workdir, *words):
    """The line of a refused export."""
    capsys.readouterr()
    assert command("--mode=export", f"--workdir={workdir}", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not (workdir / "export").exists()
    return line


def test_a_run_of_other_parts_is_refused_with_all_that_differs(digits, capsys):
    line = refusal(capsys, digits, "--format=diffusers")
    assert line == (
        "error: diffusers' DDPMPipeline has no such run: network.name is unet, not ddpm or adm; denoiser.c_noise is "
        "log_snr, not time; denoiser.input is unit, not raw; denoiser.parameterization is edm, not eps, x0, v"
    )


def test_points_are_refused(points, capsys):
    assert "its data are no pixels from -1 to 1" in refusal(capsys, points, "--format=diffusers")


def test_unknown_formats_are_refused(digits, capsys):
    assert "give --format (diffusers)" in refusal(capsys, digits)
    assert "unknown format 'difusers'; did you mean 'diffusers'?" in refusal(capsys, digits, "--format=difusers")


@pytest.mark.parametrize(
    ("name", "network", "denoiser", "message"),
    [
        ("chain", {"attend_always": False}, {}, "network.attend_always is False, and there are levels that attend"),
        ("chain", {"channel_mult": (2, 3)}, {}, "network.channel_mult begins with 2, not 1"),
        ("chain", {"norm_groups": 16}, {}, "network.norm_groups 16 does not divide the channels of every level"),
        ("chain", {"num_classes": 10}, {}, "its network takes class labels"),
        ("chain", {"resample_conv": False}, {}, "network.resample_conv is False, not True"),
        ("chain", {"noise_unconditional": True}, {}, "network.noise_unconditional is True, not False"),
        ("chain", {}, {"c_noise": "log_sigma"}, "denoiser.c_noise is log_sigma, not level"),
        ("chain", {}, {"parameterization": "score"}, "denoiser.parameterization is score, not eps, x0, v"),
        ("cosine", {"heads": 2}, {}, "network.heads is 2, not 0 or 1"),
        ("cosine", {"head_channels": 8}, {}, "network.head_channels 8 does not divide the channels"),
        ("cosine", {"scale_shift": True}, {}, "network.scale_shift is True, not False"),
    ],
)
def test_networks_without_a_counterpart_are_refused(tmp_path, capsys, name, network, denoiser, message):
    config, usual, told = RUNS[name]
    workdir = trained(tmp_path / "run", config, {**usual, **network}, {**told, **denoiser})
    line = refusal(capsys, workdir, "--format=diffusers")
    assert line.startswith("error: diffusers' DDPMPipeline has no such run: ")
    assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--config.codec.low=-1", "its data are no pixels from 0 to 1"),
        ("--config.denoiser.c_noise=log_sigma", "denoiser.c_noise is log_sigma, not sigma"),
        ("--config.network.rescale=false", "network.rescale is False, not True"),
    ],
)
def test_changed_imports_are_refused(tmp_path, capsys, words, message):
    source, workdir = COPIES / "diffusers" / "tiny_ncsnpp", tmp_path / "run"
    assert command("--mode=import", f"--source={source}", f"--workdir={workdir}", "--device=cpu", words) == 0
    line = refusal(capsys, workdir, "--format=diffusers")
    assert line == f"error: diffusers' ScoreSdeVePipeline has no such run: {message}"


def test_networks_of_sigma_without_a_counterpart_are_refused(tmp_path, capsys):
    network = {"name": "ncsnpp", "channels": 8, "channel_mult": (1, 17), "num_blocks": 1, "attention": (4, 8)}
    told = {"c_noise": "sigma", "parameterization": "score"}
    line = refusal(capsys, trained(tmp_path / "run", "vesde", network | SKIP_OPTIONS, told), "--format=diffusers")
    for message in (
        "its images are 8x8 with channels 1, not squares with channels 3",
        "a level of 8 channels attends, not of 128 or more",
        "136 channels are normalised in 8 groups, not 32",
    ):
        assert message in line


def test_a_process_without_a_schedule_is_refused(tmp_path, capsys):
    workdir = trained(tmp_path / "run", "vesde", RUNS["vp"][1], {"c_noise": "sigma", "parameterization": "eps"})
    assert refusal(capsys, workdir, "--format=diffusers").endswith("sde.name is vesde, not ddpm, iddpm, vpsde")
