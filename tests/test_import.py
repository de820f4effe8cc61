"""Import from the command line: a run with the recorded outputs, and one line for sources that cannot be imported."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from foreign import malicious, malicious_pickle, without_end
from parity.recordings import COPIES, ROOT, column, per_sample
from safetensors.torch import load_file, save_file

from score_sde import run as command_line
from score_sde.engine import checkpoint, importing
from score_sde.engine.config import Options, stored
from score_sde.engine.load import load_model
from score_sde.engine.lock import only_writer
from score_sde.models.checkpoints import FORMATS, MARKS, edm, recognise
from score_sde.sde_lib.discrete import Discrete

FOLDERS = {
    "score_sde": "score_sde_models",
    "edm": "edm_models",
    "guided_diffusion": "guided_diffusion",
    "diffusers": "diffusers",
}
CASES = {path.parent: name for name, folder in FOLDERS.items() for path in sorted((COPIES / folder).glob("*/io.npz"))}
"""Folder of a recording -> its format."""

CLASSIFIER, NCSN, SIGMA = "tiny_classifier_adaptive", "ncsnv2_64", "tiny_ncsnpp"
VE, LABELLED, PIPELINE, COSINE = (
    next(case for case in CASES if case.name == name)
    for name in ("ncsnpp_ve_skip", "tiny_improved", "tiny_ddpm", "tiny_dhariwal_iddpm")
)


def command(*words):
    """Runs a command in this process and returns its exit status."""
    return command_line.main(["run.py", *map(str, words)])


def brought(source, workdir, *words):
    """Folder of the imported run; the copies leave out the recorded averages of score_sde."""
    weights = "--weights=raw" if CASES.get(source) == "score_sde" else "--weights=ema"
    assert command("--mode=import", f"--source={source}", f"--workdir={workdir}", "--device=cpu", weights, *words) == 0
    return workdir


def words(source, workdir):
    """Command-line arguments of an import."""
    return ("--mode=import", f"--source={source}", f"--workdir={workdir}", "--device=cpu")


def meta_of(workdir):
    """meta.json of a run's newest checkpoint."""
    return checkpoint.read_meta(checkpoint.find(workdir / "checkpoints"))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request, tmp_path_factory):
    """A recording, and the run imported from its weights."""
    return request.param, brought(request.param, tmp_path_factory.mktemp("runs") / request.param.name)


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs an import that has to be refused and write nothing; returns its line on standard error."""
    monkeypatch.chdir(tmp_path)

    def run(source, *words, status=3):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert command("--mode=import", f"--source={source}", "--device=cpu", *words) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run


def weights_of(folder):
    """The weights file below a folder."""
    return next(path for path in folder.rglob("*") if path.suffix in (".pt", ".safetensors"))


ONE_EACH = [VE, COSINE, LABELLED, PIPELINE]


# --- the run ----------------------------------------------------------------------------------------------------------


def scores(denoise, io):
    """For score_sde: our score, the recorded one."""
    chain = isinstance(denoise.sde, Discrete)  # is evaluated at integer levels, as in training
    t = denoise.sde.t_max - io["labels"].float() if chain else io["t"]
    yield denoise.score(io["x"], column(t)), io["score_model"]


def estimates_of_sigma(denoise, io):
    """For EDM: our estimates, the recorded ones; our state is alpha times the reference's."""
    for i, t in enumerate(denoise.sde.time(-2 * io["sigma"].double().log()).tolist()):
        one = slice(i, i + 1)
        given = {"label": io["class_labels"][one].argmax(1)} if "class_labels" in io else {}
        given |= {"augment": io["augment_labels"][one]} if "augment_labels" in io else {}
        yield denoise(denoise.sde.marginal(t).alpha * io["x"][one], t, **given).x0, io["D"][one]


