"""Refinement of a solver until its mean error is small, with known errors."""

import math

import numpy as np
import pytest
from scipy import stats

from score_sde.engine.convergence import MOST, MeanError, refine
from score_sde.sde_lib.adams_pece import AdamsPECE
from score_sde.sde_lib.runge_kutta import DormandPrince

NATS = np.linspace(-2.0, 2.0, 8)


def second_order(solver):
    """Errors of 100 / n^2 nats, the same for all examples."""
    return NATS + 100 / solver.evaluations**2


def test_the_coarsest_solver_within_the_tolerance_is_chosen():
    """Half of the standard error of 100 examples is 0.065: 100 / 32^2 is above it, 100 / 64^2 below."""
    found = refine(second_order, AdamsPECE(32), math.inf, 100, 1)
    assert found.tolerance == pytest.approx(0.5 * NATS.std(ddof=1) / 10)
    assert [solver.evaluations for solver in found.solvers] == [32, 64, 128]
    assert found.converged == 1
    assert found.differences(0) == pytest.approx(100 / 32**2 - 100 / 128**2)


def test_a_smaller_spread_lowers_the_tolerance():
    assert refine(second_order, AdamsPECE(32), 0.5, 100, 1).tolerance == pytest.approx(0.5 * 0.5 / 10)
    assert refine(second_order, AdamsPECE(32), 0.0, 100, 64).tolerance == pytest.approx(64e-4)


def test_a_solver_that_does_not_converge_ends_at_the_most_evaluations():
    """The last solver is the reference, so the previous one is used."""
    found = refine(lambda solver: NATS + math.log2(solver.evaluations), AdamsPECE(32), math.inf, 100, 1)
    assert found.solvers[-1].evaluations == MOST
    assert found.converged == len(found.solvers) - 2
    adaptive = refine(lambda solver: NATS + math.log10(solver.rtol), DormandPrince(1e-3, 1e-3), math.inf, 100, 1)
    assert len(adaptive.solvers) == 2


def test_the_mean_error_has_the_interval_of_student():
    differences = np.array([0.1, -0.2, 0.4, 0.3])
    low, high = stats.t.interval(0.95, 3, differences.mean(), stats.sem(differences))
    found = MeanError.of(differences)
    assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx((low, high))
    assert found.bound == pytest.approx(max(abs(low), abs(high)))
    assert MeanError.of(np.array([-0.3])).bound == pytest.approx(0.6)
