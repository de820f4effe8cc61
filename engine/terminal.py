"""Standard output with its name in errors, and Ctrl-C before a command has written anything."""

import io
import os
import signal
import sys

from typing_extensions import Buffer

OUTPUT = "standard output"
"""File name in errors of writing to the terminal, a pipe or a redirection."""


class _Output(io.FileIO):
    """Standard output, unbuffered."""

    def write(self, content: Buffer, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, OUTPUT) from None


def open_output() -> None:
    """Replaces standard output by one whose errors name it, unlike errors of the run's files.

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
    """Writes the buffer of standard output.

    Raises: OSError that names standard output.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def drop_output(error: BaseException) -> None:
    """Discards the buffer after an error of standard output; Python would write it again at exit."""
    if isinstance(error, OSError) and error.filename == OUTPUT:
        write_nowhere(sys.stdout.fileno())


def write_nowhere(descriptor: int) -> None:
    """Discards all later output of a file descriptor."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def end_on_interrupt() -> None:
    """Makes Ctrl-C end the process at once, while modules are imported and nothing is written.

    A background command that ignores Ctrl-C still ignores it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt again, before the command writes files."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    os.write(2, b"error: interrupted before anything was done\n")
    os._exit(128 + number)
