"""Checkpoints: weights and a Gaussian of the data in safetensors, the rest of the state of training, and what they are.

    checkpoints/step_00001000/  model.safetensors  ema-0.999.safetensors  gaussian.safetensors  state.pt  meta.json

A checkpoint is written under a temporary name and renamed when it is whole. Its files are read back by their SHA-256,
and nothing in them can run code: safetensors holds numbers, state.pt is read with weights_only.
"""

import hashlib
import io
import json
import math
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from engine.errors import CheckpointError
from sde_lib import Gaussian

RAW = "model.safetensors"
GAUSSIAN = "gaussian.safetensors"


def ema_file(rate: float) -> str:
    """Name of the file with the average of this rate."""
    return f"ema-{rate:g}.safetensors"


def weights_file(meta: Mapping[str, Any], weights: str) -> str:
    """Name of the file with the weights ``ema`` or ``raw`` of a checkpoint with this meta.json."""
    return RAW if weights == "raw" else meta["ema"][0]


def save(
    folder: Path,
    step: int,
    parts: Mapping[str, nn.Module | Gaussian],
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> Path:
    """Write checkpoint ``step`` below ``folder`` and return its path.

    Args:
        parts: from the name of a file to the network whose weights it holds, or to the first guess of the data.
        state: tensors, numbers and containers of them, for training to go on.
        meta: JSON values that describe the checkpoint.
    """
    target = folder / f"step_{step:08d}"
    partial, former = (target.with_name(f".{target.name}.{what}") for what in ("partial", "former"))
    contents = {name: save_tensors(_contiguous(part)) for name, part in parts.items()}
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    contents["state.pt"] = buffer.getvalue()
    meta = {"step": step, **meta}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    digests["meta.json"] = _own_digest(meta)
    contents["meta.json"] = json.dumps({**meta, "sha256": digests}, indent=2).encode()
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, content in contents.items():
            with open(partial / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            os.replace(target, former)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if former.exists() and not target.exists():
            os.replace(former, target)
        raise
    shutil.rmtree(former, ignore_errors=True)
    return target


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def forget(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints; 0 keeps all."""
    for old in steps(folder)[: -keep or None] if keep else []:
        shutil.rmtree(old)


def steps(folder: Path) -> list[Path]:
    """The whole checkpoints below ``folder``, from the oldest to the newest."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def find(folder: Path, which: str | None = None) -> Path:
    """The newest checkpoint below ``folder``, or the one that a step or a path names.

    Raises: CheckpointError if it is not there.
    """
    if which is not None:
        named = [path for path in (Path(which), folder / which) if (path / "meta.json").is_file()]
        if which.isdigit():
            named = [path for path in steps(folder) if int(path.name.removeprefix("step_")) == int(which)]
        if not named:
            there = ", ".join(path.name for path in steps(folder)) or "none"
            raise CheckpointError(f"no checkpoint {which} in {folder}; there are: {there}")
        return named[0]
    found = steps(folder)
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}; train the run first with --mode train")
    return found[-1]


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a checkpoint.

    Raises: CheckpointError if it is missing or damaged.
    """
    try:
        meta = json.loads((path / "meta.json").read_text())
        own = _own_digest(meta)
        if meta["sha256"]["meta.json"] != own:
            raise ValueError("these are not the values that were written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / 'meta.json'} is missing or damaged; {_remedy(path)}") from error
    return meta


def load_network(path: Path, name: str, network: nn.Module) -> None:
    """Load the weights of one file into a network, strictly.

    Raises: CheckpointError if the file is damaged, or holds weights of another network.
    """
    tensors = load_tensors(_read(path, name))
    own = network.state_dict()
    if tensors.keys() != own.keys() or any(tensors[key].shape != own[key].shape for key in own):
        odd = sorted(
            key for key in own.keys() | tensors.keys() if key not in own or key not in tensors
            or own[key].shape != tensors[key].shape
        )  # fmt: skip
        raise CheckpointError(
            f"{path / name} holds another network, {odd[0]} and {len(odd) - 1} more differ; "
            "leave --config out to take the config of the run, or take the network of its config.json"
        )
    network.load_state_dict(tensors)


def load_gaussian(path: Path, shape: tuple[int, ...]) -> Gaussian | None:
    """The first guess of data whose examples have this shape; None from a checkpoint of before there was one.

    Raises: CheckpointError if the file is damaged, or holds a guess of other data.
    """
    if GAUSSIAN not in read_meta(path)["sha256"]:
        return None
    tensors = load_tensors(_read(path, GAUSSIAN))
    found = {name: (value.dtype, *value.shape) for name, value in tensors.items()}
    rank = tensors["variances"].numel() if "variances" in tensors else 0
    expected = {"mean": shape, "rest": (), "variances": (rank,), "directions": (math.prod(shape), rank)}
    if found != {name: (torch.float64, *sizes) for name, sizes in expected.items()}:
        raise CheckpointError(f"{path / GAUSSIAN} holds no Gaussian of shape {shape}; {_remedy(path)}")
    return Gaussian.from_state_dict(tensors)


def load_state(path: Path) -> dict[str, Any]:
    """What training needs to go on.

    Raises: CheckpointError if the file is damaged, or holds anything but tensors, numbers and containers of them.
    """
    content = io.BytesIO(_read(path, "state.pt"))
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path / 'state.pt'} is not one that training wrote; {_remedy(path)}") from error


def _read(path: Path, name: str) -> bytes:
    """A file of a checkpoint, if it is the one that was written."""
    digests = read_meta(path).get("sha256", {})
    if name not in digests:
        there = ", ".join(sorted(digests))
        raise CheckpointError(f"{path} has no {name}; it has {there}")
    try:
        content = (path / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path / name} cannot be read ({error.strerror}); {_remedy(path)}") from error
    if hashlib.sha256(content).hexdigest() != digests[name]:
        raise CheckpointError(f"{path / name} is truncated or damaged; {_remedy(path)}")
    return content


def _own_digest(meta: Mapping[str, Any]) -> str:
    """Of the values of meta.json beside its list of digests."""
    values = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _remedy(path: Path) -> str:
    others = [other.name for other in steps(path.parent) if other != path]
    if others:
        return f"delete {path.name} to go on from {others[-1]}"
    return "restore it from a copy, or train again in another --workdir"


def _contiguous(part: nn.Module | Gaussian) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in part.state_dict().items()}
