"""Recorded numbers of the reference implementations, and deviations from them."""

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde.sde_lib import GaussianMixture
from score_sde.sde_lib.process import Draw

ROOT = Path(__file__).resolve().parents[2]
COPIES = ROOT / "tests" / "data"
"""The core of the recordings, identical array by array; included in every checkout."""

COMPLETE = Path(os.environ.get("FIXTURES") or ROOT.parent / "shared" / "fixtures")

Comparison = tuple[str, Tensor, Tensor]
"""Name of the array in its recording, our numbers, the reference's numbers."""


class Recording:
    """One file of arrays.

    Args:
        name: path below the folder of recordings, without the suffix.
        folder: the folder; None for the complete recordings if present, else the copies.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name = name
        self.arrays = _arrays(folder / f"{name}.npz" if folder else find(f"{name}.npz"))

    def __getitem__(self, key: str) -> Tensor:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    @property
    def cases(self) -> dict[str, dict]:
        """Parameters, from the json file next to the arrays, of the cases that were recorded."""
        cases = parameters(self.name)["cases"]
        return {case: about for case, about in cases.items() if any(key.startswith(f"{case}.") for key in self.arrays)}


class Group(NamedTuple):
    """Comparisons of one kind under one tolerance.

    source: key of ``SOURCES``.
    what: one line for the reader of the report.
    files: the recordings.
    deviation: the metric, (ours, theirs) -> number.
    allowed: the largest deviation.
    compare: yields the comparisons of one recording.
    needs: an array without which nothing can be compared; a copy may lack it.
    """

    source: str
    what: str
    files: tuple[str, ...]
    deviation: Callable[[Tensor, Tensor], float]
    allowed: float
    compare: Callable[[Recording], Iterator[Comparison]]
    needs: str

    def recordings(self) -> list[str]:
        """The files that are present and contain the array ``needs``."""
        return [name for name in self.files if not self.missing(name)]

    def missing(self, name: str) -> str:
        """Reason why a file cannot be compared; empty if it can."""
        if not find(f"{name}.npz").exists():
            return f"{name}.npz is not here"
        return "" if self.needs in Recording(name) else f"{name}.npz has no {self.needs} here"


def find(path: str) -> Path:
    """Path of a recording."""
    return COMPLETE / path if (COMPLETE / path).exists() else COPIES / path


def parameters(name: str) -> dict:
    """Content of a recording's json file."""
    return json.loads(find(f"{name}.json").read_text())


@cache
def _arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


# --- deviations -------------------------------------------------------------------------------------------------------


def per_sample(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs| of each sample, the worst sample; absolute where theirs is zero."""
    ours, theirs = ours.double().reshape(len(theirs), -1), theirs.double().reshape(len(theirs), -1)
    scale = theirs.abs().amax(1)
    return _worst((ours - theirs).abs().amax(1) / torch.where(scale > 0, scale, 1.0))


def per_element(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / (|theirs| + 1/1000): a relative tolerance with a thousandth of it as the absolute one."""
    return _worst((ours.double() - theirs.double()).abs() / (theirs.double().abs() + 1e-3))


def per_unit_element(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / (|theirs| + 1/10)."""
    return _worst((ours.double() - theirs.double()).abs() / (theirs.double().abs() + 0.1))


def per_hundredth_element(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / (|theirs| + 1/100)."""
    return _worst((ours.double() - theirs.double()).abs() / (theirs.double().abs() + 0.01))


def absolute(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs|."""
    return _worst((ours.double() - theirs.double()).abs())


def _worst(deviations: Tensor) -> float:
    """The largest deviation; infinity if one is not finite."""
    return torch.nan_to_num(deviations, nan=float("inf")).max().item()


# --- inputs of the references -----------------------------------------------------------------------------------------


def gaussian(recording: Recording, shape: tuple[int, ...], prefix: str = "") -> GaussianMixture:
    """The data N(mu, Sigma) whose exact score served as the network."""
    mean, covariance = recording[f"{prefix}mu"], recording[f"{prefix}Sigma"]
    return GaussianMixture.of_covariances(torch.ones(1).double(), mean.reshape(1, *shape), covariance[None])


def replay(noise: Tensor) -> Draw:
    """A ``draw`` that returns the recorded draws (num, B, *) in order."""
    draws = iter(noise)
    return lambda like: next(draws).to(like)


def column(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values.reshape(-1, 1, 1, 1)
