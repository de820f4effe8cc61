"""Checks of the library, or of your own samplers, SDEs and denoisers, against closed forms.

    rows = check(sampler=MySampler, order=2)

``python run.py --mode selftest`` runs the groups of ``groups.py``, one file per group. ``check`` (``custom.py``) uses
the same functions and returns the same rows.
"""

if __name__ != "score_sde.selftest":  # a second copy would have tables of its own
    raise ImportError("import score_sde.selftest: selftest is a part of the package score_sde")

from score_sde.selftest.custom import check
from score_sde.selftest.rows import Row, Setting

__all__ = ["Row", "Setting", "check"]
