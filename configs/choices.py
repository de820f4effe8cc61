"""Sections that name an entry of a table, such as the SDE, and hold the options of that entry.

The options are the parameters of its signature whose default is a plain value: this default is the default of the key,
and the docstring of the entry documents it. So an entry that a config file of the user's own adds to a table has its
options on the command line, too.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

TABLES = {
    "codec": ("data", "CODECS"),
    "sde": ("sde_lib", "SDES"),
    "network": ("models", "NETWORKS"),
    "loss.objective": ("sde_lib", "OBJECTIVES"),
    "loss.weight": ("sde_lib", "WEIGHTS"),
    "loss.timestep_sampler": ("sde_lib", "TIMESTEP_SAMPLERS", "LEARNING_TIMESTEP_SAMPLERS"),
    "sample.sampler": ("samplers", "STEPS"),
    "likelihood.solver": ("sde_lib", "SOLVERS"),
    "edit.task": ("engine.editing", "TASKS"),
    "edit.method": ("engine.inverse_problems", "METHODS"),
}
"""Section -> package and names of its tables. The package, which imports torch, is imported when a config is made."""

SUPPLIED = {
    "codec": {"levels", "means", "stds"},
    "loss.objective": {"low"},
    "likelihood.solver": {"edge", "evaluations"},
}
"""Parameters with a default that are no options, because the run supplies them."""


def table(section: str) -> dict[str, Callable[..., Any]]:
    """The table of a section: name -> class or function."""
    package, *names = TABLES[section]
    module = importlib.import_module(f"score_sde.{package}")
    return {name: entry for table in names for name, entry in getattr(module, table).items()}


def defaults(section: str, name: str) -> dict[str, Any]:
    """The options of an entry with their defaults.

    Raises: KeyError for an unknown name.
    """
    parameters = inspect.signature(table(section)[name]).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and isinstance(parameter.default, bool | int | float | str | tuple)
        and parameter.name not in SUPPLIED.get(section, ())
    }


def choose(section: str, name: str, **changes: Any) -> ConfigDict:
    """A section that names this entry, with the defaults of its options and the changes to them."""
    return ConfigDict({"name": name, **defaults(section, name), **changes})


def is_own(section: str, name: str) -> bool:
    """Whether the toolkit itself has an entry of this name, rather than a config file of the user's own."""
    entry = table(section).get(name)
    module = getattr(getattr(entry, "func", entry), "__module__", "")
    return module.startswith("score_sde.")


def options_of(section: str, name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an entry: from the config where it chose this entry, else the defaults.

    Args:
        chosen: the section of the config.
    """
    values = chosen if chosen["name"] == name else {}
    return {key: values.get(key, value) for key, value in defaults(section, name).items()}