def estimates_of_level(denoise, io):
    """For chains: our estimates, and those that the recorded estimates of noise or velocity imply."""
    levels = io["timesteps"] if "timesteps" in io else io["t"]
    label = next(io[key] for key in ("y", "class_labels") if key in io)
    for i, t in enumerate((levels.double() + 1).tolist()):
        one, (alpha, sigma, _) = slice(i, i + 1), denoise.sde.marginal(t)
        x, out = io["x"][one], io["out"][one, :3]
        meant = {"_eps": (x - sigma * out) / alpha, "_v": alpha * x - sigma * out}[denoise.coefficients.__name__]
        yield denoise(x, t, label=label[one]).x0, meant


def scores_of_sigma(denoise, io):
    """For diffusers' NCSN++: our score, the recorded one."""
    for i, t in enumerate(denoise.sde.time(-2 * io["t"].double().log()).tolist()):
        yield denoise.score(io["x"][i : i + 1], t), io["out"][i : i + 1]


def logits(classify, io):
    """For a classifier: our logits, the recorded ones."""
    yield classify.network(io["x"], io["timesteps"]), io["out"]


ANSWERS = {
    "score_sde": scores,
    "edm": estimates_of_sigma,
    "guided_diffusion": estimates_of_level,
    "diffusers": estimates_of_level,
}
OTHERS = {CLASSIFIER: logits, SIGMA: scores_of_sigma}
"""Recordings whose kind of output differs from their format's."""

ALLOWED = {"ncsnpp_subvp": 5e-4, "ncsnpp_ve_skip": 2e-4, "tiny_song_residual_skip_ve": 2e-4}
"""Tolerances other than 1e-5: the reference's standard deviation is off at t = 1e-3, random frequencies lose digits."""


@torch.no_grad()
def test_the_run_has_the_recorded_outputs(case):
    source, workdir = case
    with np.load(source / "io.npz") as arrays:
        io = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    _, denoise, _ = load_model(stored(workdir), workdir, Options())
    answers = OTHERS.get(source.name, ANSWERS[CASES[source]])
    for ours, theirs in answers(denoise, io):
        assert per_sample(ours, theirs) < ALLOWED.get(source.name, 1e-5)


def test_the_run_draws_samples(case, capsys):
    source, workdir = case
    steps = 4 if source.name == NCSN else 3  # of its 232 levels
    status = command("--mode=sample", f"--workdir={workdir}", "--num_samples=2", f"--steps={steps}")
    if source.name == CLASSIFIER:
        assert status == 2
        assert "is a classifier, which draws nothing" in capsys.readouterr().err
        return
    assert status == 0
    (drawn,) = (workdir / "samples").glob("*/samples.npz")
    config = stored(workdir)
    with np.load(drawn) as arrays:
        assert arrays["samples"].shape == (2, *np.roll(meta_of(workdir)["data"]["shape"], -1))
        assert ("label" in arrays) == (config.network.get("num_classes", 0) > 0)


def test_output_of_the_command(capsys, tmp_path):
    workdir = brought(VE, tmp_path / "run")
    assert capsys.readouterr().out.splitlines() == [
        "score_sde: ncsnpp with 81,993 parameters, raw weights of checkpoint.pt",
        "vesde with sigma_max 348, sigma_min 0.01, t_min 1e-05; the network estimates score, conditioned on sigma",
        "data of shape (3, 16, 16) in 256 levels from 0 to 1, taken to have standard deviation 0.25",
        f"files are in {workdir}; next: python run.py --workdir {workdir} --mode sample",
    ]
    assert meta_of(workdir)["imported"] == {"format": "score_sde", "source": "checkpoint.pt", "weights": "raw"}
    guess = checkpoint.load_gaussian(checkpoint.find(workdir / "checkpoints"), (3, 16, 16))
    assert (guess.mean.unique().tolist(), guess.std) == ([0.5], 0.25)


