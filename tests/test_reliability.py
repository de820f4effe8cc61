"""Faults in training: stop signals, non-finite numbers, two commands in one folder, changed data."""

import contextlib
import fcntl
import json
import math
import os
import pty
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from score_sde import run as command_line
from score_sde.engine import checkpoint, lock, pictures
from score_sde.engine.lock import only_writer
from score_sde.engine.training.nonfinite import first_nonfinite_layer
from score_sde.engine.training.trainer import Trainer
from tests.runs import POINTS, ROOT, assert_same_run, metrics, steps, train, trainer_of


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An undisturbed run of eight steps on points."""
    workdir = tmp_path_factory.mktemp("straight")
    assert train(workdir, 8, "points") == 0
    return workdir


@contextlib.contextmanager
def before_step(monkeypatch, number, act):
    """Calls ``act`` with the trainer before its step of this number, counted from 1."""
    original = Trainer._train_step

    def step(self):
        if self.step + 1 == number:
            act(self)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", step)
        yield


# --- stop signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_stopped_run_finishes_its_step_and_resumes_bit_for_bit(
    number, status, straight, tmp_path, monkeypatch, capsys
):
    """In the middle of a window of metrics, whose losses are kept in the checkpoint."""
    with before_step(monkeypatch, 5, lambda trainer: os.kill(os.getpid(), number)):
        assert train(tmp_path, 8, "points") == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: stopped at step 5, with a checkpoint; run the same command to go on"
    assert steps(tmp_path) == [3, 5]
    assert [line["step"] for line in metrics(tmp_path)] == [2, 3, 4]
    assert train(tmp_path, 8, "points") == 0
    assert_same_run(tmp_path, straight, 8)


def test_a_second_sigterm_does_not_prevent_the_checkpoint(tmp_path, monkeypatch):
    def tell(trainer):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    with before_step(monkeypatch, 5, tell):
        assert train(tmp_path, 8, "points") == 143
    assert steps(tmp_path) == [3, 5]


def test_a_second_ctrl_c_interrupts_at_once(straight, tmp_path, monkeypatch):
    def insist(trainer):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with before_step(monkeypatch, 5, insist):
        assert train(tmp_path, 8, "points") == 130
    assert steps(tmp_path) == [3]
    assert train(tmp_path, 8, "points") == 0
    assert_same_run(tmp_path, straight, 8)


def test_a_run_stopped_during_its_last_step_is_complete(straight, tmp_path, monkeypatch):
    with before_step(monkeypatch, 8, lambda trainer: os.kill(os.getpid(), signal.SIGTERM)):
        assert train(tmp_path, 8, "points") == 0
    assert_same_run(tmp_path, straight, 8)


def test_signal_handlers_are_restored_after_a_run(straight, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    assert train(tmp_path, 2, "points") == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before


def test_a_hangup_ignored_by_nohup_does_not_stop_a_run(straight, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with before_step(monkeypatch, 5, lambda trainer: os.kill(os.getpid(), signal.SIGHUP)):
            assert train(tmp_path, 8, "points") == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same_run(tmp_path, straight, 8)


def command_of(workdir, **changes):
    """A command that trains on points for an hour, with a checkpoint only at the end."""
    keys = POINTS | {"train.total_images": 40_000_000, "train.checkpoint_every": 0, **changes}
    words = [str(ROOT / "run.py"), "--mode=train", "--config=points", f"--workdir={workdir}"]
    return [*words, *(f"--config.{key}={value}" for key, value in keys.items())]


def wait_until(happened, seconds=120):
    """Waits for an event that happens soon."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_closed_terminal_stops_the_run_with_a_checkpoint(tmp_path):
    """The progress bar is drawn on it, and each later line written to it raises an error."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, *command_of(tmp_path)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    shown = b""
    while b" points/s" not in shown:
        shown += os.read(terminal, 1024)
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 129
    assert len(steps(tmp_path)) == 1


def test_workers_whose_torchrun_was_killed_stop_with_a_checkpoint(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "start_new_session": True}
    process = subprocess.Popen([*launcher, *command_of(tmp_path)], **options)
    wait_until((tmp_path / "metrics.jsonl").exists)
    process.kill()
    process.wait()
    wait_until(lambda: not held(tmp_path))
    assert len(steps(tmp_path)) == 1


def held(workdir):
    """Whether a command trains in a folder."""
    try:
        with only_writer(workdir):
            return False
    except checkpoint.CheckpointError:
        return True


# --- non-finite steps -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def spoiled(monkeypatch, *numbers, value=math.nan):
    """Makes the first example of these steps, counted from 1, non-finite."""
    original = Trainer._inputs

    def inputs(self, step):
        found = original(self, step)
        if step + 1 in numbers:
            found["x0"] = found["x0"].clone()
            found["x0"][0, 0] = value
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_inputs", inputs)
        yield


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_non_finite_step_changes_no_weight(name, value, tmp_path, monkeypatch):
    """The value 1e30 overflows only when it is squared."""
    trainer = trainer_of(tmp_path, "points", optim__name=name, optim__weight_decay=0.1)
    results = trainer.steps(8)
    next(results)
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    moments = [{key: value.clone() for key, value in state.items()} for state in trainer.optimizer.state.values()]
    with spoiled(monkeypatch, 2, value=value):
        result = next(results)
    assert not math.isfinite(result.loss + result.gradient_norm)
    assert all(torch.equal(value, before[key]) for key, value in trainer.network.state_dict().items())
    for state, kept in zip(trainer.optimizer.state.values(), moments, strict=True):
        assert all(torch.equal(state[key], kept[key]) for key in kept)
    assert math.isfinite(next(results).loss)
    assert any(not torch.equal(value, before[key]) for key, value in trainer.network.state_dict().items())


def test_non_finite_steps_are_counted_and_saved(tmp_path, monkeypatch, capsys):
    with spoiled(monkeypatch, 3, 4, 7):
        assert train(tmp_path, 8, "points", train__max_skipped=2, network__dropout=0.0) == 0
    lines = metrics(tmp_path)
    assert [line["skipped_steps"] for line in lines] == [0, 1, 2, 2, 3]
    assert [line["loss"] is None for line in lines] == [False, True, True, False, False]
    assert "3 steps skipped" in capsys.readouterr().out
    kept = sorted((tmp_path / "skipped").iterdir())
    assert [path.name for path in kept] == ["step_00000003", "step_00000004", "step_00000007"]
    inputs, weights = load_file(kept[0] / "inputs-0.safetensors"), load_file(kept[0] / "weights.safetensors")
    assert inputs["x0"][0, 0].isnan()
    assert inputs.keys() == {"x0", "eps", "t", "correction"}
    trainer = trainer_of(tmp_path / "again", "points", network__dropout=0.0)
    list(trainer.steps(2))
    assert all(torch.equal(value, weights[key]) for key, value in trainer.network.state_dict().items())
    facts = json.loads((kept[0] / "facts.json").read_text())
    assert facts["step"] == 3
    assert facts["loss"] == "nan"


def test_too_many_non_finite_steps_in_a_row_end_the_run_and_name_the_layer(tmp_path, monkeypatch, capsys):
    with spoiled(monkeypatch, 1, 4, 5, 6, 7):
        assert train(tmp_path, 12, "points", train__max_skipped=2) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "loss or gradient not finite at step 6, the last of 3 in a row" in line
    assert "the first layer whose output is not finite is " in line
    assert "checkpoints/step_00000003 is the newest checkpoint" in line
    assert str(tmp_path / "skipped") in line
    assert "optim.learning_rate" in line
    assert steps(tmp_path) == [3]


def test_the_count_of_non_finite_steps_in_a_row_survives_a_stop(tmp_path, monkeypatch):
    with spoiled(monkeypatch, 4, 5, 6), before_step(monkeypatch, 5, lambda _: os.kill(os.getpid(), signal.SIGTERM)):
        assert train(tmp_path, 12, "points", train__max_skipped=2) == 143
        assert steps(tmp_path) == [3, 5]
        assert train(tmp_path, 12, "points", train__max_skipped=2) == 4


class Stages(nn.Module):
    """Three layers, one of which may be spoiled."""

    def __init__(self, **odd):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(2, 2) for _ in range(3))
        for name, value in odd.items():
            with torch.no_grad():
                getattr(self, name).weight.fill_(value)

    def forward(self, x):
        return self.third(self.second(self.first(x)))


@pytest.mark.parametrize("name", ["first", "second", "third"])
def test_the_first_nonfinite_layer_is_the_first_layer(name):
    network = Stages(**{name: math.inf})
    where = first_nonfinite_layer(network, lambda: network(torch.ones(1, 2)).sum())
    assert where == f"the first layer whose output is not finite is {name} (Linear)"


def test_the_first_nonfinite_value_may_be_the_input():
    network = Stages()
    where = first_nonfinite_layer(network, lambda: network(torch.full((1, 2), math.nan)).sum())
    assert where.endswith("is first (Linear), from an input that is not finite")


def test_the_first_nonfinite_value_may_be_the_loss_or_a_gradient():
    network = Stages()
    assert "the loss is not" in first_nonfinite_layer(
        network, lambda: network(torch.ones(1, 2)).sum() / torch.zeros(())
    )
    where = first_nonfinite_layer(network, lambda: (network(torch.ones(1, 2)).sum() * 0).sqrt())
    assert where.startswith("outputs and loss are finite, the gradient of ")


# --- loss of power ----------------------------------------------------------------------------------------------------


class Disk:
    """The state that a loss of power would leave: sizes of files and names in folders, as of their last fsync."""

    def __init__(self, monkeypatch):
        self.sizes, self.names, self.sync = {}, {}, os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor):
        self.sync(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            folder = os.open(".", os.O_RDONLY, dir_fd=descriptor)
            self.names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(folder)}
            os.close(folder)
        else:
            self.sizes[status.st_ino] = status.st_size

    def has(self, path, root):
        """Whether a file, and each name on the path to it from ``root``, is on disk in its present state."""
        status, names = path.stat(), []
        while path != root:
            names.append(self.names.get(path.parent.stat().st_ino, {}).get(path.name) == path.stat().st_ino)
            path = path.parent
        return all(names) and self.sizes.get(status.st_ino) == status.st_size


def test_everything_a_checkpoint_depends_on_is_on_disk_before_its_rename(tmp_path, monkeypatch):
    """The checkpoint itself is on disk before an older one is deleted."""
    disk, workdir, renamed, forgot = Disk(monkeypatch), tmp_path / "new" / "run", checkpoint.rename, checkpoint.forget
    named = []

    def rename(path, target):
        if target.name.startswith("step_"):
            files = [workdir / "config.json", workdir / "metrics.jsonl", *path.iterdir()]
            files += [workdir / "samples" / f"{target.name}.png"]
            assert [file for file in files if not disk.has(file, path if file.parent == path else tmp_path)] == []
            named.append(target)
        renamed(path, target)

    def forget(folder, *args):
        assert disk.has(named[-1] / "meta.json", tmp_path)
        forgot(folder, *args)

    monkeypatch.setattr(checkpoint, "rename", rename)
    monkeypatch.setattr(checkpoint, "forget", forget)
    monkeypatch.setattr(pictures, "IN_GRID", 4)
    changes = {"train__log_every": 1, "train__sample_every": 1, "train__keep_checkpoints": 1}
    assert train(workdir, 6, **changes) == 0
    assert [path.name for path in named] == ["step_00000003", "step_00000006"]


LOSSES = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "missing": lambda path: path.unlink(),
}


READING = ["--mode=sample", "--steps=1", "--num_samples=2"]


@pytest.mark.parametrize(
    ("loss", "words"), [("empty", READING), ("zeros", ["--mode=train", "--config=points"]), ("missing", READING)]
)
def test_a_lost_config_is_restored_from_the_newest_intact_checkpoint(loss, words, straight, tmp_path, capsys):
    """Also in modes that only read, and in a training that has to agree with the config."""
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    whole = path.read_bytes()
    (tmp_path / "checkpoints" / "step_00000008" / "meta.json").write_bytes(b"")
    LOSSES[loss](path)
    capsys.readouterr()
    command_line.main(["run.py", f"--workdir={tmp_path}", *words])
    assert f"{path} was missing or empty: restored from step_00000006" in capsys.readouterr().out
    assert path.read_bytes() == whole
    LOSSES[loss](path)
    assert train(tmp_path, 8, "points", optim__learning_rate=0.5) == 2
    assert "optim.learning_rate" in capsys.readouterr().err


def test_a_config_with_any_content_is_not_replaced(straight, tmp_path):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text("{")
    assert command_line.main(["run.py", f"--workdir={tmp_path}", "--mode=sample"]) == 3
    assert (tmp_path / "config.json").read_text() == "{"


def test_missing_lines_of_metrics_are_reported_once(straight, tmp_path, capsys):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert checkpoint.read_meta(tmp_path / "checkpoints" / "step_00000008")["metric_lines"] == len(lines) == 5
    path.write_text("".join(lines[:3]))
    for number, told in ((10, [f"{path} has 3 of the 5 lines up to step 8; the others are lost"]), (12, [])):
        assert train(tmp_path, number, "points") == 0
        assert [line for line in capsys.readouterr().out.splitlines() if line.endswith("are lost")] == told


@pytest.mark.parametrize(
    "odd",
    ["[]", '{"step": "three"}', '{"step": null}', '{"loss": 1}', "7", "\0" * 40, "[" * 100_000, "a note", "\udcff"],
)
def test_damaged_lines_of_metrics_are_reported_and_set_aside(odd, straight, tmp_path, capsys):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "metrics.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    before = b"".join([first, odd.encode(errors="surrogateescape") + b"\n", *others])
    path.write_bytes(before)
    assert train(tmp_path, 10, "points") == 0
    told = f"{path}: lines that are no metrics are left out (1); the file as it was is damaged_metrics.jsonl"
    assert told in capsys.readouterr().out
    assert path.read_bytes().startswith(b"".join([first, *others]))
    assert (tmp_path / "damaged_metrics.jsonl").read_bytes() == before


# --- one folder, one command, the same data ---------------------------------------------------------------------------


def test_a_second_command_is_refused_while_the_first_one_trains(tmp_path, capsys):
    with only_writer(tmp_path):
        assert train(tmp_path, 2, "points") == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"error: another command writes in {tmp_path}; wait until it ends, or choose another --workdir"
        assert steps(tmp_path) == []
    assert train(tmp_path, 2, "points") == 0


def test_the_lock_of_a_killed_owner_is_free(tmp_path):
    program = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
    program += "from score_sde.engine.lock import only_writer\n"
    program += "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    assert train(tmp_path, 2, "points") == 3
    owner.kill()
    owner.wait()
    assert train(tmp_path, 2, "points") == 0


def test_a_run_stops_when_its_folder_is_moved(straight, tmp_path, monkeypatch, capsys):
    """Another command may train under the old name by then; the moved run resumes to the same end."""
    workdir, moved = tmp_path / "run", tmp_path / "moved"

    def move(trainer):
        workdir.rename(moved)
        workdir.mkdir()

    with before_step(monkeypatch, 5, move):
        assert train(workdir, 8, "points") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {workdir} was moved or deleted during training; to go on from the last checkpoint")
    assert list(workdir.iterdir()) == []
    assert train(moved, 8, "points") == 0
    assert_same_run(moved, straight, 8)


def test_a_lock_on_a_deleted_file_is_taken_again(tmp_path, monkeypatch):
    """Another command's cleanup comes between the opening of the lock file and the lock."""
    taken = lock.lock_descriptor

    def late(descriptor, blocking):
        monkeypatch.setattr(lock, "lock_descriptor", taken)
        (tmp_path / lock.NAME).unlink()
        return taken(descriptor, blocking=blocking)

    monkeypatch.setattr(lock, "lock_descriptor", late)
    with only_writer(tmp_path), pytest.raises(checkpoint.CheckpointError, match="another command writes"):
        lock.acquired(tmp_path)


