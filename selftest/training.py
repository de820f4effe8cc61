"""Training: averages, learning rates, the loss before the first step, and bitwise resumption."""

import copy
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import partial
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
from score_sde.sde_lib import SDES, TIMESTEP_SAMPLERS, Gaussian
from score_sde.sde_lib.timestep_samplers import Fixed
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative, worst
from score_sde.storage.reading import half_of_memory, read_bytes
from score_sde.storage.writing import confined, write_bytes


def check(setting: Setting) -> Iterator[Row]:
    """Checks EMA, schedules, autocast, loss, save, load and resume; in float32 in every setting."""
    for warmup in (False, True):
        kind = "with warm-up" if warmup else "without warm-up"
        averages, buffers, live = ema(warmup, setting)
        yield Row(f"ema {kind}: averages of three rates against the sum", averages, 1e-6)
        yield Row(f"ema {kind}: buffers are copied", buffers, 0.0)
        yield Row(f"ema {kind}: the network itself is unchanged", live, 0.0)
    yield Row("learning rate: warm-up and cosine", rates(), 1e-12)
    yield Row("times of a batch: strata without exactly one time", strata(setting), 0)
    yield from dither(setting)
    with tempfile.TemporaryDirectory() as folder, confined(Path(folder)):
        yield from runs(Path(folder), setting)


class Counted(nn.Module):
    """Two parameters and a counter buffer."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("count", torch.zeros(()))


def ema(warmup: bool, setting: Setting) -> tuple[float, float, float]:
    """Returns the errors of the averages after nine updates, of their buffers, and of the averaged network."""
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
    found = torch.stack([exactly(copy.get_parameter("layer.weight")).squeeze() for copy in average.networks])
    buffers = worst(distance(copy.get_buffer("count"), 9.0) for copy in average.networks)
    return distance(found, expected), buffers, distance(network.layer.weight.squeeze(), values[-1])


def rates() -> float:
    """Returns the error of a linear warm-up over 640 images, times half a cosine down to 0 at 6400."""
    config = default.get_config()
    config.optim.warmup_images, config.train.total_images, config.train.batch_size = 640, 6400, 64
    seen = np.arange(0, 6401, 64)
    shape = np.minimum(1, (seen + 64) / 640) * (1 + np.cos(np.pi * seen / 6400)) / 2
    return distance([learning_rate(config, int(n)) / config.optim.learning_rate for n in seen], shape)


def strata(setting: Setting) -> int:
    """Returns the number of 32 strata of the interval that do not hold exactly one time, summed over 20 steps."""
    missed, like = 0, torch.empty(32, 1, 2, device=setting.device)
    sde = SDES["edm"]()
    for step in range(20):
        t, _ = draw_times(step, like, sde, Fixed(TIMESTEP_SAMPLERS["uniform"]))
        fraction = (exactly(t).flatten() - sde.t_min) / (sde.t_max - sde.t_min)
        # Compare distances, because float32 rounds a time at the border of two strata to either side.
        gaps = fraction.sort().values.diff()
        missed += int((abs(gaps - 1 / 32) > 1e-5).sum()) + int(t.shape != (32, 1, 1))
    return missed


def dither(setting: Setting) -> Iterator[Row]:
    """Checks dequantization noise: uniform, one level wide, centred."""
    offset = exactly(dither_of(0, torch.arange(512), torch.empty(1, 1, 2, 3, device=setting.device))).flatten()
    found = abs(offset.mean().item()) / (1 / 12 / offset.numel()) ** 0.5
    yield Row("dequantization: mean, in standard errors", found, 4.0)
    yield Row("dequantization: width of the noise", distance(offset.max() - offset.min(), 1.0), 0.01)


def small(setting: Setting, **changes: object) -> ConfigDict:
    """Returns the config of a small network on eight Gaussians in the plane."""
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
    """Checks a network trained without and with interruption, in float32 and under autocast."""
    config = small(setting)
    dataset = read_dataset(config.data, "train")
    whole = Trainer(config, folder / "whole", dataset)
    inputs = record_inputs(whole.network)
    losses = [result.loss.item() for result in whole.steps(4)]
    # Before the first step the network is 0; with weight and parameterization edm the loss is E x0^2 / sigma_data^2.
    x = exactly(dataset.batch(np.arange(len(dataset)))["x"])
    yield Row("loss before the first step", abs(losses[0] - (x**2).mean().item() / exactly(x).var().item()), 0.15)

    with redirect_stderr(io.StringIO()):  # drop the warning of CPUs that emulate bfloat16
        bfloat16 = Trainer(small(setting, **{"train.precision": "bfloat16"}), folder / "bfloat16", dataset)
    under_autocast = record_inputs(bfloat16.network)
    next(bfloat16.steps(1))
    difference = worst(distance(a, b) for a, b in zip(under_autocast[0], inputs[0]))
    wrong = sum(v.dtype != torch.float32 for v in under_autocast[0])
    yield Row("autocast: the network's inputs, state and log-SNR, against float32", difference + wrong, 0.0)

    first = Trainer(config, folder / "pieces", dataset)
    list(first.steps(2))
    first.save()
    second = Trainer(config, folder / "pieces", dataset)
    yield Row("load: weights, averages and moments that differ after saving", differing(first, second), 0)
    list(second.steps(4))
    yield Row("resume: weights, averages and moments that differ after a pause", differing(whole, second), 0)
    path = checkpoint.find(folder / "pieces" / "checkpoints")
    yield Row("damaged checkpoints: files that load", damaged(path, second), 0)

    validation = Validation(config, whole.experiment, read_dataset(config.data, "test"))
    before = validation.losses(whole.ema.networks[0])
    yield Row(
        "validation loss of a network of zeros, against the first training loss",
        relative(before["validation_loss_of_zero"], losses[0]),
        0.1,
    )
    list(whole.steps(200))
    after = validation.losses(whole.ema.networks[0])
    found = after["validation_loss"] / after["validation_loss_of_zero"]
    yield Row("validation loss after 200 steps, relative to a network of zeros", found, 0.94)


def record_inputs(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Returns a list that grows by the network's inputs at every further call."""
    recorded: list[tuple[Tensor, Tensor]] = []
    network.register_forward_pre_hook(lambda module, inputs: recorded.append(inputs[:2]))
    return recorded


