"""The allocator of the C library: it keeps what tensors free, for the next ones."""

import ctypes
import os
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # malloc.h of glibc


def keep_freed() -> None:
    """Let memory that is freed stay with the process, as far as glibc can: from blocks below 32 MB.

    By default it goes back to the system at once, which clears it before it gives it out again, page by page as it is
    touched: a twentieth of a training step on a CPU, and half of the time of noise (docs/scaling.md). Who has chosen
    otherwise, by MALLOC_* or GLIBC_TUNABLES, keeps that; elsewhere nothing happens.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.pythonapi, "mallopt", None)  # the process's own symbols; other C libraries have none
    if mallopt is not None:
        for parameter, value in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)):
            mallopt(parameter, value)
