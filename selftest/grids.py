"""End points and spacing of every grid: even in the quantity that names the grid."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from score_sde.samplers import GRIDS
from score_sde.samplers.grids import of_ratios
from score_sde.sde_lib import SDES, Discrete
from score_sde.selftest.rows import Row, Setting, distance, exactly, worst
from score_sde.selftest.textbook import INTERVALS, PROCESSES, Process

EVEN: dict[str, Callable[[Process, np.ndarray], np.ndarray]] = {
    "uniform": lambda book, t: t,
    "quadratic": lambda book, t: np.sqrt(t),
    "log_snr": lambda book, t: book.log_snr,
    "karras": lambda book, t: (book.sigma / book.alpha) ** (1 / 7),
    "edm": lambda book, t: (book.sigma / book.alpha) ** (1 / 7),
    "flow": lambda book, t: book.sigma / (book.alpha + book.sigma),
    "angle": lambda book, t: np.arctan(book.sigma / book.alpha),
    "logistic": lambda book, t: mixed(np.log(book.sigma / book.alpha)),
}
"""(process, times) -> the quantity that a grid spaces evenly."""

TO_THE_DATA = {"edm"}
"""Grids whose last time is the data time, sigma = 0; the times before it are evenly spaced."""

LEVELS: dict[str, Callable[[int, int], list[int]]] = {
    "levels": lambda num, steps: [num // steps * i for i in range(steps, -1, -1)],
    "levels_quadratic": lambda num, steps: [max(i, int(num * i**2 / steps**2)) for i in range(steps, -1, -1)],
}
"""(number of levels, number of steps) -> levels of a grid of whole levels. Song, Meng, Ermon, 2021, appendix D.2."""


def mixed(log_ratio: np.ndarray) -> np.ndarray:
    """Returns the distribution function of the grid ``logistic`` in 20 steps, truncated at the end points.

    The data have unit standard deviation and many dimensions.
    """
    fraction, bump = 0.8 * math.sqrt(15 / 20), 1 / (1 + 1.4 * np.exp(-log_ratio))
    logistic, uniform = ((values - values[-1]) / (values[0] - values[-1]) for values in (bump, log_ratio))
    mixture: np.ndarray = fraction * logistic + (1 - fraction) * uniform
    return mixture


def check(setting: Setting) -> Iterator[Row]:
    """Checks end points and spacing of every grid under every SDE; times are float64 in every setting."""
    for name in [name for name in GRIDS if name not in LEVELS]:
        spacing, ends = [], []
        for sde_name in [name for name in SDES if name in PROCESSES]:
            sde = SDES[sde_name]()
            low, high = INTERVALS[sde_name]
            for first, last in ((high, low), (0.6 * high, low + 0.1 * (high - low))):
                grid = exactly(GRIDS[name](sde, 20, first, last))
                if name in TO_THE_DATA:
                    ends.append(sde.sigma(grid[-1]).item())
                    grid = grid[:-1]
                times = grid.numpy()
                ends += [distance(times[[0, -1]], [first, last]), float(abs(len(times) - 21 + (name in TO_THE_DATA)))]
                if name in EVEN:
                    steps = np.diff(EVEN[name](PROCESSES[sde_name](times), times))
                    spacing.append(distance(steps, steps.mean(), abs(steps.mean())))
                spacing.append(float((np.diff(times) >= 0).sum()))
        yield Row(f"grid {name}: end points", worst(ends), 0.0)
        yield Row(f"grid {name}: evenly spaced", worst(spacing), 1e-9)
    ratios, errors = np.geomspace(49.0, 0.02, 9), []
    for sde in (SDES["vesde"](sigma_max=49.0), SDES["edm"](sigma_max=49.0)):
        noisy, data = of_ratios(sde, [*ratios, 0.0])[:-1], of_ratios(sde, [*ratios, 0.0])[-1:]
        errors += [distance(exactly(sde.sigma(noisy)).numpy() / ratios, np.ones(9)), sde.sigma(data).item()]
    yield Row("times of given noise levels", worst(errors), 1e-9)
    chains = [sde for sde in (make() for make in SDES.values()) if isinstance(sde, Discrete)]
    for name, form in LEVELS.items():
        found = worst(
            distance(GRIDS[name](sde, steps), form(int(sde.t_max), steps)) for sde in chains for steps in (1, 4, 8)
        )
        yield Row(f"grid {name}: whole levels", found, 0.0)
