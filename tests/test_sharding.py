"""Parameters, moments and averages sharded over two processes: the same run and files in half of the memory."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from score_sde import run as command_line
from score_sde.engine import checkpoint, ranks
from score_sde.engine.config import load
from score_sde.engine.training.checks import compiles
from tests.runs import DIGITS, POINTS, ROOT, assert_same_run, metrics, steps, train, trainer_of

PROGRAM = """
import json, sys
import torch
from score_sde import run
from score_sde.engine import ranks
from score_sde.engine.training.trainer import Trainer

original, spoilt = Trainer._inputs, set()

def inputs(self, step):
    found = original(self, step)
    if step in spoilt and ranks.rank() == 1:
        found["x0"] = torch.full_like(found["x0"], torch.nan)
    return found

Trainer._inputs = inputs
for spoilt, words in json.loads(sys.argv[1]):
    print("status", run.main(["run.py", "--mode=train", *words]), flush=True)
"""


def flags(workdir, num_steps, sharding, keys, **changes):
    """A command that trains to this step, or resumes with the config of the run."""
    keys = keys | {key.replace("__", "."): value for key, value in changes.items()}
    keys |= {"train.total_images": num_steps * keys["train.batch_size"], "train.sharding": sharding}
    return [f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in keys.items())]


def two(folder, text, *words):
    """Runs a program in two processes and returns their output."""
    program = folder / "program.py"
    program.write_text(text)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*start, *words], env=environment, capture_output=True, text=True, timeout=300, check=False)


def by_two(folder, *commands):
    """Runs commands, each given by its non-finite steps and arguments, in two processes; returns their output."""
    return two(folder, PROGRAM, json.dumps(commands))


EXACT = POINTS | {"optim.clip_norm": 0.0, "optim.decay": "constant", "ema.profiles": "(0.1,)", "ema.snapshot_every": 2}
EXACT |= {"train.evaluate_every": 3, "train.sample_every": 6, "network.dropout": 0.1}
"""Without clipping, sharding changes no rounding: only the norm is a sum over shards."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Six steps in two processes, sharded or not, and three steps of each kind followed by three of the other."""
    folder = tmp_path_factory.mktemp("runs")
    ways = {"plain": [(False, 6)], "sharded": [(True, 6)], "resumed": [(True, 3), (True, 6)]}
    ways |= {"gathered": [(True, 3), (False, 6)], "spread": [(False, 3), (True, 6)], "fewer": [(True, 3)]}
    commands = []
    for name, parts in ways.items():
        for k, (sharding, num_steps) in enumerate(parts):
            words = flags(folder / name, num_steps, sharding, EXACT)
            commands.append(([], words if k else ["--config=points", *words]))
    done = by_two(folder, *commands)
    assert done.stdout.count("status 0") == 2 * len(commands), done.stderr
    return folder


