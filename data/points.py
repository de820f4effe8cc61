"""Two-dimensional toy distributions, centred and about one unit wide."""

from collections.abc import Callable

import numpy as np

from score_sde.data.dataset import SPLITS, Dataset, check_split

SIZES = {"train": 20_000, "test": 2_000}


def draw_points(draw: Callable[[np.random.Generator, int], np.ndarray], split: str, num: int | None = None) -> Dataset:
    """A fixed sample of a distribution; the two splits are independent.

    Args:
        draw: the distribution, (generator, number) -> points.
        num: number of points; None is 20,000 for training and 2,000 for testing.
    Shapes: examples (2,), float32.
    """
    check_split(split)
    num = SIZES[split] if num is None else num
    if num < 1:
        raise ValueError(f"data.num is {num}: give at least 1 point")
    x = draw(np.random.default_rng(SPLITS.index(split)), num)
    return Dataset(x.astype(np.float32), np.arange(num), validation="an independent draw")


def moons(rng: np.random.Generator, num: int) -> np.ndarray:
    """Two interleaved half circles of radius 1, with noise of standard deviation 0.05.

    x = s (cos a - 1/2, sin a - 1/4),     s = 1 or -1,  a uniform in [0, pi]
    """
    angle = rng.uniform(0, np.pi, num)
    sign = rng.choice([-1, 1], num)
    arc = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], axis=1)
    return sign[:, None] * arc + 0.05 * rng.standard_normal((num, 2))


def swiss_roll(rng: np.random.Generator, num: int) -> np.ndarray:
    """A centred spiral of one and a half turns, with noise of standard deviation 0.03.

    x = (a cos a - 2, a sin a - 2 / 3 pi) / 10,     a uniform in [3 pi / 2, 9 pi / 2]
    """
    angle = rng.uniform(1.5 * np.pi, 4.5 * np.pi, num)
    spiral = np.stack([angle * np.cos(angle) - 2, angle * np.sin(angle) - 2 / (3 * np.pi)], axis=1)
    return spiral / 10 + 0.03 * rng.standard_normal((num, 2))


def checkerboard(rng: np.random.Generator, num: int) -> np.ndarray:
    """The dark squares of a 4 x 4 board on [-1, 1]^2: density 1/2 on them, 0 elsewhere."""
    column = rng.integers(4, size=num)
    row = 2 * rng.integers(2, size=num) + column % 2
    return (np.stack([column, row], axis=1) + rng.uniform(size=(num, 2))) / 2 - 1


def eight_gaussians(rng: np.random.Generator, num: int) -> np.ndarray:
    """Eight Gaussians of standard deviation 0.1, evenly spaced on the unit circle."""
    angle = rng.integers(8, size=num) * np.pi / 4
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * rng.standard_normal((num, 2))
