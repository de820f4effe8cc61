"""Configs: default.py holds every key with its unit, choices.py the options of names, the other files recipes."""

if __name__ != "score_sde.configs":  # a second copy would have tables of its own
    raise ImportError("import score_sde.configs: configs is a part of the package score_sde")

from typing import Any

from score_sde.configs import cifar10, digits, own_data

RECIPES: dict[str, dict[str, Any]] = {"default": {}, **digits.RECIPES, **own_data.RECIPES, **cifar10.RECIPES}
"""Name of --config -> its changes to ``base``, another recipe, or to configs/default.py."""
