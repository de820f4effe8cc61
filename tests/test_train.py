"""Training: a killed run ends like an uninterrupted one, bit for bit; single steps; files of a run."""

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde import run as command_line
from score_sde.data import Dataset, batch_at
from score_sde.engine import checkpoint, pictures, plane
from score_sde.engine.config import load, names, override
from score_sde.engine.datasets import read_dataset
from score_sde.engine.log import Metrics
from score_sde.engine.randomness import TRAINING, noise
from score_sde.engine.training.learning_rate import learning_rate
from score_sde.engine.training.trainer import StepResult, Trainer
from score_sde.engine.training.validation import NOISE_BINS, Validation
from score_sde.sde_lib import LEARNING_TIMESTEP_SAMPLERS, OBJECTIVES, Gaussian, GaussianMixture, denoising_loss
from tests.runs import DIGITS, POINTS, ROOT, assert_same_run, digests, equal, metrics, steps, train, trainer_of


def validation_of(trainer):
    return Validation(trainer.config, trainer.experiment, read_dataset(trainer.config.data, "test"))


# --- resuming ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run abruptly, like a signal."""


@contextlib.contextmanager
def killed(monkeypatch, owner, name, call):
    """Kills the run just before this call of a function, counted from 1."""
    function, calls = getattr(owner, name), 0

    def count(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, count)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run of eight steps with two averages."""
    workdir = tmp_path_factory.mktemp("straight")
    assert train(workdir, 8, ema__rates=(0.999, 0.9), train__evaluate_every=8) == 0
    return workdir


MOMENTS = {
    "before the first checkpoint": (Trainer, "_train_step", 2, None),
    "in a step": (Trainer, "_train_step", 6, 3),
    "before a line of metrics": (Metrics, "write", 4, 3),
    "between a line of metrics and its checkpoint": (Trainer, "save", 2, 3),
    "before a checkpoint has its name": (checkpoint, "rename", 2, 3),
    "right after a checkpoint": (checkpoint, "forget", 2, 6),
}
"""Where a run is killed, and the checkpoint that is left."""


@pytest.mark.parametrize("marginal", MOMENTS)
def test_a_killed_run_resumes_bit_for_bit(marginal, straight, tmp_path, monkeypatch):
    owner, name, call, left = MOMENTS[marginal]
    changes = {"ema__rates": (0.999, 0.9), "train__evaluate_every": 8}
    with killed(monkeypatch, owner, name, call), pytest.raises(Killed):
        train(tmp_path, 8, **changes)
    assert steps(tmp_path)[-1:] == ([] if left is None else [left])
    assert train(tmp_path, 8, **changes) == 0
    assert_same_run(tmp_path, straight, 8)
    assert steps(tmp_path) == steps(straight) == [3, 6, 8]


def test_leftovers_of_a_hard_kill_do_not_prevent_resuming(straight, tmp_path):
    """Half a checkpoint and half a line of metrics, as left by a loss of power."""
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints"
    partial = folder / ".step_00000008.partial"
    (folder / "step_00000008").rename(partial)
    (partial / "meta.json").unlink()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 10, "los')
    assert train(tmp_path, 8, ema__rates=(0.999, 0.9), train__evaluate_every=8) == 0
    assert_same_run(tmp_path, straight, 8)
    assert not partial.exists()


@pytest.mark.slow
def test_a_killed_process_resumes(tmp_path):
    """SIGKILL at arbitrary times, three times in a row."""
    assert train(tmp_path / "straight", 300, train__evaluate_every=50) == 0
    keys = DIGITS | {"train.evaluate_every": 50, "train.total_images": 1200}
    flags = [f"--workdir={tmp_path / 'killed'}", "--config=vpsde", *(f"--config.{k}={v}" for k, v in keys.items())]
    command = [sys.executable, str(ROOT / "run.py"), "--mode=train", *flags]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        done = len(steps(tmp_path / "killed"))
        while process.poll() is None and len(steps(tmp_path / "killed")) < done + 10:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert steps(tmp_path / "killed")[-1] < 300
    assert train(tmp_path / "killed", 300, train__evaluate_every=50) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "killed", 300)


def data_for(config, folder):
    """Overrides that replace the data and shrink the network of a config, but keep its levels and its recipe."""
    if config.data.name == "images":
        channels, size = ("L", 28) if folder.name == "mnist" else ("RGB", 32)
        rng = np.random.default_rng(0)
        for split, num in (("train", 12), ("test", 3)):
            (folder / split).mkdir(parents=True)
            for k in range(num):
                pixels = rng.integers(256, size=(size, size, 3)).astype(np.uint8)
                Image.fromarray(pixels).convert(channels).save(folder / split / f"{k:02d}.png")
        yield from (f"--config.data.path={folder / 'train'}", f"--config.data.test_path={folder / 'test'}")
    small = {"channels": 8, "num_blocks": 1, "width": 16, "dropout": 0.2}
    yield from (f"--config.network.{key}={value}" for key, value in small.items() if key in config.network)


ALIKE = {"subvpsde", "cosine", "laplace", "logistic", "sigmoid", "mnist"}
"""Configs that differ from others of their family only in the noise schedule or the size of the data."""


def recipes():
    """Names of all configs; those that differ little from others of their family are slow."""
    for name in names():
        alike = name.startswith("cifar10_") and name not in ("cifar10_ddpm_vp", "cifar10_ncsnpp_subvp")
        alike |= name in ALIKE
        if name != "default":
            yield pytest.param(name, marks=[pytest.mark.slow] * alike)


@pytest.mark.parametrize("name", list(recipes()))
def test_each_config_trains_resumes_samples_and_has_a_likelihood(name, tmp_path, monkeypatch, capsys):
    """The second half of the run is repeated from a copy without its last checkpoint, as if killed right before it."""
    monkeypatch.setattr(plane, "NUM_CELLS", 4)
    monkeypatch.setattr(pictures, "IN_GRID", 4)
    tiny = [f"--config={name}", "--device=cpu", "--config.train.batch_size=4"]
    tiny += ["--config.train.total_images=16"]
    tiny += ["--config.train.checkpoint_every=2", "--config.train.log_every=1", "--config.train.sample_every=0"]

    def command(*words):
        assert command_line.main(["run.py", *words]) == 0, capsys.readouterr().err

    config, source = load(name), str(tmp_path / "source")
    if config.train.init:  # a run that this one starts from: its teacher, or the source of its pairs
        needed, found = Path(config.train.init).name, [f"--config.train.init={source}"]
        command("--mode=train", f"--workdir={source}", *tiny[1:], f"--config={needed}", *data_for(load(needed), source))
        if config.loss.teacher:
            found.append(f"--config.loss.teacher={source}")
        if config.data.name == "pairs":
            pairs = ("--num_samples=40", "--steps=2", "--config.sample.keep_latents=true")
            command("--mode=sample", f"--workdir={source}", *pairs)
            found.append(f"--config.data.path={source}/samples/heun-2/samples.npz")
        tiny += found
    tiny += data_for(config, tmp_path / name)
    command("--mode=train", f"--workdir={tmp_path / 'run'}", *tiny)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_00000004")
    command("--mode=train", f"--workdir={tmp_path / 'again'}", *tiny)
    assert_same_run(tmp_path / "run", tmp_path / "again", 4)

    if not OBJECTIVES[load(name).loss.objective.name].trains_denoiser():
        return  # a classifier draws no samples; tests/test_classifier.py
    workdir, sampler = tmp_path / "run", load(name).sample.sampler.name
    command("--mode=sample", f"--workdir={workdir}", "--steps=2", "--num_samples=2")
    samples = np.load(workdir / "samples" / f"{sampler}-2" / "samples.npz")["samples"]
    assert len(samples) == 2
    if config.data.name == "pairs" or config.loss.objective.name.startswith("consistency"):
        return  # pairs are no integers, and a consistency model has no density
    few = {"evaluations": 4, "check_examples": 0, "num_examples": 2}
    command("--mode=likelihood", f"--workdir={workdir}", *(f"--config.likelihood.{k}={v}" for k, v in few.items()))
    (found,) = (workdir / "likelihood").glob("test-*.json")
    assert math.isfinite(json.loads(found.read_text())["nats"])


def test_an_mlp_takes_images(tmp_path):
    """Resuming after one of two steps changes no bit, and samples have the shape of the data."""
    images = {"data__name": "digits", "codec__name": "pixels", "optim__decay": "constant"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, num_steps in ((whole, 2), (parts, 1), (parts, 2)):
        assert train(folder, num_steps, "points", **images) == 0
    assert digests(whole, 2) == digests(parts, 2)
    assert command_line.main(["run.py", "--mode=sample", f"--workdir={parts}", "--num_samples=3", "--steps=3"]) == 0
    assert np.load(parts / "samples" / "adams-3" / "samples.npz")["samples"].shape == (3, 8, 8, 1)


def test_a_finished_run_prints_so_and_changes_nothing(straight, capsys):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    assert train(straight, 8, ema__rates=(0.999, 0.9), train__evaluate_every=8) == 0
    out = capsys.readouterr().out
    assert out == f"{straight} is trained already, on 32 images; raise --config.train.total_images to go on\n"
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*")} == before


def test_more_images_continue_from_the_end(tmp_path):
    """With a constant learning rate, the longer run equals one with that length from the start."""
    for num_steps in (3, 8):
        assert train(tmp_path / "raised", num_steps, "points", optim__decay="constant", train__log_every=1) == 0
    assert train(tmp_path / "straight", 8, "points", optim__decay="constant", train__log_every=1) == 0
    assert_same_run(tmp_path / "raised", tmp_path / "straight", 8)
    assert json.loads((tmp_path / "raised" / "config.json").read_text())["train"]["total_images"] == 32


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 4, 5]), (1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_newest_checkpoints_are_kept(keep, left, tmp_path):
    assert train(tmp_path, 5, "points", train__checkpoint_every=1, train__keep_checkpoints=keep) == 0
    assert steps(tmp_path) == left


def test_no_intermediate_checkpoint(tmp_path):
    assert train(tmp_path, 5, "points", train__checkpoint_every=0) == 0
    assert steps(tmp_path) == [5]


def test_another_batch_size_continues_at_the_same_example(tmp_path):
    """Three batches of 4, then batches of 8: examples 12 to 27 come next, with the noise of these positions."""
    assert train(tmp_path, 3, "points") == 0
    trainer = trainer_of(tmp_path, "points", num_steps=4, train__batch_size=8, train__log_every=1)
    assert (trainer.step, trainer.images_seen, trainer.last_step()) == (3, 12, 6)
    positions = torch.arange(12, 20)
    inputs, at = trainer._inputs(3), trainer._inputs(4)
    expected = batch_at(trainer.dataset, 0, 12, 8)["x"]
    assert torch.equal(inputs["x0"], trainer.experiment.codec.encode(expected))
    assert torch.equal(inputs["eps"], noise(0, TRAINING, positions)(torch.empty(8, 2)))
    assert torch.equal(at["eps"], noise(0, TRAINING, positions + 8)(torch.empty(8, 2)))
    list(trainer.steps(trainer.last_step()))
    trainer.save()
    assert (trainer.step, trainer.images_seen) == (6, 36)
    again = trainer_of(tmp_path, "points", num_steps=9)
    assert (again.step, again.images_seen, again.last_step()) == (6, 36, 6)


def test_a_step_that_is_not_finite_is_checked_at_its_own_position(tmp_path):
    """Of the data as of the inputs: step 3, after three batches of 4, begins at example 12."""
    assert train(tmp_path, 3, "points") == 0
    trainer = trainer_of(tmp_path, "points", num_steps=4, train__batch_size=8)
    read, starts = trainer.batches.read, []
    trainer.batches.read = lambda start: starts.append(start) or read(start)
    trainer.look(3, StepResult(torch.tensor(math.nan), torch.tensor(1.0), 0.1), finite=False)
    assert starts == [12, 12]


def test_levels_are_dithered_within_their_bins(tmp_path):
    trainer = trainer_of(tmp_path)
    codec, plain = trainer.experiment.codec, batch_at(trainer.dataset, 0, 0, 4)["x"]
    apart = (trainer._inputs(0)["x0"] - codec.encode(plain)).abs() / trainer.experiment.bin_width
    assert 0.2 < apart.mean() < 0.3
    assert apart.max() <= 0.5 + 1e-5


@pytest.mark.parametrize("law", LEARNING_TIMESTEP_SAMPLERS)
def test_a_learned_timestep_sampler_is_updated_at_every_step(law, tmp_path):
    trainer = trainer_of(tmp_path, "points", loss__timestep_sampler=law)
    before = copy.deepcopy(trainer.timestep_sampler.state_dict())
    list(trainer.steps(1))
    assert not equal(before, trainer.timestep_sampler.state_dict())


def test_the_noise_of_an_example_follows_from_its_seed_and_position(tmp_path):
    """Example 5 of a training with seed 3: the value is fixed, as resumed runs depend on it."""
    trainer = trainer_of(tmp_path, "points", seed=3)
    eps = trainer._inputs(1)["eps"][1]  # of batches of 4
    assert eps.tolist() == pytest.approx([-0.7743596434593201, 0.3277149200439453], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train__microbatch": 2}, "microbatch 4 -> 2"),
        ({"threads": 2}, "threads 1 -> 2"),
        ({}, None),
        ({"train__microbatch": 4}, None),
    ],
)
def test_a_run_that_resumes_with_different_rounding_prints_so(changes, told, tmp_path, capsys):
    assert train(tmp_path, 3, "points") == 0
    assert checkpoint.read_meta(tmp_path / "checkpoints" / "step_00000003")["arithmetic"]["threads"] == 1
    capsys.readouterr()
    try:
        assert train(tmp_path, 4, "points", **changes) == 0
    finally:
        torch.set_num_threads(1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "rounded differently" in line]
    line = f"from step 3 on sums are rounded differently ({told}): bits differ from here on"
    assert lines == ([line] if told else [])


# --- the same seed ----------------------------------------------------------------------------------------------------


def test_a_run_depends_on_its_seed_alone(straight, tmp_path):
    changes = {"ema__rates": (0.999, 0.9), "train__evaluate_every": 8}
    torch.manual_seed(1234)
    assert train(tmp_path / "same", 8, **changes) == 0
    assert_same_run(tmp_path / "same", straight, 8)
    assert train(tmp_path / "other", 8, seed=1, **changes) == 0
    mine, others = digests(straight, 8), digests(tmp_path / "other", 8)
    assert mine.keys() == others.keys()
    assert mine.pop(checkpoint.GAUSSIAN) == others.pop(checkpoint.GAUSSIAN)
    assert not set(mine.values()) & set(others.values())


def test_the_intervals_of_logs_validation_and_samples_change_no_weight(straight, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "IN_GRID", 4)
    changes = {
        "train__log_every": 1,
        "train__evaluate_every": 0,
        "train__sample_every": 3,
        "train__checkpoint_every": 0,
    }
    assert train(tmp_path, 8, ema__rates=(0.999, 0.9), **changes) == 0
    assert digests(tmp_path, 8) == digests(straight, 8)


# --- the moment-matched Gaussian of the data --------------------------------------------------------------------------


def test_the_moment_matched_gaussian_is_measured_once_and_read_back(tmp_path):
    """A different Gaussian in the newest checkpoint is the one that training continues with."""
    trainer = trainer_of(tmp_path, "points")
    measured, other = trainer.experiment.gaussian, Gaussian(torch.ones(2, dtype=torch.float64), 0.5)
    assert equal(trainer_of(tmp_path, "points").experiment.gaussian.state_dict(), measured.state_dict())
    trainer.experiment = dataclasses.replace(trainer.experiment, gaussian=other)
    trainer.save()
    found = trainer_of(tmp_path, "points")
    assert equal(found.experiment.gaussian.state_dict(), other.state_dict())
    before = digests(tmp_path, 0)[checkpoint.GAUSSIAN]
    found.step = 1
    found.save()
    assert digests(tmp_path, 1)[checkpoint.GAUSSIAN] == before


def test_an_older_run_measures_its_moment_matched_gaussian_on_resuming(straight, tmp_path):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    forget_guess(tmp_path / "checkpoints" / "step_00000008")
    assert train(tmp_path, 10, ema__rates=(0.999, 0.9)) == 0
    assert digests(tmp_path, 10)[checkpoint.GAUSSIAN] == digests(straight, 8)[checkpoint.GAUSSIAN]


def forget_guess(path):
    """Gives a checkpoint the format of earlier versions."""
    (path / checkpoint.GAUSSIAN).unlink()
    meta = json.loads((path / "meta.json").read_text())
    del meta["sha256"][checkpoint.GAUSSIAN]
    (path / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("num", [1, 7])
def test_identical_examples_need_only_sigma_data(num, tmp_path):
    alike = Dataset(np.full((num, 2), 0.5, dtype=np.float32), np.arange(num))
    config = load("points")
    override(config, [(key, str(value)) for key, value in POINTS.items()])
    with pytest.raises(
        ValueError, match=r"the training data are all alike, so sigma_data is 0; set denoiser\.sigma_data"
    ):
        Trainer(config, tmp_path, alike)
    config.denoiser.sigma_data = 0.5
    trainer = Trainer(config, tmp_path, alike)
    assert all(math.isfinite(result.loss.item()) for result in trainer.steps(3))
    torch.testing.assert_close(trainer.experiment.gaussian.mean, torch.full((2,), 0.5).double())
    assert trainer.experiment.gaussian.std == pytest.approx(1e-3)


# --- single steps -----------------------------------------------------------------------------------------------------


def test_the_first_step_of_adam_moves_each_weight_by_the_learning_rate(tmp_path):
    """Its first step is the rate times g / (|g| + 1e-8); the rate is half of 0.002, in a warm-up of two steps."""
    trainer = trainer_of(tmp_path, optim__warmup_images=8, optim__decay="constant")
    before = {name: p.clone() for name, p in trainer.network.named_parameters()}
    (result,) = trainer.steps(1)
    moves = {name: (p - before[name]).abs().max().item() for name, p in trainer.network.named_parameters()}
    assert result.learning_rate == pytest.approx(1e-3)
    assert max(moves.values()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("limit", [0.0, 0.01, 1e6])
def test_the_gradient_is_clipped_to_the_limit(limit, tmp_path):
    """After one step Adam's mean of the gradient is a tenth of it; the reported norm is the one before clipping."""
    trainer = trainer_of(tmp_path, optim__clip_norm=limit)
    (result,) = trainer.steps(1)
    means = [state["exp_avg"].flatten() for state in trainer.optimizer.state.values()]
    norm = result.gradient_norm.item()
    assert norm > 0.01
    assert 10 * torch.cat(means).norm().item() == pytest.approx(min(norm, limit or math.inf), rel=1e-4)