def test_the_folder_is_named_after_the_source(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(COSINE, "somewhere")
    assert command("--mode=import", "--source=somewhere/model.safetensors", "--device=cpu") == 0
    assert stored(tmp_path / "runs" / "model").sde.name == "iddpm"
    assert "next: python run.py --workdir runs/model --mode sample" in capsys.readouterr().out


def test_importing_a_classifier_prints_how_to_guide(tmp_path, capsys):
    workdir = brought(next(case for case in CASES if case.name == CLASSIFIER), tmp_path / "run")
    assert f"--mode sample --config.guidance.classifier={workdir}" in capsys.readouterr().out


def test_a_classifier_guides_a_run_of_the_same_noise(tmp_path):
    plain = next(case for case in CASES if case.name == "tiny_song_skip_skip_vp")
    workdir, words = brought(plain, tmp_path / "run"), ("--config.sde.name=vpsde", "--config.denoiser.c_noise=time")
    guide = brought(next(case for case in CASES if case.name == CLASSIFIER), tmp_path / "guide", *words)
    drawn = []
    for scale in (0.0, 100.0):
        guided = (f"--config.guidance.classifier={guide}", f"--config.guidance.classifier_scale={scale}")
        assert command("--mode=sample", f"--workdir={workdir}", "--num_samples=2", "--steps=3", *guided) == 0
        with np.load(workdir / "samples" / "adams-3" / "samples.npz") as arrays:
            drawn.append(arrays["samples"])
    assert not np.array_equal(*drawn)


def test_keys_are_overridden_in_the_config_of_the_source(tmp_path):
    words = ("--config.network.dropout=0.25", "--config.sde.num_levels=500", "--sampler=heun", "--seed=3")
    config = stored(brought(PIPELINE, tmp_path / "run", *words))
    assert (config.network.name, config.network.dropout, config.sde.num_levels) == ("ddpm", 0.25, 500)
    assert (config.sample.sampler.name, config.seed) == ("heun", 3)


def test_defaults_depend_on_the_source(tmp_path):
    labelled = stored(brought(LABELLED, tmp_path / "labelled"))
    assert (labelled.sample.label, labelled.train.label_dropout, labelled.sample.t_min) == ("all", 0.0, 0.0)
    sigma = stored(brought(next(case for case in CASES if case.name == SIGMA), tmp_path / "sigma"))
    assert (sigma.sample.sampler.snr, sigma.sample.sampler.corrector_steps) == (0.17, 1)
    assert (sigma.sde.t_min, sigma.codec.low) == (1e-4, 0.0)
    ladder = stored(brought(next(case for case in CASES if case.name == NCSN), tmp_path / "ladder")).sample
    assert ladder.sampler.to_dict() == {"name": "ald", "epsilon": 0.0, "langevin_steps": 5}
    assert (ladder.grid, ladder.steps) == ("levels", 232)


def test_either_weights(tmp_path):
    source = shutil.copytree(PIPELINE, tmp_path / "pipeline")
    shutil.copytree(source / "unet", source / "unet_ema")
    path = source / "unet_ema" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)
    stems = {}
    for weights in ("ema", "raw"):
        workdir = brought(source, tmp_path / weights, f"--weights={weights}")
        for file in checkpoint.find(workdir / "checkpoints").glob("[em]*.safetensors"):
            stems.setdefault(weights, []).append(load_file(file)["stem.weight"])
    assert torch.equal(stems["ema"][0], stems["ema"][1])
    assert torch.equal(stems["ema"][0], 2 * stems["raw"][0])


def test_training_continues_from_an_import(tmp_path):
    workdir = brought(VE, tmp_path / "run", "--config.train.batch_size=4", "--config.train.sample_every=0")
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    start = meta_of(workdir)["step"]
    words = (f"--config.data.path={tmp_path / 'images.npy'}", f"--config.train.total_images={4 * (start + 1)}")
    assert command("--mode=train", f"--workdir={workdir}", "--config.train.evaluate_every=0", *words) == 0
    assert meta_of(workdir)["step"] == start + 1


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", CASES, ids=lambda case: case.name)
def test_formats_are_recognised_by_their_content(source, tmp_path):
    name, path = recognise(source)
    assert name == CASES[source]
    if path.is_dir():
        assert recognise(path / "unet") == ("diffusers", path / "unet")
        unet = shutil.copytree(path / "unet", tmp_path / "unet")
        assert recognise(next(unet.glob("*.safetensors"))) == ("diffusers", unet)
    else:
        shutil.copy(path, tmp_path / "anything")
        assert recognise(tmp_path / "anything") == (name, tmp_path / "anything")


