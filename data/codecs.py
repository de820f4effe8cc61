"""Codecs: invertible maps between stored values and the x of the diffusion process."""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from score_sde.data.dataset import DataError, Dataset

ROWS_AT_A_TIME = 500

FEWEST_STEPS = 2**7
"""Least number of float32 steps per standard deviation of a channel; fewer would show as rounding in samples."""


class Codec:
    """Interface of all codecs.

    Args:
        levels: number of values an entry can take, 0 for real-valued data.
        unit: name of the unit of encoded real values.
        measures: whether ``measure`` reads the training data.
        low: start of the encoded interval; only for codecs of levels.
    """

    levels: int
    low: float
    measures: ClassVar[bool] = False
    unit: ClassVar[str] = "units of the encoded data"

    @classmethod
    def measure(cls, dataset: Dataset) -> dict[str, tuple[float, ...]]:
        """Arguments of the codec that are measured on the training data; a run stores them in its checkpoints."""
        return {}

    @property
    def measured(self) -> Mapping[str, tuple[float, ...]]:
        """The arguments that ``measure`` returned."""
        return {}

    def encode(self, values: Tensor) -> Tensor:
        """Encodes stored values. Shapes: values (B, *); returns (B, *) float32."""
        raise NotImplementedError

    def encode_unread(self, values: Tensor) -> Tensor:
        """As ``encode``, without synchronizing with the device: an example that ``check`` refuses becomes NaN."""
        return self.encode(values)

    def check(self, values: Tensor) -> None:
        """Raises: ValueError for values out of range; the base class accepts all values."""

    def decode(self, x: Tensor) -> Tensor:
        """The nearest values that the data can have. Shapes: x (B, *); returns (B, *)."""
        raise NotImplementedError

    def values(self, x: Tensor) -> Tensor:
        """Exact inverse of ``encode``, in the dtype of x. Shapes: x (B, *); returns (B, *)."""
        raise NotImplementedError

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Log-determinant of the Jacobian of ``encode`` for an example of this shape, in nats.

        Raises: ValueError for data without a density.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Pixels(Codec):
    """Maps the integers 0 to levels - 1 to the centres of equal bins that fill [low, 1].

        x = (values + 1/2) * (1 - low) / levels + low

    ``decode`` inverts ``encode`` and rounds values between the centres. Real values from -1/2 to levels - 1/2, such as
    integers with uniform noise of one bin width (dequantization), fill [low, 1].

    Args:
        levels: number of values, at least 2: 256 for images of 8 bits.
        low: start of the encoded interval, below 1: -1, or 0 for networks trained on [0, 1]; the interval ends at 1.
    Raises: ValueError if levels is below 2, or low is not below 1.
    """

    levels: int
    low: float = -1.0

    def __post_init__(self) -> None:
        if not self.low < 1:
            raise ValueError(f"codec.low {self.low}: need a number below 1, the end of the interval; -1 or 0")
        if self.levels < 2:
            raise ValueError(
                f"codec pixels needs at least 2 levels and got {self.levels}: real-valued data take codec standardize "
                "or identity"
            )

    def encode(self, values: Tensor) -> Tensor:
        """Shapes: values (B, *), uint8 or float; returns (B, *) float32.

        Raises: ValueError if a value lies outside [-1/2, levels - 1/2].
        """
        self.check(values)
        return self._scale(values)

    def encode_unread(self, values: Tensor) -> Tensor:
        """As ``encode``, without synchronizing with the device: an example with a value out of range becomes NaN."""
        flat = values.flatten(1)
        inside = (flat.amin(1) >= -0.5) & (flat.amax(1) <= self.levels - 0.5)
        return self._scale(values).masked_fill_(~inside.reshape(-1, *[1] * (values.ndim - 1)), math.nan)

    def check(self, values: Tensor) -> None:
        """Raises: ValueError if a value lies outside [-1/2, levels - 1/2], or is NaN."""
        low, high = torch.stack(values.aminmax()).tolist()
        if not (low >= -0.5 and high <= self.levels - 0.5):
            allowed = f"[-0.5, {self.levels - 0.5}]"
            raise ValueError(f"values from {low:g} to {high:g} are outside {allowed}: check the data")

    def _scale(self, values: Tensor) -> Tensor:
        return (values.float() + 0.5) * ((1 - self.low) / self.levels) + self.low

    def decode(self, x: Tensor) -> Tensor:
        """The nearest integers. Shapes: x (B, *); returns (B, *) uint8, from 0 to levels - 1."""
        return self.values(x.float()).round().clamp(0, self.levels - 1).to(torch.uint8)

    def values(self, x: Tensor) -> Tensor:
        """The real values that encode to x, neither rounded nor clamped. Shapes: x (B, *); returns (B, *)."""
        return (x - self.low) * (self.levels / (1 - self.low)) - 0.5

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Log-determinant of the Jacobian of ``encode``, in nats: D log((1 - low) / levels), D = prod(shape)."""
        return math.prod(shape) * math.log((1 - self.low) / self.levels)


@dataclass(frozen=True)
class Identity(Codec):
    """Real-valued data, unchanged.

    Args:
        levels: 0, the value for real data.
    Raises: ValueError if levels is not 0.
    """

    levels: int
    unit: ClassVar[str] = "units of the data"

    def __post_init__(self) -> None:
        check_real("identity", self.levels)

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
        """Log-determinant of the Jacobian of ``encode``: 0."""
        return 0.0


@dataclass(frozen=True)
class Standardize(Codec):
    """Normalises each channel, or each column of a table, to mean 0 and standard deviation 1.

        x[:, c] = (values[:, c] - means[c]) / stds[c]

    A constant channel has standard deviation 0: ``encode`` only subtracts its mean, ``decode`` returns the constant
    exactly, and ``log_det`` raises, because the data have no density.

    Args:
        levels: 0, the value for real data.
        means: mean of each channel, or of each column of a table, over the training data.
        stds: standard deviation of each channel or column.
    Raises: ValueError if levels is not 0, if means and stds differ in length or are empty, or for a number that is not
        finite or a negative standard deviation.
    """

    levels: int
    means: tuple[float, ...]
    stds: tuple[float, ...]
    unit: ClassVar[str] = "standard deviations of a channel"
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_real("standardize", self.levels)
        sound = all(map(math.isfinite, (*self.means, *self.stds))) and all(std >= 0 for std in self.stds)
        if not self.means or len(self.means) != len(self.stds) or not sound:
            raise ValueError(
                f"codec standardize has {len(self.means)} means and {len(self.stds)} standard deviations: need one "
                "finite number of each for every channel, as training measures and stores them"
            )

    @classmethod
    def measure(cls, dataset: Dataset) -> dict[str, tuple[float, ...]]:
        """Mean and standard deviation of each channel over all examples and positions.

        Raises: DataError for a channel whose values float32 does not resolve.
        """
        means, stds, largest = channel_moments(dataset)
        coarse = (stds > 0) & (largest * 2**-23 * FEWEST_STEPS > stds)
        if coarse.any():
            c = int(coarse.nonzero()[0])
            raise DataError(
                f"channel {c} of the data has values of size {largest[c]:g} and a standard deviation of {stds[c]:.3g}, "
                "too little for float32 to resolve: subtract an offset and save the data again"
            )
        return {"means": tuple(means.float().tolist()), "stds": tuple(stds.float().tolist())}

    @property
    def measured(self) -> Mapping[str, tuple[float, ...]]:
        """Means and standard deviations."""
        return {"means": self.means, "stds": self.stds}

    def encode(self, values: Tensor) -> Tensor:
        """Shapes: values (B, C, *), float; returns (B, C, *) float32."""
        means, stds = self._moments(values)
        return ((values - means) / torch.where(stds > 0, stds, 1.0)).float()

    def decode(self, x: Tensor) -> Tensor:
        """Values in units of the data. Shapes: x (B, C, *); returns (B, C, *) float32."""
        means, stds = self._moments(x)
        return (x * stds + means).float()

    def values(self, x: Tensor) -> Tensor:
        """Exact inverse of ``encode``. Shapes: x (B, C, *); returns (B, C, *)."""
        means, stds = self._moments(x)
        return x * torch.where(stds > 0, stds, 1.0) + means

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Log-determinant of the Jacobian of ``encode``, in nats: -(number of positions) * sum of log std.

        Raises: ValueError if a channel is constant.
        """
        constant = [c for c, std in enumerate(self.stds) if std == 0]
        if constant:
            raise ValueError(
                f"channel {constant[0]} of the training data is always {self.means[constant[0]]:g} "
                f"({len(constant)} of {len(self.stds)} channels are constant): such data have no density; remove these "
                "channels and train again"
            )
        return -math.prod(shape[1:]) * sum(map(math.log, self.stds))

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations, shaped to broadcast against x (B, C, *), in its dtype."""
        dtype = x.dtype if x.dtype.is_floating_point else torch.float32
        means, stds = (per_channel(part, x.ndim, dtype, x.device) for part in (self.means, self.stds))
        return means, stds


@functools.lru_cache(maxsize=16)
def per_channel(numbers: tuple[float, ...], ndim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of shape (1, C, 1, ..., 1), cached so that they are copied to the device once."""
    with torch.inference_mode(False):  # cached tensors must be usable by autograd
        return torch.tensor(numbers, dtype=dtype, device=device).reshape(1, -1, *[1] * (ndim - 2))