def test_warmup_is_a_line():
    config = load("vpsde")
    override(config, [("optim.decay", "constant"), ("optim.warmup_images", "640"), ("optim.learning_rate", "0.5")])
    assert [learning_rate(config, seen) for seen in (0, 64, 320, 576, 640, 10**6)] == [0.05, 0.1, 0.3, 0.5, 0.5, 0.5]


def test_decay_is_half_a_cosine():
    config = load("vpsde")
    override(config, [("optim.warmup_images", "0"), ("optim.learning_rate", "2.0"), ("train.total_images", "1200")])
    rates = [learning_rate(config, seen) for seen in (0, 400, 600, 800, 1200, 5000)]
    assert rates == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_the_network_computes_in_bfloat16(precision, tmp_path, monkeypatch):
    """Times, coefficients and the estimate stay in float32, and so do weights, averages and the optimiser's state."""
    trainer = trainer_of(tmp_path, train__precision=precision)
    types = {"inside": set()}
    trainer.network.register_forward_hook(lambda m, args, out: types.update(x=args[0].dtype, log_snr=args[1].dtype))
    trainer.network.stem.register_forward_hook(lambda m, args, out: types["inside"].add(out.dtype))
    trainer.denoiser.register_forward_hook(lambda m, args, out: types.update(t=args[1].dtype, x0=out.x0.dtype))
    (result,) = trainer.steps(1)
    assert types.pop("inside") == {getattr(torch, precision)}
    assert set(types.values()) == {result.loss.dtype} == {torch.float32}
    kept = [*trainer.network.parameters(), *trainer.ema.networks[0].parameters()]
    kept += [state["exp_avg_sq"] for state in trainer.optimizer.state.values()]
    assert {value.dtype for value in kept} == {torch.float32}


