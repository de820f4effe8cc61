"""Every random number of a run has an address: seed, purpose and position. Nothing depends on what came before.

So a run that resumes needs no state of a generator, and an example meets the same noise on any number of devices.
"""

from collections.abc import Callable

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_sde.engine.facts import DataFacts
from score_sde.samplers import Noise
from score_sde.samplers.noise import random_bits
from score_sde.sde_lib import SDE, TimestepSampler, stratified
from score_sde.sde_lib.devices import put
from score_sde.sde_lib.timestep_samplers import GOLDEN_RATIO

TRAINING, DITHER, HELD_OUT, DEQUANTIZATION, PROBES, OBJECTIVE, BOUND, TUNING, LABELS, EDITING = range(1, 11)
"""Purposes; 0 is sampling, where a sample's own seed is the position."""


def noise(seed: int, purpose: int, positions: Tensor) -> Noise:
    """Normals for the examples at these positions (B,) int64."""
    return Noise(positions, stream=_stream(seed, purpose))


def uniform(seed: int, purpose: int, positions: Tensor, like: Tensor) -> Tensor:
    """Numbers in (0, 1] shaped as ``like`` (B, *), for the examples at these positions."""
    bits = random_bits(positions, _stream(seed, purpose), 0, 1, like.shape[1:].numel(), like.device)[:, 0]
    bits = bits.movedim(0, 1).flatten(1)[:, : like.shape[1:].numel()]
    return ((bits.double() + 0.5) * 2.0**-32).to(torch.float32).reshape(like.shape)


def draw_times(
    step: int, like: Tensor, sde: SDE, law: TimestepSampler, first: int = 0, total: int | None = None
) -> tuple[Tensor, Tensor]:
    """Times of examples shaped as ``like`` (B, *), and their corrections; both (B, 1, ..., 1).

    One time in each of as many equal shares of the law as the global batch has examples; the shares move on by the
    golden ratio from step to step, so that all times are visited evenly.

    Args:
        first: number of the first of these examples in the global batch.
        total: examples in the global batch; None if these are all.
    """
    u = stratified(step * GOLDEN_RATIO % 1, first, len(like), total or len(like))
    return law(sde, put(u, like.device).reshape(-1, *[1] * (like.ndim - 1)))


def dithers(config: ConfigDict, facts: DataFacts) -> bool:
    """Whether levels get uniform noise of one level's width before they are encoded."""
    return config.train.dequantize and facts.levels > 0


def dither(seed: int, where: Tensor, like: Tensor) -> Tensor:
    """Noise uniform on [-1/2, 1/2] for the examples at these positions (N,), each shaped as ``like[0]``."""
    return uniform(seed, DITHER, where, like.expand(len(where), *like.shape[1:])) - 0.5


def kept(seed: int, where: Tensor, dropout: float) -> Tensor:
    """Whether the condition of the examples at these positions counts, bool (N,), but for a share ``dropout``."""
    return uniform(seed, LABELS, where, torch.empty(len(where), 1))[:, 0] > dropout


class Ahead:
    """Random numbers for batch after batch, made for several at a time: small ones cost more to start than to make.

    Args:
        draw: from the positions (N,) to one row for each, (N, *).
        num: rows that are asked for at a time.
        stride: from the position of one batch to that of the next, at least num.
        numbers: most numbers that are made at a time, if that is more than one batch.
    """

    def __init__(self, draw: Callable[[Tensor], Tensor], num: int, stride: int, numbers: int = 1 << 16) -> None:
        self.draw, self.num, self.stride, self.numbers = draw, num, stride, numbers
        self._batches: dict[int, Tensor] = {}

    def __call__(self, start: int) -> Tensor:
        """The rows of positions start, ..., start + num - 1."""
        if start not in self._batches:
            size = sum(batch.numel() for batch in self._batches.values()) // max(len(self._batches), 1)
            starts = range(start, start + self.stride * (max(1, self.numbers // size) if size else 1), self.stride)
            rows = self.draw(torch.cat([positions(first, self.num) for first in starts]))
            self._batches = dict(zip(starts, rows.split(self.num), strict=True))
        return self._batches[start]


def seed_dropout(seed: int, position: int, device: torch.device) -> None:
    """Make what torch draws for a batch a function of the seed and of the position of its first example.

    ``torch.manual_seed`` takes 30 times as long.
    """
    found = (seed + position) % 2**63
    if device.type == "cpu":
        torch.default_generator.manual_seed(found)
    else:
        torch.manual_seed(found)


def positions(start: int, num: int) -> Tensor:
    """start, ..., start + num - 1."""
    return torch.arange(start, start + num)


def _stream(seed: int, purpose: int) -> int:
    return (16 * seed + purpose) % 2**64
