"""Adaptive ODE solver with error control for each example."""

from collections.abc import Sequence

import torch
from torch import Tensor

from score_sde.sde_lib.devices import put
from score_sde.sde_lib.velocity import NotConvergedError, Rate, Solution, Velocity

State = tuple[Tensor, Tensor]


class DormandPrince:
    """Dormand and Prince's Runge-Kutta pair of orders 5 and 4, with separate steps for each example.

    The steps of an example depend on its own error, so its result is independent of the batch. Finished examples are
    no longer evaluated. The end point and each integral meet the tolerance separately. A step is at most twice the
    previous one, because the error estimate of a step that skips all structure is close to 0.

    Args:
        rtol, atol: tolerances, relative and absolute, positive.
    Raises: ValueError for a tolerance that is not positive or, when called, beyond the dtype of u, as ``check_reach``;
        NotConvergedError with example and position.
    Reference: Dormand, Prince, "A Family of Embedded Runge-Kutta Formulae", 1980.
    """

    adaptive = True

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5) -> None:
        self.rtol, self.atol = check_tolerances(rtol, atol)

    def __str__(self) -> str:
        return f"rtol {self.rtol:g}, atol {self.atol:g}"

    def refined(self) -> "DormandPrince":
        """Returns a solver with a tenth of the tolerances."""
        return type(self)(0.1 * self.rtol, 0.1 * self.atol)

    def __call__(self, velocity: Velocity, u: Tensor, start: float, end: float) -> Solution:
        """Integrates u (B, *) along the velocity from the angle ``start`` to ``end``, in either order."""
        check_reach(self.rtol, self.atol, u.dtype)
        span, indices = end - start, torch.arange(len(u), device=u.device)
        progress = torch.zeros(len(u), dtype=torch.float64, device=u.device)  # fraction of the path, 0 to 1
        step, nodes = torch.full_like(progress, 0.05), progress.new_tensor(NODES)[:, None]
        calls, asked = torch.empty_like(indices), 1

        def ahead(places: Tensor) -> Sequence[Rate]:
            return velocity.ahead((start + span * places).reshape(len(places), -1, *[1] * (u.ndim - 1)), u)

        first = ahead(progress[None])[0](u, indices)
        state = u, torch.zeros_like(first[1])
        result = torch.empty_like(state[0]), torch.empty_like(state[1])
        for _ in range(_MAX_STEPS):
            step = torch.minimum(step, 1 - progress)
            velocities, rates, move = [first[0]], [first[1]], tuple(_rowwise(span * step, part) for part in state)
            for rate, weights in zip(ahead(progress + nodes * step), STAGES, strict=True):
                there = _combine(state[0], move[0], weights, velocities)
                for found, part in zip((velocities, rates), rate(there, indices), strict=True):
                    found.append(part)
            asked += len(NODES)
            proposal = there, _combine(state[1], move[1], STAGES[-1], rates[:-1])
            error = self._error(state, proposal, span * step, (velocities, rates))
            accept = error <= 1
            progress = torch.where(accept, progress + step, progress)
            state, first = _choose(accept, proposal, state), _choose(accept, (velocities[-1], rates[-1]), first)
            step = step * (0.9 * error.clamp_min(1e-10) ** -0.2).clamp(0.2, 2.0)
            unfinished = progress < 1 - 1e-12
            going, lost = velocity.read(torch.stack([unfinished, ~(step >= _LEAST_STEP)]))  # also lost if NaN
            if not going.all():
                done, left = (put(where.nonzero()[:, 0], u.device) for where in (~going, going))
                for whole, part in zip(result, state, strict=True):
                    whole[indices[done]] = part[done]
                calls[indices[done]] = asked
                indices, progress, step = indices[left], progress[left], step[left]
                state, first, lost = _select(left, state), _select(left, first), lost[going]
            if len(indices) == 0:
                return Solution(*result, calls, calls)
            if lost.any():
                break
        bad = int(lost.int().argmax())
        raise NotConvergedError(
            f"the solver is stuck {velocity.locate(start + span * progress[bad].item())}, with a step of "
            f"{abs(span) * step[bad]:.1g} after {asked} evaluations; raise the tolerances ({self})",
            int(indices[bad]),
        )

    def _error(self, state: State, proposal: State, move: Tensor, stages: tuple[list[Tensor], list[Tensor]]) -> Tensor:
        """Ratio of error to tolerance, (B,): the largest of the state's root mean square and each integral's."""
        (u, integrals) = (
            _weighted(_ERROR, found)
            .div_(torch.maximum(old.abs(), new.abs()).mul_(self.rtol).add_(self.atol))
            .flatten(1)
            .square_()
            for old, new, found in zip(state, proposal, stages, strict=True)
        )
        return torch.cat([u.mean(1, keepdim=True), integrals], 1).amax(1).sqrt().to(move) * move.abs()


def check_tolerances(rtol: float, atol: float) -> tuple[float, float]:
    """Returns the tolerances.

    Raises: ValueError unless both are positive.
    """
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol {rtol} and atol {atol}: need tolerances above 0, 1e-5 is usual")
    return rtol, atol


def check_reach(rtol: float, atol: float, dtype: torch.dtype) -> None:
    """Raises: ValueError for tolerances that need steps below about a thousandth of the path in this dtype.

    Rounding limits the estimated error of a step to a fraction of the step. For a tolerance below this limit the steps
    shrink without a gain in accuracy.
    """
    least, kind = _LEAST_TOLERANCE * torch.finfo(dtype).eps, str(dtype).removeprefix("torch.")
    if max(rtol, atol) < least:
        raise ValueError(
            f"rtol {rtol:g} and atol {atol:g}: states are {kind}, so need one of the two at least {least:.2g}, 1e-5 is "
            "usual; from Python, x.double() has more digits"
        )


_LEAST_TOLERANCE = 2**-11  # in units of the dtype's epsilon
_MAX_STEPS = 10_000
_LEAST_STEP = 1e-10  # fraction of the path

# The Dormand-Prince pair: nodes, rows of the tableau (the last is the result of order 5), and the error's weights.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _combine(start: Tensor, move: Tensor, weights: tuple[float, ...], rates: list[Tensor]) -> Tensor:
    """start + move * sum_i weights_i rates_i."""
    return torch.addcmul(start, move, _weighted(weights, rates))


def _weighted(weights: tuple[float, ...], rates: list[Tensor]) -> Tensor:
    """sum_i weights_i rates_i."""
    first, *others = ((w, rate) for w, rate in zip(weights, rates, strict=True) if w)
    total = first[0] * first[1]
    for w, rate in others:
        total.add_(rate, alpha=w)
    return total


def _choose(accept: Tensor, new: State, old: State) -> State:
    u, integrals = (torch.where(_rowwise(accept, n), n, o) for n, o in zip(new, old, strict=True))
    return u, integrals


def _select(indices: Tensor, state: State) -> State:
    u, integrals = state
    return u[indices], integrals[indices]


def _rowwise(values: Tensor, like: Tensor) -> Tensor:
    values = values if values.dtype == torch.bool else values.to(like.dtype)
    return values.reshape(-1, *[1] * (like.ndim - 1))
