"""Reading files of other people: nothing in them is ever executed."""

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
"""What a pickled scalar of numpy is rebuilt with."""

ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    type(np.dtype("float64")),
    *[(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
]
"""What real files hold beside tensors and plain containers: a learning rate that is a float64 of numpy."""


class ForeignError(ValueError):
    """A file of somebody else that is not there, damaged, of another kind, or not safe. The message says what to do."""

    exit_status = 3


def read(path: str | PathLike) -> dict[str, Any]:
    """The dict in a file of ``torch.save`` or of safetensors, which its first bytes tell apart; on the CPU.

    A pickle is read by an interpreter that knows tensors, plain containers and ``ALLOWED``, and calls nothing else.
    Tensors are refused that take more bytes, as they are or unpacked, than there are in the file.

    Raises: ForeignError for a file that is not there, truncated, no checkpoint, or asks for anything else, by name.
    Reference: PyTorch's notes on serialization, ``torch.load`` with ``weights_only``.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise ForeignError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give the checkpoint itself")
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
                warnings.simplefilter("ignore")  # of the protocol: what cannot be read is refused
                content = torch.load(file, map_location="cpu", weights_only=True)
    except ForeignError:
        raise
    except Exception as error:  # unpicklers raise errors of every kind on what they were not made for
        if reason := obstacle(error):
            raise ForeignError(f"{path} cannot be read: {reason}") from error
        asked = sorted(_asked(path))
        if asked:
            wants = ", ".join(asked[:5])
            raise ForeignError(f"{path} asks to run {wants}, so it is refused; save its tensors alone") from None
        if start[8:] == b"{" or start[:2] in (b"PK", b"\x80\x02"):
            raise ForeignError(f"{path} is truncated, damaged or no checkpoint of PyTorch; get it again") from None
        raise ForeignError(f"{path} is no checkpoint of PyTorch; check which file it is") from None
    if not isinstance(content, dict):
        raise ForeignError(f"{path} holds a {type(content).__name__}, not the dict of a checkpoint; check which it is")
    _check_tensors(path, size, content)
    return content


def _check_unpacked(path: Path, file: IO[bytes], most: int) -> None:
    """Raises: ForeignError for an archive whose entries take more bytes than it has; torch.save does not compress."""
    size = unpacked(file)
    file.seek(0)
    if size > most:
        raise ForeignError(f"{path} has {most:,} bytes and unpacks to {size:,}, so it is refused; save it anew")


def unpacked(file: IO[bytes]) -> int:
    """The bytes that the entries of a zip say they take together."""
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _check_tensors(path: Path, size: int, content: dict[str, Any]) -> None:
    """Raises: ForeignError for tensors that are not plain, or that say they are larger together than twice the file.

    A view of one number can claim any shape. Weights that are tied are counted once each.
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
                raise ForeignError(f"{path} holds a tensor that is sparse, quantized or empty; save plain tensors")
            most -= value.numel() * value.element_size()
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value
    if most < 0:
        raise ForeignError(
            f"{path} holds tensors of more numbers than it has bytes for, so it is refused; save it anew"
        )


def _asked(path: Path) -> set[str]:
    """The names that a pickle wants beyond the allowed ones; found without running it, for the message alone."""
    try:
        with safe_globals(ALLOWED), open_file(path, math.inf) as file:
            return set(get_unsafe_globals_in_checkpoint(file))
    except Exception:  # no zip: a bare pickle, perhaps; or one that nothing can be told of
        return set(_globals(path))


def _globals(path: Path) -> Iterator[str]:
    """The names ``module.name`` that bare pickles want, one after the other in a file; torch's own left out."""
    pushed, memo = list[str](), list[str]()
    # at the end, or where it breaks off; a map, for a file would set aside whatever length a damaged word claims
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
