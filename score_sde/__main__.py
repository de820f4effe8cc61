"""The command ``score-sde``, and ``python -m score_sde``."""

import sys

from score_sde.engine.terminal import end_on_interrupt, open_output


def main() -> None:
    """Run the command line of ``run.py`` and exit with its status."""
    end_on_interrupt()
    from score_sde import run  # takes a second

    open_output()
    sys.exit(run.main(sys.argv))


if __name__ == "__main__":
    main()
