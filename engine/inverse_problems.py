"""Inverse problems: examples restored from measurements y = A x + noise, with the run as prior.

A task defines the measurement A, and a projector P if A keeps a part of the example. A method samples x given y. If the
measurement is noiseless and P exists, every method ends by replacing P x with the measured part.
"""

import functools
import itertools
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from score_sde.configs.default import Config
from score_sde.data.decoding import SUFFIXES
from score_sde.engine.build import Experiment
from score_sde.engine.config import WRONG
from score_sde.engine.drawing import first_normals
from score_sde.engine.examples import Denoisers, Edited, check_finite, read_given, read_picture
from score_sde.engine.log import Progress
from score_sde.engine.randomness import EDITING, noise
from score_sde.engine.sampler import make_step, make_times
from score_sde.samplers import (
    DPS,
    Noise,
    block_means,
    enlarge,
    grey,
    lowpass,
    masked,
    pigdm,
    replacement,
    resampled,
    sample,
    trajectory,
)
from score_sde.samplers.constraints import Projector
from score_sde.samplers.draw import numbered
from score_sde.samplers.guidance import Guided
from score_sde.samplers.posterior import Forward
from score_sde.sde_lib import PerExample, for_examples
from score_sde.sde_lib.velocity import Indices
from score_sde.storage.naming import pick


class Measurement(NamedTuple):
    """A measurement of examples x (B, *).

    measure: A, from x to y (B, *); linear for pigdm.
    project: P, the projector on the part of x that A keeps; None if A does not keep a part of x.
    show: y -> examples for the picture; None if y cannot be shown.
    """

    measure: Forward
    project: Projector | None = None
    show: Callable[[Tensor], Tensor] | None = None


def inpaint(config: Config, experiment: Experiment) -> Measurement:
    """All pixels except those that ``edit.mask`` hides."""
    project = masked(read_mask(config.edit.mask, experiment.facts.shape).to(experiment.device))
    return Measurement(project, project, lambda y: y)


def colorize(config: Config, experiment: Experiment) -> Measurement:
    """The mean over the channels.

    Raises: ValueError for data without colour channels.
    """
    if experiment.facts.shape[0] == 1 or len(experiment.facts.shape) != 3:
        raise ValueError(f"--task colorize needs pictures with colours; the run has shape {experiment.facts.shape}")
    return Measurement(
        lambda x: x.mean(1, keepdim=True), grey, lambda y: y.expand(-1, experiment.facts.shape[0], -1, -1)
    )


def superres(config: Config, experiment: Experiment) -> Measurement:
    """The mean of each block of ``edit.factor`` x ``edit.factor`` pixels."""
    factor = config.edit.factor
    return Measurement(lambda x: block_means(x, factor), lowpass(factor), lambda y: enlarge(y, factor))


