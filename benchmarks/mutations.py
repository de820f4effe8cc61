"""Which known mistakes does the selftest notice? Writes docs/selftest.md.

    python benchmarks/mutations.py

The mistakes of tests/mutations.py are put into the library one at a time, and the selftest runs in float64 until its
first failed row. Exit status 1 if a mistake passes.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from score_sde.selftest import Setting
from score_sde.selftest.groups import CHECKS, results
from tests.mutations import MUTATIONS, noticed

PAGE = """# Selftest

    python run.py --mode selftest [--device cuda] [--dtype float64]

measures the library on your machine against closed forms, in about a minute, without a config, data or a
trained network: exact denoisers of Gaussians and mixtures stand in for one. Each row of the table says what was
measured, what is allowed, and whether it passed; `selftest.json` below the workdir (`runs/selftest` by default) holds
the same. A row that fails, a number that is not finite, or an exception makes the exit status 1. A wrong dtype or a
device that is not there is status 2, a disk without space 3.

{groups}

The checks live in `selftest/`, a small file for each group, and run over the dicts of the library, so that a new
SDE, step, weight, parameterisation, time law, grid, probe, solver or codec is checked by being there. Closed forms are
written a second time, without `sde_lib`.

Two things make the rows sharp. For a Gaussian the denoiser is affine, and so is a whole sampler: a batch of impulses
through one trajectory tells its response to the start and to every draw, hence the mean and variance at its end, to
rounding and without a random number; so an order is measured to a few hundredths. And an untrained network is exactly
0, which under the parameterisation `edm` is the exact denoiser of N(0, s^2): bits per dimension of a whole run, with
dequantisation, codec and checkpoint, have a closed form before the first step of training.

The prior is never a hidden error: densities are taken from the true law at t_max, and its distance from the prior
stands in rows of its own.

## A check that cannot fail is a defect

`tests/mutations.py` holds {total} mistakes, many of which a respected project has made. Each is put into the library
by itself, and the selftest has to notice. {killed} of {total} are noticed, {rate:.0f} %; the first row that fails,
measured against allowed:

| mistake | first row that fails | measured | allowed |
|---|---|---|---|
{table}

Written by `python benchmarks/mutations.py`.
"""


def main() -> int:
    """Print a row for each mistake, and write the page; return 0 if all are noticed, else 1."""
    setting, counts = Setting(torch.device("cpu"), torch.float64), {}
    for group in CHECKS:
        rows = list(results(group, setting))
        failed = [row.what for row in rows if not row.passed]
        if failed:
            print(f"without a mistake {group} fails: {failed[0]}")
            return 1
        counts[group] = len(rows)
    lines, survivors = [], []
    for mutation in MUTATIONS:
        start = time.perf_counter()
        found = noticed(mutation)
        seconds = time.perf_counter() - start
        if found is None:
            survivors.append(mutation.name)
            print(f"{seconds:5.1f} s  {mutation.name:55} NOT NOTICED")
            continue
        group, row = found
        print(f"{seconds:5.1f} s  {mutation.name:55} {group}: {row.what} ({row.measured:.2g} > {row.allowed:.2g})")
        lines.append(f"| {mutation.name} | {group}: {row.what} | {row.measured:.2g} | {row.allowed:.2g} |")
    total, killed = len(MUTATIONS), len(MUTATIONS) - len(survivors)
    print(f"{killed} of {total} mistakes noticed")
    groups = "| group | checks | of |\n|---|---|---|\n" + "\n".join(
        f"| {group} | {count} | {first_sentence(group)} |" for group, count in counts.items()
    )
    page = PAGE.format(total=total, killed=killed, rate=100 * killed / total, table="\n".join(lines), groups=groups)
    (Path(__file__).resolve().parent.parent / "docs" / "selftest.md").write_text(page)
    return 1 if survivors else 0


def first_sentence(group: str) -> str:
    """What a group checks: the first line of its module."""
    return sys.modules[CHECKS[group].__module__].__doc__.strip().splitlines()[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
