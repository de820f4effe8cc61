"""Checks of a training config against its data, its device and its processes."""

from pathlib import Path

import torch
from torch import nn

from score_sde.configs.default import Config
from score_sde.data import Dataset
from score_sde.engine import ranks
from score_sde.engine.errors import CheckpointError
from score_sde.engine.log import say
from score_sde.engine.randomness import TRAINING, noise, positions
from score_sde.models.layers import resolutions
from score_sde.sde_lib import OBJECTIVES
from score_sde.storage.naming import pick

COMPILE = {"auto": None, "true": True, "false": False}
"""Values of train.compile; None depends on the device."""


def check(config: Config, dataset: Dataset) -> None:
    """Raises: ValueError for settings that are invalid on this dataset or with this number of processes."""
    if config.network.get("num_classes", 0) not in (0, dataset.num_classes):
        raise ValueError(
            f"network.num_classes {config.network.num_classes}: the data have {dataset.num_classes}; 0 ignores them"
        )
    dataset.check_size(config.train.batch_size // ranks.size())
    if config.data.mirror and len(dataset.shape) == 1:
        raise ValueError(f"data.mirror true: it flips signals and images, not rows of {dataset.shape[0]} numbers")
    if config.train.batch_size % ranks.size():
        raise ValueError(
            f"train.batch_size {config.train.batch_size} does not divide over {ranks.size()} processes; take a "
            f"multiple of {ranks.size()}"
        )
    whole = ranks.size() == 1 and config.train.microbatch in (0, config.train.batch_size)
    objective = config.loss.objective.name
    if pick(OBJECTIVES, "objective", objective).compares and not whole:
        raise ValueError(
            f"loss.objective {objective!r} compares the examples of a batch, which has to stay whole: leave "
            "train.microbatch at 0 and start one process"
        )


def note_attention(config: Config, shape: tuple[int, ...]) -> None:
    """Prints a note on an attention resolution that no level of the network has.

    This is no error: one recipe is used for data of several sizes.
    """
    network = config.network
    if not {"attention", "channel_mult"} <= set(network) or len(shape) < 2:
        return
    available = resolutions(shape[1:], len(network.channel_mult))
    if missing := set(network.attention) - set(available):
        say(
            f"note: network.attention {tuple(network.attention)}: no level has the resolution {min(missing)}, so "
            f"nothing attends there; the levels have {', '.join(map(str, available))}"
        )


def compiles(config: Config, device: torch.device) -> bool:
    """Returns whether the network is compiled; by default on CUDA, where it saves time.

    Raises: ValueError for an unknown value, a sharded network, or an objective that needs second derivatives, which
        compiled networks, sharded networks and recomputed blocks do not support.
    """
    chosen = pick(COMPILE, "train.compile", config.train.compile.lower())
    objective = config.loss.objective.name
    differentiates = pick(OBJECTIVES, "objective", objective).differentiates
    enabled = {"compile": chosen, "recompute": config.train.recompute, "sharding": config.train.sharding}
    for key in filter(enabled.get, enabled if differentiates else ()):
        raise ValueError(f"train.{key} true: loss.objective {objective!r} needs second derivatives; leave it out")
    if chosen and config.train.sharding:
        raise ValueError(
            "train.compile true: a sharded network is not compiled; leave out train.compile or train.sharding"
        )
    return device.type == "cuda" and not differentiates and not config.train.sharding if chosen is None else chosen


def check_processes(network: nn.Module, seed: int, images_seen: int, first: int, workdir: Path) -> None:
    """Checks that all processes have the same weights and position, and different noise.

    Args:
        images_seen: examples before the next step.
        first: index of the first example of this process in a batch.
    Raises: CheckpointError if the processes read different checkpoints.
    """
    weights = b"".join(p.detach().cpu().numpy().tobytes() for p in network.parameters())
    if len(set(ranks.digests(weights + str(images_seen).encode()))) > 1:
        raise CheckpointError(f"the processes of this command read different checkpoints; all need the same {workdir}")
    drawn = noise(seed, TRAINING, positions(images_seen + first, 1))(torch.empty(1, 64)).numpy().tobytes()
    assert len(set(ranks.digests(drawn))) == ranks.size()
