"""Inference networks: bfloat16, compilation, and out-of-memory batching."""

import numpy as np
import pytest
import torch
from torch import nn

from score_sde import run as command_line
from score_sde.engine import inference, precision, ranks
from score_sde.engine.errors import OutOfMemory
from score_sde.engine.inference import MOST, FittingBatches, filling, frozen

DEVICE = torch.OutOfMemoryError("CUDA out of memory")
ALLOCATOR = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried")


class Linear(nn.Module):
    """A linear layer that records the dtype of its product."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(3, 3), []

    def forward(self, x, c_noise):
        y = self.layer(x)
        self.seen.append(y.dtype)
        return y


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Linear()


X, C_NOISE = torch.linspace(-1, 1, 12).reshape(4, 3), torch.zeros(4)


# --- precision --------------------------------------------------------------------------------------------------------


def test_a_network_without_options_is_returned_unchanged(network):
    assert frozen(network, torch.float32, False) is network
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training


def test_bfloat16_applies_to_the_network_alone(network):
    low, expected = frozen(network, torch.bfloat16, False)(X, C_NOISE), network(X, C_NOISE)
    assert network.seen == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(low.float(), expected, rtol=0.02, atol=0.02)
    assert (low.float() != expected).any()


def test_emulated_bfloat16_gives_a_warning(monkeypatch, capsys):
    for has in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        precision.check_precision(torch.bfloat16, torch.device("cpu"), "inference")
    precision.check_precision(torch.float32, torch.device("cpu"))
    told = "warning: this CPU emulates bfloat16, many times slower than float32; "
    assert capsys.readouterr().err == f"{told}take --config.inference.precision=float32\n"


def samples(workdir, *flags):
    assert command_line.main(["run.py", "--mode=sample", f"--workdir={workdir}", "--num_samples=6", *flags]) == 0
    with np.load(workdir / "samples" / "adams-14" / "samples.npz") as file:
        return torch.from_numpy(file["samples"]).double()


def test_samples_in_bfloat16_are_near_those_in_float32(points):
    exact, low = (samples(points, f"--config.inference.precision={name}") for name in ("float32", "bfloat16"))
    assert 1e-4 < (exact - low).abs().median() < 0.1


def test_an_unknown_precision_is_refused(points, capsys):
    line = ["run.py", "--mode=sample", f"--workdir={points}", "--config.inference.precision=float8"]
    assert command_line.main(line) == 2
    assert capsys.readouterr().err == "error: unknown precision 'float8'; did you mean 'float32' or 'bfloat16'?\n"


# --- compiled ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def marked(monkeypatch):
    """Replaces torch.compile by a recorder of the compiled calls."""
    seen = []

    def compiled(call, **options):
        return lambda x, c_noise: (seen.append(len(x)), call(x, c_noise))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    return seen


def test_the_first_shape_is_compiled_and_others_are_not(network, marked):
    fast = frozen(network, torch.float32, True)
    with torch.no_grad():
        for num in (4, 4, 2, 4):
            assert torch.equal(fast(X[:num], C_NOISE[:num]), network(X[:num], C_NOISE[:num]))
    assert marked == [4, 4, 4]


def test_evaluations_with_gradients_are_not_compiled(network, marked):
    fast = frozen(network, torch.float32, True)
    x = X.clone().requires_grad_()
    assert torch.autograd.grad(fast(x, C_NOISE).sum(), x)[0].abs().sum() > 0
    assert marked == []


@pytest.mark.slow
def test_compiled_samples_equal_the_networks(points):
    plain, fast = (samples(points, f"--config.inference.compile={name}") for name in ("false", "true"))
    torch.testing.assert_close(plain, fast, rtol=1e-3, atol=1e-3)


# --- memory -----------------------------------------------------------------------------------------------------------


def room(most, error):
    """Work with memory for ``most`` examples at a time."""

    def work(examples):
        if len(examples) > most:
            raise error
        return 2 * torch.as_tensor(examples)

    return work


@pytest.mark.parametrize("error", [DEVICE, ALLOCATOR])
def test_batches_are_halved_out_of_memory(error, capsys):
    parts, sizes, found = FittingBatches(), [], []
    for batch in torch.arange(20).split(10):
        for part, doubled in parts(room(3, error), batch):
            sizes.append(len(part))
            found.append(doubled)
    assert sizes == [2] * 10
    assert torch.equal(torch.cat(found), 2 * torch.arange(20))
    assert capsys.readouterr().out.splitlines() == [
        "out of memory with 10 examples at a time; going on with 5",
        "out of memory with 5 examples at a time; going on with 2",
    ]


def test_a_single_example_that_is_too_large_is_an_error():
    with pytest.raises(OutOfMemory, match="with one example at a time; take a smaller network"):
        list(FittingBatches()(room(0, DEVICE), [7, 8]))


def test_other_errors_are_not_taken_for_out_of_memory():
    with pytest.raises(RuntimeError, match="mat1"):
        list(FittingBatches()(room(1, RuntimeError("mat1 and mat2 shapes")), [7, 8]))


def test_samples_do_not_depend_on_the_parts(points, monkeypatch, capsys):
    whole, original = samples(points), inference.FittingBatches

    class Small(original):
        def __call__(self, work, examples):
            limited = room(2, DEVICE)
            return super().__call__(lambda part: (limited(part), work(part))[1], examples)

    monkeypatch.setattr("score_sde.engine.drawing.FittingBatches", Small)
    torch.testing.assert_close(samples(points), whole, rtol=1e-5, atol=1e-5)
    assert "going on with 1" in capsys.readouterr().out


# --- batches that fill a device ---------------------------------------------------------------------------------------

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def never(num):
    raise AssertionError("nothing to try")


@pytest.mark.parametrize(
    ("shape", "num", "expected"),
    [((1, 8, 8), 1000, 512), ((3, 32, 32), 300, 32), ((3, 64, 64), 300, 8), ((3, 2048, 2048), 5, 1), ((2,), 7, 7)],
)
def test_a_cpu_takes_the_fastest_batch_size(shape, num, expected):
    assert filling(num, shape, CPU, never) == expected


def test_several_processes_have_equal_batches(monkeypatch):
    """Of the least memory that any of them has free, so that all use equal batches."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(ranks, "joined", lambda rows: torch.cat([rows, rows + 3]))
    assert filling(64, (2,), CPU, never) == 16
    assert filling(65, (2,), CPU, never) == 17
    monkeypatch.setattr(ranks, "joined", lambda rows: torch.cat([rows, rows - 3]))
    assert filling(64, (2,), CPU, never) == 13


