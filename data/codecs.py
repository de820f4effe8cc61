"""Codecs stand between the data as stored and the x that the diffusion sees."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pixels:
    """Whole numbers 0 to levels - 1 as the centres of equal bins that fill [low, 1].

        x = (values + 1/2) * (1 - low) / levels + low

    decode undoes encode for every value, and rounds what lies between; real values from -1/2 to levels - 1/2, which
    are whole numbers with uniform noise of one bin's width added (dequantization), fill [low, 1].

    Args:
        levels: number of values, at least 2: 256 for images of 8 bits.
        low: where the values begin, -1, or 0 for networks that were trained so; below 1.
    Raises: ValueError if levels is below 2, or low is not below 1.
    """

    levels: int
    low: float = -1.0

    def __post_init__(self) -> None:
        if not self.low < 1:
            raise ValueError(f"codec.low {self.low}: need a number below 1, where the values end; -1 or 0")
        if self.levels < 2:
            raise ValueError(f"codec pixels needs at least 2 levels and got {self.levels}: use codec identity")

    def encode(self, values: Tensor) -> Tensor:
        """Shapes: values (B, *), uint8 or float; returns (B, *) float32.

        Raises: ValueError if a value lies outside [-1/2, levels - 1/2].
        """
        low, high = values.aminmax()
        if not (low >= -0.5 and high <= self.levels - 0.5):  # true for NaN as well
            allowed = f"[-0.5, {self.levels - 0.5}]"
            raise ValueError(f"values from {low.item():g} to {high.item():g} are outside {allowed}: check the data")
        return (values.float() + 0.5) * ((1 - self.low) / self.levels) + self.low

    def decode(self, x: Tensor) -> Tensor:
        """The nearest whole numbers. Shapes: x (B, *); returns (B, *) uint8, from 0 to levels - 1."""
        return self.values(x.float()).round().clamp(0, self.levels - 1).to(torch.uint8)

    def values(self, x: Tensor) -> Tensor:
        """The real values that encode to x, neither rounded nor cut. Shapes: x (B, *), and what is returned."""
        return (x - self.low) * (self.levels / (1 - self.low)) - 0.5

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Log-determinant of encode's Jacobian for an example of this shape, in nats: D log((1 - low) / levels)."""
        return math.prod(shape) * math.log((1 - self.low) / self.levels)


@dataclass(frozen=True)
class Identity:
    """Real-valued data as it is.

    Args:
        levels: 0, for there are none.
    Raises: ValueError if levels is not 0.
    """

    levels: int = 0

    def __post_init__(self) -> None:
        if self.levels != 0:
            raise ValueError(f"codec identity is for real values and got {self.levels} levels: use codec pixels")

    def encode(self, values: Tensor) -> Tensor:
        """Shapes: values (B, *); returns (B, *) float32."""
        return values.float()

    def decode(self, x: Tensor) -> Tensor:
        """Shapes: x (B, *); returns (B, *) float32."""
        return x.float()

    def values(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Log-determinant of encode's Jacobian: 0."""
        return 0.0
