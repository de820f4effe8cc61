"""Checkpoints of score_sde: equal outputs and scores, no code run, every tensor imported or named in an error."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from parity.recordings import COMPLETE, COPIES, find, per_sample

from score_sde.models import NETWORKS
from score_sde.models.checkpoints import safe
from score_sde.models.checkpoints.foreign import skeleton
from score_sde.models.checkpoints.safe import ForeignError
from score_sde.models.checkpoints.score_sde import Config, names, read
from score_sde.sde_lib import SDES, Denoiser

FOLDER = "score_sde_models"
CASES = {
    "ddpm_vp": 1e-5,
    "ddpmpp_vp": 1e-5,
    "ncsn": 1e-5,
    "ncsnpp_subvp": 1e-5,
    "ncsnpp_ve": 2e-4,
    "ncsnpp_ve_skip": 2e-4,
    "ncsnpp_ve_smld_discrete": 1e-5,
    "ncsnv2_64": 1e-5,
    "tiny_ncsnv2_128_relu": 1e-5,
    "tiny_ncsnv2_256_lrelu": 1e-5,
}
"""Case -> largest deviation, relative to the largest output of a sample; random Fourier frequencies lose digits."""

HERE = [(case, weights) for case in CASES for weights in ("raw", "ema") if (COMPLETE / FOLDER / case).exists()]
COPIED = [(case.name, "raw") for case in sorted((COPIES / FOLDER).iterdir()) if case.is_dir()]
TINY = [(case, weights) for case, weights in COPIED if case.startswith("tiny_")]
RECORDED = HERE + TINY if HERE else COPIED
CASE = COPIES / FOLDER / "ncsnpp_subvp"
"""The base case of the other tests."""


def assemble(foreign):
    """The denoiser of an imported checkpoint."""
    options = dict(foreign.config["network"])
    network = NETWORKS[options.pop("name")](foreign.shape, **options).eval()
    network.load_state_dict(foreign.weights)
    spec = dict(foreign.config["sde"])
    return Denoiser(network, SDES[spec.pop("name")](**spec), sigma_data=1.0, **foreign.config["denoiser"])


def recorded(path):
    with np.load(path) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.mark.parametrize(("case", "weights"), RECORDED)
def test_outputs_and_scores_are_the_recorded_ones(case, weights):
    folder = find(f"{FOLDER}/{case}")
    io = recorded(folder / "io.npz")
    foreign = read(folder / "checkpoint.pt", weights=weights)
    denoise, theirs = assemble(foreign), {"raw": "model", "ema": "ema"}[weights]
    t, told = io["t"], io["labels"].float()
    if foreign.config["sde"]["name"] == "ncsn":  # a chain is evaluated at integer levels, as in training
        t = denoise.sde.t_max - told
    if foreign.config["network"]["name"] == "ncsnv2":
        told = denoise.sde.sigma(t)
    with torch.no_grad():
        output = denoise.network(io["x"], told)
        score = denoise.score(io["x"], t.reshape(-1, 1, 1, 1))
    assert per_sample(output, io[f"out_{theirs}"]) < CASES[case]
    expected = io[f"score_{theirs}"]
    near = io["t"] == io["t"].min() if "vp" in case else torch.zeros(len(t), dtype=torch.bool)
    assert per_sample(score[~near], expected[~near]) < CASES[case]
    if near.any():  # the reference's standard deviation has the same error at t = 1e-3
        assert per_sample(score[near], expected[near]) < 5e-4


def test_checkpoints_as_training_writes_them():
    folder = COMPLETE / FOLDER / "quirk_as_written_vp"
    for path in folder.glob("*.pt"):
        for weights, theirs in (("raw", "model"), ("ema", "ema")):
            denoise, io = assemble(read(path, folder / "config.json", weights)), recorded(folder / "io.npz")
            with torch.no_grad():
                score = denoise.score(io["x"], io["t"].reshape(-1, 1, 1, 1))
            assert per_sample(score, io[f"score_{theirs}"]) < 5e-4


# --- networks without recordings: ours, under the reference's names ---------------------------------------------------


def config(**model):
    """The config of the case with other values for its model; data, training and sde under their own keys."""
    values = json.loads((CASE / "config.json").read_text())["config"]
    values["training"] |= {key: model.pop(key) for key in ("sde", "continuous") if key in model}
    values["data"] |= {"centered": model.pop("centered", True)}
    values["model"] |= {"scale_by_sigma": False, "conditional": True, **model}
    return values


def write(folder, values, change=lambda model, shadows: None, step=7):
    """Writes a checkpoint of a random network of ours under the reference's names, next to its config."""
    (folder / "config.json").write_text(json.dumps(values))
    told = Config.read(folder / "config.json")
    options = {key: value for key, value in told.sections()["network"].items() if key != "name"}
    torch.manual_seed(0)
    network = NETWORKS[told.sections()["network"]["name"]](told.shape, **options)
    ours = {name: 0.1 * torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    model = {}
    for name, several in names(network, told):
        parts = (several,) if isinstance(several, str) else several
        for part, chunk in zip(parts, ours[name].chunk(len(parts)) if parts else (), strict=True):
            nin = ".NIN_" in part and part.endswith("W")
            model[f"module.{part}"] = chunk.reshape(chunk.shape[:2]).T.clone() if nin else chunk.clone()
    averaged = [name for name in model if not name.endswith(".0.W")]
    shadows = [2 * model[name] for name in averaged]
    change(model, shadows)
    optimizer = {"state": {}, "param_groups": [{"lr": np.float64(2e-4), "params": list(range(len(model)))}]}
    ema = {"decay": 0.999, "num_updates": step, "shadow_params": shadows}
    torch.save({"optimizer": optimizer, "model": model, "ema": ema, "step": step}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth", ours


OPTIONS = {
    "ddpm": {"name": "ddpm", "nf": 32, "num_res_blocks": 2},
    "ddpm without convolutions": {"name": "ddpm", "nf": 32, "resamp_with_conv": False},
    "ddpm blocks": {"resblock_type": "ddpm", "fir": True, "resamp_with_conv": False},
    "input skip, beside": {"progressive_input": "input_skip", "progressive_combine": "cat", "fir": False},
    "input residual without filter": {"progressive_input": "residual", "fir": False},
    "output residual": {"progressive": "residual"},
    "output skip": {"progressive": "output_skip", "skip_rescale": False},
    "fourier": {"embedding_type": "fourier", "fir_kernel": [1, 2, 1]},
    "by sigma": {"sde": "vesde", "continuous": False, "scale_by_sigma": True, "centered": False, "num_scales": 50},
    "two levels": {"ch_mult": [1, 3], "nf": 12, "attn_resolutions": [8, 16]},
    "ncsn": {
        "name": "ncsn",
        "sde": "vesde",
        "continuous": False,
        "nonlinearity": "elu",
        "normalization": "InstanceNorm++",
    },
}


@pytest.mark.parametrize("case", OPTIONS)
def test_every_tensor_of_every_option_is_imported(tmp_path, case):
    path, ours = write(tmp_path, config(**OPTIONS[case]))
    raw, ema = read(path, weights="raw"), read(path)
    assert raw.weights.keys() == ours.keys() == ema.weights.keys()
    for name, tensor in ours.items():
        assert torch.equal(raw.weights[name], tensor), name
        fixed = name.endswith("features.frequencies")
        assert torch.equal(ema.weights[name], tensor if fixed else 2 * tensor), name
    assert raw.step == 7
    denoise = assemble(ema)
    x, t = torch.randn(2, *raw.shape), 0.5 * (denoise.sde.t_min + denoise.sde.t_max) // 1 or 0.5
    assert denoise(x, t).x0.isfinite().all()


def test_a_noise_unconditional_network(tmp_path):
    path, _ = write(tmp_path, config(conditional=False))
    foreign = read(path, weights="raw")
    network = assemble(foreign).network
    x = torch.randn(2, *foreign.shape)
    assert torch.equal(network(x, torch.zeros(2)), network(x, torch.full((2,), 500.0)))


# --- meaning of a config ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sde", "denoiser", "low"),
    [
        ({"sde": "vpsde"}, {"name": "vpsde", "beta_min": 0.1, "beta_max": 20.0}, ("eps", "time"), -1.0),
        ({"sde": "subvpsde"}, {"name": "subvpsde", "beta_min": 0.1, "beta_max": 20.0}, ("eps", "time"), -1.0),
        (
            {"sde": "vpsde", "continuous": False},
            {"name": "ddpm", "num_levels": 1000, "beta_min": 1e-4, "beta_max": 0.02},
            ("eps", "level"),
            -1.0,
        ),
        (
            {"sde": "vesde", "embedding_type": "fourier", "centered": False},
            {"name": "vesde", "sigma_min": 0.01, "sigma_max": 50.0},
            ("score", "sigma"),
            0.0,
        ),
        (
            {"sde": "vesde", "continuous": False, "centered": False},
            {"name": "ncsn", "sigma_min": 0.01, "sigma_max": 50.0, "num_levels": 1000},
            ("score", "level_from_noise"),
            0.0,
        ),
    ],
)
def test_processes_and_noise_conditioning(tmp_path, changes, sde, denoiser, low):
    (tmp_path / "config.json").write_text(json.dumps(config(**changes)))
    sections = Config.read(tmp_path / "config.json").sections()
    assert sections["sde"] == pytest.approx(sde)
    assert sections["denoiser"] == {"parameterization": denoiser[0], "c_noise": denoiser[1], "input": "raw"}
    assert sections["codec"] == {"name": "pixels", "low": low}
    assert sections["network"]["centred"] == (low == -1.0)


PYTHON = '''
"""A config."""
import ml_collections
import torch
from configs.default_cifar10_configs import get_default_configs


def get_config():
  config = get_default_configs()
  training = config.training
  training.sde = 'subvpsde'
  config.data.image_size = 16
  data = config.data
  data.centered = True
  model = config.model
  model.name = 'ncsnpp'
  model.scale_by_sigma = False
  model.nonlinearity = 'swish'
  model.nf = 8
  model.ch_mult = (1, 2, 2)
  model.num_res_blocks = 1
  model.attn_resolutions = (8,)
  model.resamp_with_conv = True
  model.conditional = True
  model.fir = True
  model.fir_kernel = [1, 3, 3, 1]
  model.skip_rescale = True
  model.resblock_type = 'biggan'
  model.progressive = 'none'
  model.progressive_input = 'residual'
  model.progressive_combine = 'sum'
  model.embedding_type = 'positional'
  config.device = torch.device('cuda:0') if torch.cuda.is_available() else torch.device('cpu')
  return config
'''


def test_a_python_config_is_read_without_being_run(tmp_path):
    (tmp_path / "config.py").write_text(PYTHON + f"\n\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    assert Config.read(tmp_path / "config.py").sections() == Config.read(CASE / "config.json").sections()
    assert not (tmp_path / "ran").exists()
    foreign = read(CASE / "checkpoint.pt", tmp_path / "config.py", "raw")
    assert foreign.shape == (3, 16, 16)


def test_a_python_config_without_a_base(tmp_path):
    (tmp_path / "config.py").write_text(
        "import ml_collections\ndef get_config():\n  config = ml_collections.ConfigDict()\n"
        "  config.model = model = ml_collections.ConfigDict()\n  model.nf = 8\n"
        "  model.sigma_max = 2 * 3\n  return config\n"
    )
    told = Config.read(tmp_path / "config.py")
    assert told["model.nf"] == 8
    with pytest.raises(ForeignError, match=r"line 6: model\.sigma_max is not a plain value, and configs are not run"):
        told["model.sigma_max"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "no get_config"),
        ("from a import b\ndef get_config():\n  return b()", "creates no config"),
        ("from configs.mine import get_default_configs\ndef get_config():\n  c = get_default_configs()", "are known"),
        (
            "from configs import vp\ndef get_config():\n  config = vp.get_config()\n  config.a = 1",
            "creates no config|known",
        ),
        ("def get_config(:", "invalid syntax"),
    ],
)
def test_python_configs_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(ForeignError, match=message) as error:
        Config.read(tmp_path / "config.py")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nf": None}, r"lacks model\.nf; add it"),
        ({"name": "ncsnv3"}, "unknown model.name 'ncsnv3'; known: ddpm"),
        (
            {
                "name": "ncsn",
                "sde": "vesde",
                "continuous": False,
                "normalization": "InstanceNorm++",
                "nonlinearity": "tanh",
            },
            "unknown model.nonlinearity 'tanh'",
        ),
        ({"sde": "ouroboros"}, r"unknown training\.sde"),
        ({"nonlinearity": "relu"}, "has model.nonlinearity swish here, not relu"),
        ({"name": "ncsn", "nonlinearity": "elu"}, r"needs vesde and training\.continuous False"),
        ({"scale_by_sigma": True}, "scale_by_sigma needs"),
    ],
)
def test_configs_that_make_no_network(tmp_path, changes, message):
    values = config(**changes)
    values["model"] = {key: value for key, value in values["model"].items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ForeignError, match=message):
        Config.read(tmp_path / "config.json").sections()


