"""The selftest of somebody's own sampler, SDE or denoiser: the rows that the library's entries have to pass.

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
    SPOKEN_FOR_ALL,
    convergence,
    known_ends,
    log_snr_grid,
    one_move,
    superposition,
)
from score_sde.selftest.textbook import Process
from score_sde.selftest.trajectories import independence, two_bumps

Run = Callable[[Denoise, Tensor, Tensor, Draw], Tensor]
"""(denoise, x, times, draw) -> x at the last time, from x (B, *) at the first; times (N + 1,) fall, all noisy."""


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
    """Measure a sampler, an SDE or a denoiser against closed forms; of several, each by itself.

    An exception on the way is one more row, that failed.

    Args:
        sampler: a ``Step``; a function ``(denoise, x, times, draw) -> x`` that moves the state x (B, *) from the first
            of the times (N + 1,) to the last, with the noise of ``draw(x)``, at most three draws a move, and the
            estimates ``denoise(x, t).x0``; or a function of the SDE that returns either, such as the class of a step.
        sde: an SDE, or a function without arguments that returns one. The sampler runs under it; one that is made from
            an SDE runs under ``vpsde`` and ``vesde`` without it.
        denoiser: ``(x, t) -> x0`` or a ``Prediction`` of it, for states of ``sde`` whose data are ``data``.
        order: of convergence that the sampler has, in mean and variance; None if it has none, because it adapts its
            moves to the state or makes a fixed error.
        move: a key of ``steps.MOVES``, the published method of which one move of the sampler has to be, to rounding.
        data: the distribution of the denoiser's data, of any shape; its dtype and device are those of the states.
        tolerance: largest error of the denoiser that passes, over the root mean square of the data; default 1000 units
            of rounding, which an exact one meets. A trained network needs more.
        device, dtype: of the states that samplers and SDEs are measured on; orders are measured in float64 on the CPU.
    Returns: rows with ``what`` was measured, the ``measured`` and the ``allowed`` number, and ``passed``.
    Raises: ValueError if there is nothing to check, or not enough to check it.
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
        makes = [SDES[name] for name in SPOKEN_FOR_ALL] if make_sde is None else [make_sde]
        steps = as_steps(sampler, [make() for make in makes], alone=make_sde is None)
        rows += guarded(sampler_rows(name_of(sampler), steps, order, move, setting))
    if denoiser is not None and make_sde is not None and data is not None:
        rows += guarded(denoiser_rows(name_of(denoiser), denoiser, make_sde(), data, tolerance))
    return rows


class Whole(Step):
    """A function of a whole trajectory as a step: its first move computes the last state, the others keep it."""

    def __init__(self, run: Run, sde: SDE) -> None:
        self.run, self.sde = run, sde

    def reset(self, times: list[float]) -> None:
        self.times = times

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return self.run(denoise, x, torch.tensor(self.times, dtype=torch.float64), draw) if t == self.times[0] else x


def as_steps(sampler: Step | Run | Callable[[SDE], Step | Run], sdes: list[SDE], alone: bool) -> list[Step]:
    """The sampler as a step of each SDE, or of its own.

    Raises: ValueError for arguments that are neither one SDE nor (denoise, x, times, draw), for a function that is
        given ``alone``, without an SDE, and for a step of another SDE.
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
        raise ValueError(f"the times of {name_of(sampler)} are those of one SDE: give sde=")
    call: Any = sampler
    made = [call(sde) if num == 1 else call for sde in sdes]
    return [step if isinstance(step, Step) else Whole(step, sde) for step, sde in zip(made, sdes)]


def same(sde: SDE, other: SDE) -> bool:
    """Whether two SDEs have the same alpha and sigma, to a millionth."""
    try:
        check_same(sde, other)
    except ValueError:
        return False
    return True


def num_arguments(function: Callable[..., Any]) -> int:
    """Positional arguments without a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters)


def maker(sde: SDE | Callable[[], SDE]) -> Callable[[], SDE]:
    """A function that returns the SDE, each time without the table of others."""
    if not isinstance(sde, SDE):
        return sde
    return partial(copy.deepcopy, sde)


def name_of(thing: object) -> str:
    """The name of a function or class, or of the class of an object."""
    return str(getattr(thing, "__name__", type(thing).__name__))


