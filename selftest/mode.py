"""``--mode selftest``: checks of the library against closed forms, without a config, data or a trained network."""

import math
import time
from pathlib import Path

import torch

from score_sde.configs.default import Config
from score_sde.engine.config import Options
from score_sde.engine.devices import make_device
from score_sde.engine.files import write_json
from score_sde.engine.log import versions
from score_sde.selftest import groups
from score_sde.selftest.rows import Row, Setting

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class FailedChecks(Exception):
    """At least one check measured more than it allows."""

    exit_status = 1


def run(config: Config, workdir: Path, options: Options) -> None:
    """Print a row for each check, and write selftest.json to ``workdir``.

    Raises: FailedChecks if a check fails; ValueError for a device or a dtype that cannot be used.
    """
    setting = make_setting(config.device, options.dtype)
    rows, start = [], time.perf_counter()
    print(f"{'group':11}{'check':91}{'measured':>9}{'allowed':>9}")
    for group, of_group in groups.every_group(setting, groups.workers(setting.device)):
        for row in of_group:
            print(f"{group:11}{row}", flush=True)
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
    """Returns the device and dtype of the checks.

    Raises: ValueError for a device that cannot be used, or that does not support the dtype.
    """
    setting = Setting(make_device(device), DTYPES[dtype])
    try:
        setting.tensor([1.0])
    except (TypeError, RuntimeError):
        raise ValueError(f"dtype {dtype} cannot be used on {setting.device}; try --dtype float32") from None
    return setting


def as_json(group: str, row: Row) -> dict[str, object]:
    """Returns a row of selftest.json; a non-finite measured number becomes null."""
    measured = row.measured if math.isfinite(row.measured) else None
    return {"group": group, "what": row.what, "measured": measured, "allowed": row.allowed, "passed": row.passed}
