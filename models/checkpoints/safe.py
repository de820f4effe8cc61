"""Safe reading of foreign checkpoints: no code in them is executed."""

import math
import mmap
import os
import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.torch
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from score_sde.storage.reading import half_of_memory, obstacle, open_file

SCALAR: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]  # it could name a global
"""The function that rebuilds a pickled numpy scalar."""

ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    type(np.dtype("float64")),
    *[(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
]
"""Globals of real files in addition to tensors and plain containers: learning rates that are numpy float64."""


class ForeignError(ValueError):
    """A foreign file that is missing, damaged, unsafe or of another format; the message contains the remedy."""

    exit_status = 3


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """The dict in a file of ``torch.save`` or safetensors, detected by its first bytes; tensors are on the CPU.

    The unpickler accepts tensors, plain containers and ``ALLOWED`` only. Tensors that take more bytes than the file
    has, as they are or unpacked, are refused.

    Raises: ForeignError for a file that is missing, truncated or no checkpoint, or naming the other globals that its
        pickle refers to.
    Reference: PyTorch's notes on serialization, ``torch.load`` with ``weights_only``.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise ForeignError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give the checkpoint file")
    start = b""
    try:
        with open_file(path, half_of_memory()) as file:
            start, size = file.read(9), os.fstat(file.fileno()).st_size
            file.seek(0)
            if start[8:] == b"{":
                return safetensors.torch.load(file.read(size))
            if start[:2] == b"PK":
                _check_unpacked(path, file, size)
            with safe_globals(ALLOWED), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the protocol: unreadable files are refused below
                content = torch.load(file, map_location="cpu", weights_only=True)
    except ForeignError:
        raise
    except Exception as error:  # unpicklers raise errors of many kinds on damaged files
        if reason := obstacle(error):
            raise ForeignError(f"{path} cannot be read: {reason}") from error
        if unsafe := sorted(_unsafe_globals(path)):
            names = ", ".join(unsafe[:5])
            raise ForeignError(f"{path} would run {names}, so it is refused; save its tensors alone") from None
        if start[8:] == b"{" or start[:2] in (b"PK", b"\x80\x02"):
            raise ForeignError(f"{path} is truncated, damaged or no checkpoint of PyTorch; download it again") from None
        raise ForeignError(f"{path} is no checkpoint of PyTorch; check the file") from None
    if not isinstance(content, dict):
        raise ForeignError(f"{path} contains a {type(content).__name__}, not the dict of a checkpoint; check the file")
    _check_tensors(path, size, content)
    return content


def _check_unpacked(path: Path, file: IO[bytes], most: int) -> None:
    """Raises: ForeignError for an archive whose entries exceed its size, since torch.save does not compress."""
    size = unpacked(file)
    file.seek(0)
    if size > most:
        raise ForeignError(f"{path} has {most:,} bytes and unpacks to {size:,}, so it is refused; save it again")


def unpacked(file: IO[bytes]) -> int:
    """The total unpacked size of a zip's entries in bytes, as its directory declares it."""
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _check_tensors(path: Path, size: int, content: dict[str, Any]) -> None:
    """Raises: ForeignError for tensors that are not plain, or whose total size exceeds twice the file.

    A view of one number can have any shape. Tied weights count once.
    """
    most, seen = 2 * size, set[int]()
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise ForeignError(f"{path} contains a tensor that is sparse, quantized or empty; save plain tensors")
            most -= value.numel() * value.element_size()
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value
    if most < 0:
        raise ForeignError(
            f"{path} contains tensors larger than its size in bytes allows, so it is refused; save it again"
        )


def _unsafe_globals(path: Path) -> set[str]:
    """The globals of a pickle that are not allowed, found without running it, for the message alone."""
    try:
        with safe_globals(ALLOWED), open_file(path, math.inf) as file:
            return set(get_unsafe_globals_in_checkpoint(file))
    except Exception:  # not a zip: perhaps a bare pickle, or an unreadable one
        return set(_globals(path))


def _globals(path: Path) -> Iterator[str]:
    """The globals ``module.name`` of consecutive bare pickles in a file, without torch's own."""
    pushed, memo = list[str](), list[str]()
    # stops at the end of the file or of its readable part; a file object would allocate any length that a damaged
    # word declares, a map does not
    with (
        suppress(ValueError, OSError),
        open_file(path, math.inf) as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        while True:
            for operation, value, _ in pickletools.genops(content):  # type: ignore[arg-type]  # it reads as a file does
                if operation.name == "MEMOIZE":
                    memo.append(pushed[-1] if pushed else "")
                elif operation.name in ("BINGET", "LONG_BINGET") and isinstance(value, int) and value < len(memo):
                    pushed.append(memo[value])
                elif operation.name == "STACK_GLOBAL":
                    yield ".".join(map(str, pushed[-2:]))
                elif isinstance(value, str):
                    own = value.startswith(("torch ", "torch._utils ", "collections "))
                    if operation.name == "GLOBAL" and not own:
                        yield value.replace(" ", ".")
                    else:
                        pushed.append(value)
