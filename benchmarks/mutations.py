"""Runs the selftest with each known mistake in the library, and writes the tables of docs/selftest.md.

    python benchmarks/mutations.py

The mistakes of tests/mutations.py are injected one at a time, and the selftest runs in float64 until its first failed
row. Exit status 1 if a mistake passes.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from score_sde.selftest import Setting
from score_sde.selftest.groups import CHECKS, results
from tests.mutations import MUTATIONS, noticed

PAGE = Path(__file__).resolve().parent.parent / "docs" / "selftest.md"


def main() -> int:
    """Print a row for each mistake, and write the tables of the page; returns 0 if all are noticed, else 1."""
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
    noticed_of = f"{killed} of {total} are noticed, {100 * killed / total:.0f} %"
    mistakes = f"{noticed_of}; the first row that fails, measured against allowed:\n\n"
    mistakes += "| mistake | first row that fails | measured | allowed |\n|---|---|---|---|\n" + "\n".join(lines)
    page = replaced(replaced(PAGE.read_text(), "groups", groups), "mistakes", mistakes)
    PAGE.write_text(page)
    return 1 if survivors else 0


def replaced(page: str, name: str, text: str) -> str:
    """Returns the page with the text between the comments ``name`` and ``end`` replaced."""
    before, _, rest = page.partition(f"<!-- {name} -->\n")
    return f"{before}<!-- {name} -->\n{text}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"


def first_sentence(group: str) -> str:
    """Returns the first line of the docstring of a group's module."""
    return sys.modules[CHECKS[group].__module__].__doc__.strip().splitlines()[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