def test_bfloat16_trains_like_float32_to_its_precision(tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = trainer_of(tmp_path, num_steps=6, train__precision=precision, network__dropout=0.0)
        losses[precision] = [result.loss.item() for result in trainer.steps(6)]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.03)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_only_adamw_shrinks_weights_without_a_gradient(name, tmp_path):
    trainer = trainer_of(tmp_path, optim__name=name, optim__weight_decay=0.1, optim__decay="constant")
    before = trainer.network.stem.weight.clone()
    (_,) = trainer.steps(1)
    moved = (trainer.network.stem.weight / before - 1).abs().max().item()
    assert moved == pytest.approx(0.1 * 2e-3, rel=0.05) if name == "adamw" else moved > 1e-3


@pytest.mark.parametrize("dequantize", [False, True])
def test_values_that_are_no_levels_end_training_before_changing_a_weight(dequantize, tmp_path):
    """The step is skipped on the device; the error names the values once the host reads its numbers."""
    trainer = trainer_of(tmp_path, train__dequantize=dequantize)
    read, before = trainer.batches.read, [p.detach().clone() for p in trainer.parameters]

    def spoilt(start):
        batch = dict(read(start))
        return batch | {"x": torch.where(torch.arange(len(batch["x"])).reshape(-1, 1, 1, 1) == 2, 40, batch["x"])}

    trainer.batches.read = spoilt
    result = next(trainer.steps(1))
    assert result.loss.isnan()
    assert all(map(torch.equal, trainer.parameters, before))
    with pytest.raises(
        ValueError, match=r"values from \S+ to (40|39\.\d+|40\.\d+) are outside \[-0\.5, 16\.5\]: check"
    ):
        trainer.look(0, result, finite=False)


