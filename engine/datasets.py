"""Which keys of the section ``data`` a dataset reads, and which configs have a dataset that reads a key."""

import inspect
from collections.abc import Callable

from ml_collections import ConfigDict

from score_sde.configs import default
from score_sde.data import DATASETS
from score_sde.engine.config import load, names

OF_ALL = {"name", "mirror"}
"""Keys that are not arguments of the datasets."""


def check_read(settings: ConfigDict, read: Callable) -> None:
    """Raises: ValueError for a key of the section ``data`` that is set and that this dataset would ignore."""
    usual = default.get_config().data
    for key, value in settings.items():
        if key in OF_ALL or key in inspect.signature(read).parameters or value == usual[key]:
            continue
        others = ", ".join(f"{config} ({name})" for name, config in sorted(readers(key).items()))
        raise ValueError(
            f"data.{key} {value!r}: the dataset {settings.name} does not read it; leave it out, or take a --config "
            f"whose dataset reads it: {others}"
        )


def readers(key: str) -> dict[str, str]:
    """The datasets that read this key, each with the shortest name of a config that has it."""
    reading = {name for name, read in DATASETS.items() if key in inspect.signature(read).parameters}
    found = {load(config).data.name: config for config in sorted(names(), key=len, reverse=True)}
    return {name: found[name] for name in reading & found.keys()}
