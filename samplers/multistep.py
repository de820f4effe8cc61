"""Solvers that remember: a polynomial through the values of earlier times, integrated over the next move.

One class is all of them. A form says what the values are, a clock what the polynomial is in (``samplers/forms.py``),
an order how many values it goes through; all coefficients are worked out when the grid is known, for unequal moves, and
a move is then one sum. The published methods are its rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from samplers.forms import Coordinates
from samplers.loop import Draw, Step
from sde_lib import SDE, Gaussian
from sde_lib.denoiser import Denoiser


Slope = Callable[[Coordinates, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(coordinates, integral of pace, start, end) -> what a slope of one value a move adds to u."""


class Move(NamedTuple):
    """Coefficients of one move in x, and of the data at the end.

    value: (a, b) of the value a (x - shift) + b (x0 - mean), where shift = alpha mean.
    keep: of x - shift.
    weights: of the values, the latest first; those of a correction of the move before are in them.
    shift: alpha_s, by which the mean comes back.
    noise: standard deviation of what is added.
    mend: of the values, in the data if the trajectory ends here.
    """

    value: tuple[float, float]
    keep: float
    weights: list[float]
    shift: tuple[float, float]
    noise: float
    mend: list[float]


class Multistep(Step):
    """Variable-step Adams method in a form and a clock, predictor alone or with a corrector that costs nothing.

        u_s = u_t + sum_j w_j value_j,    w_j the integral of pace times the j-th Lagrange polynomial of the last nodes

    With ``correct``, the value found at the end of a move makes the polynomial one of a higher degree, and what that
    changes in the move already made is added: order + 1 for one evaluation a move. The first moves have fewer values to
    go through, and lower orders. N moves cost N evaluations.

    Args:
        form, clock: keys of ``FORMS`` and ``CLOCKS``.
        order: values that the predictor goes through, 1 to 6.
        correct: whether each evaluation mends the move before it.
        eta: share of the reverse SDE's noise: 0 follows the probability flow, 1 samples the reverse SDE.
        gaussian: first guess of the data: mean and standard deviation of the form ``residual``; default N(0, I).
    Raises: ValueError for an unknown name or a value out of range.
    References: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, section III.5; Zhang, Chen,
        2023, arXiv:2204.13902.
    """

    def __init__(
        self,
        sde: SDE,
        form: str,
        clock: str,
        order: int,
        correct: bool = False,
        eta: float = 0.0,
        gaussian: Gaussian | None = None,
    ) -> None:
        if not 1 <= order <= 6:
            raise ValueError(f"order {order}: need 1 to 6")
        if not eta >= 0:
            raise ValueError(f"eta {eta}: need the share of the reverse SDE's noise, 0 or more")
        self.sde, self.order, self.correct, self.gaussian = sde, order, correct, gaussian
        self.coordinates = Coordinates(sde, form, clock, gaussian.std if gaussian else 1.0, eta)
        self.moves: dict[float, Move] = {}
        self.past: list[Tensor] = []

    def reset(self, times: list[float]) -> None:
        self.past, self.moves = [], dict(zip(times, self.plan(times), strict=True))

    def plan(self, times: list[float]) -> list[Move]:
        """The coefficients of the moves from each time to the next, and of the end at the last."""
        coordinates, num, most = self.coordinates, len(times) - 1, self.order + 1
        alpha = np.array([self.sde.at(t).alpha for t in times])
        ratio = np.exp([-0.5 * self.sde.at(t).log_snr for t in times])
        orders = np.minimum(self.orders(num), 1 + np.arange(num))
        weights, changes = np.zeros((num + 1, most)), np.zeros((num + 1, most))
        weights[:-1] = self.integrals(ratio, np.arange(num), orders)
        if self.correct:  # what is seen at the end of a move changes that move
            changes[1:] = self.integrals(ratio, np.arange(1, num + 1), orders + 1)
            changes[1:, 1:] -= weights[:-1, :-1]
        scale, (a, b) = coordinates.scale(ratio), coordinates.weights(ratio)
        slope = 1 - coordinates.form.growth(ratio, coordinates.std)  # dx0/dy where the value stays
        late = np.minimum(1 + np.arange(num + 1), num)
        grown = (alpha * scale)[late]
        noise = np.append(alpha[1:] * coordinates.noise(ratio[:-1], ratio[1:]), 0.0)
        columns = (
            zip((a / alpha).tolist(), b.tolist(), strict=True),
            (grown / (alpha * scale)).tolist(),
            (grown[:, None] * (weights + changes)).tolist(),
            zip(alpha.tolist(), alpha[late].tolist(), strict=True),
            noise.tolist(),
            ((slope * scale)[:, None] * changes).tolist(),
        )
        return [Move(*row) for row in zip(*columns, strict=True)]

    def orders(self, num_moves: int) -> np.ndarray:
        """How many values each move would go through, were the past long enough; (num_moves,)."""
        return np.full(num_moves, self.order)

    def integrals(self, ratio: np.ndarray, latest: np.ndarray, orders: np.ndarray) -> np.ndarray:
        """Weights of the values seen at ``latest`` and before it, as many as ``orders``, in the moves of the grid.

        Shapes: ratio (N + 1,), latest and orders (N,); returns (N, order + 1), 0 where no value counts.
        """
        found = np.zeros((len(orders), self.order + 1))
        for order in np.unique(orders):
            rows = np.flatnonzero(orders == order)
            nodes = ratio[latest[rows, None] - np.arange(order)]
            found[rows, :order] = self.rule(nodes, ratio[rows], ratio[rows + 1])
        return found

    def rule(self, nodes: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """What the value at each node (N, k), the latest first, adds to u from start to end (N,)."""
        return self.coordinates.integrals(nodes, start, end)

    def __call__(self, denoise: Denoiser, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        move = self.moves[t]
        x = self._look(denoise, x, t, move)[0].mul_(move.keep)
        for weight, value in zip(move.weights, self.past):
            x.add_(value, alpha=weight)
        if self.gaussian:
            x.add_(self._mean, alpha=move.shift[1])
        return x.add_(draw(x), alpha=move.noise) if move.noise else x

    def finish(self, denoise: Denoiser, x: Tensor, t: float, draw: Draw) -> Tensor:
        move = self.moves[t]
        x0 = self._look(denoise, x, t, move)[1]
        for weight, value in zip(move.mend if self.correct else [], self.past):
            x0 = torch.add(x0, value, alpha=weight)
        return x0

    def _look(self, denoise: Denoiser, x: Tensor, t: float, move: Move) -> tuple[Tensor, Tensor]:
        """x less its mean, in memory of its own, and x0; their value joins the past."""
        x0 = known = denoise(x, t).x0
        a, b = move.value
        if self.gaussian:
            self._mean = self.gaussian.mean.to(x)
            x, known = x.sub(self._mean, alpha=move.shift[0]), x0 - self._mean
        else:
            x = x.clone()
        self.past = [(known * b).add_(x, alpha=a), *self.past[: self.order + self.correct - 1]]
        return x, x0


class UniPC(Multistep):
    """Unified predictor-corrector: the exponential Adams method with a free corrector, in x0 or eps over log-SNR.

    Of its two kinds B1 and B2 the paper's B(h) reaches only moves that go through two values, whose slope it weighs:

        bh2: half of the integral of pace,    bh1: half of (pace at the end) times the move

    Below 15 moves the order falls towards the last one, as published; with more, that would cap the order at 2.

    Args:
        form: data | noise.
        order: 1 to 4; with the corrector the method has order + 1.
        variant: bh1 | bh2.
    Raises: ValueError for another form, order or variant.
    Reference: Zhao et al., "UniPC", 2023, section 3, algorithms 1, 2. arXiv:2302.04867
    """

    def __init__(self, sde: SDE, form: str = "data", order: int = 3, variant: str = "bh2") -> None:
        if form not in ("data", "noise"):
            raise ValueError(f"form {form!r}: UniPC is for data or noise")
        if not 1 <= order <= 4:
            raise ValueError(f"order {order}: UniPC has orders 1 to 4")
        if variant not in ("bh1", "bh2"):
            raise ValueError(f"variant {variant!r}: need bh1 or bh2")
        super().__init__(sde, form, "log_ratio", order, correct=True)
        self.slope = {"bh1": _by_end, "bh2": _by_mean}[variant]

    def orders(self, num_moves: int) -> np.ndarray:
        left = num_moves - np.arange(num_moves)
        return np.minimum(self.order, left if num_moves < _FEW else self.order)

    def rule(self, nodes: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return _with_slope(self.slope, self.coordinates, nodes, start, end)


class DPMSolverPP(Multistep):
    """DPM-Solver++ multistep, 2M: x0 over log-SNR, its slope weighed by half of the integral.

    Args:
        eta: 0 is DPM-Solver++(2M), 1 is SDE-DPM-Solver++(2M).
    Reference: Lu et al., "DPM-Solver++", 2022, algorithm 2, appendix on SDE solvers. arXiv:2211.01095
    """

    def __init__(self, sde: SDE, eta: float = 0.0) -> None:
        super().__init__(sde, "data", "log_ratio", 2, eta=eta)

    def rule(self, nodes: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return _with_slope(_by_mean, self.coordinates, nodes, start, end)


class DPMSolver(Multistep):
    """DPM-Solver multistep: eps over log-SNR, 3M of third order by the slope's factor that the published code lacks.

    Args:
        order: 1 to 3.
        eta: 0 follows the flow, 1 is SDE-DPM-Solver.
    Reference: Lu et al., "DPM-Solver", 2022, section 3; for several steps, 2211.01095. arXiv:2206.00927
    """

    def __init__(self, sde: SDE, order: int = 3, eta: float = 0.0) -> None:
        super().__init__(sde, "noise", "log_ratio", order, eta=eta)


class Adams(Multistep):
    """The solver of this library: what the first guess leaves of x0, over a bounded angle, each evaluation used twice.

    Args:
        order: of the predictor, 1 to 6; the method has order + 1.
        eta: 0 follows the probability flow, 1 samples the reverse SDE.
        gaussian: first guess of the data; default N(0, I).
    """

    def __init__(self, sde: SDE, order: int = 3, eta: float = 0.0, gaussian: Gaussian | None = None) -> None:
        super().__init__(sde, "residual", "angle", order, True, eta, gaussian)


def _with_slope(
    slope: Slope, coordinates: Coordinates, nodes: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """The exact integrals, but for two nodes with a slope of another weight."""
    if nodes.shape[1] != 2:
        return coordinates.integrals(nodes, start, end)
    mean = coordinates.integrals(start[:, None], start, end)[:, 0]
    clock, first, last = coordinates.clock(nodes), coordinates.clock(start), coordinates.clock(end)
    by = slope(coordinates, mean, start, end) * (last - first) / (clock[:, 0] - clock[:, 1])
    found = np.stack([by, -by], 1)
    found[np.arange(len(nodes)), np.argmax(nodes == start[:, None], 1)] += mean
    return found


def _by_mean(coordinates: Coordinates, mean: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return 0.5 * mean


def _by_end(coordinates: Coordinates, mean: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return 0.5 * coordinates.pace(end) * np.log(end / start)


_FEW = 15
