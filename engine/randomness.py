"""Every random number of a run has an address: seed, purpose and position. Nothing depends on what came before.

So a run that resumes needs no state of a generator, and an example meets the same noise on any number of devices.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from samplers import Noise
from samplers.noise import random_bits

TRAINING, DITHER, HELD_OUT, DEQUANTIZATION, PROBES = range(1, 6)
"""Purposes; 0 is sampling, where a sample's own seed is the position."""


def noise(seed: int, purpose: int, positions: Tensor) -> Noise:
    """Normals for the examples at these positions (B,) int64."""
    return Noise(positions, stream=_stream(seed, purpose))


def uniform(seed: int, purpose: int, positions: Tensor, like: Tensor) -> Tensor:
    """Numbers in (0, 1] shaped as ``like`` (B, *), for the examples at these positions."""
    bits = random_bits(positions, _stream(seed, purpose), 0, 1, like[0].numel(), like.device)[:, 0]
    bits = bits.movedim(0, 1).flatten(1)[:, : like[0].numel()]
    return ((bits.double() + 0.5) * 2.0**-32).to(torch.float32).reshape(like.shape)


class Ahead:
    """Random numbers for batch after batch, made for several at a time: small ones cost more to start than to make.

    Args:
        draw: from the positions (N,) to one row for each, (N, *).
        numbers: most numbers that are made at a time, if that is more than one batch.
    """

    def __init__(self, draw: Callable[[Tensor], Tensor], numbers: int = 1 << 16) -> None:
        self.draw, self.numbers = draw, numbers
        self._start, self._rows = 0, torch.empty(0)

    def __call__(self, start: int, num: int) -> Tensor:
        """The rows of positions start, ..., start + num - 1."""
        if not self._start <= start <= start + num <= self._start + len(self._rows):
            size = self._rows[:1].numel()
            batches = max(1, self.numbers // (num * size)) if size else 1
            self._start, self._rows = start, self.draw(positions(start, num * batches))
        return self._rows[start - self._start :][:num]


def seed_dropout(seed: int, step: int, device: torch.device) -> None:
    """Make what torch draws in this step a function of seed and step; ``torch.manual_seed`` takes 30 times as long."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed + step)
    else:
        torch.manual_seed(seed + step)


def positions(start: int, num: int) -> Tensor:
    """start, ..., start + num - 1."""
    return torch.arange(start, start + num)


def _stream(seed: int, purpose: int) -> int:
    return (16 * seed + purpose) % 2**64
