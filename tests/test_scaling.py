"""Memory, prefetching, threads and processes change the cost, not the result."""

import itertools
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from score_sde import run as command_line
from score_sde.configs import default
from score_sde.data import DataError, Dataset, batch_at, loader, reader
from score_sde.data.loader import Prefetched, Resident, num_bytes
from score_sde.engine import datasets, devices, memory, ranks
from score_sde.engine.config import conform, load, override
from score_sde.engine.devices import set_threads
from score_sde.engine.precision import check_precision
from score_sde.engine.recipe import FREE
from score_sde.engine.training.batches import batches_ahead
from score_sde.engine.training.checks import check, compiles
from score_sde.models import NETWORKS
from score_sde.sde_lib import OBJECTIVES
from score_sde.sde_lib.objective import Denoising
from tests.runs import DIGITS, ROOT, digests, metrics, train, trainer_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def dataset(num=10):
    """Images with labels and noise; the odd ones form the split."""
    draw = np.random.default_rng(0)
    x = draw.integers(256, size=(2 * num, 3, 4, 4), dtype=np.uint8)
    eps = draw.standard_normal(x.shape, dtype=np.float32)
    return Dataset(x, np.arange(1, 2 * num, 2), 256, np.arange(2 * num) % 4, 4, eps)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype
        assert torch.equal(value, other[key]), key


# --- prefetching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [False, True])
def test_batches_do_not_depend_on_the_way_of_reading(mirror):
    """In order, from the middle, and again; across the borders of epochs and of prefetched blocks."""
    data = dataset()
    resident = Resident(data, CPU, seed=3, batch_size=4, mirror=mirror)
    resident.positions = 9
    ahead = Prefetched(lambda start: batch_at(data, 3, start, 4, mirror), stride=8, ahead=2)
    for start in (0, 8, 16, 24, 4, 12, 20, 1000, 1008, 1000):
        expected = batch_at(data, 3, start, 4, mirror)
        assert expected.keys() == {"x", "label", "eps"}
        assert_equal(resident(start), expected)
        assert_equal(ahead(start), expected)


def test_mirrored_examples_are_mirrored_with_their_noise():
    data = dataset()
    plain, seen = (batch_at(data, 0, 0, 64, mirror) for mirror in (False, True))
    flip = loader.flips(0, 0, 64)
    assert 0 < flip.sum() < 64
    for key, k in itertools.product(("x", "eps"), range(64)):
        assert torch.equal(seen[key][k], plain[key][k].flip(-1) if flip[k] else plain[key][k])
    assert torch.equal(seen["label"], plain["label"])


def test_prefetching_is_bounded():
    """Without further requests, two batches are read beyond the first."""
    begun, news = [], threading.Semaphore(0)

    def read(start):
        begun.append(start)
        news.release()
        return {"x": start}

    ahead = Prefetched(read, stride=16, ahead=2)
    for start, new in ((32, 3), (48, 1), (64, 1)):
        assert ahead(start) == {"x": start}
        assert all(news.acquire(timeout=10) for _ in range(new))
        assert begun == list(range(32, start + 33, 16))
    assert not news.acquire(timeout=0.05)


def test_a_step_waits_for_its_batch_alone():
    """Not for the next one, which is read at the same time."""
    reading_next, may_end = threading.Event(), threading.Event()

    def read(start):
        if start == 2:
            reading_next.set()
            assert may_end.wait(timeout=60)
        return {"x": start}

    ahead = Prefetched(read, stride=1, ahead=1)
    assert [ahead(0), ahead(1)] == [{"x": 0}, {"x": 1}]  # would wait for a minute and fail if it took batch 2 as well
    assert reading_next.wait(timeout=60)
    may_end.set()
    assert ahead(2) == {"x": 2}


def test_an_error_of_reading_is_raised_by_the_step_that_needs_the_batch():
    def read(start):
        if start == 2:
            raise DataError("image 7 is damaged: replace it")
        return {"x": start}

    ahead = Prefetched(read, stride=1, ahead=2)
    assert [ahead(0), ahead(1)] == [{"x": 0}, {"x": 1}]
    with pytest.raises(DataError, match="image 7 is damaged: replace it"):
        ahead(2)


def reading():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batch at")]


