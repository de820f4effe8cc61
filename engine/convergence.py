"""Error of a solver on a few examples against finer solvers, and the coarsest solver that is accurate enough."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from score_sde.sde_lib.velocity import Solver

FRACTION = 0.5
"""Largest mean error of a converged solver, as a fraction of the standard error over the data."""

PER_DIMENSION = 1e-4
"""Mean error in nats per dimension below which a solver counts as converged: less than the printed digits."""

MOST = 1024
"""Largest number of evaluations of a reference solver."""


class MeanError(NamedTuple):
    """Mean of differences (k,) in nats, and the half width of its 95 % interval, |mean| for k = 1."""

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
        """Largest absolute mean in the interval."""
        return abs(self.mean) + self.margin


class Refinement(NamedTuple):
    """Log-densities of the same examples by a sequence of refined solvers.

    solvers: at least two, each the refinement of the one before.
    nats: log-densities (k,) by each solver.
    tolerance: largest mean error of a converged solver, in nats.
    """

    solvers: list[Solver]
    nats: list[np.ndarray]
    tolerance: float

    def differences(self, number: int) -> np.ndarray:
        """Errors (k,) in nats of solver ``number`` against the finest; positive if its density is too high."""
        return self.nats[number] - self.nats[-1]

    @property
    def converged(self) -> int:
        """Number of the coarsest solver within the tolerance; of the last but one, if none is."""
        within = (i for i in range(len(self.nats) - 1) if MeanError.of(self.differences(i)).bound <= self.tolerance)
        return next(within, len(self.nats) - 2)


def refine(solve: Callable[[Solver], np.ndarray], solver: Solver, spread: float, num: int, size: int) -> Refinement:
    """Refines a solver until two in a row agree on the mean of a few examples.

    An adaptive solver is refined only once, because float32 does not support smaller tolerances.

    Args:
        solve: solver -> log-densities (k,) of the examples, in nats.
        spread: standard deviation of the log-density over the data, in nats. Errors and random probes only increase
            it, so a smaller spread in one of the solves replaces it.
        num: number of examples in the data.
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
