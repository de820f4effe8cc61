"""Brownian noise: each example follows one path, however finely its increments are sampled.

All values are functions of seed and position. ``Brownian`` makes the increments of a grid by repeated halving, with one
new normal per step. ``brownian_path`` evaluates a path at any position as a sum of tent functions, one normal for each
level of halving.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from score_sde.samplers.noise import Noise, normals, random_bits
from score_sde.sde_lib.devices import put_like
from score_sde.sde_lib.process import Draw


class Brownian(Noise):
    """Noise whose first draw in each of N steps is an increment of one Brownian path over the grid.

        z_i = sqrt(N) (W((i + 1) / N) - W(i / N))

    N = m 2^k with m odd: m increments are drawn, and each is halved k times, z -> (z + e) / sqrt(2), (z - e) / sqrt(2)
    with e ~ N(0, I). So grids of N and 2 N steps follow the same path, as 20 and 40 steps do; 20 and 50 steps follow
    different paths. Increments over two steps add up to the increment over both; the increments of one grid are
    independent standard normals. Further draws in a step, and draws outside of steps, are as in ``Noise``.

    Args:
        seeds, stream, start: as ``Noise``.
    Reference: Levy's construction; Li, Wong, Chen, Duvenaud, "Scalable Gradients for Stochastic Differential
        Equations", 2020, section 4, for the tree that is a function. arXiv:2001.01328
    """

    def __init__(self, seeds: Tensor, stream: int = 0, start: int = 0) -> None:
        super().__init__(seeds, stream, start)
        self._halvings: dict[tuple[int, int], Noise] = {}

    def moves(self, num: int) -> Iterator[Draw]:
        """Yields the draw function of each of ``num`` steps."""
        for i in range(num):
            yield _first_from(functools.partial(self.increment, i, num), self)

    def increment(self, i: int, num: int, like: Tensor) -> Tensor:
        """Increment z_i of N = num steps, shaped as ``like`` (B, *)."""
        depth = (num & -num).bit_length() - 1
        z: Tensor = 0.5 ** (0.5 * depth) * self._normals(num >> depth, 0, i >> depth, like)
        for level in range(1, depth + 1):
            below = depth - level
            sign = -1 if i >> below & 1 else 1
            z.add_(self._normals(num >> depth, level, i >> below + 1, like), alpha=sign * 0.5 ** (0.5 * (below + 1)))
        return z

    def _normals(self, num_roots: int, level: int, number: int, like: Tensor) -> Tensor:
        """Normals that halve the increment with this number on a level; at level 0, the increment itself."""
        if (num_roots, level) not in self._halvings:
            stream = (self.stream + (1 << 63) + (num_roots << 8) + level) % (1 << 64)
            self._halvings[num_roots, level] = Noise(self.seeds, stream)
        noise = self._halvings[num_roots, level]
        noise.draw = number
        return noise(like)


def brownian_path(keys: Tensor, position: Tensor, like: Tensor) -> Tensor:
    """Values of Brownian paths W, one key and one position per example, with W(0) = 0 and W(RESOLUTION) ~ N(0, I).

        W(p) = p z_0 + sum_l 2^(-(l + 1) / 2) tent(2^(l - 1) p) z_l,j,    tent(u) = 1 - |2 (u - j) - 1|,    j = floor(u)

    for p = position / RESOLUTION and l = 1 to log2 RESOLUTION.

    Shapes: keys (B,) int64; position (B,) integers 0 to RESOLUTION; returns the shape of ``like`` (B, *).
    Reference: Levy's construction, by Schauder's functions.
    """
    halvings = np.arange(1, RESOLUTION.bit_length())
    fraction = position.cpu().numpy() / RESOLUTION
    at = fraction * 2.0 ** (halvings[:, None] - 1)
    tents = 2.0 ** (-0.5 * (halvings[:, None] + 1)) * (1 - np.abs(2 * (at - np.floor(at)) - 1))
    numbers = np.concatenate([np.zeros((1, len(fraction))), 2 ** (halvings[:, None] - 1) + np.floor(at)])
    weights = put_like(torch.from_numpy(np.concatenate([fraction[None], tents])), like)
    each = keys.cpu().repeat(len(numbers)), 0, numbers.astype(np.int64).ravel(), 1
    size = like.shape[1:].numel()
    z = normals(random_bits(*each, size, like.device)).movedim(0, -2).flatten(-2)[..., :size]
    return torch.einsum("lb,lbd->bd", weights, z.reshape(*weights.shape, size).to(like.dtype)).reshape(like.shape)


RESOLUTION = 1 << 16
"""Number of equal parts into which a Brownian path is divided; it has a value at each of their ends."""


def _first_from(first: Callable[[Tensor], Tensor], others: Noise) -> Callable[[Tensor], Tensor]:
    """Draw function that calls ``first`` once and ``others`` from then on."""
    ahead = iter([first])
    return lambda like: next(ahead, others)(like)