def channel_moments(dataset: Dataset) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and largest absolute value of each channel, over all examples and positions.

    For a constant channel, the mean is exactly the constant and the standard deviation exactly 0.

    Shapes: each (C,), float64.
    """
    channels, entries = dataset.shape[0], len(dataset) * math.prod(dataset.shape[1:])

    def parts() -> Iterator[Tensor]:
        for start in range(0, len(dataset), ROWS_AT_A_TIME):
            rows = range(start, min(start + ROWS_AT_A_TIME, len(dataset)))
            yield dataset.batch(rows)["x"].double().transpose(0, 1).reshape(channels, -1)

    low = torch.stack([part.amin(1) for part in parts()]).amin(0)
    high = torch.stack([part.amax(1) for part in parts()]).amax(0)
    zeros = torch.zeros_like(low)
    means = sum((part.sum(1) for part in parts()), zeros) / entries
    means = torch.where(low == high, low, means)
    squares = sum(((part - means[:, None]).square().sum(1) for part in parts()), zeros)
    return means, (squares / entries).sqrt(), torch.maximum(low.abs(), high.abs())


def check_real(name: str, levels: int) -> None:
    """Raises: ValueError if levels is not 0."""
    if levels != 0:
        raise ValueError(f"codec {name} is for real values and got {levels} levels: use codec pixels")
