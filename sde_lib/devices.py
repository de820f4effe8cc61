"""Asynchronous copies to a device."""

import torch
from torch import Tensor


def put(x: Tensor, device: torch.device) -> Tensor:
    """Copies x to the device, asynchronously except on Metal.

    Metal reads the host's memory later without holding a reference to it.
    """
    return x.to(device, non_blocking=device.type != "mps")


def put_like(x: Tensor, like: Tensor) -> Tensor:
    """Copies x to the device and dtype of another tensor."""
    return x.to(like, non_blocking=like.device.type != "mps")
