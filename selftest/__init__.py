"""Closed forms against which the library is measured.

``python run.py --mode selftest`` runs the groups of ``groups.py``, one file for each.
"""

if __name__ != "score_sde.selftest":  # a second copy would have tables of its own
    raise ImportError("import score_sde.selftest: selftest is a part of the package score_sde")

from score_sde.selftest.rows import Row, Setting

__all__ = ["Row", "Setting"]