# --- wrong files ------------------------------------------------------------------------------------------------------


def missing(model, shadows):
    del model["module.all_modules.2.weight"], shadows[-1]


def unexpected(model, shadows):
    model["module.all_modules.99.weight"] = torch.zeros(1)
    shadows.append(torch.zeros(1))


def misshapen(model, shadows):
    model["module.all_modules.2.weight"] = torch.zeros(8, 3, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"missing all_modules\.2\.weight"),
        (unexpected, r"unexpected all_modules\.99\.weight"),
        (misshapen, r"misshapen all_modules\.2\.weight \(8, 3, 1, 1\) for \(8, 3, 3, 3\)"),
    ],
)
def test_every_tensor_is_imported_or_named(tmp_path, change, message):
    path, _ = write(tmp_path, config(), change)
    with pytest.raises(ForeignError, match=message) as error:
        read(path, weights="raw")
    assert "\n" not in str(error.value)


def test_the_config_of_another_network(tmp_path):
    path, _ = write(tmp_path, config())
    (tmp_path / "config.json").write_text(json.dumps(config(num_res_blocks=2)))
    with pytest.raises(ForeignError, match=r"missing .*unexpected"):
        read(path)


def test_an_average_of_other_parameters(tmp_path):
    path, _ = write(tmp_path, config(), lambda model, shadows: shadows.pop())
    with pytest.raises(ForeignError, match=r"averages .* parameters; take --weights raw"):
        read(path)
    assert read(path, weights="raw").weights


