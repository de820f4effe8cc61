"""Every grid is even in the quantity of its name, and begins and ends where it should."""

from collections.abc import Callable, Iterator

import numpy as np

from engine.checks.rows import Row, Setting, distance, exactly, worst
from engine.checks.textbook import INTERVALS, PROCESSES, Process
from samplers import GRIDS
from sde_lib import SDES

EVEN: dict[str, Callable[[Process, np.ndarray], np.ndarray]] = {
    "uniform": lambda book, t: t,
    "quadratic": lambda book, t: np.sqrt(t),
    "log_snr": lambda book, t: book.log_snr,
    "karras": lambda book, t: (book.sigma / book.alpha) ** (1 / 7),
}
"""What is evenly spaced."""


def check(setting: Setting) -> Iterator[Row]:
    """Ends and spacing of every grid under every SDE; times are float64 whatever the setting."""
    for name, grid in GRIDS.items():
        spacing, ends = [], []
        for sde_name in [name for name in SDES if name in PROCESSES]:
            sde = SDES[sde_name]()
            times = exactly(grid(sde, 20)).numpy()
            low, high = INTERVALS[sde_name]
            ends += [distance(times[[0, -1]], [high, low]), float(abs(len(times) - 21))]
            inner = exactly(grid(sde, 4, start=0.6 * high, end=0.1 * high)).numpy()
            ends.append(distance(inner[[0, -1]], [0.6 * high, 0.1 * high]))
            for t in (times, inner):
                values = EVEN[name](PROCESSES[sde_name](t), t) if name in EVEN else t
                steps = np.diff(values)
                spacing.append(distance(steps, steps.mean(), abs(steps.mean())) if name in EVEN else 0.0)
            spacing.append(float((np.diff(times) >= 0).sum()))
        yield Row(f"grid {name}: ends", worst(ends), 0.0)
        yield Row(f"grid {name}: evenly spaced", worst(spacing), 1e-9)