class Card:
    """A GPU's memory, behind torch's functions that report it; an evaluation uses some per example and some once."""

    def __init__(self, monkeypatch, total, each, once=0):
        self.total_memory, self.each, self.once, self.asked, self.peak = total, each, once, [], 0
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(self, "peak", self.held))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.held)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: self)
        self.held = 1000

    def evaluate(self, num):
        self.asked.append(num)
        if not self.held - 1000:  # allocated once, then kept
            self.held += self.once
        if self.held + num * self.each > self.total_memory:
            raise DEVICE
        self.peak = max(self.peak, self.held + num * self.each)


@pytest.mark.parametrize(
    ("total", "each", "num", "expected", "asked"),
    [
        (1 << 30, 1 << 20, 10_000, 512, [16, 16]),
        (1 << 30, 3 << 20, 10_000, 128, [16, 16]),
        (1 << 30, 3 << 20, 100, 100, [16, 16]),
        (1 << 30, 1, 10_000, MOST, [16, 16]),
        (1 << 30, 0, 10_000, MOST, [16, 16]),
        (1 << 30, 1 << 20, 3, 3, [3, 3]),
        (1 << 30, 200 << 20, 10_000, 2, [16, 8, 4, 4]),
        (1 << 30, 2 << 30, 10_000, 1, [16, 8, 4, 2, 1]),
    ],
)
def test_a_gpu_batch_takes_half_of_its_memory(monkeypatch, total, each, num, expected, asked):
    card = Card(monkeypatch, total, each, once=1 << 20)
    assert filling(num, (3, 32, 32), CUDA, card.evaluate) == expected
    assert card.asked == asked


def test_trial_evaluations_are_not_compiled(monkeypatch, network, marked):
    """It is not taken as the first shape either; after any failure, later calls are compiled."""
    fast, _ = frozen(network, torch.float32, True), Card(monkeypatch, 1 << 30, 0)

    @torch.no_grad()
    def evaluate(num):
        fast(X[:num], C_NOISE[:num])

    assert filling(4, (3,), CUDA, evaluate) == 4
    with pytest.raises(AssertionError):
        filling(4, (3,), CUDA, never)
    assert marked == []
    evaluate(2)
    assert marked == [2]
