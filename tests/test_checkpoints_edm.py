"""EDM's weights: outputs equal to the reference's, and refusal of other files."""

import json
import shutil

import numpy as np
import pytest
import torch
from foreign import denoiser, malicious, malicious_pickle, network, recorded, without_end
from parity.recordings import Recording, per_sample
from safetensors.torch import load_file, save_file

from score_sde.models.blocks import Block, Stage, Style
from score_sde.models.checkpoints import edm
from score_sde.models.checkpoints.parts import value_fastest
from score_sde.models.checkpoints.safe import ForeignError
from score_sde.models.embeddings import Positional
from score_sde.models.layers import double
from score_sde.models.resampling import FIR, Down
from score_sde.models.song import STYLE

CASES = recorded("edm_models")
TINY = next(path for path in CASES if path.name == "tiny_dhariwal_iddpm")
WAVES = next(path for path in CASES if path.name == "tiny_song_residual_skip_ve")


def weights_of(folder):
    return next(path for path in (folder / "model.safetensors", folder / "state_dict.pt") if path.exists())


def of(folder):
    """The imported network and the recording: named arrays."""
    with np.load(folder / "io.npz") as arrays:
        recording = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return edm.read(weights_of(folder)), recording


def arrays_of(folder):
    """Names of the recorded estimates."""
    with np.load(folder / "io.npz") as arrays:
        return [name for name in arrays.files if name.startswith("D")]


def conditions(recording, *without):
    """Conditions of a recording under our names."""
    found = {}
    if "class_labels" in recording and "label" not in without:
        found["label"] = recording["class_labels"].argmax(1)
    if "augment_labels" in recording and "augment" not in without:
        found["augment"] = recording["augment_labels"]
    return found


def allowed(foreign):
    """Tolerance of a recording."""
    return 2e-4 if foreign.config["network"].get("embedding") == "fourier" else 1e-5


@pytest.mark.parametrize("folder", CASES, ids=lambda path: path.name)
def test_the_network_has_the_recorded_outputs(folder):
    foreign, recording = of(folder)
    ours = network(foreign)(recording["net_in"], recording["noise_labels"], **conditions(recording))
    assert per_sample(ours, recording["F"]) < allowed(foreign)


@pytest.mark.parametrize(("folder", "array"), [(folder, name) for folder in CASES for name in arrays_of(folder)])
def test_the_denoiser_has_the_recorded_outputs(folder, array):
    """Each of the four preconditionings; our state is alpha times the reference's."""
    foreign, recording = of(folder)
    denoise, sigmas = denoiser(foreign), recording["sigma"].double()
    sigmas = sigmas[1].expand(4) if array == "D_scalar_sigma" else sigmas
    given = conditions(recording, array.removeprefix("D_no_").removesuffix("s"))
    for i, t in enumerate(denoise.sde.time(-2 * sigmas.log()).tolist()):
        one = slice(i, i + 1)
        x = denoise.sde.marginal(t).alpha * recording["x"][one]
        ours = denoise(x, t, **{name: values[one] for name, values in given.items()}).x0
        assert per_sample(ours, recording[array][one]) < allowed(foreign)


def test_half_precision_and_files_of_torch_read_the_same(tmp_path):
    tensors = load_file(weights_of(TINY))
    torch.save(tensors, tmp_path / "model.pt")
    shutil.copy(TINY / "config.json", tmp_path)
    found, expected = edm.read(tmp_path / "model.pt"), edm.read(weights_of(TINY))
    assert all(torch.equal(tensor, found.weights[name]) for name, tensor in expected.weights.items())
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.float32}
    assert found._replace(weights={}) == expected._replace(weights={})


# --- single layers ----------------------------------------------------------------------------------------------------


LAYERS = Recording("edm_models/layers")
DIALECT = {**edm.DIALECT.block, **{f"attention.{ours}": theirs for ours, theirs in edm.DIALECT.attention.items()}}
SMOOTH = FIR((1, 3, 3, 1))


def loaded(name, module, dialect):
    """The module with the recorded weights under their names."""
    found = {}
    for key, tensor in module.state_dict().items():
        part, _, leaf = key.removeprefix("block.").rpartition(".")
        found[key] = LAYERS[f"{name}.param.{dialect[part] + '.' if part in dialect else ''}{leaf}"].reshape(
            tensor.shape
        )
        if ".qkv." in key:
            found[key] = value_fastest(found[key], 4)
    module.load_state_dict(found)
    return module.eval()


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("block_heads4", Stage(Block(16, 16, 8, 0.0, Style(group=4)), heads=4)),
        ("block_up_adaptive", Block(16, 8, 8, 0.0, Style(group=4), double)),
        ("block_down_song", Block(16, 16, 8, 0.0, STYLE, SMOOTH.downsample, project=True)),
    ],
)
def test_blocks_have_the_recorded_outputs(name, module):
    ours = loaded(name, module, DIALECT)(LAYERS[f"{name}.x"], LAYERS[f"{name}.emb"])
    assert per_sample(ours, LAYERS[f"{name}.out"]) < 1e-5


def test_changes_of_resolution_have_the_recorded_outputs():
    down = Down(4, 6, SMOOTH, learned=True)
    down.conv.weight.data, down.conv.bias.data = (
        LAYERS[f"conv_down_fused.param.{leaf}"] for leaf in ("weight", "bias")
    )
    assert per_sample(down(LAYERS["conv_down_fused.x"]), LAYERS["conv_down_fused.out"]) < 1e-5
    assert per_sample(SMOOTH.upsample(LAYERS["conv_up_k0.x"]), LAYERS["conv_up_k0.out"]) < 1e-5


