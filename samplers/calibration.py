"""Calibration: times and coefficients of a multistep method, fitted to one network.

The target is the end of the network's own probability flow, from a solver with error control. Gradients run through the
whole trajectory, so each step is fitted by its effect on the end.

References: Tong et al., "Learning to Discretize Denoising Diffusion ODEs", 2025, arXiv:2405.15506; Frankel et al.,
"S4S: Solving for a Diffusion Model Solver", 2025, arXiv:2502.17423.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde.samplers.loop import Step, checked
from score_sde.samplers.multistep import Move, Multistep
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise, Estimate, as_denoiser
from score_sde.sde_lib.process import Draw


class Plan(NamedTuple):
    """All numbers of a trajectory.

    times: times of the states, decreasing and noisy.
    seen: times passed to the network for these states.
    moves: coefficients of the step from each time; the last entry belongs to the end.
    """

    times: list[float]
    seen: list[float]
    moves: list[Move]


class Tuned(Step):
    """Multistep method with the coefficients of a plan in place of its own.

    Args:
        plan: for the times that the loop will take.
    """

    def __init__(self, step: Multistep, plan: Plan) -> None:
        self.sde, self.step, self.plan = step.sde, step, plan

    def reset(self, times: list[float]) -> None:
        self.sde.tabulate(torch.tensor(self.plan.seen, dtype=torch.float64))
        self.seen = dict(zip(times, self.plan.seen, strict=True))
        self.step.past, self.step.moves = [], dict(zip(times, self.plan.moves, strict=True))

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        seen = self.seen[t]
        return self.step(lambda x, t, **cond: denoise(x, seen, **cond), x, t, s, draw)

    def finish(self, denoise: Denoise, x: Tensor, t: float, draw: Draw) -> Tensor:
        return self.step.finish(denoise, x, t, draw)


def calibrate(
    step: Multistep,
    denoise: Estimate,
    x: Tensor,
    target: Tensor,
    times: Sequence[float],
    iterations: int = 150,
    batch_size: int = 64,
) -> tuple[Plan, Tensor, Tensor]:
    """Fits the plan of a step to a denoiser on four fifths of the examples, and keeps it if it is better on the rest.

        minimise log mean e + log sqrt(mean e^2),    e = |x_end - target| of an example, by Adam

    The parameters are the gaps between the times in log(sigma / alpha), the coefficients of state and values, and the
    times passed to the network. The mean error on the held-out fifth is never above the error of the initial plan.

    Args:
        step: deterministic, eta = 0.
        target: ends of the flow.
        times: initial times, decreasing and noisy; the first and the last stay fixed.
        iterations: number of steps of Adam, at least 1.
        batch_size: examples per step of Adam, at least 1.
    Shapes: x, target (B, *), B at least 5.
    Returns: the plan, and the held-out errors (B // 5,) with the initial plan and with the returned one.
    """
    times, held, denoise = list(times), len(x) // 5, as_denoiser(denoise, step.sde)
    step.reset(times)  # a step may choose its order here
    start = Plan(times, times, step.plan(times))
    found = _fit(step, denoise, x[held:], target[held:], times, iterations, batch_size)
    before, after = (
        errors(follow(Tuned(step, plan), denoise, x[:held], plan.times), target[:held]) for plan in (start, found)
    )
    return (found, before, after) if after.mean() < before.mean() else (start, before, before)


def errors(x: Tensor, target: Tensor) -> Tensor:
    """Root mean square error over the entries of each example; x, target (B, *), returns (B,)."""
    return (x - target).flatten(1).square().mean(1).sqrt()


@torch.no_grad()
def follow(step: Step, denoise: Estimate, x: Tensor, times: Sequence[float]) -> Tensor:
    """State at the last time, for a deterministic step; one evaluation per step.

    Shapes: x (B, *), and so returned.
    """
    grid, denoise = checked(step.sde, times), as_denoiser(denoise, step.sde)
    step.sde.tabulate(grid)
    step.reset(grid.tolist())
    for t, s in pairwise(grid.tolist()):
        x = step(denoise, x, t, s, torch.zeros_like)
    return x


def _fit(
    step: Multistep, denoise: Denoise, x: Tensor, target: Tensor, times: list[float], iterations: int, batch_size: int
) -> Plan:
    """Plan after ``iterations`` steps of Adam, each on the next ``batch_size`` examples.

    The learning rate is proportional to the initial error: a small error leaves little to improve.
    """
    gaps = torch.log(-_log_ratio(step.sde, times).diff()).requires_grad_()
    changes = torch.zeros(len(gaps), 2 + step.order + 1, dtype=torch.float64, requires_grad=True)
    size = target.square().mean().sqrt()
    error = errors(follow(step, denoise, x[:batch_size], times), target[:batch_size]).mean() / size
    rate = _RATE * min(error.item(), _MOST_ERROR)
    groups = [{"params": gaps, "lr": _GAP_RATE * rate}, {"params": changes, "lr": rate}]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for i in range(iterations):
        batch = torch.arange(i * batch_size, (i + 1) * batch_size) % len(x)
        found = _end(step, denoise, x[batch], _table(step, times, gaps, changes))
        error = errors(found, target[batch]) + torch.finfo(x.dtype).eps * size
        loss = torch.log(error.mean()) + 0.5 * torch.log(error.square().mean())
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    with torch.no_grad():
        spaced, table = _spaced(step.sde, times, gaps), _table(step, times, gaps, changes)
    *analytic, last = step.plan(spaced)
    fitted = [m._replace(keep=keep, weights=rest) for m, (keep, *rest) in zip(analytic, table[:, 5:].tolist())]
    return Plan(spaced, [*table[:, 0].tolist(), times[-1]], [*fitted, last])


def _table(step: Multistep, times: list[float], gaps: Tensor, changes: Tensor) -> Tensor:
    """Rows of the steps, (N, 6 + values): time for the network, (a, b) of the value, both shifts, keep and weights.

    The plan of the step as a function of the gaps, to first order around their current values, which is all that a
    gradient needs, plus ``changes``: of the network's log ratio, of keep relative to its value, of weights in units of
    the state's standard deviation.
    """
    sde, at = step.sde, gaps.detach()
    grids = [_spaced(sde, times, at + h) for h in (0.0, *_NUDGE * torch.eye(len(at), dtype=torch.float64))]
    sde.tabulate(torch.tensor(grids, dtype=torch.float64).flatten())
    counts = step.counts(grids[0])  # counts of the unperturbed grid, so that the plan is a smooth function of the gaps
    value, *near = (_numbers(step, grid, counts) for grid in grids)
    slope = (torch.stack(near, -1) - value[..., None]) / _NUDGE
    table = value + slope @ (gaps - at)
    moments = map(sde.marginal, grids[0][1:])
    size = torch.tensor([math.hypot(m.alpha * step.coordinates.std, m.sigma) for m in moments], dtype=torch.float64)
    unit = torch.cat([value[:, 5:6], size[:, None].expand(-1, step.order + 1)], 1)
    network_times = sde.time(-2 * (table[:, :1] + changes[:, :1])).clamp(sde.t_min, sde.t_max)
    return torch.cat([network_times, table[:, 1:5], table[:, 5:] + unit * changes[:, 1:]], 1)


def _numbers(step: Multistep, times: list[float], counts: tuple[np.ndarray, np.ndarray]) -> Tensor:
    """Plan of a step as rows of the table, with log ratios in place of times."""
    rows = zip(_log_ratio(step.sde, times).tolist(), step.plan(times, counts)[:-1])
    return torch.tensor([[r, *m.value, *m.shift, m.keep, *m.weights] for r, m in rows], dtype=torch.float64)


def _end(step: Multistep, denoise: Denoise, x: Tensor, table: Tensor) -> Tensor:
    """State at the end of a table: the computation of ``Multistep``, with gradients."""
    mean, past = 0.0 if step.centre is None else step.centre.to(x), list[Tensor]()
    for t, row in zip(table[:, 0], table[:, 1:].to(x)):
        a, b, shift, back, keep, *weights = row
        x = x - shift * mean
        past = [a * x + b * (denoise(x + shift * mean, t).x0 - mean), *past[: step.order + step.correct - 1]]
        x = keep * x + sum(weight * value for weight, value in zip(weights, past)) + back * mean
    return x


def _spaced(sde: SDE, times: list[float], gaps: Tensor) -> list[float]:
    """Times between the same ends, with gaps in the log ratio proportional to exp(gaps)."""
    first, last = _log_ratio(sde, [times[0], times[-1]])
    between = first + (last - first) * torch.cumsum(torch.softmax(gaps, 0), 0)[:-1]
    return [times[0], *sde.time(-2 * between).tolist(), times[-1]]


def _log_ratio(sde: SDE, times: list[float]) -> Tensor:
    """log(sigma / alpha)."""
    return -0.5 * sde.log_snr(torch.tensor(times, dtype=torch.float64))


_NUDGE = 1e-5  # relative change of a gap, for finite differences of the plan
_RATE, _GAP_RATE, _MOST_ERROR = 0.2, 20.0, 0.04  # of Adam: rate / error, gap rate / rate, largest relative error