def test_noise_levels_that_contradict_the_config(tmp_path):
    def levels(model, shadows):
        model["module.sigmas"] = torch.linspace(3, -3, 1000).double().exp()

    path, _ = write(tmp_path, config(), levels)
    with pytest.raises(ForeignError, match=r"1000 noise levels from 20.0855"):
        read(path)


@pytest.mark.parametrize("text", ["", "no checkpoint", "{}"])
def test_a_file_that_is_no_checkpoint(tmp_path, text):
    (tmp_path / "model.pth").write_text(text)
    with pytest.raises(ForeignError, match="no checkpoint of PyTorch"):
        read(tmp_path / "model.pth")


def test_files_of_another_kind(tmp_path):
    with pytest.raises(ForeignError, match="no such file"):
        read(tmp_path / "model.pth")
    with pytest.raises(ForeignError, match="is a folder"):
        read(tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(ForeignError, match=r"no checkpoint of score_sde, .* it has weight"):
        read(tmp_path / "model.pth")
    torch.save([1], tmp_path / "model.pth")
    with pytest.raises(ForeignError, match="contains a list"):
        read(tmp_path / "model.pth")


def test_without_a_config(tmp_path):
    path, _ = write(tmp_path, config())
    (tmp_path / "config.json").rename(tmp_path / "config.txt")
    with pytest.raises(ForeignError, match=r"needs its config, one .json or .py file in the same folder; found: none"):
        read(path)
    assert read(path, CASE / "config.json").weights


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(tmp_path, share, zipped):
    torch.save({"model": torch.randn(1000)}, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "part.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ForeignError, match="truncated, damaged or no checkpoint"):
        safe.read(tmp_path / "part.pth")


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("form", ["zip", "old", "pickle 2", "pickle 4"])
def test_nothing_in_a_file_is_run(tmp_path, form):
    content, path = {"model": {}, "ema": Hostile(tmp_path / "ran")}, tmp_path / "model.pth"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ForeignError, match=rf"would run {os.system.__module__}\.system, so it is refused") as error:
        read(path, CASE / "config.json")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False) if form in ("zip", "old") else pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()  # unpickling runs it


@pytest.mark.parametrize("start", [b"", b"\x80\x04", b"        {"])
def test_a_length_beyond_the_end_of_the_file_allocates_no_memory(tmp_path, start):
    (tmp_path / "model.pth").write_bytes(start + b"\x8d" + (2**62).to_bytes(8, "little") + b"word")
    with pytest.raises(ForeignError, match=r"model\.pth is (truncated|no checkpoint)"):
        safe.read(tmp_path / "model.pth")


def test_scalars_of_numpy_are_read_and_no_other_object(tmp_path):
    torch.save({"lr": np.float64(0.5)}, tmp_path / "scalar.pth")
    assert safe.read(tmp_path / "scalar.pth") == {"lr": 0.5}
    torch.save({"lr": np.zeros(3)}, tmp_path / "array.pth")
    with pytest.raises(ForeignError, match="_reconstruct"):
        safe.read(tmp_path / "array.pth")


def test_reading_leaves_no_name_allowed(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read(CASE / "checkpoint.pt", weights="raw")
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_skeleton_takes_no_memory():
    assert {p.device.type for p in skeleton(NETWORKS["ddpm"], shape=(3, 32, 32)).parameters()} == {"meta"}