def test_levels_are_dequantized_if_configured(tmp_path):
    """With uniform noise of one level's width, or the centres of the 17 levels and nothing else."""
    validation = {}
    for dequantize in (True, False):
        trainer = trainer_of(tmp_path, train__dequantize=dequantize)
        validation[dequantize] = validation_of(trainer).x0
    levels = (validation[False] + 1) * 17 / 2 - 0.5
    noise = (validation[True] - validation[False]) * 17 / 2
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-5)
    assert noise.abs().max() <= 0.5 + 1e-5
    assert noise.mean().abs() < 4 * (1 / 12 / noise.numel()) ** 0.5
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.05)


def test_labels_reach_the_network(tmp_path):
    trainer = trainer_of(tmp_path, network__num_classes=10)
    seen = []
    trainer.network.register_forward_pre_hook(lambda m, args, cond: seen.append(cond["label"]), with_kwargs=True)
    (_,) = trainer.steps(1)
    validation_of(trainer).losses(trainer.network)
    # of the batch, the validation set, a network of zeros, and twice for the effect of the label
    assert [len(labels) for labels in seen] == [4, 360, 360, 360, 360]
    assert set(seen[1].tolist()) == set(range(10))


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_validation_loss_uses_fixed_draws(tmp_path):
    trainer = trainer_of(tmp_path / "a", "points", network__dropout=0.5)
    list(trainer.steps(8))
    validation, average = validation_of(trainer), trainer.ema.networks[0]
    found = validation.losses(average)
    torch.manual_seed(99)
    assert validation.losses(average) == found
    assert validation_of(trainer).losses(average) == found
    assert validation_of(trainer_of(tmp_path / "b", "points", train__batch_size=7)).losses(average) == found


