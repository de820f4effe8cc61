"""The probability flow: the deterministic motion that has the marginals of the SDE.

In y = x / alpha and log-SNR l it needs neither drift nor diffusion,

    dy/dl = (x0(x) - y) / 2,

is the same for every SDE, and has no end of time to step past. (It is dx/dt = f x - g^2 score / 2 in other coordinates,
with e^(-l/2) eps = y - x0.)

Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, eq. 13. arXiv:2011.13456
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sde_lib.denoiser import Denoiser
from sde_lib.process import SDE, Time

State = tuple[Tensor, ...]
Slope = Callable[[Tensor, State, Tensor], State]


class NonFiniteError(ArithmeticError):
    """A network or a solver gave a number that is not finite."""

    exit_status = 4


class NotConvergedError(ArithmeticError):
    """An adaptive solver could not keep its tolerance."""

    exit_status = 5


def slope(denoise: Denoiser, sde: SDE, y: Tensor, log_snr: Tensor, **cond: Tensor) -> Tensor:
    """dy/dl of the probability flow; y (B, *), log_snr 0-d or (B, 1, ..., 1)."""
    t = sde.time(log_snr)
    return 0.5 * (denoise(sde.alpha(t) * y, t, **cond).x0 - y)


def trapezoidal(denoise: Denoiser, sde: SDE, x: Tensor, x0: Tensor, t: Time, s: Time, **cond: Tensor) -> Tensor:
    """The prediction with which the bridge from t to the earlier s is the trapezoidal rule in r = sigma / alpha.

        x0 + (r_t / r_s) (x0(y, s) - x0) / 2,    y = bridge(x, x0),    x0 = x0(x, t)

    Shapes: x, x0 (B, *), and what is returned.
    """
    y, _ = sde.bridge(x, x0, t, s)
    late, early = sde.at(t), sde.at(s)
    ratio = late.sigma / late.alpha * (early.alpha / early.sigma)
    return torch.lerp(x0, denoise(y, s, **cond).x0, 0.5 * ratio)


def dormand_prince(f: Slope, state: State, start: float, end: float, rtol: float, atol: float) -> tuple[State, int]:
    """Solve d state / dl = f(l, state) from start to end, each example with its own steps.

    The Runge-Kutta pair of order 5 with an embedded 4. An example is accepted, rejected and finished by its own error
    alone, so its result does not depend on the batch; finished ones are no longer evaluated. The error of each part of
    the state is measured by itself, so a log-density is held to the tolerance as strictly as an image.

    Args:
        f: ``f(l, state, rows)`` with l (b, 1, ..., 1) and the state of the b unfinished examples, whose numbers in the
            batch are rows (b,), for whatever else belongs to an example.
        state: tensors (B, ...), the first of them with the shape of the examples.
        start, end: log-SNR, in either order.
        rtol, atol: tolerances, relative and absolute, positive.
    Returns: the state at the end, and the number of calls of f.
    Raises: NotConvergedError naming example and log-SNR; NonFiniteError; ValueError for a tolerance that is not
        positive.
    Reference: Dormand, Prince, "A Family of Embedded Runge-Kutta Formulae", 1980.
    """
    _check_tolerances(rtol, atol)
    x, span = state[0], end - start
    progress = torch.zeros(len(x), dtype=torch.float64, device=x.device)  # share of the way done, 0 to 1
    step = torch.full_like(progress, 0.05)
    result = [part.clone() for part in state]
    rows = torch.arange(len(x), device=x.device)

    def evaluate(progress: Tensor, state: State) -> State:
        l = (start + span * progress).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return tuple(span * d for d in f(l, state, rows))

    first, calls = evaluate(progress, state), 1
    for _ in range(_MAX_STEPS):
        step = torch.minimum(step, 1 - progress)
        stages = [first]
        for node, weights in zip(_NODES, _STAGES, strict=True):
            stages.append(evaluate(progress + node * step, _combine(state, step, weights, stages)))
        calls += len(_NODES)
        proposal = _combine(state, step, _STAGES[-1], stages[:-1])
        error = _error(state, proposal, step, stages, rtol, atol)
        _check_finite(error, rows, start + span * progress)
        accept = error <= 1
        progress = torch.where(accept, progress + step, progress)
        state, first = _choose(accept, proposal, state), _choose(accept, stages[-1], first)
        step = step * (0.9 * error.clamp_min(1e-10) ** -0.2).clamp(0.2, 5.0)
        going = progress < 1 - 1e-12
        if not going.all():
            for whole, part in zip(result, state, strict=True):
                whole[rows[~going]] = part[~going]
            rows, progress, step = rows[going], progress[going], step[going]
            state, first = tuple(p[going] for p in state), tuple(p[going] for p in first)
        if len(rows) == 0:
            return tuple(result), calls
        if (stuck := (step < 1e-10)).any():
            bad = int(stuck.nonzero()[0])
            l = start + span * progress[bad].item()
            raise NotConvergedError(
                f"example {int(rows[bad])}: step below 1e-10 of the interval at log-SNR {l:.4g}; raise rtol and atol"
            )
    l = start + span * progress[0].item()
    raise NotConvergedError(
        f"example {int(rows[0])}: at log-SNR {l:.4g} after {_MAX_STEPS} steps; raise rtol and atol (now {rtol}, {atol})"
    )


def torchdiffeq_dopri5(f: Slope, state: State, start: float, end: float, rtol: float, atol: float) -> tuple[State, int]:
    """The same by torchdiffeq's ``dopri5``, one step size for the whole batch; an independent reference.

    Args, Returns, Raises: as ``dormand_prince``.
    """
    from torchdiffeq import odeint

    _check_tolerances(rtol, atol)
    x, calls = state[0], 0
    rows = torch.arange(len(x), device=x.device)

    def count(l: Tensor, state: State) -> State:
        nonlocal calls
        calls += 1
        rates = f(l.to(x.dtype).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1)), state, rows)
        for rate in rates:
            _check_finite(rate.flatten(1).sum(1), rows, l.expand(len(x)))
        return rates

    span = torch.tensor([start, end], dtype=torch.float64, device=x.device)
    try:
        # A first step of its own choice may look millions of units of log-SNR ahead, where nothing is finite.
        first = {"first_step": 0.05 * abs(end - start)}
        solution = odeint(count, state, span, rtol=rtol, atol=atol, method="dopri5", options=first)
    except AssertionError as error:  # torchdiffeq's way to say that the step vanished or a number is not finite
        raise NotConvergedError(f"torchdiffeq: {error}; raise rtol and atol (now {rtol}, {atol})") from None
    return tuple(part[-1] for part in solution), calls


SOLVERS = {"dopri5": dormand_prince, "torchdiffeq": torchdiffeq_dopri5}
"""(f, state, start, end, rtol, atol) -> (state, number of calls of f)."""

_MAX_STEPS = 10_000

# The Dormand-Prince pair: nodes, rows of the tableau (the last is the result of order 5), and the error's weights.
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _combine(state: State, step: Tensor, weights: tuple[float, ...], stages: list[State]) -> State:
    """state + step * sum_i weights_i stages_i, part by part."""
    return tuple(
        part + _rowwise(step, part) * sum(w * s[i] for w, s in zip(weights, stages, strict=True) if w)
        for i, part in enumerate(state)
    )


def _error(state: State, proposal: State, step: Tensor, stages: list[State], rtol: float, atol: float) -> Tensor:
    """Estimated error over tolerance for each example: root mean square over a part, the worst part; (B,)."""
    estimate = _combine(tuple(torch.zeros_like(p) for p in state), step, _ERROR, stages)
    worst = torch.zeros_like(step)
    for old, new, error in zip(state, proposal, estimate, strict=True):
        tolerance = atol + rtol * torch.maximum(old.abs(), new.abs())
        worst = torch.maximum(worst, (error / tolerance).flatten(1).square().mean(1).sqrt().to(worst))
    return worst


def _choose(accept: Tensor, new: State, old: State) -> State:
    return tuple(torch.where(_rowwise(accept, n), n, o) for n, o in zip(new, old, strict=True))


def _rowwise(values: Tensor, like: Tensor) -> Tensor:
    values = values if values.dtype == torch.bool else values.to(like.dtype)
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _check_finite(values: Tensor, rows: Tensor, log_snr: Tensor) -> None:
    if not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).nonzero()[0])
        where = f"example {int(rows[bad])}: the flow is not finite at log-SNR {log_snr[bad].item():.4g}"
        raise NonFiniteError(f"{where}; check the network and the data")


def _check_tolerances(rtol: float, atol: float) -> None:
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol {rtol} and atol {atol}: need tolerances above 0, 1e-5 is usual")