def deblur(config: Config, experiment: Experiment) -> Measurement:
    """Convolution with a Gaussian of standard deviation ``edit.blur`` pixels; the borders are replicated.

    Raises: ValueError for data other than signals and images.
    """
    deviation, rank = config.edit.blur, len(experiment.facts.shape) - 1
    if rank not in (1, 2):
        raise ValueError(f"--task deblur needs signals or images; the run has shape {experiment.facts.shape}")
    reach = min(math.ceil(3 * deviation), min(experiment.facts.shape[1:]) - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    weights = weights / weights.sum()

    def blur(x: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            x = x.movedim(axis, -1)
            line = F.pad(x.reshape(-1, 1, x.shape[-1]), (reach, reach), mode="replicate")
            x = F.conv1d(line, weights.to(x)[None, None]).reshape(x.shape).movedim(-1, axis)
        return x

    return Measurement(blur, None, lambda y: y)


def measured(config: Config, experiment: Experiment) -> Measurement:
    """The user's function ``edit.measure``, FILE.py:FUNCTION, from encoded examples (B, *) to (B, *).

    Raises: ValueError if the file or the function is missing or fails.
    """
    text, shape = config.edit.measure, experiment.facts.shape
    path, _, name = text.rpartition(":")
    if not path or not Path(path).is_file():
        raise ValueError(
            f"edit.measure {text!r}: need FILE.py:FUNCTION, and that file, in the command or in a config of Python; "
            "code that a config.json names is not run"
        )
    try:
        measure = runpy.run_path(path)[name]
        found = measure(torch.zeros(2, *shape, device=experiment.device))
    except (*WRONG, ArithmeticError, LookupError, NameError, RuntimeError) as error:
        raise ValueError(f"edit.measure {text}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != 2:
        raise ValueError(f"edit.measure {text}: need a tensor of shape (B, *) for examples of shape (B, *{shape})")
    return Measurement(measure)


TASKS: dict[str, Callable[[Config, Experiment], Measurement]] = {
    "inpaint": inpaint,
    "colorize": colorize,
    "superres": superres,
    "deblur": deblur,
    "measured": measured,
}
"""(config, experiment) -> measurement."""


def read_mask(text: str, shape: tuple[int, ...]) -> Tensor:
    """Reads a mask, bool (H, W), True for known pixels.

    Args:
        text: file of a picture, white where pixels are known; or a box top,left,height,width of unknown pixels.
        shape: shape of an example.
    Raises: ValueError for an empty text, a box that exceeds the picture, or a picture of another size; DataError for a
        file that is missing or damaged.
    """
    if len(shape) != 3:
        raise ValueError(f"edit.mask is for pictures; the run has examples of shape {shape}")
    if not text:
        raise ValueError("edit.mask is empty: give a picture, white where pixels are known, or top,left,height,width")
    if text.lower().endswith(SUFFIXES):
        return read_picture(Path(text), (1, *shape[1:]))[0] > 127
    (_, rows, columns), numbers = shape, [part.strip() for part in text.split(",")]
    box = [int(number) for number in numbers if number.isdecimal()]
    if not (len(box) == len(numbers) == 4 and 0 < box[2] <= rows - box[0] and 0 < box[3] <= columns - box[1]):
        raise ValueError(
            f"edit.mask {text}: need top,left,height,width of a box within {rows}x{columns} pixels, or a picture "
            f"ending in {' or '.join(SUFFIXES)}"
        )
    top, left, height, width = box
    known = torch.ones(rows, columns, dtype=torch.bool)
    known[top : top + height, left : left + width] = False
    return known


class Problem(NamedTuple):
    """A batch to restore.

    x: examples; methods use only their known part.
    y: measurements of the examples.
    latents: initial states x_T.
    """

    config: Config
    experiment: Experiment
    measurement: Measurement
    x: Tensor
    y: Tensor
    latents: Tensor
    draw: Noise


def by_replacement(problem: Problem, denoise: Guided) -> Tensor:
    """Replaces the known part after every move; with ``edit.repeats``, moves are repeated (RePaint).

    With ``edit.noisy_mean``, returns the last noisy state with the mean of the known part, as score_sde does: the
    unknown part keeps the noise of t_min.

    Raises: ValueError if the measurement has no projector.
    """
    config, experiment, settings, project = *problem[:2], problem.config.edit, problem.measurement.project
    if project is None:
        raise ValueError("edit.method replacement needs a measurement that keeps a part of x; use pigdm or dps")
    constrain = replacement(problem.x, project, problem.draw)
    step, times = make_step(config, experiment, constrain=constrain), make_times(config, experiment)
    times = resampled(times, settings.jump, settings.repeats)
    if not settings.noisy_mean:
        return sample(step, denoise, problem.latents, times, problem.draw, constrain)
    noisy = times[experiment.sde.sigma(times) > 0]
    states = trajectory(step, denoise, problem.latents, noisy, problem.draw, constrain)
    last = functools.reduce(lambda _, x: x, itertools.islice(states, len(noisy) - 1), problem.latents)
    return constrain(last, experiment.sde.marginal(noisy[-1].item()).alpha, 0.0)


def by_pigdm(problem: Problem, denoise: Guided) -> Tensor:
    """PiGDM guidance, with the isotropic moment-matched Gaussian of the data as prior."""
    config, experiment = problem.config, problem.experiment
    std, gaussian = config.edit.noise, experiment.gaussian.isotropic()

    def guided(rows: Indices) -> Guided:
        measure, y = problem.measurement.measure, problem.y[rows]
        return pigdm(for_examples(denoise, rows), experiment.sde, measure, y, std, gaussian)

    step, times = make_step(config, experiment), make_times(config, experiment)
    return sample(step, PerExample(guided), problem.latents, times, problem.draw)


def by_dps(problem: Problem, denoise: Guided) -> Tensor:
    """DPS: each move is followed by a gradient step on the misfit."""
    config, experiment = problem.config, problem.experiment
    step = DPS(make_step(config, experiment), problem.measurement.measure, problem.y, config.edit.zeta)
    return sample(step, denoise, problem.latents, make_times(config, experiment), problem.draw)


METHODS: dict[str, Callable[[Problem, Guided], Tensor]] = {
    "replacement": by_replacement,
    "pigdm": by_pigdm,
    "dps": by_dps,
}
"""(problem, denoiser) -> restored examples, encoded."""


def restore(name: str, experiment: Experiment, denoisers: Denoisers, config: Config, split: str) -> Edited:
    """Restores examples by a task of ``TASKS`` and the method ``edit.method``.

    Args:
        denoisers: numbers (B,) -> guided denoiser of these examples.
    """
    settings, codec = config.edit, experiment.codec
    method, measurement = pick(METHODS, "method", settings.method), TASKS[name](config, experiment)
    x = codec.encode(read_given(config, experiment, split)).to(experiment.device)
    parts, progress = [], Progress(len(x), "examples")
    for rows in torch.arange(len(x)).split(settings.batch_size):
        seeds = rows + config.seed
        draw, here = Noise(seeds), x[rows]
        with torch.no_grad(), numbered(rows):
            y = measurement.measure(here)
            y = y + settings.noise * noise(config.seed, EDITING, rows)(y)
            latents = experiment.sde.prior_std * first_normals(experiment, draw)
            found = method(Problem(config, experiment, measurement, here, y, latents, draw), denoisers(rows))
            if measurement.project and not settings.noise:
                found = found - measurement.project(found) + measurement.project(here)
            misfit = measurement.measure(found) - y
        check_finite(found, rows)
        parts.append((y, found, misfit.flatten(1)))
        progress.advance(len(rows))
    progress.close()
    y, found, misfit = (torch.cat(part) for part in zip(*parts, strict=True))
    shown = {"known": measurement.show(y)} if measurement.show else {}
    error = codec.decode(found).double() - codec.decode(x).double()
    record = {
        "method": settings.method,
        "misfit": misfit.square().mean().sqrt().item(),
        "rms_from_input": error.square().mean().sqrt().item(),
    }
    return Edited(found, {**shown, "restored": found, "input": x}, record)


INVERSE_PROBLEMS = {name: functools.partial(restore, name) for name in TASKS}
"""(experiment, denoisers, config, split) -> restored examples."""