@pytest.mark.parametrize("config", ["vpsde", "points"])
def test_the_loss_of_zero_with_eps_and_the_simple_weight_is_the_square_of_the_noise(config, tmp_path):
    trainer = trainer_of(tmp_path, config, denoiser__parameterization="eps", loss__weight="simple")
    validation = validation_of(trainer)
    found = validation.losses(trainer.network.eval())
    assert found["validation_loss_of_zero"] == pytest.approx(validation.eps.square().mean().item(), rel=1e-4)
    assert found["validation_loss"] == found["validation_loss_of_zero"]  # each network starts at zero


def test_the_loss_of_zero_with_x0_and_its_weight_is_the_square_of_the_data(tmp_path):
    trainer = trainer_of(tmp_path, "points", denoiser__parameterization="x0", loss__weight="x0")
    validation = validation_of(trainer)
    found = validation.losses(trainer.network.eval())["validation_loss_of_zero"]
    assert found == pytest.approx(validation.x0.square().mean().item(), rel=1e-6)


def test_losses_in_bins_are_means_over_their_times(tmp_path):
    trainer = trainer_of(tmp_path, "points", denoiser__parameterization="eps", loss__weight="simple")
    validation = validation_of(trainer)
    found = validation.losses(trainer.network.eval())
    log_snr = trainer.experiment.sde.log_snr(validation.t).flatten()
    bins = {key: value for key, value in found.items() if "log_snr" in key}
    assert len(bins) > 4
    for low, high in itertools.pairwise(NOISE_BINS):
        inside = (log_snr > low) & (log_snr <= high)
        if key := next((key for key in bins if key.endswith(f"log_snr_{low:g}_to_{high:g}")), None):
            expected = validation.eps[inside].square().mean().item()
            assert bins[key] == pytest.approx(expected, rel=1e-3)
        else:
            assert not inside.any()


