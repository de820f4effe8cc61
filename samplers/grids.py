"""Grids of times: ``(sde, num_steps, start, end) -> num_steps + 1`` decreasing times.

Times are float64 on the CPU and begin and end exactly at ``start`` and ``end``, by default the interval of the SDE.
Some grids end at the data; the last denoising of the loop is then one of the num_steps.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from score_sde.sde_lib import SDE, Discrete, nodes

Grid = Callable[..., Tensor]


def uniform(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Times evenly spaced in t."""
    return _spaced(sde, num_steps, start, end, lambda t: t, lambda t: t)


def quadratic(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Times evenly spaced in the square root of t. Song, Meng, Ermon, 2021, appendix D.2. arXiv:2010.02502"""
    return _spaced(sde, num_steps, start, end, torch.sqrt, torch.square)


def log_snr(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Times evenly spaced in log-SNR. Lu et al., 2022, section 3.4. arXiv:2206.00927"""
    return _spaced(sde, num_steps, start, end, sde.log_snr, sde.time)


def karras(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None, rho: float = 7.0) -> Tensor:
    """Times evenly spaced in (sigma / alpha)^(1 / rho). Karras et al., 2022, eq. 5. arXiv:2206.00364"""
    return _spaced(
        sde,
        num_steps,
        start,
        end,
        lambda t: torch.exp(-0.5 / rho * sde.log_snr(t)),
        lambda u: sde.time(-2 * rho * torch.log(u)),
    )


def flow(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Times evenly spaced in r / (1 + r), r = sigma / alpha: the time of flow matching. Lipman et al., 2023, eq. 20."""
    return _in_ratio(sde, num_steps, start, end, lambda r: r / (1 + r), lambda u: u / (1 - u))


def angle(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None, std: float = 1.0) -> Tensor:
    """Times evenly spaced in atan(sigma / (alpha std)), with std = 1 the time of the cosine schedule.

    Args:
        std: standard deviation of the data, positive.
    """
    return _in_ratio(sde, num_steps, start, end, lambda r: torch.atan(r / std), lambda u: std * torch.tan(u))


def logistic(
    sde: SDE,
    num_steps: int,
    start: float | None = None,
    end: float | None = None,
    std: float = 1.0,
    dimensions: float = math.inf,
) -> Tensor:
    """Quantiles of a distribution of log(sigma / alpha) that is dense where the data take shape and covers all levels.

    The distribution is a mixture of a logistic one around log(centre std), of the given weight, and a uniform one. The
    more dimensions the data have, the more noise it takes to separate their modes; and the more steps, the more of the
    error comes from other levels, as measured by ``benchmarks/solvers.py``:

        centre = min(0.35 sqrt(dimensions), 1.4),    weight = 0.8 min(sqrt(15 / num_steps), 1)

    Args:
        std: standard deviation of the data, positive.
        dimensions: effective number of dimensions of the data, ``Gaussian.dimensions``, at least 1; infinite by
            default.
    """
    _check_num(num_steps)
    start, end = _ends(sde, start, end)
    low, high = (sde.ratio(t) for t in (end, start))
    centre, weight = min(0.35 * math.sqrt(dimensions), 1.4), 0.8 * min(math.sqrt(15 / num_steps), 1.0)
    ratio, _ = nodes.logistic_uniform(low, high, np.linspace(1, 0, num_steps + 1), std, centre, weight)
    return _between(sde.time_of_ratio(torch.from_numpy(ratio)), start, end)


def of_ratios(sde: SDE, ratios: Sequence[float]) -> Tensor:
    """Times of given noise-to-signal ratios sigma / alpha, for every SDE; a 0 at the end is the data.

    Args:
        ratios: decreasing; the first is the ratio at t_max, to a relative 1e-3, and the last is at least the ratio at
            t_min, or 0.
    Raises: ValueError naming the first ratio that is out of order or out of range.
    """
    low, high = (sde.ratio(t) for t in (sde.t_min, sde.t_max))
    if len(ratios) < 2:
        raise ValueError(f"{len(ratios)} noise levels: a grid has two or more")
    for number, (before, ratio) in enumerate(pairwise(ratios), 2):
        if not ratio < before:
            raise ValueError(f"noise level {number} is {ratio:g} after {before:g}: levels must decrease")
    if abs(ratios[0] / high - 1) > 1e-3:
        raise ValueError(f"noise level 1 is {ratios[0]:g}: sampling begins at sigma / alpha = {high:.6g}, at t_max")
    if not (ratios[-1] >= low * (1 - 1e-3) or ratios[-1] == 0):
        raise ValueError(f"the last noise level is {ratios[-1]:g}: need 0 or at least {low:.6g}, the level of t_min")
    noise = torch.tensor(ratios, dtype=torch.float64)
    times = sde.time_of_ratio(noise)
    times = torch.where(noise > 0, times.clamp(min=sde.t_min), times)
    return torch.cat([torch.tensor([sde.t_max], dtype=torch.float64), times[1:]])


def edm(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """``karras`` for num_steps - 1 steps, then the data: one evaluation per step. Karras et al., 2022, eq. 5."""
    _check_num(num_steps)
    noisy = karras(sde, max(num_steps - 1, 1), start, end)[:num_steps]
    return torch.cat([noisy, sde.time(torch.full((1,), math.inf, dtype=torch.float64))])


def levels(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Every c-th level of a discrete-time process down to the data: N, N - c, ..., c, 0 with c = N / num_steps.

    Args:
        start, end: whole levels; by default N and 0, the data.
    Raises: ValueError for an SDE in continuous time, or if num_steps does not divide the number of levels.
    Reference: Song, Meng, Ermon, 2021, appendix D.2, linear. arXiv:2010.02502
    """
    first, last = _whole_levels(sde, num_steps, start, end)
    num_levels = first - last
    if num_levels % num_steps:
        divisors = [d for d in range(1, num_levels + 1) if num_levels % d == 0]
        below, above = [d for d in divisors if d < num_steps], [d for d in divisors if d > num_steps]
        near = " or ".join(map(str, below[-1:] + above[:1]))
        raise ValueError(f"num_steps {num_steps} does not divide the {num_levels} levels of the process; use {near}")
    return torch.arange(first, last - 1, -(num_levels // num_steps), dtype=torch.float64)


def levels_quadratic(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Levels of a discrete-time process, denser near the data: max(i, floor(N (i / num_steps)^2)), i = num_steps to 0.

    Args:
        start, end: as ``levels``.
    Raises: ValueError for an SDE in continuous time, or more steps than levels.
    Reference: Song, Meng, Ermon, 2021, appendix D.2, quadratic. arXiv:2010.02502
    """
    first, last = _whole_levels(sde, num_steps, start, end)
    num_levels = first - last
    if num_steps > num_levels:
        raise ValueError(f"num_steps {num_steps}: more than the {num_levels} levels of the process; use fewer")
    i = torch.arange(num_steps, -1, -1)
    return (last + torch.maximum(i, num_levels * i**2 // num_steps**2)).double()


GRIDS: dict[str, Grid] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "karras": karras,
    "flow": flow,
    "angle": angle,
    "logistic": logistic,
    "edm": edm,
    "levels": levels,
    "levels_quadratic": levels_quadratic,
}


def _whole_levels(sde: SDE, num_steps: int, start: float | None, end: float | None) -> tuple[int, int]:
    """First and last level of a grid of whole levels."""
    if not isinstance(sde, Discrete):
        raise ValueError(f"{type(sde).__name__} has no levels; use a discrete-time process, or another grid")
    _check_num(num_steps)
    start, end = sde.t_max if start is None else start, 0 if end is None else end
    if not (0 <= end < start <= sde.t_max and start == int(start) and end == int(end)):
        raise ValueError(f"times from {start} to {end}: need whole levels, 0 <= end < start <= {sde.t_max:g}")
    return int(start), int(end)


def _check_num(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps}: need at least one step")


def _spaced(
    sde: SDE,
    num_steps: int,
    start: float | None,
    end: float | None,
    warp: Callable[[Tensor], Tensor],
    unwarp: Callable[[Tensor], Tensor],
) -> Tensor:
    """Times evenly spaced in warp(t)."""
    _check_num(num_steps)
    start, end = _ends(sde, start, end)
    first, last = warp(torch.tensor([start, end], dtype=torch.float64))
    return _between(
        unwarp(first + (last - first) * torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)), start, end
    )


def _in_ratio(
    sde: SDE,
    num_steps: int,
    start: float | None,
    end: float | None,
    warp: Callable[[Tensor], Tensor],
    unwarp: Callable[[Tensor], Tensor],
) -> Tensor:
    """Times evenly spaced in warp(sigma / alpha)."""
    return _spaced(
        sde,
        num_steps,
        start,
        end,
        lambda t: warp(sde.ratio(t)),
        lambda u: sde.time_of_ratio(unwarp(u)),
    )


def _ends(sde: SDE, start: float | None, end: float | None) -> tuple[float, float]:
    """First and last time, by default the ends of the SDE."""
    start, end = sde.t_max if start is None else start, sde.t_min if end is None else end
    if not sde.t_min <= end < start <= sde.t_max:
        raise ValueError(f"times from {start} to {end}: need {sde.t_min} <= end < start <= {sde.t_max} for this SDE")
    return start, end


def _between(times: Tensor, start: float, end: float) -> Tensor:
    """Times with exact ends."""
    times[[0, -1]] = torch.tensor([start, end], dtype=torch.float64)
    if not (times.diff() < 0).all():
        num = len(times) - 1
        raise ValueError(f"{num} steps from {start} to {end} have times that are equal to rounding; use fewer")
    return times
