"""The error of a training step that does not fit into memory."""

from collections.abc import Callable

import torch

from score_sde.configs.default import Config
from score_sde.engine import memory, ranks
from score_sde.engine.errors import OutOfMemory
from score_sde.sde_lib import OBJECTIVES
from score_sde.storage.naming import pick


def too_large(config: Config, device: torch.device, size: int, attempt: Callable[[int], object] | None) -> OutOfMemory:
    """Returns the error of a step of ``size`` examples at a time, with the largest size that fits.

    Args:
        attempt: computes a gradient of so many examples, in this process alone; None for a sharded network, which
            cannot be computed without the other processes.
    """
    recompute = "" if config.train.recompute else ", or --config.train.recompute=true"
    failed = f"out of memory on {device} with {size} examples at a time"
    if attempt is None:
        smaller = f"try --config.train.microbatch={size // 2}" if size > 1 else "take a smaller network"
        return OutOfMemory(f"{failed}; {smaller}{recompute}, or more processes")
    fitting = memory.largest(attempt, size // 2)
    remedy = f"train.microbatch={fitting}"
    if pick(OBJECTIVES, "objective", config.loss.objective.name).compares:
        remedy = f"train.batch_size={fitting * ranks.size()}"
    result = f"{fitting} fit: add --config.{remedy}" if fitting else "not even one fits: take a smaller network"
    return OutOfMemory(f"{failed}; {result}{recompute}")
