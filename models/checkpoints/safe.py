"""Reading files of other people: nothing in them is ever executed."""

import pickle
import pickletools
import warnings
from collections.abc import Iterator
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

SCALAR = np.float64(0).__reduce__()[0]
"""What a pickled scalar of numpy is rebuilt with."""

ALLOWED = [
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

    Raises: ForeignError for a file that is not there, truncated, no checkpoint, or asks for anything else, by name.
    Reference: PyTorch's notes on serialization, ``torch.load`` with ``weights_only``.
    """
    path = Path(path)
    if not path.is_file():
        raise ForeignError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give the checkpoint itself")
    with path.open("rb") as file:
        start = file.read(9)
    try:
        if start[8:] == b"{":
            return safetensors.torch.load_file(path)
        with safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the protocol: what cannot be read is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError, OSError):
        asked = sorted(_asked(path))
        if asked:
            wants = ", ".join(asked[:5])
            raise ForeignError(f"{path} asks to run {wants}, so it is refused; save its tensors alone") from None
        if start[8:] == b"{" or start[:2] in (b"PK", b"\x80\x02"):
            raise ForeignError(f"{path} is truncated, damaged or no checkpoint of PyTorch; get it again") from None
        raise ForeignError(f"{path} is no checkpoint of PyTorch; check which file it is") from None
    if not isinstance(content, dict):
        raise ForeignError(f"{path} holds a {type(content).__name__}, not the dict of a checkpoint; check which it is")
    return content


def _asked(path: Path) -> set[str]:
    """The names that a pickle wants beyond the allowed ones; found without running it, for the message alone."""
    try:
        with safe_globals(ALLOWED):
            return set(get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, OSError, pickle.UnpicklingError):  # no zip: a bare pickle, perhaps
        return set(_globals(path))


def _globals(path: Path) -> Iterator[str]:
    """The names ``module.name`` that bare pickles want, one after the other in a file; torch's own left out."""
    pushed, memo = [], []
    with path.open("rb") as file, suppress(ValueError):  # at the end, or where it breaks off
        while True:
            for operation, value, _ in pickletools.genops(file):
                if operation.name == "MEMOIZE":
                    memo.append(pushed[-1] if pushed else "")
                elif operation.name in ("BINGET", "LONG_BINGET") and value < len(memo):
                    pushed.append(memo[value])
                elif operation.name == "STACK_GLOBAL":
                    yield ".".join(map(str, pushed[-2:]))
                elif operation.name == "GLOBAL" and not value.startswith(("torch ", "torch._utils ", "collections ")):
                    yield value.replace(" ", ".")
                elif isinstance(value, str):
                    pushed.append(value)
