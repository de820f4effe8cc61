"""Recipes: default.py holds every key with its unit, each other file its few differences."""
