"""The error of a solver on a few examples, against ever finer ones, and the coarsest solver that is accurate enough."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from score_sde.sde_lib.velocity import Solver

FRACTION = 0.5
"""Largest mean error of a converged solver, over the standard error of the mean over the data."""

PER_DIMENSION = 1e-4
"""Nats a dimension. A smaller mean error counts as converged: it is beyond the digits that are printed."""

MOST = 1024
"""Evaluations of a reference. Finer ones are not tried."""


class MeanError(NamedTuple):
    """Mean of differences (k,) in nats, and the half width of its 95 % interval; for k = 1 the difference itself."""

    mean: float
    margin: float

    @classmethod
    def of(cls, differences: np.ndarray) -> "MeanError":
        mean, num = float(differences.mean()), len(differences)
        if num < 2:
            return cls(mean, abs(mean))
        return cls(mean, float(stdtrit(num - 1, 0.975) * differences.std(ddof=1) / math.sqrt(num)))

    @property
    def bound(self) -> float:
        """Largest size of the mean that the interval allows."""
        return abs(self.mean) + self.margin


class Refinement(NamedTuple):
    """Log-densities of the same examples by ever finer solvers.

    solvers: at least two, each the refined one of the last.
    nats: (k,) of each solver.
    tolerance: nats, the mean error of a converged solver.
    """

    solvers: list[Solver]
    nats: list[np.ndarray]
    tolerance: float

    def differences(self, number: int) -> np.ndarray:
        """Errors (k,) in nats of the solver of this number: positive where it gives too high a density."""
        return self.nats[number] - self.nats[-1]

    @property
    def converged(self) -> int:
        """Number of the coarsest solver within the tolerance; of the last but one, if none is."""
        within = (i for i in range(len(self.nats) - 1) if MeanError.of(self.differences(i)).bound <= self.tolerance)
        return next(within, len(self.nats) - 2)


def refine(solve: Callable[[Solver], np.ndarray], solver: Solver, spread: float, num: int, size: int) -> Refinement:
    """Refine a solver until two in a row agree on the mean of a few examples.

    A solver that adapts its steps is refined once, for float32 allows no smaller tolerances than that.

    Args:
        solve: from a solver to the log-densities of the examples, in nats.
        spread: standard deviation of a log-density over the data, in nats. Errors and random probes only raise it, so
            a smaller one of the solves replaces it.
        num: examples of the data.
        size: dimensions of an example.
    """
    solvers, nats = [solver], [solve(solver)]
    while True:
        solvers.append(solvers[-1].refined())
        nats.append(solve(solvers[-1]))
        spread = min(spread, float(nats[-1].std(ddof=1))) if len(nats[-1]) > 1 else 0.0
        found = Refinement(solvers, nats, max(FRACTION * spread / math.sqrt(num), PER_DIMENSION * size))
        if MeanError.of(nats[-2] - nats[-1]).bound <= found.tolerance:
            return found
        if solver.adaptive or getattr(solvers[-1], "evaluations", MOST) >= MOST:
            return found
