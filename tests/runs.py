"""Small training runs: creation, files and comparison."""

import json
from pathlib import Path

import torch

from score_sde import run as command_line
from score_sde.configs.choices import defaults
from score_sde.engine import checkpoint
from score_sde.engine.config import load, override
from score_sde.engine.datasets import read_dataset
from score_sde.engine.training.trainer import Trainer

ROOT = Path(command_line.__file__).parent

DIGITS = {
    "device": "cpu",
    "network.channels": 8,
    "network.dropout": 0.1,
    "optim.learning_rate": 2e-3,
    "optim.warmup_images": 0,
    "train.batch_size": 4,
    "train.log_every": 2,
    "train.sample_every": 0,
    "train.evaluate_every": 0,
    "train.checkpoint_every": 3,
    "train.keep_checkpoints": 0,
}
"""A small network on the digits, with dropout and a checkpoint between two lines of metrics."""

POINTS = {key: value for key, value in DIGITS.items() if key != "network.channels"} | {"network.width": 16}


def train(workdir, num_steps, config="vpsde", **changes):
    """Trains in this process and returns the exit status; dots of keys are written as two underscores."""
    keys = (POINTS if config == "points" else DIGITS) | {key.replace("__", "."): v for key, v in changes.items()}
    keys["train.total_images"] = num_steps * keys["train.batch_size"]
    overrides = [f"--config.{key}={value}" for key, value in keys.items()]
    return command_line.main(["run.py", "--mode=train", f"--config={config}", f"--workdir={workdir}", *overrides])


def trainer_of(tmp_path, config="vpsde", num_steps=8, **changes):
    """The trainer of a config in an empty folder."""
    keys = (POINTS if config == "points" else DIGITS) | {key.replace("__", "."): v for key, v in changes.items()}
    keys["train.total_images"] = num_steps * keys["train.batch_size"]
    made = load(config)
    override(made, [(key, str(value)) for key, value in keys.items()])
    return Trainer(made, tmp_path, read_dataset(made.data, "train"))


def tolerances(sampler, rtol=1e-2, control_rtol=0.2):
    """Words that loosen the tolerances of an adaptive sampler; none for others."""
    loose = {"rtol": rtol, "atol": rtol, "control_rtol": control_rtol, "control_atol": 0.5 * control_rtol}
    taken = defaults("sample.sampler", sampler)
    return [f"--config.sample.sampler.{key}={value}" for key, value in loose.items() if key in taken]


def metrics(workdir):
    """Lines of metrics.jsonl without the machine-dependent number."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def steps(workdir):
    """Steps of the existing checkpoints."""
    return [int(path.name.removeprefix("step_")) for path in checkpoint.steps(workdir / "checkpoints")]


def digests(workdir, step):
    """Hashes of all weights of a checkpoint, raw and averaged, and of the data's moment-matched Gaussian."""
    found = checkpoint.read_meta(workdir / "checkpoints" / f"step_{step:08d}")["sha256"]
    return {name: digest for name, digest in found.items() if name.endswith(".safetensors")}


def equal(one, other):
    """Whether two nested states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def assert_same_run(one, other, step):
    """Asserts that weights, averages, optimiser and metrics of two runs are equal at a step."""
    assert digests(one, step) == digests(other, step)
    states = [checkpoint.load_state(folder / "checkpoints" / f"step_{step:08d}") for folder in (one, other)]
    assert equal(*states)
    assert metrics(one) == metrics(other)


def command(*words):
    """Runs a command in this process and returns its exit status."""
    return command_line.main(["run.py", *map(str, words)])
