"""The examples of a dataset, accessed by index."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

SPLITS = ("train", "test")
MOST_CLASSES = 1_000_000  # a label embedding has a row for each
MOST_BYTES = 2**31  # limit for a batch as stored, together with the batches read ahead


class DataError(Exception):
    """Data that are missing, damaged or of the wrong form; the message names the file and the remedy."""

    exit_status = 3


@dataclass(frozen=True, eq=False)
class Dataset:
    """The stored examples of one split; a codec encodes them.

    Args:
        x: array of examples (N, *shape), or an object with ``shape`` whose x[rows] is such an array; of uint8 if it has
            no ``dtype``.
        rows: indices of the examples of x in the split.
        levels: number of values an entry can take, 0 to levels - 1; 0 for real-valued data.
        label: class of each example of x, 0 to num_classes - 1.
        num_classes: number of classes, 0 for data without labels.
        eps: standard normal noise paired with each example of x, of the same shape; None to draw new noise.
        classes: names of the classes; empty if they have none.
        notes: messages for the user on how the examples were read and on files that were left out.
        validation: description of the test split.
    """

    x: Any
    rows: np.ndarray
    levels: int = 0
    label: np.ndarray | None = None
    num_classes: int = 0
    eps: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    validation: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example: (C, H, W) or (D,)."""
        return tuple(self.x.shape[1:])

    @property
    def example_bytes(self) -> int:
        """Bytes of one example as batches hold it, without its label."""
        arrays = [array for array in (self.x, self.eps) if array is not None]
        return math.prod(self.shape) * sum(getattr(array, "dtype", np.dtype(np.uint8)).itemsize for array in arrays)

    def check_size(self, num: int) -> None:
        """Raises: DataError if ``num`` examples take more than ``MOST_BYTES``."""
        if num * self.example_bytes > MOST_BYTES:
            raise DataError(
                f"{num} examples of shape {self.shape} take {num * self.example_bytes:,} bytes at once, of "
                f"{MOST_BYTES:,} allowed: take smaller batches, or smaller images by data.size"
            )

    def batch(self, indices: ArrayLike) -> dict[str, torch.Tensor]:
        """The examples with these indices, each from 0 to len - 1.

        Shapes: indices (B,); returns x (B, *shape), uint8 or float32, label (B,) int64 if there are classes, and eps as
            x, float32, if the dataset has paired noise.
        Raises: DataError before reading, if the batch takes more than ``MOST_BYTES``.
        """
        rows = self.rows[np.asarray(indices)]
        self.check_size(len(rows))
        batch = {"x": torch.from_numpy(np.ascontiguousarray(self.x[rows]))}
        if self.label is not None:
            batch["label"] = torch.from_numpy(self.label[rows])
        if self.eps is not None:
            batch["eps"] = torch.from_numpy(self.eps[rows])
        return batch


def check_split(split: str) -> None:
    """Raises: ValueError if split is neither train nor test."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use {' or '.join(SPLITS)}")


def hold_out(rows: np.ndarray, every: int) -> dict[str, np.ndarray]:
    """Both splits of rows: the first of every ``every`` consecutive rows is for testing, the others for training."""
    tested = np.arange(len(rows)) % every == 0
    return {"train": rows[~tested], "test": rows[tested]}
