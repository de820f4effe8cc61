"""Training batches, in an order that is a pure function of the seed and the number of images seen.

Batches share no state, so a resumed run reads the same data, and batches can be prefetched or gathered from a copy of
the data on the device. Random words come directly from the Philox counter, whose stream is the same on every machine
and in every version of numpy.
"""

from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from threading import Thread

import numpy as np
import torch
from torch import Tensor

from score_sde.data.dataset import MOST_BYTES, Dataset

Batch = dict[str, Tensor]

FLIPS = -1  # the stream of the mirror flips; streams 0, 1, 2, ... shuffle the epochs


def batch_at(dataset: Dataset, seed: int, images_seen: int, batch_size: int, mirror: bool = False) -> Batch:
    """The training batch at a position.

    Args:
        images_seen: position of the first example, in examples since the start of training.
        mirror: whether a random half of the examples is mirrored along the last axis, together with its paired noise.
    """
    batch = dataset.batch(indices(seed, images_seen, batch_size, len(dataset)))
    return mirrored(batch, torch.from_numpy(flips(seed, images_seen, batch_size))) if mirror else batch


def mirrored(batch: Batch, flip: Tensor) -> Batch:
    """Mirrors the examples selected by ``flip``, and their paired noise, along the last axis.

    Shapes: flip bool (B,).
    """
    arrays = {key: batch[key] for key in batch.keys() & {"x", "eps"}}
    return batch | {
        key: torch.where(flip.reshape(-1, *[1] * (value.ndim - 1)), value.flip(-1), value)
        for key, value in arrays.items()
    }


RESIDENT = 0.25
"""Largest fraction of an accelerator's free memory for a copy of the dataset."""


