"""Checkpoints: exact round trips, detection of damage, and failures that leave existing files intact."""

import errno
import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
from torch import nn

from score_sde import run as command_line
from score_sde.engine import checkpoint, drawing, plane
from score_sde.engine.errors import CheckpointError, describe, exit_status
from score_sde.sde_lib import Gaussian
from score_sde.storage import reading

SHAPE = (2, 3)
NETWORKS = {checkpoint.RAW: 1.0, checkpoint.ema_file(0.999): 2.0}
DAMAGED = [checkpoint.RAW, checkpoint.ema_file(0.999), checkpoint.GAUSSIAN, "state.pt", "meta.json"]


class Net(nn.Module):
    """Weights of several types and layouts, all of one value, and an integer."""

    def __init__(self, value, width=3):
        super().__init__()
        self.layer = nn.Linear(width, 2)
        self.layer.weight = nn.Parameter(self.layer.weight.detach().t().contiguous().t())
        self.narrow = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(7))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(value)


def guess(shape=SHAPE, rank=2, dtype=torch.float64):
    """A Gaussian whose numbers are all distinct."""
    mean, directions = (torch.arange(2.0 + n, dtype=dtype).reciprocal()[2:] for n in (6, 6 * rank))
    return Gaussian(mean.reshape(shape), 0.1, torch.arange(1.0, 1 + rank, dtype=dtype), directions.reshape(rank, 6).mT)


def save(folder, step, gaussian=None):
    """Saves a checkpoint with all of its parts."""
    parts = {name: Net(value + step) for name, value in NETWORKS.items()}
    parts[checkpoint.GAUSSIAN] = gaussian or guess()
    state = {"optimizer": {"state": {0: {"exp_avg": torch.full((2,), 0.5)}}, "lr": 1e-3}, "ema_updates": step}
    return checkpoint.save(folder, step, parts, state, {"ema": list(NETWORKS)[1:], "data": {"std": 0.25}})


def contents(folder):
    """Every file below a folder and its content."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path, at):
    """Flips one bit of a byte."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0b100
    path.write_bytes(content)


# --- round trips ------------------------------------------------------------------------------------------------------


def test_a_round_trip_is_exact(tmp_path):
    path = save(tmp_path, 12)
    assert path == tmp_path / "step_00000012"
    for name, value in NETWORKS.items():
        network = Net(0.0)
        checkpoint.load_network(path, name, network)
        own, written = network.state_dict(), Net(value + 12).state_dict()
        assert all(torch.equal(own[key], written[key]) and own[key].dtype == written[key].dtype for key in own)
    state = checkpoint.load_state(path)
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], torch.full((2,), 0.5))
    assert (state["optimizer"]["lr"], state["ema_updates"]) == (1e-3, 12)
    meta = checkpoint.read_meta(path)
    assert (meta["step"], meta["data"]) == (12, {"std": 0.25})
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("rank", [0, 1, 6])
def test_the_moment_matched_gaussian_survives_two_round_trips(tmp_path, rank):
    path = save(tmp_path, 1, guess(rank=rank))
    found, written = checkpoint.load_gaussian(path, SHAPE), guess(rank=rank)
    for key, value in written.state_dict().items():
        assert torch.equal(found.state_dict()[key], value)
        assert found.state_dict()[key].dtype == torch.float64
    before = (path / checkpoint.GAUSSIAN).read_bytes()
    assert (save(tmp_path, 2, found) / checkpoint.GAUSSIAN).read_bytes() == before


def test_an_older_checkpoint_has_no_moment_matched_gaussian(tmp_path):
    path = checkpoint.save(tmp_path, 1, {}, {}, {})
    assert checkpoint.load_gaussian(path, SHAPE) is None