def test_training_on_eight_gaussians_comes_near_the_best_loss(tmp_path):
    """In 150 steps of a small network, more than half of the way from zero's loss to the exact denoiser's."""
    changes = {"network__width": 32, "network__depth": 2, "train__batch_size": 128, "optim__learning_rate": 1e-2}
    changes |= {"data__name": "eight_gaussians", "network__dropout": 0.0}
    assert train(tmp_path / "run", 150, "points", train__evaluate_every=50, train__checkpoint_every=0, **changes) == 0
    losses = [line["validation_loss"] for line in metrics(tmp_path / "run") if "validation_loss" in line]

    trainer = trainer_of(tmp_path / "new", "points", **changes)
    validation, sde, angle = validation_of(trainer), trainer.experiment.sde, torch.arange(8) * math.pi / 4
    means = torch.stack([angle.cos(), angle.sin()], 1)
    exact = GaussianMixture(torch.ones(8), means, 0.1**2).denoiser(sde)
    best = (
        denoising_loss(sde, exact, trainer.objective.weight, validation.x0, validation.eps, validation.t).mean().item()
    )
    zero = validation.losses(trainer.network)["validation_loss_of_zero"]
    assert zero > losses[0] > losses[1] > losses[2] > best
    assert losses[2] < (zero + best) / 2


