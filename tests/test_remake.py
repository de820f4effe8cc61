"""Image-to-image: SDEdit, and translation between the flows of two runs."""

import json

import numpy as np
import pytest
import torch

from score_sde import run as command_line
from score_sde import sde_lib
from score_sde.configs.choices import choose
from score_sde.engine import image_to_image as remake
from score_sde.engine.config import Options, stored
from score_sde.engine.datasets import read_dataset
from score_sde.engine.load import load
from score_sde.engine.modes import edit
from score_sde.engine.sampler import make_step
from score_sde.samplers import Ancestral, Noise
from score_sde.samplers.editing import depth_time, sdedit
from score_sde.samplers.grids import GRIDS
from score_sde.sde_lib.consistency import ConsistencyModel
from tests.runs import tolerances

NUM = 4
WORDS = (f"--config.edit.num_examples={NUM}",)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run on the same data with another process and class labels."""
    folder = tmp_path_factory.mktemp("other")
    keys = {"network.channels": 8, "network.num_classes": 10, "optim.warmup_images": 0, "optim.learning_rate": 1e-2}
    keys |= {"train.total_images": 320, "train.batch_size": 16, "train.sample_every": 0}
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    line = ["run.py", "--mode=train", "--config=cosine", "--device=cpu", f"--workdir={folder}", *words]
    assert command_line.main(line) == 0
    return folder


@pytest.fixture
def made():
    """Runs a task on examples: (samples, manifest)."""

    def run(workdir, task, *words):
        line = ["run.py", "--mode=edit", f"--task={task}", f"--workdir={workdir}", *WORDS, *map(str, words)]
        assert command_line.main(line) == 0
        folder = workdir / "edit" / task
        found = np.load(folder / "samples.npz")["samples"]
        found = torch.from_numpy(found)
        return found.movedim(-1, 1) if found.ndim == 4 else found, json.loads((folder / "manifest.json").read_text())

    return run


def refused(capsys, workdir, status, message, *words):
    """Asserts that a command fails with this message, in one line, and writes nothing."""
    before = sorted(workdir.rglob("*"))
    assert command_line.main(["run.py", "--mode=edit", f"--workdir={workdir}", *WORDS, *map(str, words)]) == status
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said
    assert sorted(workdir.rglob("*")) == before


def given(workdir):
    """Held-out examples of a run, evenly spaced, as stored."""
    dataset = read_dataset(stored(workdir).data, "test")
    return dataset.batch(np.linspace(0, len(dataset) - 1, NUM).astype(int))["x"]


def apart(first, second):
    """Root mean square difference."""
    return (first.double() - second.double()).square().mean().sqrt().item()


# --- SDEdit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["adams", "ancestral", "pc", "ode", "adaptive_sde"])
def test_little_noise_recovers_the_input_and_more_noise_less_of_it(sampler, digits, made):
    steps = 1 if sampler in ("ode", "adaptive_sde") else 5
    words = (f"--sampler={sampler}", f"--steps={steps}", *tolerances(sampler, 1e-3, 0.5))
    found = [made(digits, "sdedit", *words, f"--config.edit.task.strength={s}")[0] for s in (1e-3, 0.3, 0.95)]
    off = [apart(x, given(digits)) for x in found]
    assert off[0] < 0.25  # levels; its noise has a standard deviation of 0.2
    assert 0.4 < off[1] < off[2] - 0.5


def test_the_command_equals_the_library_call(digits, made):
    """With grid, noise and steps computed by hand."""
    words = ("--sampler=ancestral", "--steps=5", "--seed=7", "--config.edit.task.strength=0.6")
    found, manifest = made(digits, "sdedit", *words)
    config = stored(digits)
    experiment, denoise, _ = load(config, digits, Options())
    sde, x = experiment.sde, experiment.codec.encode(given(digits))
    start = depth_time(sde, 0.6, experiment.sigma_data(config))
    marginal = sde.marginal(start)
    share = marginal.sigma**2 / ((marginal.alpha * experiment.facts.std) ** 2 + marginal.sigma**2)
    assert share == pytest.approx(0.6, rel=1e-6)
    times = GRIDS[Ancestral.grid or sde.grid](sde, 5, start, 1e-3)
    with torch.no_grad():
        expected = sdedit(Ancestral(sde), denoise, x, times, Noise(torch.arange(7, 7 + NUM)))
    assert torch.equal(found, experiment.codec.decode(expected))
    assert manifest["strength"] == 0.6
    assert manifest["nfe"] == 6
    files = {path.name for path in (digits / "edit" / "sdedit").iterdir()}
    assert files == {"samples.npz", "grid.png", "manifest.json"}


@pytest.mark.parametrize("sampler", ["adams", "ancestral", "pc"])
def test_with_a_mask_the_known_part_stays(sampler, digits, made):
    words = (f"--sampler={sampler}", "--steps=4", "--config.edit.task.strength=0.9")
    found, _ = made(digits, "sdedit", *words, "--config.edit.task.mask=0,0,8,4")
    x = given(digits)
    assert torch.equal(found[..., 4:], x[..., 4:])
    assert apart(found[..., :4], x[..., :4]) > 0.3
    assert not torch.equal(made(digits, "sdedit", *words)[0][..., 4:], x[..., 4:])


def test_the_corrector_of_pc_keeps_the_known_part(digits, made, monkeypatch):
    """The constraint applies to its states, too: twice a step, and at the end."""
    calls, original = [], remake.replacement

    def listen(*args):
        constrain = original(*args)
        return lambda *state: calls.append(1) or constrain(*state)

    monkeypatch.setattr(remake, "replacement", listen)
    made(digits, "sdedit", "--sampler=pc", "--steps=4", "--config.edit.task.mask=0,0,8,4")
    assert len(calls) == 4 + 4 + 1


@pytest.mark.parametrize("sampler", ["ancestral", "pc", "ode"])
def test_sdedit_does_not_depend_on_the_batch_size(sampler, digits, made):
    words = (f"--sampler={sampler}", f"--steps={1 if sampler == 'ode' else 3}", "--config.edit.task.strength=0.8")
    whole, some = (made(digits, "sdedit", *words, f"--batch_size={size}")[0] for size in (64, 3))
    assert torch.equal(whole, some)
    assert not torch.equal(made(digits, "sdedit", *words, "--seed=1")[0], whole) or sampler == "ode"


@pytest.mark.parametrize("task", ["sdedit", "translate"])
def test_points_can_be_edited(task, points, made):
    x = given(points)
    word = f"--config.edit.task.other={points}" if task == "translate" else "--config.edit.task.strength=0.5"
    found, _ = made(points, task, word, "--steps=4")
    assert found.shape == (NUM, 2)
    assert apart(found, x) < 1e-2 if task == "translate" else apart(found, x) > 1e-2
    files = {path.name for path in (points / "edit" / task).iterdir()}
    assert {"samples.npz", "manifest.json"} <= files


def test_labels_guide_sdedit(other, made):
    words = ("--steps=4", "--config.edit.task.strength=0.9")
    plain, _ = made(other, "sdedit", *words)
    labelled, manifest = made(other, "sdedit", *words, "--label=all", "--config.guidance.scale=3")
    assert not torch.equal(plain, labelled)
    assert manifest["guidance"].items() >= {"label": "all", "scale": 3.0}.items()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--config.edit.task.strength=1.5",), 2, "edit.task.strength 1.5: need above 0 to below 1"),
        (("--config.edit.task.strength=0",), 2, "edit.task.strength 0.0: need above 0 to below 1"),
        (
            ("--config.edit.task.strength=1e-4",),
            2,
            "edit.task.strength 0.0001 is less noise than at the end; raise it, or",
        ),
        (
            ("--config.edit.task.mask=0,0,9,9",),
            2,
            "edit.task.mask 0,0,9,9: need top,left,height,width of a box within 8x8",
        ),
        (("--config.sample.grid=levels.txt",), 3, "levels.txt cannot be read as text"),
    ],
)
def test_invalid_settings_are_refused(words, status, message, digits, capsys):
    refused(capsys, digits, status, message, "--task=sdedit", *words)


def test_a_grid_from_a_file_that_does_not_start_at_the_strength_is_refused(digits, tmp_path, capsys):
    (tmp_path / "levels.txt").write_text("100\n1\n0.1\n")
    words = ("--task=sdedit", f"--config.sample.grid={tmp_path / 'levels.txt'}")
    refused(capsys, digits, 2, "error: --task sdedit starts at its strength, and", *words)


def test_a_non_finite_example_is_named_by_its_number(digits, monkeypatch, capsys):
    original = sde_lib.Denoiser.forward

    def broken(self, x, t, **cond):
        return sde_lib.Prediction(original(self, x, t, **cond).x0 * (torch.nan if len(x) == 1 else 1))

    monkeypatch.setattr(sde_lib.Denoiser, "forward", broken)
    words = ("--task=sdedit", "--batch_size=3", "--steps=2")
    refused(capsys, digits, 4, "error: example 3: the result is not finite", *words)


# --- translation between runs -----------------------------------------------------------------------------------------


def test_translation_to_the_same_run_is_the_identity(digits, made):
    """To the tolerance of the solver, and so is the way back."""
    found, manifest = made(digits, "translate", f"--config.edit.task.other={digits}")
    assert torch.equal(found, given(digits))
    assert manifest["back_rms"] < 0.05


def test_translation_to_another_run_and_back(digits, other, made):
    """By hand: encoded by one flow and decoded by the other; the way back recovers the input."""
    found, manifest = made(digits, "translate", f"--config.edit.task.other={other}")
    config = stored(digits)
    config.sample.sampler = choose("sample.sampler", "ode", rtol=1e-4, atol=1e-4)
    ours, theirs = (load(stored(folder), folder, Options()) for folder in (digits, other))
    x = ours[0].codec.encode(given(digits))
    with torch.no_grad():
        latents = make_step(config.sample, ours[0]).encode(ours[1], x)
        expected = make_step(config.sample, theirs[0]).decode(theirs[1], latents)
    assert (found.int() - ours[0].codec.decode(expected).int()).abs().max() <= 1
    assert apart(found, given(digits)) > 0.5
    assert manifest["back_rms"] < 0.1
    assert manifest["options"]["other"] == str(other)


def test_translation_does_not_depend_on_the_batch_size(digits, other, made):
    whole, some = (
        made(digits, "translate", f"--config.edit.task.other={other}", f"--batch_size={b}")[0] for b in (64, 3)
    )
    assert (whole.int() - some.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("to", "status", "message"),
    [
        ("", 2, "edit.task.other is empty: give the folder of the run to translate to"),
        ("points", 2, "has data of shape (2,) in 0 levels from 0 up, this run data of shape (1, 8, 8) in 17 levels"),
        ("tmp_path", 3, "config.json is missing; train one"),
    ],
)
def test_unsuitable_target_runs_are_refused(to, status, message, digits, request, capsys):
    folder = request.getfixturevalue(to) if to else ""
    refused(capsys, digits, status, message, "--task=translate", f"--config.edit.task.other={folder}")


@pytest.mark.parametrize("which", ["own", "other"])
def test_runs_without_a_flow_are_refused(which, digits, monkeypatch, capsys):
    experiment, _, path = load(stored(digits), digits, Options())
    consistent = experiment, ConsistencyModel(experiment.network, experiment.sde, 0.5), path
    monkeypatch.setattr(edit if which == "own" else remake, "load", lambda *args: consistent)
    words = ("--task=translate", f"--config.edit.task.other={digits}")
    refused(capsys, digits, 2, "is a consistency model: it has no density", *words)
