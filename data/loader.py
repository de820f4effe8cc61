"""The order in which examples are read: a pure function of the seed and of the number of examples seen so far.

Nothing is remembered between batches, so a run that resumes at the same position reads the same data. Random words
come straight from the Philox counter, whose stream is the same on every machine and in every version of numpy.
"""

from functools import lru_cache

import numpy as np
import torch

from data.dataset import Dataset

FLIPS = -1  # the stream of the mirror flips; streams 0, 1, 2, ... shuffle the epochs


def batch_at(
    dataset: Dataset, seed: int, images_seen: int, batch_size: int, mirror: bool = False
) -> dict[str, torch.Tensor]:
    """The training batch at a position.

    Args:
        images_seen: position of the first example, counted in examples since training began.
        mirror: whether every other example, by chance, is mirrored along its last axis, with the noise it belongs to.
    """
    batch = dataset.batch(indices(seed, images_seen, batch_size, len(dataset)))
    if mirror:
        flip = torch.from_numpy(flips(seed, images_seen, batch_size))
        for key in batch.keys() & {"x", "eps"}:
            batch[key][flip] = batch[key][flip].flip(-1)
    return batch


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
