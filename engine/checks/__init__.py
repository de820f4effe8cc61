"""The checks of the selftest: functions ``(setting) -> rows``, by the name of their group.

Closed forms stand here a second time, written without ``sde_lib``; everything runs over the dicts of the library, so
that a new entry is checked by being there.
"""

from collections.abc import Callable, Iterator

from score_sde.engine.checks import (
    bound,
    classifier,
    codecs,
    consistency,
    control,
    denoisers,
    exact,
    gaussian,
    grids,
    guidance,
    likelihood,
    losses,
    noise,
    processes,
    sampling,
    score_matching,
    steps,
    training,
)
from score_sde.engine.checks.rows import Row, Setting

CHECKS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "processes": processes.check,
    "exact": exact.check,
    "gaussian": gaussian.check,
    "denoisers": denoisers.check,
    "losses": losses.check,
    "bound": bound.check,
    "score_matching": score_matching.check,
    "consistency": consistency.check,
    "noise": noise.check,
    "grids": grids.check,
    "steps": steps.check,
    "sampling": sampling.check,
    "guidance": guidance.check,
    "control": control.check,
    "classifier": classifier.check,
    "likelihood": likelihood.check,
    "codecs": codecs.check,
    "training": training.check,
}

__all__ = ["CHECKS", "Row", "Setting"]
