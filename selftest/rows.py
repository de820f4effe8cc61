"""Rows of the selftest, the device and dtype of their computation, and distances."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """Result of one check.

    Args:
        what: short description of the measured quantity.
        measured: an error, a distance or a count; a non-finite number fails.
        allowed: largest number that passes.
    """

    what: str
    measured: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.measured <= self.allowed

    def __str__(self) -> str:
        """Returns the row as a line of the table."""
        verdict = "passed" if self.passed else "FAILED"
        return f"{self.what:91}{self.measured:9.2g}{self.allowed:9.2g}  {verdict}"


def guarded(rows: Iterator[Row]) -> Iterator[Row]:
    """Yields the rows; an exception becomes one more row, which fails."""
    try:
        yield from rows
    except Exception as error:
        yield Row(f"stopped by {type(error).__name__}: {' '.join(str(error).split())}", math.nan, 0.0)


@dataclass(frozen=True)
class Setting:
    """Device and dtype of the checks."""

    device: torch.device
    dtype: torch.dtype

    @property
    def rounding(self) -> float:
        """Machine epsilon of the dtype."""
        return torch.finfo(self.dtype).eps

    def tensor(self, values: Any) -> Tensor:
        """Returns numbers or an array as a tensor in this dtype, on this device."""
        return _tensor(values).to(self.device, self.dtype)

    def normals(self, *shape: int, seed: int = 0) -> Tensor:
        """Returns standard normals, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return self.tensor(torch.randn(shape, dtype=torch.float64, generator=generator))


def distance(found: Any, expected: Any, scale: Any = 1.0) -> float:
    """Returns the largest |found - expected| / scale; NaN if any entry is NaN."""
    found, expected, scale = map(exactly, (found, expected, scale))
    return float(((found - expected).abs() / scale).max())


def relative(found: Any, expected: Any) -> float:
    """Returns the largest error relative to the expected value, or absolute where that value is 0."""
    expected = exactly(expected)
    return distance(found, expected, torch.where(expected == 0, 1.0, expected.abs()))


def worst(values: Iterable[float]) -> float:
    """Returns the largest number, or NaN if any is NaN, which ``max`` could skip."""
    return torch.tensor(list(values), dtype=torch.float64).max().item()


def exactly(values: Any) -> Tensor:
    """Returns numbers, an array or a tensor as float64 on the CPU."""
    return _tensor(values).detach().cpu().double()


def _tensor(values: Any) -> Tensor:
    """Returns a tensor unchanged, and anything else as a float64 tensor."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64)
