"""Groups of the selftest by name: functions ``(setting) -> rows``, run in one process or several.

The closed forms are a second implementation, written without ``sde_lib``. The checks iterate over the dicts of the
library, so a new entry is checked without further code.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import torch

from score_sde.selftest import (
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
from score_sde.selftest.rows import Row, Setting, guarded

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


def results(group: str, setting: Setting) -> Iterator[Row]:
    """Yields the rows of a group; an exception becomes one more row, which fails."""
    return guarded(CHECKS[group](setting))


def workers(device: torch.device) -> int:
    """Returns the number of worker processes: one per CPU core, or a single one on an accelerator."""
    return min(os.cpu_count() or 1, len(CHECKS)) if device.type == "cpu" else 1


def every_group(setting: Setting, num_workers: int) -> Iterator[tuple[str, Iterable[Row]]]:
    """Yields each group and its rows in the order of ``CHECKS``, computed by ``num_workers`` processes."""
    if num_workers == 1:
        yield from ((group, results(group, setting)) for group in CHECKS)
        return
    context = multiprocessing.get_context("spawn")  # fork would copy the locks of torch's threads
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin_worker) as pool:
        yield from zip(CHECKS, pool.map(_all_results, CHECKS, repeat(setting)))


def _begin_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers


def _all_results(group: str, setting: Setting) -> list[Row]:
    return list(results(group, setting))
