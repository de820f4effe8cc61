"""Examples to edit: the first of a split, or those of a file."""

from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from data import DataError, Dataset
from data.arrays import read_array
from engine.build import DataFacts, Experiment, check_at_least, check_form, read_dataset
from engine.files import read_npz

PICTURES = (".png", ".jpg", ".jpeg")
MODES = {1: "L", 3: "RGB"}
"""Channels, to what Pillow calls such pictures."""


def read_examples(config: ConfigDict, experiment: Experiment, split: str) -> Dataset:
    """The examples of a split.

    Raises: ValueError if they are not of the form that the run was trained on.
    """
    dataset = read_dataset(config, split)
    check_form(dataset, experiment.facts)
    return dataset


def read_given(config: ConfigDict, experiment: Experiment, split: str) -> Tensor:
    """What ``edit.input`` holds, or else the split; the first ``edit.num_examples``, as stored; (N, *).

    Raises: DataError for a file that is missing or damaged; ValueError for examples of another form.
    """
    check_at_least(0, config, "edit.num_examples")
    check_at_least(1, config, "edit.batch_size")
    most, path = config.edit.num_examples, config.edit.input
    if path:
        found = read_input(Path(path), experiment.facts)
        return found[: most or len(found)]
    dataset = read_examples(config, experiment, split)
    return dataset.batch(np.arange(min(most or len(dataset), len(dataset))))["x"]


def read_input(path: Path, facts: DataFacts) -> Tensor:
    """The examples of a file, in levels if the run has some; (N, *).

    A picture has 256 shades, which are brought to the levels of the run; numbers in numpy files are levels already.
    """
    if path.suffix.lower() in PICTURES:
        shades = read_picture(path, facts.shape).double()
        return (shades * (max(facts.levels, 1) - 1) / 255).round().to(torch.uint8)[None]
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path")
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{path}: need a file ending in {', '.join(PICTURES)}, .npy or .npz")
    if facts.levels:
        found = torch.from_numpy(np.ascontiguousarray(read_array(path)[0]))
    else:
        found = torch.from_numpy(read_npz(path, "samples")["samples"]).float()
    if tuple(found.shape[1:]) != facts.shape or (facts.levels and int(found.max()) >= facts.levels):
        raise ValueError(
            f"{path} holds examples of shape {tuple(found.shape[1:])} up to {found.max().item():g}, the run has "
            f"{facts.shape} in {facts.levels} levels"
        )
    return found


def read_picture(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A picture of this shape, (C, H, W) uint8.

    Raises: DataError if it is missing or damaged; ValueError for other sides or another mode.
    """
    from PIL import Image, UnidentifiedImageError

    if len(shape) != 3 or shape[0] not in MODES:
        raise ValueError(f"{path} is a picture, and the run has examples of shape {shape}")
    channels, height, width = shape
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: check the path") from error
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is no picture that can be read: save it again as PNG") from error
    if (image.mode, image.size) != (MODES[channels], (width, height)):
        raise ValueError(
            f"{path} is of mode {image.mode} and {image.width}x{image.height} pixels; the run needs {MODES[channels]}, "
            f"{width}x{height}: convert it"
        )
    return torch.from_numpy(np.array(image)).reshape(height, width, channels).movedim(-1, 0)
