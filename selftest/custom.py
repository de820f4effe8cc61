"""The selftest of your own sampler, SDE or denoiser, with the checks that the library's entries pass.

from score_sde.selftest import check

for row in check(sampler=MySampler, order=2):
    print(row)
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde.samplers import Step
from score_sde.sde_lib import SDE, SDES, GaussianMixture
from score_sde.sde_lib.denoiser import Denoise, Estimate, as_denoiser
from score_sde.sde_lib.process import Draw, check_same
from score_sde.selftest.denoisers import conversions
from score_sde.selftest.exact import score_error
from score_sde.selftest.processes import identities
from score_sde.selftest.rows import Row, Setting, distance, guarded, worst
from score_sde.selftest.steps import (
    FEW,
    MOVES,
    REPRESENTATIVE,
    convergence,
    known_ends,
    log_snr_grid,
    one_move,
    superposition,
)
from score_sde.selftest.textbook import Process
from score_sde.selftest.trajectories import independence, two_bumps

Run = Callable[[Denoise, Tensor, Tensor, Draw], Tensor]
"""(denoise, x, times, draw) -> x at the last time, from x (B, *) at the first; times (N + 1,) decrease, all noisy."""


def check(
    sampler: Step | Run | Callable[[SDE], Step | Run] | None = None,
    sde: SDE | Callable[[], SDE] | None = None,
    denoiser: Estimate | None = None,
    *,
    order: int | None = 1,
    move: str | None = None,
    data: GaussianMixture | None = None,
    tolerance: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> list[Row]:
    """Checks a sampler, an SDE or a denoiser against closed forms, each separately.

    An exception during a check becomes one more row, which fails.

    Args:
        sampler: a ``Step``; a function ``(denoise, x, times, draw) -> x`` that moves the state x (B, *) from the first
            of the times (N + 1,) to the last, with noise from ``draw(x)``, at most three draws per move, and estimates
            ``denoise(x, t).x0``; or a function of the SDE that returns either, such as the class of a step.
        sde: an SDE, or a function without arguments that returns one. The sampler runs under this SDE; without it, a
            sampler constructed from an SDE runs under ``vpsde`` and ``vesde``.
        denoiser: ``(x, t) -> x0`` or ``Prediction``, for states of ``sde`` and data distributed as ``data``.
        order: the sampler's order of convergence in mean and variance; None for samplers without one, which adapt their
            moves to the state or have a fixed error.
        move: a key of ``steps.MOVES``: the published method that one move of the sampler must equal up to rounding.
        data: distribution of the denoiser's data, of any shape; states have its dtype and device.
        tolerance: largest allowed error of the denoiser, relative to the root mean square of the data; default 1000
            units of rounding, enough for an exact denoiser. A trained network needs more.
        device, dtype: of the states for samplers and SDEs; orders are measured in float64 on the CPU.
    Returns: rows with the fields ``what``, ``measured``, ``allowed`` and ``passed``.
    Raises: ValueError if the arguments contain nothing to check, or too little to check it.
    """
    if sampler is None and sde is None and denoiser is None:
        raise ValueError("nothing to check: give sampler=, sde= or denoiser=")
    for name, given in (("sampler", sampler), ("sde", sde), ("denoiser", denoiser)):
        if not (given is None or callable(given) or isinstance(given, Step | SDE)):
            raise ValueError(
                f"{name}={given!r}: need the object itself or a function; samplers.STEPS and sde_lib.SDES have some"
            )
    if denoiser is not None and (sde is None or data is None):
        raise ValueError("a denoiser is compared with the exact one: give sde= and data=, a GaussianMixture")
    if move is not None and move not in MOVES:
        raise ValueError(f"move {move!r} has no closed form; {', '.join(MOVES)} have one")
    setting = Setting(torch.device(device), dtype)
    make_sde = None if sde is None else maker(sde)
    rows: list[Row] = []
    if make_sde is not None:
        rows += guarded(sde_rows(make_sde, setting))
    if sampler is not None:
        makes = [SDES[name] for name in REPRESENTATIVE] if make_sde is None else [make_sde]
        steps = as_steps(sampler, [make() for make in makes], alone=make_sde is None)
        rows += guarded(sampler_rows(name_of(sampler), steps, order, move, setting))
    if denoiser is not None and make_sde is not None and data is not None:
        rows += guarded(denoiser_rows(name_of(denoiser), denoiser, make_sde(), data, tolerance))
    return rows


class Whole(Step):
    """A function of a whole trajectory as a step: the first move computes the last state, the others keep it."""

    def __init__(self, run: Run, sde: SDE) -> None:
        self.run, self.sde = run, sde

    def reset(self, times: list[float]) -> None:
        self.times = times

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return self.run(denoise, x, torch.tensor(self.times, dtype=torch.float64), draw) if t == self.times[0] else x


def as_steps(sampler: Step | Run | Callable[[SDE], Step | Run], sdes: list[SDE], alone: bool) -> list[Step]:
    """Returns the sampler as a step of each SDE; a ``Step`` keeps its own SDE.

    Args:
        alone: whether the caller gave no SDE.
    Raises: ValueError if the sampler takes neither one SDE nor (denoise, x, times, draw), for a function of a
        trajectory ``alone``, and for a step of another SDE.
    """
    if isinstance(sampler, Step):
        if not alone and not same(sampler.sde, sdes[0]):
            raise ValueError(
                f"{name_of(sampler)} is a step of another SDE than sde=: give its class, or leave sde= out"
            )
        return [sampler]
    num = num_arguments(sampler)
    if num not in (1, 4):
        raise ValueError(f"{name_of(sampler)} takes {num} arguments: need (sde), or (denoise, x, times, draw)")
    if num == 4 and alone:
        raise ValueError(f"the times of {name_of(sampler)} belong to one SDE: give sde=")
    call: Any = sampler
    made = [call(sde) if num == 1 else call for sde in sdes]
    return [step if isinstance(step, Step) else Whole(step, sde) for step, sde in zip(made, sdes)]


def same(sde: SDE, other: SDE) -> bool:
    """Returns whether two SDEs have the same alpha and sigma, to a millionth."""
    try:
        check_same(sde, other)
    except ValueError:
        return False
    return True


def num_arguments(function: Callable[..., Any]) -> int:
    """Returns the number of positional arguments without a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters)