def differing(one: Trainer, other: Trainer) -> int:
    """Returns the number of tensors, counters included, that differ between two trainings in any bit."""
    states = []
    for trainer in (one, other):
        parts: list[nn.Module | Gaussian] = [trainer.network, trainer.ema.networks[0], trainer.experiment.gaussian]
        tensors = [value for part in parts for value in part.state_dict().values()]
        moments = [v for state in trainer.optimizer.state_dict()["state"].values() for v in state.values()]
        states.append([*tensors, *moments, torch.tensor([trainer.step, trainer.ema.num_updates])])
    if len(states[0]) != len(states[1]):
        return max(map(len, states))
    return sum(not torch.equal(a, b) for a, b in zip(*states))


def damaged(path: Path, trainer: Trainer) -> int:
    """Returns the number of truncated or changed checkpoint files that load without an error."""
    network, loaded = copy.deepcopy(trainer.network), 0
    readers: dict[str, Callable[[Path], object]] = {
        "state.pt": checkpoint.load_state,
        "meta.json": checkpoint.read_meta,
        checkpoint.GAUSSIAN: lambda path: checkpoint.load_gaussian(path, trainer.experiment.facts.shape),
    }
    for name in checkpoint.read_meta(path)["sha256"]:
        content = read_bytes(path / name, half_of_memory())
        for spoilt in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1]):
            write_bytes(path / name, spoilt)
            try:
                readers.get(name, partial(checkpoint.load_network, name=name, network=network))(path)
                loaded += 1
            except CheckpointError:
                continue
        write_bytes(path / name, content)
    return loaded