def test_a_run_that_could_not_start_leaves_nothing(tmp_path):
    assert train(tmp_path / "run", 2, "points", optim__name="nothing") == 2
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_resume_with_other_data(tmp_path, monkeypatch, capsys):
    path = tmp_path / "data.npy"
    for seed in (0, 1):
        np.save(path, np.random.default_rng(seed).integers(256, size=(40, 8, 8, 1)).astype(np.uint8))
        status = train(tmp_path / "run", 4 + 4 * seed, "vpsde", data__name="images", data__path=path)
        assert status == (0, 2)[seed]
    (line,) = capsys.readouterr().err.splitlines()
    assert "was trained on other examples" in line
    assert "data.path" in line
    assert steps(tmp_path / "run") == [3, 4]


# --- microbatches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_gradients_of_microbatches_add_up_to_the_batch_gradient(size, tmp_path):
    losses, weights = [], []
    for microbatch in (0, size):
        changes = {"train__batch_size": 8, "train__microbatch": microbatch, "network__dropout": 0.0}
        trainer = trainer_of(tmp_path / str(microbatch), **changes)
        losses.append([result.loss.item() for result in trainer.steps(4)])
        weights.append(torch.cat([p.detach().flatten() for p in trainer.parameters]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=2e-4)


# --- work of several processes ----------------------------------------------------------------------------------------

PROGRAM = """
import json, os, sys
from pathlib import Path
from score_sde import run

own, statuses = dict(os.environ), {}
for name, words in json.loads(sys.argv[2]).items():
    os.environ.update(own)  # each command starts as torchrun starts it
    statuses[name] = run.main(["run.py", *words])
Path(sys.argv[1], f"{own['RANK']}.json").write_text(json.dumps(statuses))
"""


def training(workdir, num_images=32, batch_size=4, microbatch=0):
    """A command that trains on points, with each loss in its metrics."""
    keys = POINTS | {"network.dropout": 0.0, "train.log_every": 1, "train.batch_size": batch_size}
    keys |= {"train.total_images": num_images, "train.microbatch": microbatch}
    words = ["--mode=train", "--config=points", f"--workdir={workdir}"]
    return [*words, *(f"--config.{key}={value}" for key, value in keys.items())]


def using(mode, workdir):
    """A command that samples or evaluates a run: five batches, the last one short."""
    words = ["steps=2", "num_samples=18", "config.sample.batch_size=4"]
    evaluation = ("batch_size=4", "features=identity", "subset_size=9", "subsets=2", "num_examples=9")
    words += [f"config.evaluate.{word}" for word in evaluation]
    return [f"--mode={mode}", f"--workdir={workdir}", *(f"--{word}" for word in words)]


@pytest.fixture(scope="module")
def two(digits, tmp_path_factory):
    """Folder, statuses of both processes, and output of commands in two processes; one start of torchrun runs all.

    Evaluation closes the process group, so only a command without one follows.
    """
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(digits, folder / "digits")
    commands = {
        "train": training(folder / "points"),
        "refused": training(folder / "refused", 40, 5),
        "sample": using("sample", folder / "digits"),
        "evaluate": using("evaluate", folder / "digits"),
        "data": ["--mode=data", "--config=vpsde", f"--workdir={folder / 'data'}"],
    }
    program = folder / "program.py"
    program.write_text(PROGRAM)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [*start, folder, json.dumps(commands)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    statuses = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return folder, {name: [found[name] for found in statuses] for name in commands}, done


def test_two_processes_train_like_one(two, tmp_path):
    """The same losses to rounding and one set of files; a single process continues the run of two."""
    folder, statuses, _ = two
    assert statuses["train"] == [0, 0]
    assert command_line.main(["run.py", *training(tmp_path, microbatch=1)]) == 0
    runs = (tmp_path, folder / "points")
    one, both = ([line["loss"] for line in metrics(workdir)] for workdir in runs)
    assert len(one) == 8
    assert both == pytest.approx(one, rel=1e-5)
    own, others = (load_file(workdir / "checkpoints" / "step_00000008" / checkpoint.RAW) for workdir in runs)
    for key, value in own.items():
        torch.testing.assert_close(others[key], value, rtol=0, atol=1e-4)
    resumed = shutil.copytree(folder / "points", tmp_path / "resumed")
    assert command_line.main(["run.py", *training(resumed, 48)]) == 0
    assert len(metrics(resumed)) == 12


def test_a_batch_that_does_not_divide_over_processes_is_refused(two):
    _, statuses, done = two
    assert statuses["refused"] == [2, 2]
    assert "error: train.batch_size 5 does not divide over 2 processes; take a multiple of 2" in done.stderr


def test_two_processes_sample_and_evaluate_like_one(two, digits, tmp_path):
    folder, statuses, done = two
    assert statuses["sample"] == statuses["evaluate"] == [0, 0]
    assert done.stdout.count("files are in") == 2
    alone, found = shutil.copytree(digits, tmp_path / "alone"), []
    for mode in ("sample", "evaluate"):
        assert command_line.main(["run.py", *using(mode, alone)]) == 0
    for workdir in (alone, folder / "digits"):
        samples = np.load(workdir / "samples" / "adams-2" / "samples.npz")["samples"]
        manifest = json.loads((workdir / "samples" / "adams-2" / "manifest.json").read_text())
        result = json.loads((workdir / "evaluation" / "adams-2-identity-test.json").read_text())
        found.append((samples.tobytes(), manifest["nfe"], result["metrics"]))
    assert found[0] == found[1]


def test_modes_without_parallel_work_run_in_one_process(two):
    _, statuses, done = two
    assert statuses["data"] == [0, 0]
    assert done.stdout.count("a contact sheet is in") == 1
