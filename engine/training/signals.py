"""Signals that stop training: SIGTERM, SIGHUP, Ctrl-C and the death of the launcher end it after a checkpoint."""

import os
import signal
from types import FrameType

from score_sde.engine import ranks
from score_sde.engine.terminal import write_nowhere

HANGUP = getattr(signal, "SIGHUP", None)
"""Signal of a terminal or connection that closes; None on Windows."""


class Stopped(Exception):
    """Training that a signal stopped after a checkpoint.

    Args:
        number: of the signal; the exit status is 128 + number, as in a shell.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


class StopSignals:
    """Context that records the first SIGTERM, SIGHUP or SIGINT; a second Ctrl-C raises KeyboardInterrupt.

    SIGTERM may arrive twice, from the machine and from torchrun. SIGHUP stays ignored under nohup. The death of
    torchrun counts as SIGTERM, since its processes would go on without it.

    Attributes:
        number: of the first signal; None before it.
    """

    NUMBERS = tuple(filter(None, (signal.SIGTERM, signal.SIGINT, HANGUP)))

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> "StopSignals":
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        handled = [n for n in self.NUMBERS if n != HANGUP or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to_stop(self) -> bool:
        """Returns whether any process of the command has a signal; sets ``number`` in all of them, to SIGTERM if unset.

        All processes take part.
        """
        orphaned = self._launcher is not None and os.getppid() != self._launcher
        stop = ranks.any_of(self.number is not None or orphaned)
        if stop:
            self.number = self.number or signal.SIGTERM
        return stop

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.number = self.number or number
        if number == HANGUP:
            self._leave_terminals()

    def _leave_terminals(self) -> None:
        """Discards output to a closed terminal, where each line would raise an error before the checkpoint."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                write_nowhere(descriptor)
