"""ODE solver with a fixed number of evaluations: Adams' predictor-corrector method."""

import functools

import numpy as np
import torch
from torch import Tensor

from score_sde.sde_lib.devices import put_like
from score_sde.sde_lib.nodes import nested
from score_sde.sde_lib.velocity import Solution, Velocity


class AdamsPECE:
    """Adams' multistep method on given nodes, with each evaluation shared by the corrector and the next predictor.

    A polynomial through the last ``order`` velocities predicts the state at the next node. The velocity there extends
    the polynomial, which corrects the step: order + 1 for one evaluation per step. The rates do not affect the path, so
    their integrals are computed from a spline through all nodes, or a subset of them.

    Args:
        evaluations: number of evaluations, at least 2: one at each node, both ends included.
        traces: number of nodes with rates, both ends included; 0: all.
        order: order of the predictor, at least 1; None: 2 below 24 evaluations, else 3, as measured on mixtures and
            networks by ``benchmarks/likelihood.py``.
        edge: fraction of the nodes close to the data end, in [0, 1), for data with structure as fine as the noise at
            the start of the flow, such as data on levels without added noise.
    Raises: ValueError for values out of range.
    Reference: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, section III.5; for the
        double use of an evaluation, Zhao et al., "UniPC", 2023. arXiv:2302.04867
    """

    adaptive = False

    def __init__(self, evaluations: int = 32, traces: int = 0, order: int | None = None, edge: float = 0.0) -> None:
        if evaluations < 2:
            raise ValueError(f"evaluations {evaluations}: need at least 2, one at each end")
        if traces != 0 and not 2 <= traces <= evaluations:
            raise ValueError(f"traces {traces}: need 0 (all), or 2 to {evaluations}, the number of evaluations")
        order = (2 if evaluations < 24 else 3) if order is None else order
        if order < 1:
            raise ValueError(f"order {order}: need at least 1")
        if not 0 <= edge < 1:
            raise ValueError(f"edge {edge}: need a fraction of the nodes, in [0, 1)")
        self.edge = edge
        self.evaluations, self.traces, self.order = evaluations, traces or evaluations, order

    def __str__(self) -> str:
        return f"{self.evaluations} evaluations"

    def refined(self) -> "AdamsPECE":
        """Returns a solver with twice the evaluations and twice the traces."""
        return AdamsPECE(2 * self.evaluations, 2 * self.traces, edge=self.edge)

    def __call__(self, velocity: Velocity, u: Tensor, start: float, end: float) -> Solution:
        """Integrates u (B, *) from the angle ``start`` to ``end``, in either order, both in (0, pi / 2)."""
        low, high = sorted((start, end))
        angles, marked = nested(low, high, self.evaluations, self.traces, self.edge)
        if start > end:
            angles, marked = angles[::-1], self.evaluations - 1 - marked

        predicted, past, rates = u, [], []
        for i in range(self.evaluations):
            rate, found = velocity(angles[i].item(), predicted, slice(None), i in marked)
            past.append(rate)
            if i in marked:
                rates.append(found)
            if i > 0:
                u = _move(u, past, angles[: i + 1], self.order + 1, angles[i - 1], angles[i], 1)
            if i + 1 < self.evaluations:
                predicted = _move(u, past, angles[: i + 1], self.order, angles[i], angles[i + 1], 0)
            past = past[-self.order :]
        velocity.read(torch.empty(0, dtype=torch.bool, device=u.device))
        weights = spline_weights(np.sort(angles[marked]))
        weights = weights if start < end else -weights[::-1]
        integrals = torch.einsum("n,nbk->bk", put_like(torch.from_numpy(weights.copy()), u), torch.stack(rates))
        counts = torch.full((len(u),), 1, dtype=torch.int64, device=u.device)
        return Solution(u, integrals, self.evaluations * counts, len(marked) * counts)


def amplification(weights: np.ndarray, ahead: int) -> np.ndarray:
    """Amplification of errors of the values by integration weights, relative to evenly spaced values.

        (sum |w| / |sum w|) / (the same ratio for as many evenly spaced values)

    It grows with the ratio of a step to the gaps before it, and faster for more values. For gaps that grow by a factor
    of 1.5 it is 1.25, 1.9 and 3.9 for predictions through 2, 3 and 4 values.

    Args:
        ahead: 0 for a prediction, with its last value at the start of the step; 1 for a correction, at its end.
    Shapes: weights (*, k); returns (*).
    """
    return _enlarged(weights) / _enlarged_by_even(weights.shape[-1], ahead)


MOST_AMPLIFIED = 2.1
"""Largest amplification in a step; above it the step uses fewer values. Measured on mixtures and networks."""


def _enlarged(weights: np.ndarray) -> np.ndarray:
    factor: np.ndarray = np.abs(weights).sum(-1) / np.abs(weights.sum(-1))
    return factor


@functools.cache
def _enlarged_by_even(count: int, ahead: int) -> float:
    nodes = np.arange(count, dtype=np.float64) - count + 1 + ahead
    return float(_enlarged(integration_weights(nodes, 0.0, 1.0)))


def _move(
    u: Tensor, past: list[Tensor], angles: np.ndarray, order: int, start: float, end: float, ahead: int
) -> Tensor:
    """Adds to u the integral from start to end of the polynomial through the last ``order`` velocities.

    The polynomial uses fewer velocities if the weights amplify their errors. On the way from the data the gaps grow by
    large factors. Differences over the first gaps are mostly rounding, which a long step amplifies.
    """
    for num in range(min(order, len(past)), 0, -1):
        weights = integration_weights(angles[-num:], start, end)
        if amplification(weights, ahead) <= MOST_AMPLIFIED:
            break
    return u + sum((w * rate for w, rate in zip(weights.tolist(), past[-num:], strict=True)), torch.zeros_like(u))


def integration_weights(nodes: np.ndarray, start: float, end: float) -> np.ndarray:
    """Weights of the values at the nodes in the integral of their polynomial from start to end.

    They are exact for all monomials; the linear system is well conditioned in units of the interval.
    """
    position = (nodes - start) / (end - start)
    powers = np.arange(len(nodes))
    return (end - start) * np.linalg.solve(position[None, :] ** powers[:, None], 1 / (powers + 1))


_GROWTH = 4.0  # largest ratio of successive gaps within one spline


def spline_weights(nodes: np.ndarray) -> np.ndarray:
    """Weights of values at increasing nodes in the integral of their spline.

    The spline is quintic, or cubic for fewer than twelve nodes. The first gaps use the trapezoidal rule as long as the
    next gap is much larger, for the reason given in ``_move``.
    """
    gaps = np.diff(nodes)
    first = 1 + np.flatnonzero(gaps[1:] > _GROWTH * gaps[:-1]).max(initial=-1)
    trapezoids = 0.5 * (np.append(gaps[:first], 0) + np.append(0, gaps[:first]))
    inner = nodes[first:]
    from scipy.interpolate import make_interp_spline  # slow to import; only likelihoods need it

    degree = 5 if len(inner) >= 12 else min(3, len(inner) - 1)
    spline = make_interp_spline(inner, np.eye(len(inner)), degree).integrate(inner[0], inner[-1])
    weights: np.ndarray = np.append(np.zeros(first), spline) + np.append(trapezoids, np.zeros(len(nodes) - first - 1))
    return weights