@pytest.mark.slow
def test_a_sharded_run_equals_an_unsharded_one(runs):
    """Weights, averages and profiles of checkpoints and snapshots, validation losses and pictures, and their names."""
    one, other = runs / "plain", runs / "sharded"
    for line, same in zip(metrics(one), metrics(other), strict=True):
        assert line == pytest.approx(same, rel=1e-5)
    names = [{str(path.relative_to(run)) for path in run.rglob("step_*/*")} for run in (one, other)]
    assert names[0] == names[1]
    weights = sorted(name for name in names[0] if name.endswith(".safetensors"))
    assert len(weights) == 2 * 4 + 3
    for name in weights:
        torch.testing.assert_close(load_file(other / name), load_file(one / name), rtol=0, atol=1e-6)
    states = [checkpoint.load_state(run / "checkpoints" / "step_00000006") for run in (one, other)]
    torch.testing.assert_close(states[1]["optimizer"], states[0]["optimizer"], rtol=0, atol=1e-6)
    assert [(run / "samples" / "step_00000006.png").exists() for run in (one, other)] == [True, True]


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_on_equally_many_processes(runs):
    assert_same_run(runs / "sharded", runs / "resumed", 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gathered", "spread"])
def test_a_run_resumes_sharded_or_not(name, runs):
    """And the other way round."""
    files = (runs / run / "checkpoints/step_00000006/ema-0.999.safetensors" for run in (name, "plain"))
    found, expected = map(load_file, files)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for line, same in zip(metrics(runs / name), metrics(runs / "plain"), strict=True):
        assert line == pytest.approx(same, rel=1e-5)


@pytest.mark.slow
def test_a_sharded_run_resumes_in_one_process(runs):
    """A single process keeps everything, whatever train.sharding is; its dropout masks differ."""
    assert command_line.main(["run.py", "--mode=train", *flags(runs / "fewer", 6, True, EXACT)]) == 0
    assert steps(runs / "fewer") == [3, 6]
    own, other = (load_file(runs / run / "checkpoints/step_00000006/model.safetensors") for run in ("fewer", "plain"))
    for key, value in own.items():
        torch.testing.assert_close(other[key], value, rtol=0, atol=0.02)


# --- combinations -----------------------------------------------------------------------------------------------------

TOGETHER = {
    "clipped": ("vpsde", {"optim.clip_norm": 0.1}),
    "microbatch": ("vpsde", {"train.microbatch": 1}),
    "recompute": ("vpsde", {"train.recompute": True, "network.dropout": 0.2}),
    "bfloat16": ("vpsde", {"train.precision": "bfloat16", "train.recompute": True}),
    "consistency": ("vpsde", {"loss.objective": "consistency_training"}),
    "hybrid": ("iddpm", {}),
    "learned": ("vpsde", {"loss.timestep_sampler": "learned"}),
    "classes": ("conditional", {"optim.name": "adamw", "optim.weight_decay": 0.1}),
}


@pytest.mark.slow
def test_sharding_combines_with_other_options(tmp_path):
    """The second step of each run is non-finite in one process and skipped by both."""
    commands = []
    for name, (config, changes) in TOGETHER.items():
        for sharding in (False, True):
            words = flags(tmp_path / f"{name}-{sharding}", 4, sharding, DIGITS | {"train.log_every": 1} | changes)
            commands.append(([1], [f"--config={config}", *words]))
    done = by_two(tmp_path, *commands)
    assert done.stdout.count("status 0") == 2 * len(commands), done.stderr
    for name in TOGETHER:
        lines = [metrics(tmp_path / f"{name}-{sharding}") for sharding in (False, True)]
        for line, same in zip(*lines, strict=True):
            assert [line["step"], line["skipped_steps"]] == [same["step"], same["skipped_steps"]]
            assert (line["loss"] is None) == (same["loss"] is None) == (line["step"] == 2)
            for key in ("loss", "gradient_norm", "ema_distance") if line["step"] != 2 else ():
                assert same[key] == pytest.approx(line[key], rel=1e-4), (name, key)


@pytest.mark.slow
def test_too_many_non_finite_steps_end_a_sharded_run_with_the_layer(tmp_path):
    words = flags(tmp_path / "run", 8, True, POINTS, train__max_skipped=0)
    done = by_two(tmp_path, ([4], ["--config=points", *words]))
    assert done.stdout.count("status 4") == 2, done.stderr
    assert "not finite at step 5" in done.stderr
    assert "the first layer whose output is not finite is " in done.stderr
    weights = load_file(tmp_path / "run/skipped/step_00000005/weights.safetensors")
    saved = load_file(tmp_path / "run/checkpoints/step_00000003/model.safetensors")
    assert {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in saved.items()}


# --- memory -----------------------------------------------------------------------------------------------------------

KEPT = """
import json, sys
from pathlib import Path
import torch
from score_sde.engine import ranks
from score_sde.engine.datasets import read_dataset
from score_sde.engine.config import load, override
from score_sde.engine.training.trainer import Trainer

losses, kept = [], []
for sharding in ("false", "true"):
    config = load("points")
    override(config, [*json.loads(sys.argv[1]), ("train.sharding", sharding)])
    trainer = Trainer(config, Path(sys.argv[2]), read_dataset(config.data, "train"))
    losses.append([(result.loss.item(), result.gradient_norm.item()) for result in trainer.steps(3)])
    moments = [value for state in trainer.optimizer.state.values() for value in state.values() if value.ndim]
    tensors = [trainer.parameters, moments, list(trainer.ema.networks[0].parameters())]
    kept.append([sum(ranks.local(tensor).nbytes for tensor in part) for part in tensors])
Path(sys.argv[2], f"{ranks.rank()}.json").write_text(json.dumps([losses, kept]))
"""


def test_each_of_two_processes_keeps_half(tmp_path):
    """Half of parameters, moments and averages, to the odd row of a tensor; losses and norms
    are as without sharding."""
    keys = [(key, str(value)) for key, value in (POINTS | {"network.width": 64}).items()]
    done = two(tmp_path, KEPT, json.dumps(keys), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "FutureWarning" not in done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0][0] == found[1][0]
    plain, spread = torch.tensor(found[0][0], dtype=torch.float64)
    torch.testing.assert_close(spread, plain, rtol=1e-5, atol=0)
    (whole, first), (also_whole, second) = (torch.tensor(kept) for _, kept in found)
    assert whole.tolist() == also_whole.tolist() == (whole[0] * torch.tensor([1, 2, 1])).tolist()
    assert (first + second).tolist() == whole.tolist()
    assert ((first - second).abs() < 0.02 * whole).all()


# --- one process, and refusals ----------------------------------------------------------------------------------------


def test_one_process_keeps_everything(tmp_path):
    trainer = trainer_of(tmp_path, "points", train__sharding=True)
    assert trainer.parallel is trainer.network
    assert ranks.whole_network(trainer.network) is trainer.network
    assert not any(map(ranks.is_spread, trainer.parameters))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss__objective": "sliced"},
            "train.sharding true: loss.objective 'sliced' needs second derivatives; leave it out",
        ),
        (
            {"train__compile": "true"},
            "train.compile true: a sharded network is not compiled; leave out train.compile or train.sharding",
        ),
    ],
)
def test_unsupported_sharding_is_refused(changes, message, tmp_path, capsys):
    assert train(tmp_path / "run", 2, train__sharding=True, **changes) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_sharded_network_is_not_compiled_automatically():
    config = load("vpsde")
    assert compiles(config, torch.device("cuda"))
    config.train.sharding = True
    assert not compiles(config, torch.device("cuda"))