def test_weights_are_plain_safetensors(tmp_path):
    from safetensors.torch import load_file

    assert load_file(save(tmp_path, 1) / checkpoint.RAW).keys() == Net(0.0).state_dict().keys()


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
    save(tmp_path, 1)
    checkpoint.save(tmp_path, 1, {}, {"ema_updates": 5}, {})
    assert checkpoint.load_state(tmp_path / "step_00000001") == {"ema_updates": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_find(tmp_path):
    for step in (2, 10, 100_000_000):
        save(tmp_path, step)
    paths = checkpoint.steps(tmp_path)
    assert [path.name for path in paths] == ["step_00000002", "step_00000010", "step_100000000"]
    assert checkpoint.find(tmp_path) == paths[-1]
    for which in ("10", "00000010", "step_00000010", str(paths[1])):
        assert checkpoint.find(tmp_path, which) == paths[1]


@pytest.mark.parametrize("which", ["3", "step_00000003", "nowhere", ""])
def test_find_lists_the_existing_steps(tmp_path, which):
    save(tmp_path, 2)
    with pytest.raises(CheckpointError, match=f"no checkpoint {which} in .*; there are: step_00000002"):
        checkpoint.find(tmp_path, which)


def test_find_without_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*; train the run first with --mode train"):
        checkpoint.find(tmp_path / "checkpoints")


@pytest.mark.parametrize(("keep", "every", "left"), [(0, 3, [1, 2, 10, 20]), (1, 10, [10, 20]), (1, 2, [2, 10, 20])])
def test_forget_keeps_multiples_of_a_step(tmp_path, keep, every, left):
    for step in (1, 2, 10, 20):
        save(tmp_path, step)
    checkpoint.forget(tmp_path, keep, every)
    assert [int(path.name.removeprefix("step_")) for path in checkpoint.steps(tmp_path)] == left
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("keep", "left"), [(0, 4), (1, 1), (3, 3), (4, 4), (9, 4)])
def test_forget_keeps_the_newest(tmp_path, keep, left):
    for step in (1, 2, 10, 20):
        save(tmp_path, step)
    paths = checkpoint.steps(tmp_path)
    checkpoint.forget(tmp_path, keep)
    assert checkpoint.steps(tmp_path) == paths[-left:]


# --- damage -----------------------------------------------------------------------------------------------------------


def read_all(path):
    for name in NETWORKS:
        checkpoint.load_network(path, name, Net(0.0))
    checkpoint.load_gaussian(path, SHAPE)
    checkpoint.load_state(path)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte long": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "bit flipped": lambda path: flip(path, path.stat().st_size // 8),
    "last bit flipped": lambda path: flip(path, -1),
    "something else": lambda path: path.write_text("[]"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for i, name in enumerate(DAMAGED) for k, damage in enumerate(DAMAGES) if (i + k) % 2 == 0],
)
def test_damage_is_found_and_named_and_nothing_is_deleted(tmp_path, name, damage):
    earlier, path = save(tmp_path, 1), save(tmp_path, 2)
    DAMAGES[damage](path / name)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as error:
        read_all(path)
    assert "delete step_00000002 to go on from step_00000001" in str(error.value)
    assert contents(tmp_path) == before
    read_all(earlier)


def test_every_byte_of_meta_is_either_checked_or_meaningless(tmp_path):
    """A flip that goes unnoticed changes no value."""
    path = save(tmp_path, 1) / "meta.json"
    whole, meta = path.read_bytes(), checkpoint.read_meta(path.parent)
    watched = 0
    for at in range(0, len(whole), 3):
        flip(path, at)
        try:
            found = checkpoint.read_meta(path.parent)
            assert {**found, "sha256": None} == {**meta, "sha256": None}
            read_all(path.parent)
        except CheckpointError:
            watched += 1
        path.write_bytes(whole)
    assert watched > 0.8 * len(whole) / 3


def test_the_only_checkpoint_has_another_remedy(tmp_path):
    path = save(tmp_path, 1)
    (path / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="restore it from a copy, or train again in another --workdir"):
        checkpoint.load_state(path)


@pytest.mark.parametrize("network", [Net(0.0, width=4), nn.Linear(3, 2), nn.Sequential(Net(0.0))])
def test_another_network_is_refused_and_left_alone(tmp_path, network):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"holds another network, [\w.]+ and \d+ more differ; leave --config out"):
        checkpoint.load_network(save(tmp_path, 1), checkpoint.RAW, network)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


class Part(dict):
    """An object whose state dict imitates a part of a checkpoint."""

    def state_dict(self):
        return self


