"""Import from the command line: a run that answers as the recorded network did, and one line for what is none."""

import json
import shutil

import numpy as np
import pytest
import torch
from foreign import malicious, malicious_pickle, without_end
from parity.recordings import COPIES, column, per_sample
from safetensors.torch import load_file, save_file

import run as command_line
from engine import checkpoint
from engine.build import load_model
from engine.config import Options, stored
from models.checkpoints import FORMATS, MARKS, ForeignError, recognise

FOLDERS = {
    "score_sde": "score_sde_models",
    "edm": "edm_models",
    "guided_diffusion": "guided_diffusion",
    "diffusers": "diffusers",
}
CASES = {path.parent: name for name, folder in FOLDERS.items() for path in sorted((COPIES / folder).glob("*/io.npz"))}
"""Folder of a recording -> its format."""

CLASSIFIER, NCSN = "tiny_classifier_adaptive", "ncsnv2_64"
VE, LABELLED, PIPELINE, COSINE = (
    next(case for case in CASES if case.name == name)
    for name in ("ncsnpp_ve_skip", "tiny_improved", "tiny_ddpm", "tiny_dhariwal_iddpm")
)


def command(*words):
    """Run a command in this process and return its exit status."""
    return command_line.main(["run.py", *map(str, words)])


def brought(source, workdir, *words):
    """The folder of the run that was imported; the recorded averages of score_sde are left out of the copies."""
    weights = "--weights=raw" if CASES.get(source) == "score_sde" else "--weights=ema"
    assert command("--mode=import", f"--source={source}", f"--workdir={workdir}", "--device=cpu", weights, *words) == 0
    return workdir


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request, tmp_path_factory):
    """A recording, and the run that was imported from its weights."""
    return request.param, brought(request.param, tmp_path_factory.mktemp("runs") / request.param.name)


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Import something that is refused, and nothing is written: its line on standard error."""
    monkeypatch.chdir(tmp_path)

    def run(source, *words, status=3):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert command("--mode=import", f"--source={source}", "--device=cpu", *words) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run


# --- the run ----------------------------------------------------------------------------------------------------------


def answers(name, denoise, io):
    """Pairs of what the denoiser of the run says and what the reference said, one example each but for scores."""
    if name == "score_sde":
        t = denoise.sde.t_max - io["labels"].float() if hasattr(denoise.sde, "quantile_levels") else io["t"]
        return [(denoise.score(io["x"], column(t)), io["score_model"])]
    pairs, learned = [], name == "guided_diffusion"
    times = denoise.sde.time(-2 * io["sigma"].double().log()) if name == "edm" else io[TOLD[name]].double() + 1
    for i, t in enumerate(times.tolist()):
        one = slice(i, i + 1)
        given = {"augment": io["augment_labels"][one]} if "augment_labels" in io else {}
        for key in ("class_labels", "y"):
            if key in io:
                labels = io[key] if io[key].ndim == 1 else io[key].argmax(1)
                given["label"] = labels[one]
        alpha, sigma, _ = denoise.sde.at(t)
        if name == "edm":
            pairs.append((denoise(alpha * io["x"][one], t, **given).x0, io["D"][one]))
            continue
        x, out = io["x"][one], io["out"][one].chunk(2, 1)[0] if learned else io["out"][one]
        velocity = denoise.coefficients.__name__ == "_v"
        pairs.append((denoise(x, t, **given).x0, alpha * x - sigma * out if velocity else (x - sigma * out) / alpha))
    return pairs


TOLD = {"guided_diffusion": "timesteps", "diffusers": "t"}
"""Format -> how its recordings call the level."""


def test_the_run_answers_as_the_reference_did(case):
    source, workdir = case
    with np.load(source / "io.npz") as arrays:
        io = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    experiment, denoise, _ = load_model(stored(workdir), workdir, Options())
    if source.name == CLASSIFIER:
        assert per_sample(experiment.network(io["x"], io["timesteps"]), io["out"]) < 1e-5
        return
    if source.name == NCSN:  # a chain is asked at whole levels, as it was trained
        io["t"] = denoise.sde.t_max - io["labels"].float()
    with torch.no_grad():
        pairs = answers(CASES[source], denoise, io)
    allowed = 2e-4 if {"fourier", "ncsnpp"} & {experiment_option(workdir, "embedding")} else 1e-5
    for ours, theirs in pairs:
        if source.name == "ncsnpp_subvp":  # their deviation is off at t = 1e-3
            far = io["t"] > io["t"].min()
            ours, theirs = ours[far], theirs[far]
        assert per_sample(ours, theirs) < allowed


def experiment_option(workdir, key):
    return stored(workdir).network.get(key)
