"""Real-valued arrays: tables (N, D), signals (N, C, L) and fields (N, C, H, W), from numpy files or synthetic."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from score_sde.data.arrays import read_numbers
from score_sde.data.dataset import SPLITS, DataError, Dataset, check_split, hold_out

Synthetic = Callable[[np.random.Generator, int], np.ndarray]
"""(generator, number of examples) -> examples."""

LAYOUTS = {2: "a table (N, D)", 3: "signals (N, C, L)", 4: "fields (N, C, H, W) or (N, H, W, C)"}
DATASETS_BY_RANK = {2: "table", 3: "signals", 4: "fields"}
SYNTHETIC = {"train": 5_000, "test": 1_000}
EVERY = 10


def read_real(rank: int, synthetic: Synthetic, split: str, path: str = "", test_path: str = "") -> Dataset:
    """Examples of real numbers in units of the data, in memory as float32.

    The test split is all of test_path, or every tenth row of path if test_path is empty. Without a path, both splits
    are independent synthetic draws. Labels are the integers under ``labels`` or ``y`` of an .npz.

    Args:
        rank: number of axes of the array: 2, 3 or 4; signals and fields of one channel may lack the channel axis.
        synthetic: the distribution of the examples if path is empty.
        path: an .npy or .npz of floats or integers; empty for synthetic data.
        test_path: the same for the test split; empty takes a part of path.
    Shapes: examples (D,), (C, L) or (C, H, W), float32.
    Raises: ValueError for a test_path without a path; DataError if a file is missing or damaged, has another layout,
        or contains NaN or infinity.
    """
    check_split(split)
    if not path:
        if test_path:
            raise ValueError(f"data.test_path {test_path!r} is given without data.path: give the training data, too")
        x = synthetic(np.random.default_rng(SPLITS.index(split)), SYNTHETIC[split])
        return Dataset(x.astype(np.float32), np.arange(len(x)), validation="an independent draw of the synthetic data")
    sources = [_read(Path(each), rank) for each in (path, test_path) if each]
    shapes = {x.shape[1:] for x, _ in sources}
    if len(shapes) > 1:
        raise DataError(f"{path} and {test_path} have examples of different shapes {shapes}: give both the same shape")
    labels = [label for _, label in sources if label is not None]
    labelled = len(labels) == len(sources)
    num_classes = 1 + max(int(label.max()) for label in labels) if labelled else 0
    x, label = sources[SPLITS.index(split) if test_path else 0]
    rows = np.arange(len(x)) if test_path else hold_out(np.arange(len(x)), EVERY)[split]
    if len(rows) == 0:
        raise DataError(f"{path} has too few rows to leave any for {split}: add rows or give data.test_path")
    validation = test_path or f"every {EVERY}th row"
    return Dataset(x, rows, label=label if labelled else None, num_classes=num_classes, validation=validation)


def _read(path: Path, rank: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The examples of a file, float32 with channels first, and their labels, or None."""
    x, label = read_numbers(path)
    if x.ndim == rank - 1 and rank > 2:
        x = x[:, None]
    if x.ndim != rank:
        fits = f": take --config {DATASETS_BY_RANK[x.ndim]}" if x.ndim in DATASETS_BY_RANK else ""
        raise DataError(f"{path} has the shape {x.shape}; expected {LAYOUTS[rank]}{fits}")
    if rank == 4 and x.shape[3] < x.shape[1]:
        x = np.moveaxis(x, 3, 1)
    return np.ascontiguousarray(x), label


def correlated_table(rng: np.random.Generator, num: int) -> np.ndarray:
    """Four columns in different units: two clusters, a nonlinear dependence, and a skewed column.

    Shapes: (num, 4), with means of about 170, 1.3, 0.02 and 5e4.
    """
    group, (a, b, c) = rng.choice([-1.0, 1.0], num, p=[0.4, 0.6]), rng.standard_normal((3, num))
    height = 170 + 6 * group + 5 * a
    ratio = 1.3 + 0.02 * (height - 170) + 0.1 * b
    rate = 0.02 + 0.004 * np.sin((height - 170) / 5) + 0.001 * c
    income = 5e4 * np.exp(0.3 * a + 0.2 * rng.standard_normal(num))
    return np.stack([height, ratio, rate, income], axis=1)


def waves(rng: np.random.Generator, num: int) -> np.ndarray:
    """Two channels of 64 values: a sine of random frequency, phase and amplitude, and 10 times its cosine plus 20.

    Shapes: (num, 2, 64).
    """
    place = np.linspace(0, 1, 64, endpoint=False)
    size, cycles, phase = rng.uniform(0.5, 1.5, num), rng.uniform(1, 4, num), rng.uniform(0, 2 * np.pi, num)
    angle = 2 * np.pi * cycles[:, None] * place + phase[:, None]
    x = size[:, None, None] * np.stack([np.sin(angle), 20 + 10 * np.cos(angle)], axis=1)
    return x + 0.02 * rng.standard_normal(x.shape)


def smooth_fields(rng: np.random.Generator, num: int) -> np.ndarray:
    """Gaussian random fields of 16 x 16 values on a torus, with the spectrum (1 + k^2)^-2, mean 280 and deviation 10.

    Shapes: (num, 1, 16, 16).
    """
    k = np.fft.fftfreq(16, 1 / 16)
    amplitude = (1 + k[:, None] ** 2 + k**2) ** -1.0
    noise = np.fft.fft2(rng.standard_normal((num, 1, 16, 16)))
    return 280 + 10 * np.fft.ifft2(amplitude * noise).real / np.sqrt((amplitude**2).mean())
