"""Closed forms against which the library is measured, and somebody's own samplers, SDEs and denoisers.

    rows = check(sampler=MySampler, order=2)

``python run.py --mode selftest`` runs the groups of ``groups.py``, one file for each; ``check`` (``custom.py``) returns
rows of the same functions.
"""

if __name__ != "score_sde.selftest":  # a second copy would have tables of its own
    raise ImportError("import score_sde.selftest: selftest is a part of the package score_sde")

from score_sde.selftest.custom import check
from score_sde.selftest.rows import Row, Setting

__all__ = ["Row", "Setting", "check"]
