"""Linear multistep exponential integrators: a polynomial through earlier values, integrated over the next step.

One class covers all of them. An integrand defines the values, an integration variable the argument of the polynomial
(``samplers/integrands.py``), and an order the number of values. All coefficients are computed when the grid is known,
for steps of unequal size; a step is then one weighted sum. The methods of the literature are parameter settings of this
class (``samplers/published.py``), and so is the default sampler (``samplers/adams.py``).
"""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from score_sde.samplers.integrands import Coordinates
from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE, Gaussian
from score_sde.sde_lib.adams_pece import amplification
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.process import Draw


class Move(NamedTuple):
    """Coefficients of one step in x.

    value: (a, b) of the value a (x - shift) + b (x0 - mean), where shift = alpha mean.
    keep: coefficient of x - shift.
    weights: coefficients of the values, latest first; they include the correction of the step before.
    shift: alpha at both ends of the step; alpha mean is subtracted at the start and added at the end.
    noise: standard deviation of the added noise.
    """

    value: tuple[float, float]
    keep: float
    weights: list[float]
    shift: tuple[float, float]
    noise: float


class Multistep(Step):
    """Variable-step Adams method in an integrand and an integration variable, with an optional free corrector.

        u_s = u_t + sum_j w_j value_j,    w_j the integral of pace times the j-th Lagrange polynomial of the last nodes

    With ``correct``, the value at the end of a step raises the degree of the polynomial, and the resulting change of
    the completed step is added: order + 1 for one evaluation per step. The first steps have fewer values and lower
    orders. N steps cost N evaluations.

    Attributes:
        most_amplified: bound on the amplification of errors of the values, relative to an even grid
            (``sde_lib.adams_pece.amplification``); steps above it interpolate fewer values.

    Args:
        integrand: quantity that the polynomials interpolate, a key of ``INTEGRANDS``.
        integration_variable: variable of the polynomials, a key of ``INTEGRATION_VARIABLES``.
        order: number of values that the predictor interpolates, 1 to 6.
        correct: whether each evaluation also corrects the step before it, which raises the order by one.
        eta: noise relative to the reverse SDE, 0 or more: 0 follows the probability flow, 1 samples the reverse SDE.
        gaussian: moment-matched Gaussian of the data, N(0, I) by default. ``velocity`` and ``residual`` use its
            standard deviation, ``residual`` also its mean.
    Raises: ValueError for an unknown name or a value out of range.
    References: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, section III.5; Zhang, Chen,
        2023, arXiv:2204.13902.
    """

    grid, num_steps = "log_snr", 20
    most_amplified = math.inf

    def __init__(
        self,
        sde: SDE,
        integrand: str = "data",
        integration_variable: str = "log_ratio",
        order: int = 2,
        correct: bool = False,
        eta: float = 0.0,
        gaussian: Gaussian | None = None,
    ) -> None:
        if not 1 <= order <= 6:
            raise ValueError(f"order {order}: need 1 to 6")
        if not eta >= 0:
            raise ValueError(f"eta {eta}: need the noise relative to the reverse SDE, 0 or more")
        self.sde, self.order, self.correct, self.gaussian = sde, order, correct, gaussian
        self.coordinates = Coordinates(sde, integrand, integration_variable, gaussian.std if gaussian else 1.0, eta)
        # the mean has no effect on other integrands
        self.centre = gaussian.mean if gaussian is not None and integrand == "residual" else None
        self.moves: dict[float, Move] = {}
        self.past: list[Tensor] = []

    def reset(self, times: list[float]) -> None:
        self.past, self.moves = [], dict(zip(times, self.plan(times), strict=True))

    def plan(self, times: list[float], counts: tuple[np.ndarray, np.ndarray] | None = None) -> list[Move]:
        """Coefficients of the steps from each time to the next; the last entry has zero length and only corrects.

        Args:
            counts: number of values for each prediction and each correction; default ``counts(times)``.
        """
        coordinates, num, most = self.coordinates, len(times) - 1, self.order + 1
        alpha, ratio = np.array([self.sde.marginal(t).alpha for t in times]), self._ratio(times)
        predicted, corrected = counts or self.counts(times)
        weights, changes = np.zeros((num + 1, most)), np.zeros((num + 1, most))
        weights[:-1] = self.integrals(ratio, np.arange(num), predicted)
        if self.correct:  # the value at the end of a step changes that step
            changes[1:] = self.integrals(ratio, np.arange(1, num + 1), corrected)
            changes[1:, 1:] -= weights[:-1, :-1]
        scale, (a, b) = coordinates.scale(ratio), coordinates.weights(ratio)
        late = np.minimum(1 + np.arange(num + 1), num)
        grown = (alpha * scale)[late]
        noise = np.append(alpha[1:] * coordinates.noise(ratio[:-1], ratio[1:]), 0.0)
        columns = (
            zip((a / alpha).tolist(), b.tolist(), strict=True),
            (grown / (alpha * scale)).tolist(),
            (grown[:, None] * (weights + changes)).tolist(),
            zip(alpha.tolist(), alpha[late].tolist(), strict=True),
            noise.tolist(),
        )
        return [Move(*row) for row in zip(*columns, strict=True)]

    def orders(self, num_moves: int) -> np.ndarray:
        """Number of values for each step if the history is long enough; (num_moves,)."""
        return np.full(num_moves, self.order)

    def counts(self, times: list[float]) -> tuple[np.ndarray, np.ndarray]:
        """Number of values for the prediction and for the correction of each step, as available and within the bound.

        Shapes: times N + 1; returns twice (N,).
        """
        ratio, moves = self._ratio(times), np.arange(len(times) - 1)
        most = np.minimum(self.orders(len(moves)), 1 + moves)
        return self._within(ratio, moves, most, 0), self._within(ratio, moves + 1, most + 1, 1)

    def _within(self, ratio: np.ndarray, latest: np.ndarray, counts: np.ndarray, ahead: int) -> np.ndarray:
        """The largest counts, at most the given ones, whose integrals amplify errors within the bound; (N,)."""
        for count in range(counts.max(initial=1) if self.most_amplified < math.inf else 1, 1, -1):
            moves = np.flatnonzero(counts == count)
            above = amplification(self._integrals(ratio, latest, moves, count), ahead) > self.most_amplified
            counts = counts - np.isin(np.arange(len(counts)), moves[above])
        return counts

    def _ratio(self, times: list[float]) -> np.ndarray:
        return np.exp([-0.5 * self.sde.marginal(t).log_snr for t in times])

    def integrals(self, ratio: np.ndarray, latest: np.ndarray, orders: np.ndarray) -> np.ndarray:
        """Weights of the values at ``latest`` and before it, as many as ``orders``, for the steps of the grid.

        Shapes: ratio (N + 1,), latest and orders (N,); returns (N, order + 1), 0 for values that are not used.
        """
        found = np.zeros((len(orders), self.order + 1))
        for order in np.unique(orders):
            moves = np.flatnonzero(orders == order)
            found[moves, :order] = self._integrals(ratio, latest, moves, order)
        return found

    def _integrals(self, ratio: np.ndarray, latest: np.ndarray, moves: np.ndarray, order: int) -> np.ndarray:
        """As ``integrals``, for the steps with these numbers and one order; (M, order)."""
        nodes = ratio[latest[moves, None] - np.arange(order)]
        return self.rule(nodes, ratio[moves], ratio[moves + 1])

    def rule(self, nodes: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Weights in u(end) - u(start) of the values at the nodes (N, k), latest first; start, end (N,)."""
        return self.coordinates.integrals(nodes, start, end)

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        move = self.moves[t]
        x = self._record(denoise, x, t, move).mul_(move.keep)
        for weight, value in zip(move.weights, self.past):
            x.add_(value, alpha=weight)
        if self.centre is not None:
            x.add_(self._mean, alpha=move.shift[1])
        return x.add_(draw(x), alpha=move.noise) if move.noise else x

    def _record(self, denoise: Denoise, x: Tensor, t: float, move: Move) -> Tensor:
        """x minus its mean, in newly allocated memory; stores its value in the history."""
        known = denoise(x, t).x0
        a, b = move.value
        if self.centre is not None:
            self._mean = self.centre.to(x)
            x, known = x.sub(self._mean, alpha=move.shift[0]), known - self._mean
        else:
            x = x.clone()
        self.past = [(known * b).add_(x, alpha=a), *self.past[: self.order + self.correct - 1]]
        return x
