"""Fingerprint of the training data, which a resumed run compares."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from score_sde.data import Dataset

EXAMPLES = 64
"""Number of examples, at equal distances, that a fingerprint includes."""


def fingerprint(dataset: Dataset) -> str:
    """Returns the SHA-256 of the dataset's size, shape, levels, number of classes and ``EXAMPLES`` of its examples."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(EXAMPLES, len(dataset))).astype(int))
    digest = hashlib.sha256(repr((len(dataset), dataset.shape, dataset.levels, dataset.num_classes)).encode())
    for key in dataset.batch(indices[:1]):
        for index in indices:  # one at a time: 64 large images may exceed the memory
            digest.update(dataset.batch([index])[key].numpy().tobytes())
    return digest.hexdigest()


def check_same_data(dataset: Dataset, own: str, meta: Mapping[str, Any], workdir: Path) -> None:
    """Raises: ValueError if a checkpoint with this meta.json was trained on data with another fingerprint."""
    if meta.get("data_sha256", own) == own:
        return
    facts = meta["data"]
    raise ValueError(
        f"the run in {workdir} was trained on other examples (of shape {tuple(facts['shape'])}, {facts['levels']} "
        f"levels; these are {len(dataset)} of shape {dataset.shape}, {dataset.levels} levels): give it the same "
        "data.path, or choose another --workdir"
    )