def test_every_format_has_a_criterion():
    assert FORMATS.keys() == {"score_sde", *MARKS}


# --- wrappers ---------------------------------------------------------------------------------------------------------


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def halved(tensors):
    """Other weights of the same network, with unchanged buffers."""
    return {name: tensor / 2 if name.endswith(".weight") else tensor for name, tensor in tensors.items()}


WRAPPERS = {
    "data parallel": (lambda t: prefixed("module.", t), "names without 'module.'"),
    "compiled": (lambda t: prefixed("_orig_mod.", t), "names without '_orig_mod.'"),
    "both": (lambda t: {"model": prefixed("module._orig_mod.", t)}, "model, names without 'module._orig_mod.'"),
    "lightning": (
        lambda t: {"epoch": 3, "state_dict": prefixed("net.", t) | {"loss.weight": torch.ones(2)}, "loops": {"a": [1]}},
        "state_dict, names without 'net.'",
    ),
    "average beside": (lambda t: {"model": halved(t), "ema": t, "step": 5}, "ema"),
    "average within": (
        lambda t: {"model": prefixed("model.", halved(t)) | prefixed("ema_model.", t)},
        "model, names without 'ema_model.'",
    ),
}
"""Name -> common wrapper of a state dict, and the line that reports it."""


@pytest.mark.parametrize(
    ("source", "kind"),
    [(source, kind) for i, source in enumerate(ONE_EACH) for k, kind in enumerate(WRAPPERS) if (i + k) % 2 == 0],
    ids=lambda value: CASES.get(value, value),
)
def test_wrappers_around_a_state_dict_change_nothing(source, kind, tmp_path):
    plain = weights_of(shutil.copytree(source, tmp_path / "copy"))
    content = load_file(plain) if plain.suffix == ".safetensors" else torch.load(plain, weights_only=True)
    if CASES[source] == "score_sde":
        content = {name.removeprefix("module."): tensor for name, tensor in content["model"].items()}
    wrap, wrapper = WRAPPERS[kind]
    path = plain.with_name("last.ckpt")
    plain.unlink()
    torch.save(wrap(content), path)
    name, path = recognise(path)
    assert name == CASES[source]
    read = FORMATS[name](path, weights="ema")
    expected = FORMATS[name](recognise(source)[1], weights="raw").weights
    assert read.wrapper == wrapper
    assert read.weights.keys() == expected.keys()
    assert all(torch.equal(read.weights[key], expected[key]) for key in expected)
    if "average" in kind:
        raw = FORMATS[name](path, weights="raw").weights
        assert read.choice
        assert any(not torch.equal(raw[key], expected[key]) for key in expected)


def test_a_wrapper_is_reported(tmp_path, capsys):
    content = torch.load(weights_of(LABELLED), weights_only=True)
    shutil.copytree(LABELLED, tmp_path / "copy")
    weights_of(tmp_path / "copy").unlink()
    torch.save({"state_dict": prefixed("model.", content)}, tmp_path / "copy" / "last.ckpt")
    brought(tmp_path / "copy", tmp_path / "run")
    assert "the weights were in a wrapper: state_dict, names without 'model.'\n" in capsys.readouterr().out


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_without_a_source(refused):
    assert "give --source, a file or folder of score_sde, edm, guided_diffusion, diffusers" in refused("", status=2)


def test_a_folder_that_is_not_empty(refused, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "notes.txt").touch()
    line = refused(PIPELINE, "--workdir=runs/mine", status=2)
    assert line == "error: runs/mine holds something already; choose another --workdir"


