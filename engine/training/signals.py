"""Requests to stop: a run that gets SIGTERM, SIGHUP or Ctrl-C, or loses its launcher, ends after a checkpoint."""

import os
import signal
from types import FrameType

from score_sde.engine import ranks
from score_sde.engine.terminal import write_nowhere

HANGUP = getattr(signal, "SIGHUP", None)
"""Sent when a terminal or a connection closes; Windows has none."""


class Stopped(Exception):
    """A run that was asked to stop, and did, after a checkpoint. The status is that of a shell: 128 + the signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


class Asked:
    """Notes the first SIGTERM, SIGHUP or SIGINT while it is entered; a second Ctrl-C interrupts at once.

    SIGTERM comes from whoever takes the machine away, and may come twice: as torchrun sends it to a process that its
    machine has told already. A SIGHUP that nohup has switched off stays off. The death of torchrun, whose processes
    would run on without it, counts as SIGTERM.
    """

    NOTED = tuple(filter(None, (signal.SIGTERM, signal.SIGINT, HANGUP)))

    def __init__(self) -> None:
        self.by: int | None = None

    def __enter__(self) -> "Asked":
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        noted = [n for n in self.NOTED if n != HANGUP or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to_stop(self) -> bool:
        """Whether any process of the command was asked to; then all of them were, by SIGTERM if not told otherwise."""
        orphaned = self._launcher is not None and os.getppid() != self._launcher
        stop = ranks.any_of(self.by is not None or orphaned)
        if stop:
            self.by = self.by or signal.SIGTERM
        return stop

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.by is not None and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.by = self.by or number
        if number == HANGUP:
            self._leave_terminals()

    def _leave_terminals(self) -> None:
        """Write nowhere in place of a terminal that has closed: each line would be an error, before the checkpoint."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                write_nowhere(descriptor)
