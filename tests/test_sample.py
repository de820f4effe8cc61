"""Sampling from the command line: what is written, and that a sample follows from its seed alone."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import run as command_line
import sde_lib
from engine import checkpoint, plane
from engine.build import DataFacts, build
from engine.config import load, stored
from engine.sample import draw, make_step, make_times
from samplers import GRIDS, STEPS

LOOSE = ("--config.sample.rtol=1e-2", "--config.sample.atol=1e-2")
EVALUATIONS = {"pc": 9, "heun": 9, "plms": 6, "pndm": 14, "ald": 26} | dict.fromkeys(
    ("euler_maruyama", "reverse_diffusion", "ancestral", "ancestral_learned", "ddim", "consistency"), 5
)
"""Calls of the denoiser for 4 steps and the last denoising; ode chooses for itself."""


def command(*words):
    """Run a command in this process and return its exit status."""
    return command_line.main(["run.py", *map(str, words)])


@pytest.fixture
def drawn(monkeypatch):
    """Draw from a run, with small pictures: (samples, manifest)."""
    monkeypatch.setattr(plane, "NUM_CELLS", 5)
    monkeypatch.setattr(plane, "NUM_PATHS", 7)

    def run(workdir, sampler="heun", steps=3, num=3, *words):
        flags = (f"--sampler={sampler}", f"--steps={steps}", f"--num_samples={num}")
        assert command("--mode=sample", f"--workdir={workdir}", *flags, *LOOSE, *words) == 0
        folder = workdir / "samples" / f"{sampler}-{steps}"
        return np.load(folder / "samples.npz")["samples"], json.loads((folder / "manifest.json").read_text())

    return run


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", STEPS)
def test_each_sampler_draws_and_counts_its_evaluations(sampler, digits, drawn, monkeypatch):
    """Counted a second time at the denoiser itself, over two batches."""
    calls, forward = [], sde_lib.Denoiser.forward

    def count(self, x, t, **cond):
        calls.append(len(x))
        return forward(self, x, t, **cond)

    monkeypatch.setattr(sde_lib.Denoiser, "forward", count)
    samples, manifest = drawn(digits, sampler, 4, 3, "--batch_size=2")
    assert samples.shape == (3, 8, 8, 1)
    assert manifest["sampler"] == sampler
    assert manifest["nfe"] == len(calls) / 2
    if sampler in EVALUATIONS:
        assert manifest["nfe"] == EVALUATIONS[sampler]
        assert set(calls) == {1, 2}


def test_every_sampler_has_its_number_of_evaluations():
    assert {*EVALUATIONS, "ode"} == set(STEPS)


@pytest.mark.parametrize("corrector_steps", [0, 1, 3])
def test_evaluations_of_predictor_and_corrector(corrector_steps, digits, drawn):
    _, manifest = drawn(digits, "pc", 4, 1, f"--config.sample.corrector_steps={corrector_steps}")
    assert manifest["nfe"] == 4 * (1 + corrector_steps) + 1
    assert manifest["options"]["corrector_steps"] == corrector_steps


def test_files_of_images(digits, drawn):
    samples, manifest = drawn(digits, "pc", 4, 5, "--seed=11")
    folder = digits / "samples" / "pc-4"
    assert {path.name for path in folder.iterdir()} == {"samples.npz", "grid.png", "manifest.json"}
    assert samples.dtype == np.uint8
    assert samples.max() <= 16
    with Image.open(folder / "grid.png") as picture:
        assert picture.mode == "L"
    assert manifest["seconds"] > 0
    assert manifest.items() >= {"steps": 4, "grid": "uniform", "num_samples": 5, "seed": 11, "levels": 17}.items()
    assert manifest.items() >= {"weights": "ema", "checkpoint_step": 8}.items()
    options = {"predictor": "reverse_diffusion", "corrector": "langevin", "snr": 0.16, "corrector_steps": 1}
    assert manifest["options"] == options
    assert manifest["config_sha256"] == checkpoint.sha256(digits / "config.json")
    assert {"python", "torch", "numpy"} <= manifest["versions"].keys()


def test_files_of_points(points, drawn):
    samples, manifest = drawn(points, "heun", 4, 20)
    folder = points / "samples" / "heun-4"
    names = {"samples.npz", "grid.png", "density.png", "trajectories.png", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert samples.shape == (20, 2)
    assert samples.dtype == np.float32
    assert manifest["nfe"] == 9  # the pictures are not counted
    for name in names - {"samples.npz", "manifest.json"}:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100


def test_drawing_again_replaces_the_files(digits, drawn):
    first, _ = drawn(digits, "ddim", 3, 4)
    second, manifest = drawn(digits, "ddim", 3, 2, "--seed=9")
    assert (len(first), len(second), manifest["seed"]) == (4, 2, 9)
    assert not list((digits / "samples" / "ddim-3").glob(".*"))


def test_what_is_said(digits, drawn, capsys):
    drawn(digits, "heun", 3, 2)
    out = capsys.readouterr().out
    assert "2 samples in " in out
    assert "7 evaluations each, from step 8 (ema)" in out


# --- a sample and its seed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", STEPS)
def test_a_sample_does_not_depend_on_the_batch_size(sampler, digits, drawn):
    num = 3 if sampler == "ode" else 9
    alone, some, whole = (drawn(digits, sampler, 2, num, f"--batch_size={size}")[0] for size in (1, num - 2, 64))
    assert np.array_equal(alone, whole)
    assert np.array_equal(some, whole)
    assert len(np.unique(whole, axis=0)) == num


@pytest.mark.parametrize("sampler", STEPS)
def test_a_state_does_not_depend_on_the_batch_size(sampler, points, drawn, monkeypatch):
    """To the rounding of float32, which the solver that adapts its steps may enlarge."""
    monkeypatch.setattr(plane, "draw", lambda *args: None)
    alone, seven, whole = (drawn(points, sampler, 2, 9, f"--batch_size={size}")[0] for size in (1, 7, 64))
    tolerance = 1e-4 if sampler == "ode" else 1e-5
    np.testing.assert_allclose(alone, whole, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(seven, whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sampler", ["pc", "ddim", "ancestral"])
def test_seeds_count_on_from_the_seed_of_the_command(sampler, digits, drawn):
    first, _ = drawn(digits, sampler, 3, 8)
    later, _ = drawn(digits, sampler, 3, 2, "--seed=5")
    assert np.array_equal(later, first[5:7])


def test_samples_of_a_command_repeat(digits, drawn):
    torch.manual_seed(77)
    first, _ = drawn(digits, "pc", 3, 4)
    assert np.array_equal(first, drawn(digits, "pc", 3, 4)[0])


# --- which weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "weights"), [(4, "ema"), (8, "ema"), (4, "raw"), (8, "raw")])
def test_the_weights_that_were_asked_for(step, weights, digits, drawn):
    """The samples of a network that is put together by hand from the file that should have been read."""
    samples, manifest = drawn(digits, "heun", 3, 4, f"--weights={weights}", f"--checkpoint={step}")
    assert (manifest["weights"], manifest["checkpoint_step"]) == (weights, step)
    path, config = digits / "checkpoints" / f"step_{step:08d}", stored(digits)
    config.sample.sampler, config.sample.steps = "heun", 3
    experiment = build(config, DataFacts.from_dict(checkpoint.read_meta(path)["data"]))
    name = {"raw": "model.safetensors", "ema": "ema-0.999.safetensors"}[weights]
    checkpoint.load_network(path, name, experiment.network)
    denoiser = experiment.denoiser(experiment.network.eval(), config)
    step, times = make_step(config, experiment.sde), make_times(config, experiment.sde)
    expected = draw(experiment, denoiser, step, times, torch.arange(4)).movedim(1, -1).numpy()
    assert np.array_equal(samples, expected)


def test_checkpoints_and_weights_differ(digits, drawn):
    choices = [(step, weights) for step in (4, 8) for weights in ("ema", "raw")]
    found = [drawn(digits, "heun", 3, 4, f"--weights={w}", f"--checkpoint={s}")[0].tobytes() for s, w in choices]
    assert len(set(found)) == 4


def test_a_checkpoint_by_its_folder(digits, drawn):
    _, manifest = drawn(digits, "ddim", 3, 1, f"--checkpoint={digits / 'checkpoints' / 'step_00000004'}")
    assert manifest["checkpoint_step"] == 4


def test_sampling_leaves_the_checkpoints_alone(digits, drawn):
    files = [path for path in (digits / "checkpoints").rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    drawn(digits)
    assert [path.read_bytes() for path in files] == before


def test_the_config_alone_finds_its_run(digits, drawn, tmp_path, monkeypatch):
    shutil.copytree(digits, tmp_path / "runs" / "vpsde")
    monkeypatch.chdir(tmp_path)
    words = ("--mode=sample", "--config=vpsde", "--config.network.channels=8", "--steps=3", "--num_samples=1")
    words += ("--config.network.learned_variance=True",)
    assert command(*words, "--sampler=ddim") == 0
    assert (tmp_path / "runs" / "vpsde" / "samples" / "ddim-3" / "samples.npz").is_file()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", STEPS)
def test_a_step_takes_its_keys_of_the_config(sampler):
    config = load("vpsde")
    config.sample.sampler = sampler
    config.sample.eta, config.sample.variance, config.sample.rtol = 0.5, 0.25, 0.125
    step = make_step(config, sde_lib.SDES["vpsde"]())
    for key in ("eta", "variance", "rtol"):
        assert getattr(step, key, config.sample[key]) == config.sample[key]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_grid_of_the_config_and_its_end(grid):
    chain = grid.startswith("levels")
    config, sde = load("vpsde"), sde_lib.SDES["ddpm" if chain else "vpsde"]()
    config.sample.grid, config.sample.steps, config.sample.t_min = grid, 10, 0.0
    assert torch.equal(make_times(config, sde), GRIDS[grid](sde, 10))
    config.sample.t_min = 10.0 if chain else 1e-3
    noisy = make_times(config, sde)
    assert noisy[sde.sigma(noisy) > 0][-1] == config.sample.t_min


def test_a_sample_that_is_not_finite_is_told_by_its_seed(digits, drawn, monkeypatch, capsys):
    """Nothing is written then."""
    original = sde_lib.Denoiser.forward

    def broken(self, x, t, **cond):
        x0 = original(self, x, t, **cond).x0.clone()
        x0[2] = torch.nan
        return sde_lib.Prediction(x0)

    monkeypatch.setattr(sde_lib.Denoiser, "forward", broken)
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert command("--mode=sample", f"--workdir={digits}", "--steps=2", "--num_samples=4", "--seed=40") == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: the sample of seed 42 is not finite; use more --steps or another sampler"
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_a_solver_that_gives_up_ends_with_its_status(digits, monkeypatch, capsys):
    monkeypatch.setattr(sde_lib.flow, "_MAX_STEPS", 2)
    assert command("--mode=sample", f"--workdir={digits}", "--sampler=ode", "--steps=1", "--num_samples=1") == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "raise rtol and atol" in line
