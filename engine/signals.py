"""Being asked to stop: a run that is sent SIGTERM or Ctrl-C ends at a good place, with a checkpoint."""

import signal
from types import FrameType

from engine import ranks


class Stopped(Exception):
    """A run that was asked to stop, and did, after a checkpoint. The status is that of a shell: 128 + the signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_status = 128 + number


class Asked:
    """Notes the first SIGTERM or SIGINT while it is entered; a second Ctrl-C interrupts at once.

    SIGTERM comes from whoever takes the machine away, and may come twice: as torchrun sends it to a process that its
    machine has told already.
    """

    NOTED = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.by: int | None = None

    def __enter__(self) -> "Asked":
        self._before = {number: signal.signal(number, self._note) for number in self.NOTED}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to_stop(self) -> bool:
        """Whether any process of the command was asked to."""
        return ranks.any_of(self.by is not None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.by is not None and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.by = self.by or number
