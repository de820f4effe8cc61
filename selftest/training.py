"""Training: averages, rates, the loss before the first step, and a run that goes on as if nothing had happened."""

import copy
import io
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from score_sde.configs import default
from score_sde.engine import checkpoint
from score_sde.engine.config import load, override
from score_sde.engine.datasets import read_dataset
from score_sde.engine.errors import CheckpointError
from score_sde.engine.randomness import dither as dither_of
from score_sde.engine.randomness import draw_times
from score_sde.engine.training.ema import EMA
from score_sde.engine.training.learning_rate import learning_rate
from score_sde.engine.training.trainer import Trainer
from score_sde.engine.training.validation import Validation
from score_sde.sde_lib import SDES, TIMESTEP_SAMPLERS
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative, worst
from score_sde.storage.reading import half_of_memory, read_bytes
from score_sde.storage.writing import confined, write_bytes


def check(setting: Setting) -> Iterator[Row]:
    """EMA, schedules, autocast, loss, save, load and resume; in float32 whatever the setting."""
    for warmup in (False, True):
        kind = "with warm-up" if warmup else "without warm-up"
        averages, buffers, live = ema(warmup, setting)
        yield Row(f"ema {kind}: averages of three rates against the sum", averages, 1e-6)
        yield Row(f"ema {kind}: buffers are copied", buffers, 0.0)
        yield Row(f"ema {kind}: the network itself is left alone", live, 0.0)
    yield Row("learning rate: warm-up and cosine", rates(), 1e-12)
    yield Row("times of a batch: shares of the law without their one time", shares(setting), 0)
    yield from dither(setting)
    with tempfile.TemporaryDirectory() as folder, confined(Path(folder)):
        yield from runs(Path(folder), setting)


class Counted(nn.Module):
    """Two parameters and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("count", torch.zeros(()))


def ema(warmup: bool, setting: Setting) -> tuple[float, float, float]:
    """Errors of the averages after nine updates, of the buffers, and of the network that is followed."""
    network, decays = Counted().to(setting.device), (0.0, 0.9, 0.999)
    values = torch.sin(torch.arange(10.0, dtype=torch.float64)).float()
    network.layer.weight.data.fill_(values[0])
    average = EMA(network, decays, warmup)
    expected = exactly(values[0]).repeat(3)
    for n, value in enumerate(values[1:]):
        network.layer.weight.data.fill_(value)
        network.count += 1
        average.update()
        kept = exactly([min(r, (1 + n) / (10 + n)) if warmup else r for r in decays])
        expected = kept * expected + (1 - kept) * exactly(value)
    found = torch.stack([exactly(copy.layer.weight).squeeze() for copy in average.networks])
    buffers = worst(distance(copy.count, 9.0) for copy in average.networks)
    return distance(found, expected), buffers, distance(network.layer.weight.squeeze(), values[-1])


def rates() -> float:
    """A line up to the largest rate over 640 images, then half a cosine down to 0 at 6400."""
    config = default.get_config()
    config.optim.warmup_images, config.train.total_images, config.train.batch_size = 640, 6400, 64
    seen = np.arange(0, 6401, 64)
    shape = np.minimum(1, (seen + 64) / 640) * (1 + np.cos(np.pi * seen / 6400)) / 2
    return distance([learning_rate(config, int(n)) / config.optim.learning_rate for n in seen], shape)


def shares(setting: Setting) -> int:
    """How many of 32 equal shares of the interval hold another number of times than one, over 20 steps."""
    missed, like = 0, torch.empty(32, 1, 2, device=setting.device)
    sde = SDES["edm"]()
    for step in range(20):
        t, _ = draw_times(step, like, sde, TIMESTEP_SAMPLERS["uniform"])
        share = (exactly(t).flatten() - sde.t_min) / (sde.t_max - sde.t_min)
        # float32 rounds a time at the border of two shares to either side.
        gaps = share.sort().values.diff()
        missed += int((abs(gaps - 1 / 32) > 1e-5).sum()) + int(t.shape != (32, 1, 1))
    return missed


def dither(setting: Setting) -> Iterator[Row]:
    """Uniform noise of one level's width, around each level."""
    offset = exactly(dither_of(0, torch.arange(512), torch.empty(1, 1, 2, 3, device=setting.device))).flatten()
    found = abs(offset.mean().item()) / (1 / 12 / offset.numel()) ** 0.5
    yield Row("dequantisation: mean, in standard errors", found, 4.0)
    yield Row("dequantisation: width of the noise", distance(offset.max() - offset.min(), 1.0), 0.01)


