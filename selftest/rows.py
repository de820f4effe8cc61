"""Rows of the selftest, the device and dtype in which they are computed, and distances."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One line of the selftest.

    Args:
        what: is measured, in a few words.
        measured: an error, a distance or a count; a number that is not finite fails.
        allowed: the most that passes.
    """

    what: str
    measured: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.measured <= self.allowed

    def __str__(self) -> str:
        """The row as a line of the table."""
        verdict = "passed" if self.passed else "FAILED"
        return f"{self.what:91}{self.measured:9.2g}{self.allowed:9.2g}  {verdict}"


def guarded(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; an exception is one more row, that failed."""
    try:
        yield from rows
    except Exception as error:
        yield Row(f"stopped by {type(error).__name__}: {' '.join(str(error).split())}", math.nan, 0.0)


@dataclass(frozen=True)
class Setting:
    """The device and the dtype in which the checks compute."""

    device: torch.device
    dtype: torch.dtype

    @property
    def rounding(self) -> float:
        """Spacing of the numbers next to 1."""
        return torch.finfo(self.dtype).eps

    def tensor(self, values: Any) -> Tensor:
        """Numbers or an array as a tensor of the setting."""
        return _tensor(values).to(self.device, self.dtype)

    def normals(self, *shape: int, seed: int = 0) -> Tensor:
        """Standard normals, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return self.tensor(torch.randn(shape, dtype=torch.float64, generator=generator))


def distance(found: Any, expected: Any, scale: Any = 1.0) -> float:
    """The largest |found - expected| / scale; NaN if there is one."""
    found, expected, scale = map(exactly, (found, expected, scale))
    return ((found - expected).abs() / scale).max().item()


def relative(found: Any, expected: Any) -> float:
    """The largest error relative to what is expected, or absolute where that is 0."""
    expected = exactly(expected)
    return distance(found, expected, torch.where(expected == 0, 1.0, expected.abs()))


def worst(values: Iterable[float]) -> float:
    """The largest number, or NaN if there is one: ``max`` would pass over it."""
    return torch.tensor(list(values), dtype=torch.float64).max().item()


def exactly(values: Any) -> Tensor:
    """Numbers, an array or a tensor as float64 on the CPU."""
    return _tensor(values).detach().cpu().double()


def _tensor(values: Any) -> Tensor:
    """A tensor as it is, anything else in float64."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64)
