"""Options of networks, processes, codecs and datasets: plain defaults, equal to the config's, each documented."""

import math
import re
from inspect import signature

import pytest

from score_sde.configs import default
from score_sde.data import CODECS, DATASETS
from score_sde.models import NETWORKS
from score_sde.sde_lib import SDES

PLAIN = (bool, int, float, str, tuple)
INJECTED = {"shape", "split", "levels", "means", "stds"}
"""Parameters that the code fills in; they have no default."""
PYTHON_ONLY = {"num"}
"""Parameters that no config sets; their default is None."""

OPTIONS = [(table, name) for table in (SDES, NETWORKS, CODECS, DATASETS) for name in table]
NAMES = [name for _, name in OPTIONS]


def types(value):
    """The type of a value, and of the entries of a tuple."""
    return (tuple, *map(types, value)) if isinstance(value, tuple) else type(value)


def options(of):
    """Options and their defaults."""
    return {p.name: p.default for p in signature(of).parameters.values() if p.name not in INJECTED | PYTHON_ONLY}


@pytest.mark.parametrize(("table", "name"), OPTIONS, ids=NAMES)
def test_options_have_plain_finite_defaults_and_a_line_in_args(table, name):
    """Options can be derived from the signature and written to a file or a command."""
    parameters = signature(table[name]).parameters.values()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    assert all(p.default is p.empty for p in parameters if p.name in INJECTED)
    assert all(p.default is None for p in parameters if p.name in PYTHON_ONLY)
    found = options(table[name])
    assert all(type(value) in PLAIN for value in found.values())
    assert all(math.isfinite(value) for value in found.values() if type(value) is float)
    doc = getattr(table[name], "func", table[name]).__doc__
    described = re.findall(r"^ {4,8}([\w, ]+): \S", doc.partition("    Args:\n")[2], re.MULTILINE)
    assert found.keys() <= set(", ".join(described).split(", "))


def test_defaults_of_datasets_are_those_of_the_config():
    settings = default.get_config().data.to_dict()
    for of in DATASETS.values():
        for key, value in options(of).items():
            assert (settings[key], types(settings[key])) == (value, types(value))
