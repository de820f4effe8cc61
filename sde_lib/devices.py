"""Copies to a device that the host does not wait for."""

import torch
from torch import Tensor


def put(x: Tensor, device: torch.device) -> Tensor:
    """x on the device.

    The copy is queued, but on Metal, which reads the memory of the host later and does not keep it.
    """
    return x.to(device, non_blocking=device.type != "mps")


def put_like(x: Tensor, like: Tensor) -> Tensor:
    """x on the device and in the dtype of another tensor."""
    return x.to(like, non_blocking=like.device.type != "mps")
