"""Inputs of editing tasks, from a split or a file, and their results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde.configs.default import Config
from score_sde.data import DataError, Dataset
from score_sde.data.archives import MOST_STORED
from score_sde.data.arrays import read_array, read_numbers
from score_sde.data.decoding import SUFFIXES, decode, pixels
from score_sde.engine.build import Experiment
from score_sde.engine.datasets import check_form, read_dataset
from score_sde.engine.facts import DataFacts
from score_sde.sde_lib import Denoise, NonFiniteError
from score_sde.storage.reading import read_bytes

MODES = {1: "L", 3: "RGB"}
"""Number of channels -> mode of Pillow."""


Denoisers = Callable[[Tensor], Denoise]
"""Example numbers (B,) -> guided denoiser of these examples."""


class Edited(NamedTuple):
    """Result of an editing task.

    result: edited examples, encoded (N, *).
    shown: name -> examples for the picture, encoded (N, *).
    record: entries of the manifest.
    """

    result: Tensor
    shown: dict[str, Tensor]
    record: dict[str, Any]


def check_finite(result: Tensor, numbers: Tensor) -> None:
    """Raises: NonFiniteError with the first of the example numbers (B,) whose result (B, *) is not finite."""
    finite = result.isfinite().flatten(1).all(1).cpu()
    if not finite.all():
        raise NonFiniteError("the result is not finite; use more --steps or another sampler", int(numbers[~finite][0]))


def read_examples(config: Config, experiment: Experiment, split: str) -> Dataset:
    """The examples of a split.

    Raises: ValueError if their shape or levels differ from the training data of the run.
    """
    dataset = read_dataset(config.data, split)
    check_form(config, dataset, experiment.facts)
    return dataset


def read_given(config: Config, experiment: Experiment, split: str) -> Tensor:
    """The first ``edit.num_examples`` of ``edit.input``, or as many evenly spaced ones of the split, as stored; (N, *).

    Raises: DataError for a file that is missing or damaged; ValueError for examples of another shape or kind.
    """
    most, path = config.edit.num_examples, config.edit.input
    if path:
        found = read_input(Path(path), experiment.facts)
        return found[: most or len(found)]
    dataset = read_examples(config, experiment, split)
    return dataset.batch(spaced(len(dataset), most or len(dataset)))["x"]


def spaced(num: int, most: int) -> np.ndarray:
    """At most ``most`` evenly spaced indices in [0, num - 1], including both ends, because a split may be sorted."""
    return np.linspace(0, num - 1, min(num, most)).astype(np.int64)


def read_input(path: Path, facts: DataFacts) -> Tensor:
    """Reads the examples of a file, as levels if the run has levels; (N, *).

    The 256 shades of a picture are mapped to the levels of the run; integers in numpy files are levels already. Real
    numbers are in units of the data, in the layout of samples.npz.

    Raises: DataError for a file that is missing or damaged; ValueError for examples of another shape or kind.
    """
    if path.suffix.lower() in SUFFIXES:
        shades = read_picture(path, facts.shape).double()
        if not facts.levels:
            raise ValueError(f"{path} is a picture, and the run has examples of real numbers; give an .npy or .npz")
        return (shades * (facts.levels - 1) / 255).round().to(torch.uint8)[None]
    kinds = (".npy", ".npz")
    if path.suffix not in kinds:
        raise ValueError(f"{path}: need a file ending in {' or '.join((*SUFFIXES, *kinds) if facts.levels else kinds)}")
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path")
    read = read_array if facts.levels else read_numbers
    found = torch.from_numpy(np.array(read(path)[0]))
    if tuple(found.shape[1:]) != facts.shape:
        raise ValueError(f"{path} contains examples of shape {tuple(found.shape[1:])}, the run has {facts.shape}")
    if facts.levels and int(found.max()) >= facts.levels:
        raise ValueError(f"{path} contains levels up to {found.max()}, the run has 0 to {facts.levels - 1}")
    return found


def read_picture(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Reads a picture of this shape, (C, H, W) uint8, as a dataset reads images (``data.decoding.decode``).

    Raises: DataError if it is missing, damaged or transparent; ValueError for another size or mode.
    """
    if len(shape) != 3 or shape[0] not in MODES:
        raise ValueError(f"{path} is a picture, and the run has examples of shape {shape}")
    channels, height, width = shape
    try:
        picture = decode(read_bytes(path, MOST_STORED), path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if (picture.mode, picture.size) != (MODES[channels], (width, height)):
        found = f"{picture.mode} and {picture.width}x{picture.height} pixels"
        needed = f"{MODES[channels]}, {width}x{height}"
        raise ValueError(f"{path} is of mode {found}; the run needs {needed}: convert it")
    return torch.from_numpy(pixels(picture).copy())
