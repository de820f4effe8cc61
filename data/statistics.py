"""Statistics of encoded data, from which noise scales are chosen."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from score_sde.data.codecs import Codec
from score_sde.data.dataset import Dataset
from score_sde.data.loader import order

MOST_EXAMPLES = 10_000
MOST_PAIRED = 2_000
MOST_ENTRIES = 2**25
MOST_PAIRED_ENTRIES = 2**27
MOST_MEASURED = 2**31  # entries that are measured, so that large images do not take hours
AT_A_TIME = 500


@dataclass(frozen=True)
class Statistics:
    """Statistics of a dataset after encoding.

    Args:
        count: number of examples in the dataset.
        measured: number of examples behind the other statistics.
        shape: shape of an example.
        low, high: smallest and largest entry.
        mean: mean of all entries.
        std: standard deviation of all entries; suggests sigma_data.
        diameter: largest Euclidean distance between two examples; suggests sigma_max.
    """

    count: int
    measured: int
    shape: tuple[int, ...]
    low: float
    high: float
    mean: float
    std: float
    diameter: float


def measure(dataset: Dataset, codec: Codec) -> Statistics:
    """Statistics of up to 10,000 examples and 2^31 entries, selected by a fixed shuffle.

    The diameter is exact up to 2,000 examples and 2^27 entries; beyond that it is the diameter of such a subset, which
    is a lower bound.

    Reference: Song, Ermon, "Improved Techniques for Training Score-Based Generative Models", 2020, technique 1
        (sigma_max). arXiv:2006.09011. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
        Models", 2022, table 1 (sigma_data). arXiv:2206.00364
    """
    sample = _sample(dataset)
    total, squares, low, high = 0.0, 0.0, float("inf"), float("-inf")
    paired, size = list[Tensor](), _at_a_time(dataset)
    most_paired = min(MOST_PAIRED, MOST_PAIRED_ENTRIES // math.prod(dataset.shape))
    for numbers in np.array_split(sample, -(-len(sample) // size)):
        x = codec.encode(dataset.batch(numbers)["x"]).flatten(1)
        if not paired or len(paired) * size < most_paired:
            paired.append(x)
        total += x.sum(dtype=torch.float64).item()
        squares += x.double().square().sum().item()
        low, high = min(low, x.min().item()), max(high, x.max().item())
    entries = len(sample) * x.shape[1]
    mean = total / entries
    near = torch.cat(paired).sub_(mean)
    return Statistics(
        count=len(dataset),
        measured=len(sample),
        shape=dataset.shape,
        low=low,
        high=high,
        mean=mean,
        std=max(squares / entries - mean**2, 0.0) ** 0.5,
        diameter=torch.cdist(near, near).max().item(),
    )


def examples(dataset: Dataset, codec: Codec) -> Tensor:
    """The encoded examples that ``measure`` uses, truncated to 2^25 entries; (N, *) float32."""
    numbers = _sample(dataset)[: max(1, MOST_ENTRIES // math.prod(dataset.shape))]
    x = torch.empty(len(numbers), *dataset.shape)
    size = _at_a_time(dataset)
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        x[rows] = codec.encode(dataset.batch(numbers[rows])["x"])
    return x


def _sample(dataset: Dataset) -> np.ndarray:
    """Indices of up to 10,000 examples, by a fixed shuffle."""
    return order(0, 0, len(dataset))[: max(1, min(MOST_EXAMPLES, MOST_MEASURED // math.prod(dataset.shape)))]


def _at_a_time(dataset: Dataset) -> int:
    """Number of examples to encode at once: ``AT_A_TIME``, or fewer to stay within ``MOST_ENTRIES`` entries."""
    return max(1, min(AT_A_TIME, MOST_ENTRIES // math.prod(dataset.shape)))