def sde_rows(make: Callable[[], SDE], setting: Setting) -> Iterator[Row]:
    """Identities of any SDE, and the conversions between eps, x0 and score."""
    name = name_of(make())
    yield from identities(name, make, setting)
    found = conversions(make(), setting)
    yield Row(f"{name}: eps, x0 and score convert into one another", found, 100 * setting.rounding)


def sampler_rows(name: str, steps: list[Step], order: int | None, move: str | None, setting: Setting) -> Iterator[Row]:
    """One move, superposition and order where they are claimed; independence of the batch; the law at the end."""
    exact = Setting(torch.device("cpu"), torch.float64)
    for step in steps:
        title = f"{name}, {name_of(step.sde)}"
        if move is not None:
            found = one_move(step, MOVES[move], process_of(step.sde), setting)
            yield Row(f"{title}: one move against the closed form of {move}", found, 2000 * setting.rounding)
        if step.ends:
            found = known_ends(step, setting)
            yield Row(f"{title}: mean and variance in 3 steps where the ends are known", found, 1000 * setting.rounding)
        elif order is not None:
            found = superposition(step, exact)
            yield Row(f"{title}: affine in the state and the noise where the denoiser is", found, 1e-5)
            yield from convergence(title, partial(fixed, step), step.sde, order, 2 * FEW, exact, 0.4)
    yield from independence(name, steps, setting, precise=order is not None)
    yield from (two_bumps(f"{name}, {name_of(step.sde)}", step, setting) for step in steps if not step.ends)


def process_of(sde: SDE) -> Callable[[np.ndarray], Process]:
    """The SDE as one of the textbook."""

    def at(t: np.ndarray) -> Process:
        time = torch.as_tensor(t, dtype=torch.float64)
        moments = (*sde.marginal(time)[:2], sde.drift(time), sde.diffusion(time))
        return Process(*(torch.as_tensor(marginal).numpy() for marginal in moments))

    return at


def fixed(step: Step, num_steps: int) -> Step:
    """A step that is the same for every number of moves."""
    return step


def denoiser_rows(
    name: str,
    denoiser: Estimate,
    sde: SDE,
    data: GaussianMixture,
    tolerance: float | None,
) -> Iterator[Row]:
    """Estimates at nine noise levels against the posterior mean, and the score against the gradient of the density."""
    denoise, setting = as_denoiser(denoiser, sde), Setting(data.means.device, data.means.dtype)
    allowed = 1000 * setting.rounding if tolerance is None else tolerance
    x0 = data.sample(64, torch.Generator(setting.device).manual_seed(0))
    eps, times = setting.normals(*x0.shape), log_snr_grid(sde, 8).tolist()
    scale = math.sqrt((data.covariance.trace() + data.mean.square().sum()).item() / data.mean.numel())
    states = [sde.perturb(x0, eps, t) for t in times]
    exact = [data.posterior_mean(x, *sde.marginal(t)[:2]) for x, t in zip(states, times)]
    found = worst(distance(denoise(x, t).x0, mean, scale) for x, t, mean in zip(states, times, exact))
    yield Row(f"{name}: x0 against the posterior mean, over the data's root mean square", found, allowed)
    (even,) = sde.time(torch.zeros(1, dtype=torch.float64)).clamp(sde.t_min, sde.t_max).tolist()
    x0_of_score = sde.sigma(torch.tensor(even)) ** 2 / sde.alpha(torch.tensor(even)) / scale
    error = score_error(denoise, data, sde, sde.perturb(x0, eps, even), even) * float(x0_of_score)
    yield Row(f"{name}: score against the gradient of the log-density, in units of x0", error, allowed)
    shape = (-1,) + (1,) * (x0.ndim - 1)
    apart = []
    for x, t in zip(states, times):
        each = setting.tensor([t] * len(x)).reshape(shape)
        apart.append(distance(denoise(x, each).x0, denoise(x, t).x0, scale))
    yield Row(f"{name}: a time for each example, and one number", worst(apart), max(allowed, 1e4 * setting.rounding))
    apart = [distance(denoise(x[5:8], t).x0, denoise(x, t).x0[5:8], scale) for x, t in zip(states, times)]
    yield Row(f"{name}: the same estimates alone and in a batch", worst(apart), 1e4 * setting.rounding)