def small(setting: Setting, **changes: object) -> ConfigDict:
    """A run of eight Gaussians in a plane, for a small network."""
    config = load("points")
    settings = {
        "device": setting.device,
        "data.name": "eight_gaussians",
        "network.width": 32,
        "network.depth": 1,
        "train.batch_size": 256,
        "train.total_images": 256 * 200,
        "optim.warmup_images": 256 * 10,
        "optim.learning_rate": 5e-3,
        **changes,
    }
    override(config, [(key, str(value)) for key, value in settings.items()])
    return config


def runs(folder: Path, setting: Setting) -> Iterator[Row]:
    """One network trained in a piece and in two pieces, in float32 and under autocast."""
    config = small(setting)
    dataset = read_dataset(config, "train")
    whole = Trainer(config, folder / "whole", dataset)
    asked = listen(whole.network)
    losses = [result.loss.item() for result in whole.steps(4)]
    # Before the first step the network is 0; with weight and parameterisation edm the loss is E x0^2 / sigma_data^2.
    x = exactly(dataset.batch(np.arange(len(dataset)))["x"])
    yield Row("loss before the first step", abs(losses[0] - (x**2).mean().item() / exactly(x).var().item()), 0.15)

    with redirect_stderr(io.StringIO()):  # a CPU that imitates bfloat16 says so
        bfloat16 = Trainer(small(setting, **{"train.precision": "bfloat16"}), folder / "bfloat16", dataset)
    told = listen(bfloat16.network)
    next(bfloat16.steps(1))
    difference = worst(distance(a, b) for a, b in zip(told[0], asked[0]))
    wrong = sum(v.dtype != torch.float32 for v in told[0])
    yield Row("autocast: state and log-SNR that reach the network, against float32", difference + wrong, 0.0)

    first = Trainer(config, folder / "pieces", dataset)
    list(first.steps(2))
    first.save()
    second = Trainer(config, folder / "pieces", dataset)
    yield Row("load: weights, averages and moments that saving changes", differing(first, second), 0)
    list(second.steps(4))
    yield Row("resume: weights, averages and moments that a pause changes", differing(whole, second), 0)
    path = checkpoint.find(folder / "pieces" / "checkpoints")
    yield Row("a damaged checkpoint is taken", damaged(path, second), 0)

    validation = Validation(config, whole.experiment, read_dataset(config, "test"))
    before = validation.losses(whole.ema.networks[0])
    yield Row(
        "held-out loss of a network of zeros, against its first",
        relative(before["validation_loss_of_zero"], losses[0]),
        0.1,
    )
    list(whole.steps(200))
    after = validation.losses(whole.ema.networks[0])
    found = after["validation_loss"] / after["validation_loss_of_zero"]
    yield Row("held-out loss after 200 steps, over that of zeros", found, 0.94)


def listen(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What the network is asked from now on."""
    asked = []
    network.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[:2]))
    return asked


def differing(one: Trainer, other: Trainer) -> int:
    """How many tensors of two trainings differ in any bit, and counters."""
    states = []
    for trainer in (one, other):
        parts = [trainer.network, trainer.ema.networks[0], trainer.experiment.gaussian]
        tensors = [value for part in parts for value in part.state_dict().values()]
        moments = [v for state in trainer.optimizer.state_dict()["state"].values() for v in state.values()]
        states.append([*tensors, *moments, torch.tensor([trainer.step, trainer.ema.num_updates])])
    if len(states[0]) != len(states[1]):
        return max(map(len, states))
    return sum(not torch.equal(a, b) for a, b in zip(*states))


def damaged(path: Path, trainer: Trainer) -> int:
    """How many of the checkpoint's files can be cut or changed without a word."""
    network, taken = copy.deepcopy(trainer.network), 0
    readers = {"state.pt": checkpoint.load_state, "meta.json": checkpoint.read_meta}
    readers[checkpoint.GAUSSIAN] = lambda path: checkpoint.load_gaussian(path, trainer.experiment.facts.shape)
    for name in checkpoint.read_meta(path)["sha256"]:
        content = read_bytes(path / name, half_of_memory())
        for spoilt in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1]):
            write_bytes(path / name, spoilt)
            try:
                readers.get(name, lambda path, name=name: checkpoint.load_network(path, name, network))(path)
                taken += 1
            except CheckpointError:
                continue
        write_bytes(path / name, content)
    return taken