# --- files of a run ---------------------------------------------------------------------------------------------------


def test_files_and_metrics_of_a_run(straight):
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8]
    for line in lines:
        assert line["images_seen"] == 4 * line["step"]
        keys = {"loss", "gradient_norm", "learning_rate", "images_per_second", "ema_distance"}
        assert all(line[key] > 0 for key in keys)
        assert ("validation_loss" in line) == ("validation_loss_of_zero" in line) == (line["step"] == 8)
    assert list((straight / "tensorboard").glob("events.out.tfevents.*"))
    stored = json.loads((straight / "config.json").read_text())
    assert stored["network"]["channels"] == 8
    assert {"python", "torch", "numpy"} <= stored["versions"].keys()
    meta = checkpoint.read_meta(straight / "checkpoints" / "step_00000008")
    assert (meta["step"], meta["images_seen"]) == (8, 32)
    assert meta["ema"] == ["ema-0.999.safetensors", "ema-0.9.safetensors"]
    assert {path.name for path in (straight / "checkpoints" / "step_00000008").iterdir()} == {
        "gaussian.safetensors", "meta.json", "model.safetensors", "state.pt", *meta["ema"]
    }  # fmt: skip


def test_the_loss_of_a_line_is_the_mean_since_the_previous_line(tmp_path):
    losses = [result.loss.item() for result in trainer_of(tmp_path / "a", "points").steps(8)]
    assert train(tmp_path / "b", 8, "points", train__log_every=4, train__checkpoint_every=0) == 0
    found = [line["loss"] for line in metrics(tmp_path / "b")]
    assert found == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4], rel=1e-6)