class Killed(BaseException):
    """Ends a command abruptly, like a signal."""


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed(*args):
    raise Killed


ENDS = {
    "killed before the checkpoint has its name": (checkpoint, "rename", killed),
    "killed before config.json": (importing, "write_text", killed),
    "disk full in the checkpoint": (checkpoint, "create", full_disk),
    "disk full in config.json": (importing, "write_text", full_disk),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_same_command_repeats_an_unfinished_import(end, tmp_path, monkeypatch, capsys):
    """A kill leaves temporary files, too; an import of another source removes them."""
    workdir, (owner, name, act) = tmp_path / "run", ENDS[end]
    first = (*words(LABELLED, workdir), "--weights=ema")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, act)
        if act is killed:
            with pytest.raises(Killed):
                command(*first)
            (workdir / "checkpoints" / ".step_00000003.0123abcd.partial").mkdir()
            (workdir / ".config.json.0123abcd.partial").touch()
        else:
            assert command(*first) == 3
            assert "run the same command to go on" in capsys.readouterr().err
    assert not (workdir / "config.json").exists()
    expected = meta_of(brought(PIPELINE, tmp_path / "straight"))
    assert meta_of(brought(PIPELINE, workdir))["sha256"][checkpoint.RAW] == expected["sha256"][checkpoint.RAW]
    assert len(list((workdir / "checkpoints").glob("*"))) == 1
    assert command(*words(PIPELINE, workdir)) == 2


@pytest.mark.parametrize("odd", ["checkpoints/step_00000003", "checkpoints/notes", "samples"])
def test_an_import_leaves_other_folders_alone(odd, refused, tmp_path):
    (tmp_path / "runs" / "mine" / odd).mkdir(parents=True)
    assert "holds something already" in refused(PIPELINE, "--workdir=runs/mine", status=2)
    assert (tmp_path / "runs" / "mine" / odd).is_dir()


def test_two_imports_into_one_folder(tmp_path, capsys):
    with only_writer(tmp_path / "run"):
        assert command(*words(PIPELINE, tmp_path / "run")) == 3
    assert "another command" in capsys.readouterr().err


def test_another_network_than_the_source_has(refused):
    line = refused(PIPELINE, "--config.network.num_blocks=2", status=2)
    assert "the weights are not of the network ddpm with these options, " in line
    assert "sde 'iddpm' has no option 'levels'" in refused(PIPELINE, "--config.sde.levels=2", status=2)
    assert "unknown c_noise 'noise'" in refused(PIPELINE, "--config.denoiser.c_noise=noise", status=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"weight": torch.zeros(1)},
            "none of the formats score_sde, edm, guided_diffusion, diffusers: it has weight",
        ),
        ({}, "it has nothing"),
    ],
)
def test_a_file_of_no_known_format(refused, tmp_path, content, message):
    torch.save(content, tmp_path / "model.pt")
    assert message in refused("model.pt")


def test_invalid_sources(refused, tmp_path):
    assert "no such file" in refused("nothing.pt")
    (tmp_path / "text.pt").write_text("weights")
    assert "is no checkpoint of PyTorch" in refused("text.pt")
    (tmp_path / "folder").mkdir()
    assert "its weight files are: none" in refused("folder")
    for name in ("one.pt", "two.pth"):
        torch.save({}, tmp_path / "folder" / name)
    assert "its weight files are: one.pt, two.pth; give one file" in refused("folder")


@pytest.mark.parametrize("number", [torch.nan, -torch.inf])
@pytest.mark.parametrize("source", ONE_EACH, ids=lambda case: CASES[case])
def test_non_finite_weights(refused, tmp_path, source, number):
    path = weights_of(shutil.copytree(source, tmp_path / "copy"))
    content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    tensors = content.get("model", content)
    name = [name for name in tensors if tensors[name].ndim > 1][-1]
    tensors[name].flatten()[7] = number
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(content, path)
    assert f"{name.removeprefix('module.')} contains NaN or infinity" in refused("copy", "--weights=raw")


