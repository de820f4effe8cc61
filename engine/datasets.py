"""Datasets of a config: reading, and checks of the section ``data`` and of the form of the examples."""

import inspect
import itertools
from collections.abc import Callable

from score_sde.configs import default
from score_sde.configs.default import Config, Data
from score_sde.data import DATASETS, Dataset
from score_sde.engine.config import load, names
from score_sde.engine.facts import DataFacts
from score_sde.storage.naming import options, pick

OF_ALL = {"name", "mirror"}
"""Keys that are not arguments of the datasets."""


def check_read(settings: Data, read: Callable) -> None:
    """Raises: ValueError for a key of the section ``data`` that is set and not read by this dataset."""
    defaults = default.get_config().data
    for key, value in settings.items():
        if key in OF_ALL or key in inspect.signature(read).parameters or value == defaults[key]:
            continue
        others = ", ".join(f"{config} ({name})" for name, config in sorted(readers(key).items()))
        raise ValueError(
            f"data.{key} {value!r}: the dataset {settings.name} does not read it; leave it out, or take a --config "
            f"whose dataset reads it: {others}"
        )


def readers(key: str) -> dict[str, str]:
    """Returns the datasets that read this key, each with the shortest name of a config with that dataset."""
    reading = {name for name, read in DATASETS.items() if key in inspect.signature(read).parameters}
    found = {load(config).data.name: config for config in sorted(names(), key=len, reverse=True)}
    return {name: found[name] for name in reading & found.keys()}


def read_dataset(settings: Data, split: str) -> Dataset:
    """Returns the dataset of a split.

    Raises: ValueError for a key of the section ``data`` that the dataset does not read.
    """
    read = pick(DATASETS, "dataset", settings.name)
    check_read(settings, read)
    return read(split=split, **options(read, settings))


def check_form(config: Config, dataset: Dataset, facts: DataFacts) -> None:
    """Raises: ValueError if shape, levels or classes of the dataset differ from the training data."""
    check_classes(config, dataset, facts)
    if (dataset.shape, dataset.levels) != (facts.shape, facts.levels):
        given = f"the data have shape {dataset.shape} and {dataset.levels} levels"
        raise ValueError(f"{given}, the run {facts.shape}, {facts.levels}")


def check_classes(config: Config, dataset: Dataset, facts: DataFacts) -> None:
    """Raises: ValueError if a run with classes numbers them otherwise than the dataset.

    A run without names is of an earlier version, which numbered class folders in text order, 10 before 2.
    """
    if not config.network.get("num_classes") or not dataset.classes:
        return
    trained = facts.classes or tuple(sorted(dataset.classes))
    if trained != dataset.classes:
        k = next(k for k, pair in enumerate(itertools.zip_longest(trained, dataset.classes)) if pair[0] != pair[1])
        ours, theirs = ((*names, None)[min(k, len(names))] for names in (trained, dataset.classes))
        raise ValueError(
            f"class {k} is {ours!r} in the run and {theirs!r} in the data: give data with the same class folders, or a "
            "dataset.json with the numbers of the run"
        )
