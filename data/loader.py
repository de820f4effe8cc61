"""The order in which examples are read: a pure function of the seed and of the number of examples seen so far.

Nothing is remembered between batches, so a run that resumes at the same position reads the same data, and batches may
be read before their time, or gathered from a copy of the data on the device. Random words come straight from the Philox
counter, whose stream is the same on every machine and in every version of numpy.
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
        images_seen: position of the first example, counted in examples since training began.
        mirror: whether every other example, by chance, is mirrored along its last axis, with the noise it belongs to.
    """
    batch = dataset.batch(indices(seed, images_seen, batch_size, len(dataset)))
    return mirrored(batch, torch.from_numpy(flips(seed, images_seen, batch_size))) if mirror else batch


def mirrored(batch: Batch, flip: Tensor) -> Batch:
    """The batch with some of its examples, and the noise that they belong to, mirrored along the last axis.

    Shapes: flip bool (B,).
    """
    seen = {key: batch[key] for key in batch.keys() & {"x", "eps"}}
    return batch | {
        key: torch.where(flip.reshape(-1, *[1] * (value.ndim - 1)), value.flip(-1), value)
        for key, value in seen.items()
    }


RESIDENT = 0.25
"""Share of the free memory of an accelerator that a copy of the dataset may take."""


def reader(
    dataset: Dataset, device: torch.device, seed: int, batch_size: int, stride: int, mirror: bool, ahead: int
) -> Callable[[int], Batch]:
    """How the batches of a run are best read: from a position to what ``batch_at`` gives for it.

    From a copy on the device where that fits; ahead of the steps where they come from a disk, or an accelerator would
    wait for them, into pinned memory then; else when they are asked for.

    Args:
        stride: from the position of one batch to that of the next.
        ahead: batches to read before their time; fewer where they would take more than ``MOST_BYTES`` together.
    Raises: DataError if one batch takes more.
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
    """Bytes of all examples, as batches hold them."""
    return len(dataset) * sum(value[0].nbytes for value in dataset.batch([0]).values())


AT_A_TIME = 2**26
"""Bytes of examples that are copied to an accelerator at a time."""


class Resident:
    """Batches out of a copy of the whole dataset on the device: nothing is copied to it in a step but now and then.

    Args:
        seed, mirror, batch_size: as of ``batch_at``.
    """

    positions = 1 << 16
    """Whose numbers and coins are copied to the device at a time."""

    def __init__(self, dataset: Dataset, device: torch.device, seed: int, batch_size: int, mirror: bool) -> None:
        self.whole = on_device(dataset, device)
        self.seed, self.batch_size, self.mirror, self.num, self.device = seed, batch_size, mirror, len(dataset), device
        self.positions = max(self.positions, batch_size)
        self.first, self.rows, self.flips = 0, torch.empty(0), torch.empty(0)

    def __call__(self, images_seen: int) -> Batch:
        """The batch that ``batch_at`` gives, on the device."""
        if not self.first <= images_seen <= self.first + len(self.rows) - self.batch_size:
            self.first = images_seen
            self.rows = torch.from_numpy(indices(self.seed, images_seen, self.positions, self.num)).to(self.device)
            self.flips = torch.from_numpy(flips(self.seed, images_seen, self.positions)).to(self.device)
        place = slice(images_seen - self.first, images_seen - self.first + self.batch_size)
        batch = {key: value[self.rows[place]] for key, value in self.whole.items()}
        return mirrored(batch, self.flips[place]) if self.mirror else batch


def on_device(dataset: Dataset, device: torch.device) -> Batch:
    """All examples, copied to the device a few at a time, so that the host never holds them all."""
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
    """Batches that are read while steps go on; an error of reading is raised by the call that needs the batch.

    Args:
        read: from a position to its batch; called in several threads at a time.
        stride: from the position of one batch to that of the next.
        ahead: batches that are being read, or wait, beyond the one that is asked for; each has a thread of its own for
            as long as it is read.
    """

    def __init__(self, read: Callable[[int], Batch], stride: int, ahead: int) -> None:
        self.read, self.stride, self.ahead = read, stride, ahead
        self._begun: dict[int, Future[Batch]] = {}

    def __call__(self, start: int) -> Batch:
        """The batch at a position: at once if it is the one after the last."""
        wanted = range(start, start + (1 + self.ahead) * self.stride, self.stride)
        self._begun = {at: self._begun.get(at) or begun(self.read, at) for at in wanted}
        return self._begun.pop(start).result()


def begun(read: Callable[[int], Batch], at: int) -> "Future[Batch]":
    """What ``read(at)`` will return or raise, from a thread of its own."""
    future: Future[Batch] = Future()

    def run() -> None:
        try:
            future.set_result(read(at))
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, name=f"batch at {at}").start()
    return future


def indices(seed: int, images_seen: int, batch_size: int, n: int) -> np.ndarray:
    """Numbers of the examples at positions images_seen to images_seen + batch_size - 1, from 0 to n - 1.

    Positions 0 to n - 1 are the first epoch, n to 2n - 1 the second: each visits every example once, and a batch may
    reach over the border.
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
    """Whether each example from position images_seen on is mirrored: one fair coin a position, (batch_size,) bool."""
    words = _philox(seed, FLIPS, counter=images_seen).random_raw(4 * batch_size)
    return words[::4] % 2 == 1  # one tick of the counter makes four words


def _philox(seed: int, stream: int, counter: int = 0) -> np.random.Philox:
    key = np.array([seed % 2**64, stream % 2**64], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)
