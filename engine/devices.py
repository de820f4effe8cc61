"""Device and threads of a command."""

import math

import torch
from ml_collections import ConfigDict
from torch import nn

from score_sde.engine import ranks

THREADS = torch.get_num_threads()
"""Of the CPU, that torch takes by itself: OMP_NUM_THREADS, or as many as there are cores."""


LARGE = 50_000_000
"""Parameters times positions of a network that gains by a second thread: see docs/scaling.md."""


def set_threads(config: ConfigDict, shape: tuple[int, ...], network: nn.Module | None = None) -> None:
    """Compute on as many threads of the CPU as the config says; the last digits of a sum depend on it.

    By itself on one, and for a network whose parameters times positions are ``LARGE`` or more on all that torch takes.

    Args:
        shape: of an example.
        network: None before there is one.
    """
    parameters = sum(p.numel() for p in network.parameters()) if network else 0
    large = parameters * math.prod(shape[1:]) >= LARGE
    torch.set_num_threads(config.threads or (THREADS if large else 1))


def make_device(name: str) -> torch.device:
    """The device of that name; auto is an accelerator, or else the CPU.

    Several processes on a machine share out the accelerators of a name without a number, such as cuda.

    Raises: ValueError for a name that torch does not know or a device that this machine does not have.
    """
    accelerator = torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = accelerator if name == "auto" else torch.device(name)
        if ranks.size() > 1 and device.type == accelerator.type != "cpu" and device.index is None:
            device = torch.device(device.type, ranks.local_rank() % torch.accelerator.device_count())
        torch.empty(1, device=device).tolist()  # tensors on meta hold no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}; try --device cpu or auto") from None
    return device
