"""Arguments and exit status of a benchmark's command; a missing file or a wrong argument is a one-line error."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from score_sde.engine.errors import describe, exit_status


def paths(*names: str) -> list[Path]:
    """Returns the paths of the command line, one per name; exits with status 2 for any other number of them."""
    given = sys.argv[1:]
    if len(given) != len(names):
        print(f"usage: python benchmarks/{Path(sys.argv[0]).name} {' '.join(names)}", file=sys.stderr)
        sys.exit(2)
    return list(map(Path, given))


def existing(path: str) -> str:
    """Returns the path of an existing file or folder.

    Raises: FileNotFoundError.
    """
    Path(path).stat()
    return path


def end(main: Callable[[], int | None]) -> NoReturn:
    """Run a benchmark and exit with its status; the toolkit's errors and file errors are one line, as in run.py."""
    try:
        sys.exit(main() or 0)
    except (Exception, KeyboardInterrupt) as error:
        if exit_status(error) == 1:
            raise
        print(describe(error), file=sys.stderr)
        sys.exit(exit_status(error))
