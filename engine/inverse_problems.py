"""Inverse problems: examples restored from measurements y = A x + noise, with the run as prior.

A task defines the measurement A, and a projector P if A keeps a part of the example. A method samples x given y. If the
measurement is noiseless and P exists, every method ends by replacing P x with the measured part.
"""

import functools
import itertools
import math
import runpy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
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
from score_sde.engine.edit_task import GuidedTask
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

MEASURE = "edit.task.measure"
"""The key that names the user's function."""


class Measurement(NamedTuple):
    """A measurement of examples x (B, *).

    measure: A, from x to y (B, *); linear for pigdm.
    project: P, the projector on the part of x that A keeps; None if A does not keep a part of x.
    show: y -> examples for the picture; None if y cannot be shown.
    """

    measure: Forward
    project: Projector | None = None
    show: Callable[[Tensor], Tensor] | None = None


class InverseProblem(GuidedTask):
    """A task that restores examples from their measurement; subclasses hold the options of the measurement."""

    @abstractmethod
    def measurement(self, experiment: Experiment) -> Measurement:
        """The measurement of examples of a run.

        Raises: ValueError where the options do not fit the data.
        """

    def edit(self, experiment: Experiment, denoisers: Denoisers, config: Config, split: str) -> Edited:
        """Restores examples by the method ``edit.method``."""
        return restore(self.measurement(experiment), experiment, denoisers, config, split)


@dataclass(frozen=True)
class Inpaint(InverseProblem):
    """All pixels except those that a mask hides.

    Args:
        mask: a picture, white where pixels are known, or a box top,left,height,width of unknown pixels.
    """

    mask: str = ""

    def measurement(self, experiment: Experiment) -> Measurement:
        project = masked(read_mask(self.mask, experiment.facts.shape).to(experiment.device))
        return Measurement(project, project, lambda y: y)


@dataclass(frozen=True)
class Colorize(InverseProblem):
    """The mean over the channels."""

    def measurement(self, experiment: Experiment) -> Measurement:
        shape = experiment.facts.shape
        if shape[0] == 1 or len(shape) != 3:
            raise ValueError(f"--task colorize needs pictures with colours; the run has shape {shape}")
        return Measurement(lambda x: x.mean(1, keepdim=True), grey, lambda y: y.expand(-1, shape[0], -1, -1))


@dataclass(frozen=True)
class Superres(InverseProblem):
    """The mean of each square block of pixels.

    Args:
        factor: pixels a side of a block, at least 1.
    """

    factor: int = 2

    def measurement(self, experiment: Experiment) -> Measurement:
        factor = self.factor
        return Measurement(lambda x: block_means(x, factor), lowpass(factor), lambda y: enlarge(y, factor))


@dataclass(frozen=True)
class Deblur(InverseProblem):
    """Convolution with a Gaussian; the borders are replicated.

    Args:
        blur: standard deviation of the Gaussian, in pixels.
    """

    blur: float = 1.0

    def measurement(self, experiment: Experiment) -> Measurement:
        deviation, rank = self.blur, len(experiment.facts.shape) - 1
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


@dataclass(frozen=True)
class Measured(InverseProblem):
    """A function of the user's.

    Args:
        measure: FILE.py:FUNCTION, from encoded examples (B, *) to (B, *).
    """

    measure: str = ""

    def measurement(self, experiment: Experiment) -> Measurement:
        text, shape = self.measure, experiment.facts.shape
        path, _, name = text.rpartition(":")
        if not path or not Path(path).is_file():
            raise ValueError(
                f"{MEASURE} {text!r}: need FILE.py:FUNCTION, and that file, in the command or in a config of Python; "
                "code that a config.json names is not run"
            )
        try:
            measure = runpy.run_path(path)[name]
            found = measure(torch.zeros(2, *shape, device=experiment.device))
        except (*WRONG, ArithmeticError, LookupError, NameError, RuntimeError) as error:
            raise ValueError(f"{MEASURE} {text}: {type(error).__name__}: {error}") from error
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != 2:
            raise ValueError(f"{MEASURE} {text}: need a tensor of shape (B, *) for examples of shape (B, *{shape})")
        return Measurement(measure)


INVERSE_PROBLEMS: dict[str, type[InverseProblem]] = {
    "inpaint": Inpaint,
    "colorize": Colorize,
    "superres": Superres,
    "deblur": Deblur,
    "measured": Measured,
}