@pytest.mark.parametrize(("name", "ends"), [("pos_embedding", False), ("pos_embedding_endpoint", True)])
def test_embeddings_of_levels_have_the_recorded_outputs(name, ends):
    """To the rounding of frequencies that are multiplied by levels up to 999."""
    found = Positional(12, cos_first=True, ends=ends)(LAYERS[f"{name}.x"])
    assert per_sample(found, LAYERS[f"{name}.out"]) < 2e-5


# --- the preconditioning ----------------------------------------------------------------------------------------------


def moved(tmp_path, name, tensors=None, told=None):
    """The weights of a DDPM++ under another name, with or without a JSON file."""
    source = next(path for path in CASES if path.name == "tiny_song_skip_skip_vp")
    save_file(load_file(weights_of(source)) if tensors is None else tensors, tmp_path / name)
    if told is not None:
        (tmp_path / name).with_suffix(".json").write_text(told if isinstance(told, str) else json.dumps(told))
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "told", "process"),
    [
        ("edm-cifar10-32x32-cond-vp.safetensors", None, "edm"),
        ("baseline-cifar10-32x32-uncond-vp.safetensors", None, "vpsde"),
        ("baseline-cifar10-32x32-uncond-ve.safetensors", None, "vesde"),
        ("mine.safetensors", {"precond": "VEPrecond", "sigma_max": 50.0}, "vesde"),
        ("mine.safetensors", {"network_kwargs": {"class_name": "training.networks.EDMPrecond"}}, "edm"),
    ],
)
def test_the_preconditioning_is_read_from_name_or_json(tmp_path, name, told, process):
    config = edm.read(moved(tmp_path, name, told=told)).config
    assert config["sde"]["name"] == process
    if told and "sigma_max" in told:
        assert config["sde"]["sigma_max"] == 50.0


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (None, "does not contain its preconditioning; write"),
        ("{", "has no precond"),
        ({"sigma_data": 0.5}, "has no precond"),
        ({"precond": "MyPrecond"}, "unknown precond 'MyPrecond'; known: VPPrecond"),
    ],
)
def test_an_unspecified_preconditioning_is_refused(tmp_path, told, message):
    with pytest.raises(ForeignError, match=message):
        edm.read(moved(tmp_path, "mine.safetensors", told=told))


# --- refused files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """The file of a copied small network, next to its config."""
    shutil.copytree(TINY, tmp_path / "copy")
    return tmp_path / "copy" / "model.safetensors"


def changed(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


QKV, CONV = "model.dec.4x4_in0.conv0.weight", "model.enc.8x8_block0.conv0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(CONV), f"missing {CONV}"),
        (lambda tensors: tensors.pop("model.map_layer1.bias"), "missing model.map_layer1.bias"),
        (lambda tensors: tensors.pop("model.enc.8x8_conv.weight"), "missing model.enc.8x8_conv.weight"),
        (lambda tensors: tensors.update({"model.extra": torch.ones(1)}), "unexpected model.extra"),
        (lambda tensors: tensors.update({CONV: torch.ones(8, 4, 3, 3)}), rf"misshapen {CONV} \(8, 4, 3, 3\) for \(8,"),
        (lambda tensors: tensors.update(u=tensors["u"] * 1.01), "noise levels u differ from"),
        (lambda tensors: tensors.pop("u"), "missing u"),
        (lambda tensors: tensors.pop("model.map_layer0.weight"), "no state dict of EDM"),
        (
            lambda tensors: tensors.update({"model.enc.4x4_down.skip.resample_filter": torch.ones(1, 1, 2, 2)}),
            "model.enc.4x4_down.skip.resample_filter is another filter",
        ),
    ],
)
def test_an_unexpected_or_missing_tensor_is_named(copy, change, message):
    with pytest.raises(ForeignError, match=message) as error:
        edm.read(changed(copy, change))
    assert "\n" not in str(error.value)


def test_fourier_frequencies_are_imported(tmp_path):
    found = edm.read(weights_of(WAVES))
    frequencies = load_file(weights_of(WAVES))["model.map_noise.freqs"].float()
    assert torch.equal(found.weights["conditioning.features.frequencies"], frequencies)


def test_pickles_are_refused_with_a_recipe_and_not_run(tmp_path):
    path, mark = tmp_path / "edm-cifar10-32x32-cond-vp.pkl", tmp_path / "ran"
    malicious_pickle(path, mark)
    with pytest.raises(ForeignError, match="is a pickle with code, so it is refused; where you trust it, run") as error:
        edm.read(path)
    assert "\n" not in str(error.value)
    assert not mark.exists()


def test_a_file_that_calls_other_code_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "edm-mine.pt", tmp_path / "ran"
    malicious(path, mark, load_file(weights_of(TINY)))
    with pytest.raises(ForeignError, match=r"would run .*pathlib"):
        edm.read(path)
    assert not mark.exists()


def test_truncated_and_missing_files_are_refused(copy):
    without_end(copy)
    with pytest.raises(ForeignError, match="truncated"):
        edm.read(copy)
    with pytest.raises(ForeignError, match="no such file"):
        edm.read(copy.with_name("nothing.pt"))
    with pytest.raises(ForeignError, match="is no checkpoint"):
        edm.read(copy.with_name("config.json"))
