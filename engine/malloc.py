"""Settings of the C library's allocator: freed memory is kept for the next tensors."""

import ctypes
import os
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # malloc.h of glibc


def keep_freed() -> None:
    """Makes glibc keep freed blocks below 32 MB in the process.

    By default they return to the system, which clears each page before its next use: this takes a twentieth of a
    training step on a CPU, and half of the time of drawing noise (docs/scaling.md). Settings by MALLOC_* or
    GLIBC_TUNABLES take precedence. Other C libraries are left unchanged.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.pythonapi, "mallopt", None)  # a symbol of the process; other C libraries lack it
    if mallopt is not None:
        for parameter, value in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)):
            mallopt(parameter, value)