def reader(
    dataset: Dataset, device: torch.device, seed: int, batch_size: int, stride: int, mirror: bool, ahead: int
) -> Callable[[int], Batch]:
    """The fastest reader of a run's batches, a function from a position to the result of ``batch_at``.

    It is a copy of the data on the GPU if that fits. Otherwise batches are prefetched for files on disk and for
    accelerators (into pinned memory for a GPU), and read on demand for arrays on the CPU.

    Args:
        stride: distance between the positions of consecutive batches.
        ahead: number of batches to prefetch, reduced if they would take more than ``MOST_BYTES`` together.
    Raises: DataError if one batch takes more than ``MOST_BYTES``.
    """
    dataset.check_size(batch_size)
    ahead = min(ahead, MOST_BYTES // (batch_size * dataset.example_bytes) - 1)
    if device.type == "cuda" and num_bytes(dataset) <= RESIDENT * torch.cuda.mem_get_info(device)[0]:
        return Resident(dataset, device, seed, batch_size, mirror)

    def read(images_seen: int) -> Batch:
        batch = batch_at(dataset, seed, images_seen, batch_size, mirror)
        return {key: value.pin_memory() for key, value in batch.items()} if device.type == "cuda" else batch

    at_once = device.type == "cpu" and isinstance(dataset.x, np.ndarray)
    return read if at_once else Prefetched(read, stride, ahead)


def num_bytes(dataset: Dataset) -> int:
    """Size of all examples in bytes, in the dtypes of a batch."""
    return len(dataset) * sum(value[0].nbytes for value in dataset.batch([0]).values())


AT_A_TIME = 2**26
"""Bytes of examples copied to an accelerator at once."""


class Resident:
    """Batches from a copy of the whole dataset on the device, without host-to-device copies in most steps.

    Args:
        seed, mirror, batch_size: as in ``batch_at``.
    """

    positions = 1 << 16
    """Number of positions whose indices and flips are copied to the device at once."""

    def __init__(self, dataset: Dataset, device: torch.device, seed: int, batch_size: int, mirror: bool) -> None:
        self.whole = on_device(dataset, device)
        self.seed, self.batch_size, self.mirror, self.num, self.device = seed, batch_size, mirror, len(dataset), device
        self.positions = max(self.positions, batch_size)
        self.first, self.rows, self.flips = 0, torch.empty(0), torch.empty(0)

    def __call__(self, images_seen: int) -> Batch:
        """The batch of ``batch_at``, on the device."""
        if not self.first <= images_seen <= self.first + len(self.rows) - self.batch_size:
            self.first = images_seen
            self.rows = torch.from_numpy(indices(self.seed, images_seen, self.positions, self.num)).to(self.device)
            self.flips = torch.from_numpy(flips(self.seed, images_seen, self.positions)).to(self.device)
        place = slice(images_seen - self.first, images_seen - self.first + self.batch_size)
        batch = {key: value[self.rows[place]] for key, value in self.whole.items()}
        return mirrored(batch, self.flips[place]) if self.mirror else batch


def on_device(dataset: Dataset, device: torch.device) -> Batch:
    """All examples on the device, copied in parts so that host memory never contains all of them."""
    size = max(1, AT_A_TIME // dataset.example_bytes)
    whole: Batch = {}
    for start in range(0, len(dataset), size):
        part = dataset.batch(np.arange(start, min(start + size, len(dataset))))
        if not whole:
            whole = {
                key: torch.empty(len(dataset), *value.shape[1:], dtype=value.dtype, device=device)
                for key, value in part.items()
            }
        for key, value in part.items():
            whole[key][start : start + size] = value.to(device)
    return whole


class Prefetched:
    """Batches prefetched in threads during the steps; a reading error is raised by the call that needs the batch.

    Args:
        read: maps a position to its batch; called in several threads concurrently.
        stride: distance between the positions of consecutive batches.
        ahead: number of batches prefetched beyond the requested one; each is read in its own thread.
    """

    def __init__(self, read: Callable[[int], Batch], stride: int, ahead: int) -> None:
        self.read, self.stride, self.ahead = read, stride, ahead
        self._begun: dict[int, Future[Batch]] = {}

    def __call__(self, start: int) -> Batch:
        """The batch at a position, prefetched if it follows the previous one."""
        wanted = range(start, start + (1 + self.ahead) * self.stride, self.stride)
        self._begun = {at: self._begun.get(at) or begun(self.read, at) for at in wanted}
        return self._begun.pop(start).result()


def begun(read: Callable[[int], Batch], at: int) -> "Future[Batch]":
    """Starts ``read(at)`` in a new thread and returns the future of its result."""
    future: Future[Batch] = Future()

    def run() -> None:
        try:
            future.set_result(read(at))
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, name=f"batch at {at}").start()
    return future


def indices(seed: int, images_seen: int, batch_size: int, n: int) -> np.ndarray:
    """Indices, from 0 to n - 1, of the examples at positions images_seen to images_seen + batch_size - 1.

    Positions 0 to n - 1 are the first epoch, n to 2n - 1 the second. Each epoch visits every example once; a batch may
    span two epochs.
    """
    epochs, places = np.divmod(np.arange(images_seen, images_seen + batch_size), n)
    return np.concatenate([order(seed, int(epoch), n)[places[epochs == epoch]] for epoch in np.unique(epochs)])


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of 0 to n - 1 in which an epoch visits the examples; read-only."""
    permutation = np.argsort(_philox(seed, epoch).random_raw(n), kind="stable")
    permutation.flags.writeable = False
    return permutation


def flips(seed: int, images_seen: int, batch_size: int) -> np.ndarray:
    """Whether the example at each position from images_seen on is mirrored: fair coins, (batch_size,) bool."""
    words = _philox(seed, FLIPS, counter=images_seen).random_raw(4 * batch_size)
    return words[::4] % 2 == 1  # one tick of the counter makes four words


def _philox(seed: int, stream: int, counter: int = 0) -> np.random.Philox:
    key = np.array([seed % 2**64, stream % 2**64], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)
