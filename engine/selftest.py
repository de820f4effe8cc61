"""The library measured against closed forms on this machine; needs no config, no data and no trained network.

The checks are those of ``engine/checks``; docs/selftest.md says which mistakes they are known to notice.
"""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_sde.engine.checks import CHECKS, Row, Setting
from score_sde.engine.config import Options
from score_sde.engine.devices import make_device
from score_sde.engine.files import write_json
from score_sde.engine.log import versions

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class FailedChecks(Exception):
    """Checks that measured more than is allowed."""

    exit_status = 1


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Print a row for each check, and write selftest.json below ``workdir``.

    Raises: FailedChecks if one did not pass; ValueError for a device or a dtype that cannot be used.
    """
    setting = make_setting(config.device, options.dtype)
    rows, start = [], time.perf_counter()
    print(f"{'group':11}{'what':91}{'measured':>9}{'allowed':>9}")
    for group, found in every_group(setting, workers(setting.device)):
        for row in found:
            print(line(group, row), flush=True)
            rows.append((group, row))
    seconds = time.perf_counter() - start
    failed = [f"{group}, {row.what}" for group, row in rows if not row.passed]
    report = {
        "device": str(setting.device),
        "dtype": options.dtype,
        "versions": versions(),
        "seconds": seconds,
        "passed": not failed,
        "rows": [as_json(group, row) for group, row in rows],
    }
    write_json(workdir / "selftest.json", report)
    where = f"in {seconds:.0f} s on {setting.device}, {options.dtype}"
    if failed:
        raise FailedChecks(f"{len(failed)} of {len(rows)} checks failed {where}, the first: {failed[0]}")
    print(f"{len(rows)} checks passed {where}")


def make_setting(device: str, dtype: str) -> Setting:
    """Where to compute.

    Raises: ValueError for a device that cannot be used, or that has no such numbers.
    """
    setting = Setting(make_device(device), DTYPES[dtype])
    try:
        setting.tensor([1.0])
    except (TypeError, RuntimeError):
        raise ValueError(f"dtype {dtype} cannot be used on {setting.device}; try --dtype float32") from None
    return setting


def workers(device: torch.device) -> int:
    """Processes that share the groups: one per core of a CPU, and one alone on an accelerator."""
    return min(os.cpu_count() or 1, len(CHECKS)) if device.type == "cpu" else 1


def every_group(setting: Setting, num_workers: int) -> Iterator[tuple[str, Iterable[Row]]]:
    """Each group and its rows in the order of the table, computed by this many processes."""
    if num_workers == 1:
        yield from ((group, results(group, setting)) for group in CHECKS)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin_worker) as pool:
        yield from zip(CHECKS, pool.map(_all_results, CHECKS, repeat(setting)))


def _begin_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others


def _all_results(group: str, setting: Setting) -> list[Row]:
    return list(results(group, setting))


def results(group: str, setting: Setting) -> Iterator[Row]:
    """The rows of a group; an exception is one more row, that failed."""
    try:
        yield from CHECKS[group](setting)
    except Exception as error:
        yield Row(f"stopped by {type(error).__name__}: {' '.join(str(error).split())}", math.nan, 0.0)


def line(group: str, row: Row) -> str:
    """A row of the table."""
    verdict = "passed" if row.passed else "FAILED"
    return f"{group:11}{row.what:91}{row.measured:9.2g}{row.allowed:9.2g}  {verdict}"


def as_json(group: str, row: Row) -> dict[str, object]:
    """A row of selftest.json; a measured number that is not finite is null."""
    measured = row.measured if math.isfinite(row.measured) else None
    return {"group": group, "what": row.what, "measured": measured, "allowed": row.allowed, "passed": row.passed}