def test_tensorboard_has_the_numbers_of_the_metrics(straight):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(straight / "tensorboard"))
    board.Reload()
    for key in ("loss", "learning_rate", "validation_loss", "images_seen"):
        found = {event.step: event.value for event in board.Scalars(key)}
        assert found == pytest.approx({line["step"]: line[key] for line in metrics(straight) if key in line}, rel=1e-6)


@pytest.mark.parametrize(("every", "drawn"), [(0, []), (2, [2, 4, 5])])
def test_pictures_of_samples(every, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "IN_GRID", 4)
    assert train(tmp_path, 5, train__sample_every=every, train__log_every=0) == 0
    found = sorted((tmp_path / "samples").glob("*.png"))
    assert [path.name for path in found] == [f"step_{step:08d}.png" for step in drawn]
    for path in found:
        with Image.open(path) as picture:
            assert picture.size[0] > 64


def test_output_of_the_command(tmp_path, capsys):
    assert train(tmp_path, 5, train__evaluate_every=5) == 0
    out = capsys.readouterr().out
    for words in ("1437 examples of shape (1, 8, 8) from digits", "20 images in batches of 4, from the start",
                  "trained on 20 images", "validation_loss_of_zero",
                  f"--workdir {tmp_path} --mode sample"):  # fmt: skip
        assert words in out


@pytest.mark.slow
def test_a_compiled_network_trains_the_same_and_is_stored_uncompiled(tmp_path):
    for compiled in (False, True):
        changes = {"train__compile": compiled, "network__dropout": 0.0}
        assert train(tmp_path / str(compiled), 6, "points", **changes) == 0
    plain, fast = metrics(tmp_path / "False"), metrics(tmp_path / "True")
    assert [line["loss"] for line in fast] == pytest.approx([line["loss"] for line in plain], rel=1e-3)
    trainer = trainer_of(tmp_path / "new", "points", network__dropout=0.0)
    checkpoint.load_network(tmp_path / "True" / "checkpoints" / "step_00000006", checkpoint.RAW, trainer.network)