@pytest.mark.parametrize("source", ONE_EACH, ids=lambda case: CASES[case])
def test_a_truncated_file(refused, tmp_path, source):
    without_end(weights_of(shutil.copytree(source, tmp_path / "copy")))
    assert "is truncated, damaged or no checkpoint" in refused("copy", "--weights=raw")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (VE, "all_modules.4.Conv_0.weight"),
        (COSINE, "model.enc.8x8_block0.conv0.weight"),
        (LABELLED, "middle_block.0.in_layers.2.weight"),
        (PIPELINE, "mid_block.resnets.0.conv1.weight"),
    ],
    ids=FORMATS,
)
def test_a_missing_tensor(refused, tmp_path, source, name):
    path = weights_of(shutil.copytree(source, tmp_path / "copy"))
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        del tensors[name]
        save_file(tensors, path)
    else:
        content = torch.load(path, weights_only=True)
        tensors = content.get("model", content)
        del tensors[next(key for key in tensors if key.endswith(name))]
        torch.save(content, path)
    assert f"missing {name}" in refused("copy", "--weights=raw")


@pytest.mark.parametrize("source", ONE_EACH, ids=lambda case: CASES[case])
def test_a_file_that_calls_other_code_is_not_run(refused, tmp_path, source):
    path = weights_of(shutil.copytree(source, tmp_path / "copy"))
    content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    path.unlink()
    path = path.with_suffix(".bin")
    malicious(path, tmp_path / "ran", content)
    line = refused("copy")
    assert "would run " in line
    assert "pathlib" in line
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # unpickling runs it


def test_a_pickle_of_edm_is_refused_with_a_recipe(refused, tmp_path):
    malicious_pickle(tmp_path / "edm-cifar10-32x32-cond-vp.pkl", tmp_path / "ran")
    line = refused("edm-cifar10-32x32-cond-vp.pkl")
    assert "is a pickle with code, so it is refused; where you trust it, run in EDM's folder: python -c" in line


CODE = """
import pickle, sys, torch
from safetensors.torch import load_file

class iDDPMPrecond(torch.nn.Module):
    def state_dict(self):
        return self.tensors

if __name__ == "__main__":
    import edm_code
    network = edm_code.iDDPMPrecond()
    network.tensors = load_file(sys.argv[1])
    pickle.dump({"ema": network}, open("mine.pkl", "wb"))
"""


@pytest.mark.slow
def test_the_recipe_converts_a_pickle_to_an_importable_file(tmp_path):
    """Runs in a folder with code like EDM's; the recipe in the message is the documented one."""
    recipe = edm.RECIPE.split("run in EDM's folder: ")[1].strip()
    assert f"{recipe} " in (ROOT / "docs" / "checkpoints.md").read_text()
    (tmp_path / "edm_code.py").write_text(CODE)
    subprocess.run([sys.executable, "edm_code.py", COSINE / "model.safetensors"], cwd=tmp_path, check=True)
    subprocess.run(recipe.replace("python", sys.executable, 1) + " mine.pkl", shell=True, cwd=tmp_path, check=True)
    workdirs = [brought(source, tmp_path / source.stem) for source in (COSINE, tmp_path / "mine.pt")]
    converted, original = (load_model(stored(workdir), workdir, Options())[1] for workdir in workdirs)
    weights = converted.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in original.network.state_dict().items())


def test_a_config_that_lacks_a_key(refused, tmp_path):
    path = shutil.copytree(VE, tmp_path / "copy") / "config.json"
    told = json.loads(path.read_text())
    del told["config"]["model"]["nf"]
    path.write_text(json.dumps(told))
    assert "config.json lacks model.nf; add it" in refused("copy", "--weights=raw")
    path.unlink()
    assert "needs its config, one .json or .py file in the same folder; found: none" in refused("copy")
