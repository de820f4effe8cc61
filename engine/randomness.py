"""Random numbers of a run: functions of seed, purpose and position, without the state of a generator.

A resumed run therefore draws the same numbers, and an example has the same noise on any number of devices.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.configs.default import Train
from score_sde.engine.facts import DataFacts
from score_sde.samplers import Noise
from score_sde.samplers.noise import random_bits
from score_sde.sde_lib import SDE, TimestepSampler, stratified
from score_sde.sde_lib.devices import put
from score_sde.sde_lib.timestep_samplers import GOLDEN_RATIO

TRAINING, DITHER, HELD_OUT, DEQUANTIZATION, PROBES, OBJECTIVE, BOUND, TUNING, LABELS, EDITING = range(1, 11)
"""Purposes; 0 is sampling, where the position is the seed of the sample."""


def noise(seed: int, purpose: int, positions: Tensor) -> Noise:
    """Returns normal noise for the examples at these positions (B,) int64."""
    return Noise(positions, stream=_stream(seed, purpose))


def uniform(seed: int, purpose: int, positions: Tensor, like: Tensor) -> Tensor:
    """Returns uniform numbers in (0, 1] with the shape of ``like`` (B, *), for the examples at these positions."""
    bits = random_bits(positions, _stream(seed, purpose), 0, 1, like.shape[1:].numel(), like.device)[:, 0]
    bits = bits.movedim(0, 1).flatten(1)[:, : like.shape[1:].numel()]
    return ((bits.double() + 0.5) * 2.0**-32).to(torch.float32).reshape(like.shape)


def draw_times(
    step: int, like: Tensor, sde: SDE, timestep_sampler: TimestepSampler, first: int = 0, total: int | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the times of the examples ``like`` (B, *) and their corrections; both (B, 1, ..., 1).

    The times are stratified: each example of the global batch has one of equally many quantile intervals of the
    timestep sampler. The intervals shift by the golden ratio from step to step, so that the times are evenly spread.

    Args:
        first: index of the first of these examples in the global batch.
        total: number of examples in the global batch; None for B.
    """
    u = stratified(step * GOLDEN_RATIO % 1, first, len(like), total or len(like))
    return timestep_sampler(sde, put(u, like.device).reshape(-1, *[1] * (like.ndim - 1)))


def dithers(settings: Train, facts: DataFacts) -> bool:
    """Returns whether levels get uniform noise of one level's width before encoding."""
    return settings.dequantize and facts.levels > 0


def dither(seed: int, where: Tensor, like: Tensor) -> Tensor:
    """Returns uniform noise on [-1/2, 1/2] for the examples at these positions (N,), each with the shape of like[0]."""
    return uniform(seed, DITHER, where, like.expand(len(where), *like.shape[1:])) - 0.5


def kept(seed: int, where: Tensor, dropout: float) -> Tensor:
    """Returns which examples at these positions keep their condition, bool (N,): a fraction 1 - ``dropout``."""
    return uniform(seed, LABELS, where, torch.empty(len(where), 1))[:, 0] > dropout


class Ahead:
    """Random numbers of successive batches, drawn for several small batches at once to save overhead.

    Args:
        draw: maps positions (N,) to rows (N, *).
        num: rows per batch.
        stride: distance between the positions of successive batches, at least num.
        numbers: largest number of entries drawn at once, unless one batch has more.
    """

    def __init__(self, draw: Callable[[Tensor], Tensor], num: int, stride: int, numbers: int = 1 << 16) -> None:
        self.draw, self.num, self.stride, self.numbers = draw, num, stride, numbers
        self._batches: dict[int, Tensor] = {}

    def __call__(self, start: int) -> Tensor:
        """Returns the rows of positions start, ..., start + num - 1."""
        if start not in self._batches:
            size = sum(batch.numel() for batch in self._batches.values()) // max(len(self._batches), 1)
            starts = range(start, start + self.stride * (max(1, self.numbers // size) if size else 1), self.stride)
            rows = self.draw(torch.cat([positions(first, self.num) for first in starts]))
            self._batches = dict(zip(starts, rows.split(self.num), strict=True))
        return self._batches[start]


def seed_dropout(seed: int, position: int, device: torch.device) -> None:
    """Seeds the dropout masks of a batch with the seed and the position of its first example.

    On the CPU it seeds the default generator alone: ``torch.manual_seed`` takes 30 times as long.
    """
    number = (seed + position) % 2**63
    if device.type == "cpu":
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


def positions(start: int, num: int) -> Tensor:
    """Returns the integers start, ..., start + num - 1."""
    return torch.arange(start, start + num)


def _stream(seed: int, purpose: int) -> int:
    return (16 * seed + purpose) % 2**64
