"""Where a sampler stops on its way: ``(sde, num_steps, start, end) -> num_steps + 1`` decreasing times.

Times are float64 on the CPU and begin and end exactly at ``start`` and ``end``, by default the SDE's own interval.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sde_lib import SDE

Grid = Callable[..., Tensor]


def uniform(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Evenly spaced in t."""
    return _spaced(sde, num_steps, start, end, lambda t: t, lambda t: t)


def quadratic(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Evenly spaced in the square root of t. Song, Meng, Ermon, 2021, appendix D.2. arXiv:2010.02502"""
    return _spaced(sde, num_steps, start, end, torch.sqrt, torch.square)


def log_snr(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Evenly spaced in the logarithm of the signal-to-noise ratio. Lu et al., 2022, section 3.4. arXiv:2206.00927"""
    return _spaced(sde, num_steps, start, end, sde.log_snr, sde.time)


def karras(sde: SDE, num_steps: int, start: float | None = None, end: float | None = None, rho: float = 7.0) -> Tensor:
    """Evenly spaced in (sigma / alpha)^(1 / rho). Karras et al., 2022, eq. 5. arXiv:2206.00364"""
    return _spaced(
        sde,
        num_steps,
        start,
        end,
        lambda t: torch.exp(-0.5 / rho * sde.log_snr(t)),
        lambda u: sde.time(-2 * rho * torch.log(u)),
    )


GRIDS: dict[str, Grid] = {"uniform": uniform, "quadratic": quadratic, "log_snr": log_snr, "karras": karras}


def _spaced(
    sde: SDE,
    num_steps: int,
    start: float | None,
    end: float | None,
    warp: Callable[[Tensor], Tensor],
    unwarp: Callable[[Tensor], Tensor],
) -> Tensor:
    """Evenly spaced in warp(t)."""
    start, end = sde.t_max if start is None else start, sde.t_min if end is None else end
    if num_steps < 1:
        raise ValueError(f"num_steps {num_steps}: need at least one step")
    if not sde.t_min <= end < start <= sde.t_max:
        raise ValueError(f"times from {start} to {end}: need {sde.t_min} <= end < start <= {sde.t_max} for this SDE")
    ends = torch.tensor([start, end], dtype=torch.float64)
    first, last = warp(ends)
    times = unwarp(first + (last - first) * torch.linspace(0, 1, num_steps + 1, dtype=torch.float64))
    times[[0, -1]] = ends
    if not (times.diff() < 0).all():
        raise ValueError(f"{num_steps} steps from {start} to {end} are too many to tell their times apart; use fewer")
    return times