def read_mask(text: str, shape: tuple[int, ...]) -> Tensor:
    """Reads a mask, bool (H, W), True for known pixels.

    Args:
        text: file of a picture, white where pixels are known; or a box top,left,height,width of unknown pixels.
        shape: shape of an example.
    Raises: ValueError for an empty text, a box that exceeds the picture, or a picture of another size; DataError for a
        file that is missing or damaged.
    """
    if len(shape) != 3:
        raise ValueError(f"edit.task.mask is for pictures; the run has examples of shape {shape}")
    if not text:
        raise ValueError(
            "edit.task.mask is empty: give a picture, white where pixels are known, or a box top,left,height,width"
        )
    if text.lower().endswith(SUFFIXES):
        return read_picture(Path(text), (1, *shape[1:]))[0] > 127
    (_, rows, columns), numbers = shape, [part.strip() for part in text.split(",")]
    box = [int(number) for number in numbers if number.isdecimal()]
    if not (len(box) == len(numbers) == 4 and 0 < box[2] <= rows - box[0] and 0 < box[3] <= columns - box[1]):
        raise ValueError(
            f"edit.task.mask {text}: need top,left,height,width of a box within {rows}x{columns} pixels, or a picture "
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


@dataclass(frozen=True)
class Replacement:
    """Replaces the known part after every move. Lugmayr et al., "RePaint", 2022. arXiv:2201.09865

    Args:
        jump: moves before going back up, where repeats is above 1.
        repeats: passes over each stretch of ``jump`` moves.
        noisy_mean: return the last noisy state with the mean of the known part, as score_sde does: the unknown part
            keeps the noise of t_min.
    """

    jump: int = 10
    repeats: int = 1
    noisy_mean: bool = False

    def __call__(self, problem: Problem, denoise: Guided) -> Tensor:
        """Restored examples. Raises: ValueError if the measurement has no projector."""
        config, experiment, project = *problem[:2], problem.measurement.project
        if project is None:
            raise ValueError("edit.method replacement needs a measurement that keeps a part of x; use pigdm or dps")
        constrain = replacement(problem.x, project, problem.draw)
        step, times = make_step(config.sample, experiment, constrain=constrain), make_times(config.sample, experiment)
        times = resampled(times, self.jump, self.repeats)
        if not self.noisy_mean:
            return sample(step, denoise, problem.latents, times, problem.draw, constrain)
        noisy = times[experiment.sde.sigma(times) > 0]
        states = trajectory(step, denoise, problem.latents, noisy, problem.draw, constrain)
        last = functools.reduce(lambda _, x: x, itertools.islice(states, len(noisy) - 1), problem.latents)
        return constrain(last, experiment.sde.marginal(noisy[-1].item()).alpha, 0.0)


@dataclass(frozen=True)
class PiGDM:
    """PiGDM guidance, with the isotropic moment-matched Gaussian of the data as prior; see ``samplers.pigdm``."""

    def __call__(self, problem: Problem, denoise: Guided) -> Tensor:
        """Restored examples."""
        config, experiment = problem.config, problem.experiment
        std, gaussian = config.edit.noise, experiment.gaussian.isotropic()

        def guided(rows: Indices) -> Guided:
            measure, y = problem.measurement.measure, problem.y[rows]
            return pigdm(for_examples(denoise, rows), experiment.sde, measure, y, std, gaussian)

        step, times = make_step(config.sample, experiment), make_times(config.sample, experiment)
        return sample(step, PerExample(guided), problem.latents, times, problem.draw)


@dataclass(frozen=True)
class PosteriorSampling:
    """DPS: each move is followed by a gradient step on the misfit; see ``samplers.DPS``.

    Args:
        zeta: length of the gradient step, at least 0.
    """

    zeta: float = 1.0

    def __call__(self, problem: Problem, denoise: Guided) -> Tensor:
        """Restored examples."""
        config, experiment = problem.config, problem.experiment
        step = DPS(make_step(config.sample, experiment), problem.measurement.measure, problem.y, self.zeta)
        return sample(step, denoise, problem.latents, make_times(config.sample, experiment), problem.draw)


METHODS: dict[str, Callable[..., Callable[[Problem, Guided], Tensor]]] = {
    "replacement": Replacement,
    "pigdm": PiGDM,
    "dps": PosteriorSampling,
}
"""Options -> a method: (problem, denoiser) -> restored examples, encoded."""


def restore(
    measurement: Measurement, experiment: Experiment, denoisers: Denoisers, config: Config, split: str
) -> Edited:
    """Restores examples from their measurement by the method ``edit.method``; see ``InverseProblem.edit``."""
    settings, codec = config.edit, experiment.codec
    method = pick(METHODS, "method", settings.method.name)(**settings.method.options)
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
        "method": settings.method.name,
        "misfit": misfit.square().mean().sqrt().item(),
        "rms_from_input": error.square().mean().sqrt().item(),
    }
    return Edited(found, {**shown, "restored": found, "input": x}, record)
