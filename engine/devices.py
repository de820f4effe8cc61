"""Device and threads of a command."""

import math

import torch
from torch import nn

from score_sde.configs.default import Config
from score_sde.engine import ranks

THREADS = torch.get_num_threads()
"""Default number of CPU threads of PyTorch: OMP_NUM_THREADS, or the number of cores."""


LARGE = 50_000_000
"""Parameters times positions of a network above which a second thread saves time: see docs/scaling.md."""


def set_threads(config: Config, shape: tuple[int, ...], network: nn.Module | None = None) -> None:
    """Sets the number of CPU threads, on which the last digits of sums depend.

    By default it is one, or ``THREADS`` for a network with ``LARGE`` or more parameters times positions.

    Args:
        shape: shape of an example.
        network: the network; None before it is built.
    """
    parameters = sum(p.numel() for p in network.parameters()) if network else 0
    large = parameters * math.prod(shape[1:]) >= LARGE
    torch.set_num_threads(config.threads or (THREADS if large else 1))


def make_device(name: str) -> torch.device:
    """Returns the device of a name; auto is an accelerator if available, else the CPU.

    A name without an index, such as cuda, gives each process on a machine an accelerator of its own.

    Raises: ValueError for an unknown name, or a device that this machine lacks.
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