@pytest.mark.parametrize(
    "part",
    [
        guess(shape=(3, 2)),
        guess(shape=(6,)),
        guess(dtype=torch.float32),
        Part({"weight": torch.ones(2)}),
        Part({**guess().state_dict(), "rest": torch.ones(1, dtype=torch.float64)}),
        Part({**guess().state_dict(), "variances": torch.ones(3, dtype=torch.float64)}),
        Part({**guess().state_dict(), "directions": torch.ones(2, 6, dtype=torch.float64)}),
        Part({**guess().state_dict(), "more": torch.ones(1)}),
        Part({key: value for key, value in guess().state_dict().items() if key != "mean"}),
    ],
)
def test_a_moment_matched_gaussian_of_other_data_is_refused(tmp_path, part):
    save(tmp_path, 1)
    words = r"gaussian\.safetensors holds no Gaussian of shape \(2, 3\); delete step_00000002 to go on from"
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load_gaussian(save(tmp_path, 2, part), SHAPE)


def test_a_missing_average_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no ema-0\.5\.safetensors; it has ema-0\.999\.safetensors, gauss"):
        checkpoint.load_network(save(tmp_path, 1), checkpoint.ema_file(0.5), Net(0.0))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def crafted(kind, path, marker):
    """Replaces state.pt by a pickle that runs code, with a matching digest."""
    if kind == "torch":
        torch.save({"optimizer": Payload(marker)}, path / "state.pt")
    else:
        (path / "state.pt").write_bytes(pickle.dumps(Payload(marker), protocol=2))
    meta = json.loads((path / "meta.json").read_text())
    meta["sha256"]["state.pt"] = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
    (path / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_crafted_state_is_refused_and_does_not_run(tmp_path, kind):
    path = save(tmp_path, 1)
    crafted(kind, path, tmp_path / "marker")
    with pytest.raises(CheckpointError, match=r"state\.pt was not written by training"):
        checkpoint.load_state(path)
    assert not (tmp_path / "marker").exists()


def test_a_copy_under_another_name_is_no_checkpoint(tmp_path):
    path = save(tmp_path, 40)
    for name in ("step_00000040.bak", "step_00000040 (copy)", "step_40", "step_", "step_00000050-old"):
        shutil.copytree(path, tmp_path / name)
    assert checkpoint.steps(tmp_path) == [path]
    assert checkpoint.newest(tmp_path) == checkpoint.find(tmp_path) == path
    assert checkpoint.find(tmp_path, "step_00000040.bak") == tmp_path / "step_00000040.bak"
    checkpoint.forget(tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_copy_under_the_name_of_another_step_is_reported_and_set_aside(tmp_path, capsys):
    path = save(tmp_path, 40)
    shutil.copytree(path, tmp_path / "step_00000050")
    assert checkpoint.newest(tmp_path) == path
    assert "step_00000050 is a copy of the checkpoint of step 40; taking step_00000040" in capsys.readouterr().err
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["damaged_step_00000050", path.name]


def test_steps_of_nine_digits_are_newer_than_those_of_eight(tmp_path):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert checkpoint.find(tmp_path).name == "step_100000000"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_transient_read_error_is_not_damage(tmp_path, monkeypatch, name, number):
    """The newest checkpoint keeps its name, and the run does not continue from an older one."""
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    before, opened = contents(tmp_path), reading.open_file

    def failing(file, most):
        if file == path / name:
            raise OSError(number, os.strerror(number), str(file))
        return opened(file, most)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "open_file", failing)
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            checkpoint.newest(tmp_path)
        assert "run the same command again" in describe(error.value)
        assert exit_status(error.value) == 3
    assert contents(tmp_path) == before
    assert checkpoint.newest(tmp_path) == path


def test_only_an_intact_checkpoint_is_suggested(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    for step in (2, 3):
        (tmp_path / f"step_0000000{step}" / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="delete step_00000003 to go on from step_00000001"):
        checkpoint.load_state(tmp_path / "step_00000003")
    (tmp_path / "step_00000001" / checkpoint.RAW).unlink()
    with pytest.raises(CheckpointError, match="restore it from a copy, or train again in another --workdir"):
        checkpoint.load_state(tmp_path / "step_00000003")
    with pytest.raises(CheckpointError, match="restore it from a copy, or train again in another --workdir"):
        checkpoint.find(tmp_path)


# --- a disk that fails ------------------------------------------------------------------------------------------------


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["os.replace", "os.fsync", "score_sde.storage.writing._new_file"])
@pytest.mark.parametrize("step", [1, 2])
def test_a_failure_while_writing_leaves_the_others_and_no_part(tmp_path, monkeypatch, function, step):
    """The same when the step exists already."""
    save(tmp_path, 1)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(function, full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, step)
    if step == 2 or function != "os.replace":
        assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".*"))
    save(tmp_path, 2)
    read_all(tmp_path / "step_00000002")


