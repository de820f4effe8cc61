"""Standard output whose errors name it, and Ctrl-C while there is nothing to lose yet."""

import io
import os
import signal
import sys

from typing_extensions import Buffer

OUTPUT = "standard output"
"""The name that errors of writing to the terminal, a pipe or a redirection have."""


class _Output(io.FileIO):
    """Standard output, unbuffered."""

    def write(self, content: Buffer, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, OUTPUT) from None


def open_output() -> None:
    """Let errors of standard output name it, so that a full disk behind it is not blamed on the run.

    Names that are not UTF-8 are written with escapes. Output to a closed descriptor is discarded.
    """
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        return
    old = sys.stdout
    buffer = io.BufferedWriter(_Output(old.fileno(), "wb", closefd=False))
    sys.stdout = io.TextIOWrapper(
        buffer,
        encoding=old.encoding,
        errors="backslashreplace",
        line_buffering=bool(old.line_buffering),
        write_through=getattr(old, "write_through", False),
    )


def flush_output() -> None:
    """Write what is buffered.

    Raises: OSError that names standard output.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def drop_output(error: BaseException) -> None:
    """After an error of standard output, discard its buffer, which Python would write again at its end."""
    if isinstance(error, OSError) and error.filename == OUTPUT:
        write_nowhere(sys.stdout.fileno())


def write_nowhere(descriptor: int) -> None:
    """Discard all later output of a descriptor."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def end_on_interrupt() -> None:
    """Let Ctrl-C end the process at once, while modules are imported and nothing is written yet.

    A command in the background, whose parent let it ignore Ctrl-C, still ignores it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: from here on there is something to keep."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    os.write(2, b"error: interrupted before anything was done\n")
    os._exit(128 + number)