def test_no_thread_is_left_when_steps_end():
    free = threading.Event()
    ahead = Prefetched(lambda start: start == 0 or free.wait(), stride=1, ahead=3)
    ahead(0)
    threads = reading()
    assert len(threads) == 3
    free.set()
    for thread in threads:
        thread.join(10)
    assert reading() == []


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with this many bytes free; datasets can be placed on it."""

    def have(free):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
        monkeypatch.setattr(loader, "Resident", lambda data, device, *rest: ("resident", device.type, *rest))

    return have


def test_data_lie_on_the_device_where_they_fit(gpu):
    data, keys = dataset(), {"seed": 0, "batch_size": 4, "stride": 8, "mirror": True, "ahead": 1}
    size = 10 * (48 + 8 + 4 * 48)
    assert num_bytes(data) == size
    gpu(4 * size)
    assert reader(data, CUDA, **keys) == ("resident", "cuda", 0, 4, True)
    gpu(4 * size - 1)
    assert isinstance(reader(data, CUDA, **keys), Prefetched)


def test_on_a_cpu_only_files_are_prefetched(tmp_path):
    """A run on files equals the run on the same images in memory bit for bit, and leaves no thread."""
    pixels = np.random.default_rng(0).integers(256, size=(30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "memory.npz", images=pixels)
    (tmp_path / "files").mkdir()
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "files" / f"{k:02d}.png")
    for name, kind in (("memory.npz", "function"), ("files", "Prefetched")):
        keys = {"data__name": "images", "data__path": tmp_path / name, "data__mirror": True}
        assert type(trainer_of(tmp_path / "unused", **keys).batches.read).__name__ == kind
        assert train(tmp_path / f"run_{name}", 5, **keys) == 0
    one, two = (tmp_path / f"run_{name}" for name in ("memory.npz", "files"))
    assert digests(one, 5) == digests(two, 5)
    assert metrics(one) == metrics(two)
    for thread in reading():
        thread.join(10)
    assert reading() == []


def test_the_limits_on_images_reach_the_reader(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    config = load("vpsde")
    override(config, [("data.name", "images"), ("data.path", str(tmp_path)), ("data.max_pixels", "63")])
    with pytest.raises(DataError, match=r"raise data\.max_pixels from 63"):
        datasets.read_dataset(config.data, "train")


@pytest.mark.parametrize(("cores", "local", "expected"), [(32, 8, 4), (64, 2, 16), (2, 8, 2), (None, 1, 2)])
def test_processes_share_out_the_cores_of_their_machine(cores, local, expected, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert batches_ahead(CUDA) == expected
    assert batches_ahead(CPU) == 2


# --- activation checkpointing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_the_same_gradients_with_checkpointed_blocks(name):
    """Including dropout."""
    options = default.choose("network", name).to_dict()
    options |= {key: least for key, least in LEAST.items() if key in options}
    kind, shape = NETWORKS[options.pop("name")], (3,) if name == "mlp" else (3, 8, 8)
    found = []
    for twice in (False, True):
        torch.manual_seed(0)
        network = kind(shape=shape, **options)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        if twice:
            assert list(memory.outermost(network))
            memory.recompute(network)
        torch.manual_seed(1)
        x, noise = torch.randn(2, *shape), torch.rand(2)
        more = {"label": torch.tensor([0, 1])} if options.get("num_classes") and name not in CLASSIFYING else {}
        loss = network(x, noise, **more).square().mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        found.append([loss, *(g for g in gradients if g is not None)])
    assert len(found[0]) > 4
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


LEAST = {"dropout": 0.3, "channels": 16, "num_blocks": 1}
CLASSIFYING = ("classifier", "adm_classifier", "captioned")


@pytest.mark.parametrize("loss", ["denoising", "consistency_training"])
def test_a_run_with_checkpointed_blocks_is_the_same_run(loss, tmp_path):
    found = []
    for twice in (False, True):
        trainer = trainer_of(tmp_path / str(twice), loss__objective=loss, train__recompute=twice, network__dropout=0.2)
        losses = [(result.loss.item(), result.gradient_norm.item()) for result in trainer.steps(3)]
        found.append((losses, torch.cat([p.detach().flatten() for p in trainer.parameters])))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def peak(trainer):
    """Peak bytes of tensors during a step, beyond those before it."""
    steps = trainer.steps(100)
    next(steps)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        next(steps)
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def test_checkpointed_blocks_take_less_memory(tmp_path):
    keys = {"train__batch_size": 64, "network__num_blocks": 4}
    plain, less = (peak(trainer_of(tmp_path / str(twice), train__recompute=twice, **keys)) for twice in (False, True))
    assert less < 0.6 * plain


# --- compilation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "device", "loss", "expected"),
    [
        ("auto", CPU, "denoising", False),
        ("auto", CUDA, "denoising", True),
        ("auto", CUDA, "sliced", False),
        ("true", CPU, "denoising", True),
        ("False", CUDA, "denoising", False),
        ("false", CUDA, "implicit", False),
    ],
)
def test_networks_are_compiled_where_it_is_faster(choice, device, loss, expected):
    config = load("vpsde")
    override(config, [("train.compile", choice), ("loss.objective", loss)])
    assert compiles(config, device) == expected


@pytest.mark.parametrize(
    ("key", "loss", "message"),
    [
        (
            "compile",
            "sliced_vr",
            "train.compile true: loss.objective 'sliced_vr' needs second derivatives; leave it out",
        ),
        ("recompute", "sliced", "train.recompute true: loss.objective 'sliced' needs second derivatives; leave it out"),
    ],
)
def test_unsupported_compilation_and_checkpointing_are_refused(key, loss, message, tmp_path, capsys):
    assert train(tmp_path / "run", 2, loss__objective=loss, **{f"train__{key}": "true"}) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_invalid_value_of_compile_is_refused(tmp_path, capsys):
    assert train(tmp_path / "run", 2, train__compile="ture") == 2
    assert capsys.readouterr().err == "error: unknown train.compile 'ture'; did you mean 'true'?\n"


def test_the_time_of_compilation_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    assert train(tmp_path, 2, "points", train__compile="true") == 0
    assert capsys.readouterr().out.count("compiled the network and took a step in ") == 1


def test_older_runs_have_true_and_false():
    values = load("vpsde").to_dict()
    values["train"]["compile"] = False
    assert conform(values).train.compile == "false"
    assert {"train.compile", "train.microbatch", "train.recompute"} <= FREE


# --- out of memory ----------------------------------------------------------------------------------------------------


DEVICE = torch.OutOfMemoryError("CUDA out of memory")
ALLOCATOR = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.fixture
def room(monkeypatch):
    """Memory for ``most`` examples at a time; returns the sizes that were tried."""
    original, tried = Denoising.__call__, []

    def have(most, error=DEVICE):
        def limited(self, denoise, x0, *args, **cond):
            tried.append(len(x0))
            if len(x0) > most:
                raise error
            return original(self, denoise, x0, *args, **cond)

        monkeypatch.setattr(Denoising, "__call__", limited)
        return tried

    return have


@pytest.mark.parametrize("error", [DEVICE, ALLOCATOR])
def test_a_step_out_of_memory_suggests_a_size_that_fits(error, room, tmp_path, capsys):
    """A run with the suggested size trains, to the same losses."""
    keys = {"train__batch_size": 16, "network__dropout": 0.0}
    assert train(tmp_path / "all", 2, "points", **keys) == 0
    tried = room(5, error)
    assert train(tmp_path / "run", 2, "points", **keys) == 3
    assert tried == [16, 8, 4]
    assert capsys.readouterr().err == (
        "error: out of memory on cpu with 16 examples at a time; 4 fit: add --config.train.microbatch=4, or "
        "--config.train.recompute=true\n"
    )
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert train(tmp_path / "run", 2, "points", train__microbatch=4, **keys) == 0
    one, other = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("all", "run"))
    assert one == pytest.approx(other, rel=1e-5)


def test_a_run_resumes_in_smaller_microbatches_with_less_memory(room, tmp_path):
    assert train(tmp_path, 2, "points") == 0
    room(2)
    assert train(tmp_path, 4, "points") == 3
    assert train(tmp_path, 4, "points", train__microbatch=2) == 0


def test_a_single_example_out_of_memory_is_an_error(room, tmp_path, capsys):
    tried = room(0)
    assert train(tmp_path, 2, "points", train__microbatch=2, train__recompute="true") == 3
    assert tried == [2, 1]
    message = "error: out of memory on cpu with 2 examples at a time; not even one fits: take a smaller network\n"
    assert capsys.readouterr().err == message


def test_other_errors_are_not_taken_for_out_of_memory(room, tmp_path, capsys):
    room(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert train(tmp_path, 2, "points") == 1
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied" in capsys.readouterr().err


def test_other_modes_suggest_a_size(points, monkeypatch, capsys):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("score_sde.engine.modes.sample.draw_run", fail)
    line = ["run.py", "--mode=sample", f"--workdir={points}", "--batch_size=48", "--num_samples=50"]
    assert command_line.main(line) == 3
    assert capsys.readouterr().err == "error: out of memory with sample.batch_size 48; try --batch_size 24\n"
    monkeypatch.setattr("score_sde.engine.modes.train.train", fail)
    assert command_line.main(["run.py", "--mode=train", f"--workdir={points}"]) == 3
    assert "out of memory; take a smaller network, another --device" in capsys.readouterr().err


# --- precision, threads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has", [False, True])
def test_bfloat16_is_refused_on_a_device_without_it(has, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    check_precision(torch.bfloat16, CPU)
    check_precision(torch.float32, CUDA)
    if has:
        check_precision(torch.bfloat16, CUDA)
    else:
        with pytest.raises(ValueError, match=r"bfloat16: Tesla V100 has none; take --config\.train"):
            check_precision(torch.bfloat16, CUDA)


@pytest.mark.parametrize(
    ("given", "parameters", "expected"),
    [(0, 1_000, 1), (0, math.ceil(devices.LARGE / 64), 7), (3, 1_000, 3), (1, 10**6, 1)],
)
def test_threads_follow_the_size_of_the_network(given, parameters, expected, monkeypatch):
    found, config = [], load("vpsde")
    monkeypatch.setattr(devices, "THREADS", 7)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    config.threads = given
    set_threads(config, (1, 8, 8), torch.nn.Linear(parameters, 1, bias=False))
    set_threads(config, (1, 8, 8))
    assert found == [expected, given or 1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "passive 1000"),
        ({"OMP_WAIT_POLICY": "active"}, "active None"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7"),
    ],
)
def test_waiting_threads_spin_briefly_unless_configured(given, expected):
    """The variable is set before torch reads it."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    program = f"import os, sys; from score_sde import run; print(*map(os.environ.get, {names}), 'torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key not in names} | given
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == f"{expected} False\n"


def test_the_number_of_threads_is_reported(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    assert "on cpu (torch.float32, 1 thread), vpsde" in trainer.describe()[0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert "on cpu (torch.float32, 2 threads, 1000 spins while they wait), vpsde" in trainer.describe()[0]
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert "on cpu (torch.float32, 2 threads, passive while they wait), vpsde" in trainer.describe()[0]


# --- losses over a whole batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("microbatch", "processes", "fine"), [(0, 1, True), (4, 1, True), (2, 1, False), (0, 2, False)]
)
def test_a_contrastive_loss_gets_the_whole_batch(microbatch, processes, fine, monkeypatch):
    """Two batches of 2 have another loss than one of 4: log 2 for an uninformed model, not log 4."""
    assert {name for name, kind in OBJECTIVES.items() if kind.compares} == {"contrastive"}
    config = load("clip")
    override(config, [("train.batch_size", "4"), ("train.microbatch", str(microbatch))])
    monkeypatch.setattr(ranks, "size", lambda: processes)
    data = datasets.read_dataset(config.data, "train")
    if fine:
        check(config, data)
    else:
        with pytest.raises(ValueError, match="'contrastive' compares the examples of a batch, which has to stay whole"):
            check(config, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss__timestep_sampler": "loss_aware", "loss__timestep_sampler__bins": 2},
        {"loss__timestep_sampler": "learned"},
        {"loss__objective": "consistency_training"},
        {"loss__objective": "sliced"},
    ],
)
def test_learned_samplers_and_random_losses_are_the_same_in_microbatches(changes, tmp_path):
    keys = {"train__batch_size": 8, "network__dropout": 0.0, **changes}
    whole, parts = (
        [result.loss.item() for result in trainer_of(tmp_path / str(n), "points", train__microbatch=n, **keys).steps(6)]
        for n in (0, 3)
    )
    assert parts == pytest.approx(whole, rel=1e-4)


# --- several processes ------------------------------------------------------------------------------------------------

APART = """
import os, sys
import torch
from score_sde import run
from score_sde.sde_lib.objective import Denoising

original = Denoising.__call__

def limited(self, denoise, x0, *args, **cond):
    if os.environ["RANK"] == "1" and len(x0) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return original(self, denoise, x0, *args, **cond)

Denoising.__call__ = limited
if "differ" in sys.argv[1]:
    sys.argv.append("--seed=" + os.environ["RANK"])
sys.exit(run.main([sys.argv[0], *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "sharding", "message"),
    [
        ("differ", False, "error: the processes of this command have different configs; give all the same flags and"),
        ("full", False, "error: out of memory on cpu with 2 examples at a time; 1 fit: add --config.train.microbatch"),
        ("full", True, "error: out of memory on cpu with 2 examples at a time; try --config.train.microbatch=1"),
    ],
)
def test_failing_processes_end_without_a_hang(how, sharding, message, tmp_path):
    """One that runs out of memory reports it, and the others, which wait for it, are ended."""
    (tmp_path / "apart.py").write_text(APART)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "apart.py"), how, "--mode=train", "--config=vpsde", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.{key}={value}" for key, value in (DIGITS | {"train.sharding": sharding}).items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()
