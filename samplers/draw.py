"""Samples from seeds in one call: the step and the grid by name, normals of the seeds, and the loop.

``python run.py --mode sample`` applies the same rules to the values of its config.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from score_sde.samplers.grids import GRIDS
from score_sde.samplers.loop import Step, trajectory
from score_sde.samplers.noise import Noise
from score_sde.samplers.steps import STEPS
from score_sde.sde_lib import SDE, ExactDenoiser, Gaussian, NonFiniteError, PerExample, for_examples
from score_sde.sde_lib.consistency import ConsistencyModel
from score_sde.sde_lib.denoiser import Denoise, Denoiser, Estimate, as_denoiser
from score_sde.sde_lib.velocity import ExampleError, Indices
from score_sde.storage.naming import options, pick

LAST = 1e-3
"""Time of the last denoising on processes that begin earlier, equal to ``sample.t_min`` of the default config."""


def draw(
    denoise: Estimate,
    sde: SDE,
    shape: Sequence[int],
    seeds: Tensor | Sequence[int],
    sampler: str = "adams",
    steps: int | None = None,
    *,
    gaussian: Gaussian | None = None,
    device: torch.device | str = "cpu",
    **cond: Tensor,
) -> Tensor:
    """Samples one example per seed: x_T = prior_std z, steps down to ``LAST``, then E[x_0 | x].

    The sample of a seed depends on this seed and its condition only, not on the rest of the batch. No gradients are
    kept. The step has its default options; ``sample`` takes a step with others, or other times.

    Args:
        denoise: (x, t, **cond) -> Prediction or x0, a denoiser of this SDE.
        shape: of one sample.
        seeds: (B,) integers, as for ``Noise``.
        sampler: a key of ``STEPS``.
        steps: number of steps, at least 1; default ``Step.num_steps`` of the sampler.
        gaussian: moment-matched Gaussian of the data, such as ``Gaussian.of(data)``, which saves evaluations; default
            N(0, I).
        device: of the denoiser.
        cond: further arguments of the denoiser, such as label; (B, *), one entry per seed.
    Shapes: returns (B, *shape), on the device.
    Raises: ValueError for an unknown sampler, a sampler that is derived for other denoisers or processes, a denoiser of
        another SDE, steps below 1, seeds that are not integers, a condition or a moment-matched Gaussian of another
        shape; NonFiniteError and NotConvergedError naming the seed.
    """
    if gaussian is not None and gaussian.mean.shape != torch.Size(shape):
        raise ValueError(f"gaussian of shape {tuple(gaussian.mean.shape)}: need the shape of a sample, {tuple(shape)}")
    gaussian = gaussian or Gaussian(torch.zeros(tuple(shape), dtype=torch.float64), 1.0)
    step, (grid, num_steps) = named_step(sde, sampler, gaussian, {}), suited(sde, sampler, num_steps=steps)
    if reason := remark(sampler, denoise, sde):
        raise ValueError(reason)
    times = named_times(sde, grid, num_steps, gaussian, end=max(LAST, sde.t_min))
    seeds = Noise(seeds).seeds
    if cond:
        denoise = conditioned(as_denoiser(denoise, sde), cond, len(seeds))
    return from_seeds(step, denoise, shape, times, seeds, device=device)[1]


def named_step(sde: SDE, sampler: str, gaussian: Gaussian, settings: Mapping[str, Any]) -> Step:
    """Step of that name with the settings that it takes.

    The step receives the isotropic Gaussian, mean and standard deviation. With the full covariance, adaptive solvers
    would weight directions of little variance as much as all others.

    Raises: ValueError for an unknown name.
    """
    kind = pick(STEPS, "sampler", sampler)
    step: Step = kind(sde, **options(kind, {"gaussian": gaussian.isotropic(), **settings}))
    return step


def suited(sde: SDE, sampler: str, grid: str = "", num_steps: int | None = None) -> tuple[str, int]:
    """Name of the grid and number of steps: as given, else the sampler's own, else the grid of the SDE.

    Raises: ValueError for an unknown sampler.
    """
    kind = pick(STEPS, "sampler", sampler)
    return grid or kind.grid or sde.grid, kind.num_steps if num_steps is None else num_steps


def named_times(
    sde: SDE,
    grid: str,
    num_steps: int,
    gaussian: Gaussian,
    start: float | None = None,
    end: float | None = None,
) -> Tensor:
    """Grid of that name for data with this moment-matched Gaussian: num_steps + 1 decreasing times.

    Raises: ValueError for an unknown name, or values out of range.
    """
    kind = pick(GRIDS, "grid", grid)
    known = options(kind, {"std": gaussian.std, "dimensions": gaussian.dimensions})
    times: Tensor = kind(sde, num_steps, start, end, **known)
    return times


def remark(sampler: str, denoise: Estimate, sde: SDE) -> str:
    """Reason why a sampler does not suit this denoiser or process; empty if it does or cannot be determined."""
    kind, ends = pick(STEPS, "sampler", sampler), isinstance(denoise, ConsistencyModel)
    if kind.ends and isinstance(denoise, Denoiser | ExactDenoiser) and not ends:
        return (
            f"{sampler} needs the ends of the probability flow, and this denoiser estimates the mean E[x_0 | x]: its "
            "samples have too little variance; choose another sampler, or train with --config consistency"
        )
    if ends and not kind.ends:
        return (
            f"{sampler} needs the mean E[x_0 | x], and this denoiser estimates the ends of the probability flow: "
            "use --sampler consistency"
        )
    if kind.unscaled and sde.marginal(sde.t_max).alpha < 1:
        return (
            f"{sampler} is derived for processes that do not scale the data, such as --config ncsn; on "
            f"{type(sde).__name__} other samplers need far fewer evaluations"
        )
    return ""


def conditioned(denoise: Denoise, cond: Mapping[str, Tensor], num: int) -> PerExample:
    """Denoiser with further arguments, one entry for each of ``num`` examples.

    Raises: ValueError for another number of entries.
    """
    for name, values in cond.items():
        if not (isinstance(values, Tensor) and values.shape[:1] == (num,)):
            found = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
            raise ValueError(f"{name} is {found}: need a tensor with an entry for each of {num} seeds")

    def make(indices: Indices) -> Denoise:
        return partial(for_examples(denoise, indices), **{name: values[indices] for name, values in cond.items()})

    return PerExample(make)


def from_seeds(
    step: Step,
    denoise: Estimate,
    shape: Sequence[int],
    times: Tensor,
    seeds: Tensor,
    source: Callable[[Tensor], Noise] = Noise,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Initial normals and final data for each seed (B,).

    Raises: NonFiniteError or NotConvergedError naming the seed.
    """

    def states() -> Iterator[Tensor]:
        noise = source(seeds)
        z = noise(torch.empty(len(seeds), *shape, device=device))
        yield z
        yield from trajectory(step, denoise, step.sde.prior_std * z, times, noise)

    with torch.no_grad():
        walk = states()
        z = next(walk)
        with numbered(seeds):
            x0 = collections.deque(walk, maxlen=1).pop()
        finite = torch.isfinite(x0).flatten(1).all(1).cpu()
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            where = _first_fault((state[bad] for state in states()), times[step.sde.sigma(times) > 0].tolist())
            raise NonFiniteError(
                f"the sample of seed {seeds[bad]} is not finite {where}; use more --steps or another sampler"
            )
    return z, x0


@contextmanager
def numbered(numbers: Tensor) -> Iterator[None]:
    """Replaces the position in the batch by the example's own number (B,) in errors about an example."""
    try:
        yield
    except ExampleError as error:
        raise error.renumbered(numbers.tolist()) from None


def _first_fault(states: Iterator[Tensor], noisy: Sequence[float]) -> str:
    """Description of the step after which the states of an example, the data last, are not finite."""
    for step, state in enumerate(states):
        if not torch.isfinite(state).all():
            if step == len(noisy):
                return f"after the last denoising, at t = {noisy[-1]:g}"
            return f"after step {step} of {len(noisy) - 1}, from t = {noisy[step - 1]:g} to {noisy[step]:g}"
    return "in one of two identical computations: the device is not deterministic"
