"""Every random number of a run has an address: seed, purpose and position. Nothing depends on what came before.

So a run that resumes needs no state of a generator, and an example meets the same noise on any number of devices.
"""

import torch
from torch import Tensor

from samplers import Noise
from samplers.noise import random_bits

TRAINING, TIMES, DITHER, HELD_OUT, DEQUANTIZATION, PROBES = range(1, 7)
"""Purposes; 0 is sampling, where a sample's own seed is the position."""


def noise(seed: int, purpose: int, positions: Tensor) -> Noise:
    """Normals for the examples at these positions (B,) int64."""
    return Noise(positions, stream=_stream(seed, purpose))


def uniform(seed: int, purpose: int, positions: Tensor, like: Tensor) -> Tensor:
    """Numbers in (0, 1) shaped as ``like`` (B, *), for the examples at these positions."""
    bits = random_bits(positions.to(like.device), _stream(seed, purpose), 0, 1, like[0].numel())[:, 0]
    bits = bits.movedim(0, 1).flatten(1)[:, : like[0].numel()]
    return ((bits.double() + 0.5) * 2.0**-32).to(torch.float32).reshape(like.shape)


def positions(start: int, num: int, device: torch.device | str = "cpu") -> Tensor:
    """start, ..., start + num - 1."""
    return torch.arange(start, start + num, device=device)


def _stream(seed: int, purpose: int) -> int:
    return (16 * seed + purpose) % 2**32
