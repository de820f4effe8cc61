"""How the command of a benchmark ends: with an exit status, and one line for a missing file or a wrong argument."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from score_sde.engine.errors import describe, exit_status


def paths(*names: str) -> list[Path]:
    """The paths that a command gives, as many as the names; another number of them ends it with status 2."""
    given = sys.argv[1:]
    if len(given) != len(names):
        print(f"usage: python benchmarks/{Path(sys.argv[0]).name} {' '.join(names)}", file=sys.stderr)
        sys.exit(2)
    return list(map(Path, given))


def existing(path: str) -> str:
    """The path of a folder or file that must be there.

    Raises: FileNotFoundError.
    """
    Path(path).stat()
    return path


def end(main: Callable[[], int | None]) -> NoReturn:
    """Run a benchmark and exit with its status; errors of ours and of files are one line, as those of run.py."""
    try:
        sys.exit(main() or 0)
    except (Exception, KeyboardInterrupt) as error:
        if exit_status(error) == 1:
            raise
        print(describe(error), file=sys.stderr)
        sys.exit(exit_status(error))