def test_parts_of_other_steps_that_kills_cut_off_are_deleted(tmp_path):
    for name in (".step_00000002.partial", ".step_00000003.0123abcd.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rubbish").write_bytes(b"x")
    save(tmp_path, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000007"]


def test_the_rest_of_a_checkpoint_that_a_kill_cut_off_is_replaced(tmp_path):
    partial = tmp_path / ".step_00000001.partial"
    partial.mkdir()
    (partial / "rubbish").write_bytes(b"x")
    assert checkpoint.steps(tmp_path) == []
    save(tmp_path, 1)
    assert not partial.exists()
    assert not (tmp_path / "step_00000001" / "rubbish").exists()


# --- from the command line --------------------------------------------------------------------------------------------

TINY = ["--config.network.width=8", "--config.train.batch_size=4", "--config.train.checkpoint_every=2"]
TINY += ["--config.train.sample_every=0", "--config.train.evaluate_every=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on points with checkpoints of steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("trained")
    words = ["--mode=train", "--config=points", "--device=cpu", "--config.train.total_images=16", *TINY]
    assert command_line.main(["run.py", f"--workdir={workdir}", *words]) == 0
    return workdir


@pytest.fixture
def call(trained, tmp_path, capsys, monkeypatch):
    """A copy of the run, and a function that runs a command on it: (exit status, lines on standard error)."""
    monkeypatch.setattr(drawing, "picture", lambda *args: None)
    monkeypatch.setattr(plane, "draw", lambda *args: None)
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)

    def command(*words):
        status = command_line.main(["run.py", f"--workdir={workdir}", *words])
        return status, capsys.readouterr().err.splitlines()

    return workdir, command


GO_ON = ("--mode=train", "--config.train.total_images=32")


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("damage", ["missing", "truncated", "bit flipped"])
def test_a_run_with_a_damaged_checkpoint_continues_from_the_previous_one_and_reports_it(call, name, damage):
    """Training sets the damaged checkpoint aside; commands that only read leave it in place."""
    workdir, command = call
    newest = workdir / "checkpoints" / "step_00000004"
    DAMAGES[damage](newest / name)
    harmed = contents(newest)
    told = f"warning: {newest / name} "
    status, (line,) = command("--mode=sample", "--steps=1", "--num_samples=2")
    assert (status, contents(newest)) == (0, harmed)
    assert line.startswith(told)
    assert line.endswith("; taking step_00000002")
    status, (line,) = command(*GO_ON)
    assert status == 0
    assert line.startswith(told)
    assert contents(newest.with_name("damaged_step_00000004")) == harmed
    assert [path.name for path in checkpoint.steps(newest.parent)] == ["step_00000006", "step_00000008"]


@pytest.mark.parametrize(
    "mode", [("--mode=sample", "--num_samples=2"), ("--mode=train", "--config.train.total_images=32")]
)
def test_a_run_whose_checkpoints_are_all_damaged_is_left_alone(call, mode):
    workdir, command = call
    for path in checkpoint.steps(workdir / "checkpoints"):
        (path / "meta.json").unlink()
    before = contents(workdir / "checkpoints")
    status, (line,) = command(*mode)
    assert status == 3
    assert "step_00000004/meta.json is missing or damaged" in line
    assert contents(workdir / "checkpoints") == before


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_requested_by_step_is_not_replaced(call, name):
    """Sampling requires only the files that it reads."""
    workdir, command = call
    (workdir / "checkpoints" / "step_00000004" / name).write_bytes(b"")
    status, lines = command("--mode=sample", "--steps=1", "--num_samples=2", "--checkpoint=4")
    assert (status, len(lines)) == ((0, 0) if name in (checkpoint.RAW, "state.pt") else (3, 1))


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_run_with_a_crafted_state_does_not_run_it(call, tmp_path, kind):
    workdir, command = call
    crafted(kind, workdir / "checkpoints" / "step_00000004", tmp_path / "marker")
    status, (line,) = command(*GO_ON)
    assert status == 3
    assert "was not written by training; delete step_00000004 to go on from step_00000002" in line
    assert not (tmp_path / "marker").exists()