def maker(sde: SDE | Callable[[], SDE]) -> Callable[[], SDE]:
    """Returns a function that returns a fresh SDE, without tabulated times."""
    if not isinstance(sde, SDE):
        return sde
    return partial(copy.deepcopy, sde)


def name_of(thing: object) -> str:
    """Returns the name of a function or class, or of an object's class."""
    return str(getattr(thing, "__name__", type(thing).__name__))


def sde_rows(make: Callable[[], SDE], setting: Setting) -> Iterator[Row]:
    """Checks the identities of an SDE, and the conversions between eps, x0 and score."""
    name = name_of(make())
    yield from identities(name, make, setting)
    found = conversions(make(), setting)
    yield Row(f"{name}: eps, x0 and score convert into one another", found, 100 * setting.rounding)


def sampler_rows(name: str, steps: list[Step], order: int | None, move: str | None, setting: Setting) -> Iterator[Row]:
    """Checks one move, superposition and order if claimed, independence of the batch, and the end distribution."""
    exact = Setting(torch.device("cpu"), torch.float64)
    for step in steps:
        title = f"{name}, {name_of(step.sde)}"
        if move is not None:
            found = one_move(step, MOVES[move], process_of(step.sde), setting)
            yield Row(f"{title}: one move against the closed form of {move}", found, 2000 * setting.rounding)
        if step.ends:
            found = known_ends(step, setting)
            yield Row(f"{title}: mean and variance in 3 steps, exact consistency model", found, 1e3 * setting.rounding)
        elif order is not None:
            found = superposition(step, exact)
            yield Row(f"{title}: affine in the state and the noise for an affine denoiser", found, 1e-5)
            yield from convergence(title, partial(fixed, step), step.sde, order, 2 * FEW, exact, 0.4)
    yield from independence(name, steps, setting, precise=order is not None)
    yield from (two_bumps(f"{name}, {name_of(step.sde)}", step, setting) for step in steps if not step.ends)


def process_of(sde: SDE) -> Callable[[np.ndarray], Process]:
    """Returns the SDE as a function like the textbook's processes."""

    def at(t: np.ndarray) -> Process:
        time = torch.as_tensor(t, dtype=torch.float64)
        moments = (*sde.marginal(time)[:2], sde.drift(time), sde.diffusion(time))
        return Process(*(torch.as_tensor(marginal).numpy() for marginal in moments))

    return at


def fixed(step: Step, num_steps: int) -> Step:
    """Returns the same step for every number of moves."""
    return step


def denoiser_rows(
    name: str,
    denoiser: Estimate,
    sde: SDE,
    data: GaussianMixture,
    tolerance: float | None,
) -> Iterator[Row]:
    """Checks estimates at nine noise levels against the posterior mean, and the score against the exact one."""
    denoise, setting = as_denoiser(denoiser, sde), Setting(data.means.device, data.means.dtype)
    allowed = 1000 * setting.rounding if tolerance is None else tolerance
    x0 = data.sample(64, torch.Generator(setting.device).manual_seed(0))
    eps, times = setting.normals(*x0.shape), log_snr_grid(sde, 8).tolist()
    scale = math.sqrt((data.covariance.trace() + data.mean.square().sum()).item() / data.mean.numel())
    states = [sde.perturb(x0, eps, t) for t in times]
    exact = [data.posterior_mean(x, *sde.marginal(t)[:2]) for x, t in zip(states, times)]
    found = worst(distance(denoise(x, t).x0, mean, scale) for x, t, mean in zip(states, times, exact))
    yield Row(f"{name}: x0 against the posterior mean, relative to the data's root mean square", found, allowed)
    (even,) = sde.time(torch.zeros(1, dtype=torch.float64)).clamp(sde.t_min, sde.t_max).tolist()
    x0_of_score = sde.sigma(torch.tensor(even)) ** 2 / sde.alpha(torch.tensor(even)) / scale
    error = score_error(denoise, data, sde, sde.perturb(x0, eps, even), even) * float(x0_of_score)
    yield Row(f"{name}: score against the gradient of the log-density, in units of x0", error, allowed)
    shape = (-1,) + (1,) * (x0.ndim - 1)
    apart = []
    for x, t in zip(states, times):
        each = setting.tensor([t] * len(x)).reshape(shape)
        apart.append(distance(denoise(x, each).x0, denoise(x, t).x0, scale))
    yield Row(f"{name}: one time per example against one number", worst(apart), max(allowed, 1e4 * setting.rounding))
    apart = [distance(denoise(x[5:8], t).x0, denoise(x, t).x0[5:8], scale) for x, t in zip(states, times)]
    yield Row(f"{name}: the same estimates alone and in a batch", worst(apart), 1e4 * setting.rounding)
