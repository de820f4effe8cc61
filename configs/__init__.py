"""Recipes: default.py holds every key with its unit, each other file its few differences."""

if __name__ != "score_sde.configs":  # a second copy would have tables of its own
    raise ImportError("import score_sde.configs: configs is a part of the package score_sde")
