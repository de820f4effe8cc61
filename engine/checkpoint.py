"""Checkpoints: weights and a Gaussian of the data in safetensors, the rest of the training state, and metadata.

    checkpoints/step_00001000/  model.safetensors  ema-0.999.safetensors  gaussian.safetensors  state.pt  meta.json

A checkpoint is written under a temporary name and renamed when it is complete. Reading compares the SHA-256 of each
file and runs no code from it: safetensors holds numbers, and state.pt is read with weights_only.
"""

import hashlib
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from score_sde.engine import ranks
from score_sde.engine.errors import CheckpointError, looked_at
from score_sde.models.checkpoints.safe import unpacked
from score_sde.sde_lib import Gaussian
from score_sde.storage.naming import printable
from score_sde.storage.reading import Refused, half_of_memory, read_bytes, read_text
from score_sde.storage.writing import create, flush_folder, remove, rename, replacing_folder

RAW = "model.safetensors"
GAUSSIAN = "gaussian.safetensors"
NAME = re.compile(r"step_[0-9]{8,}")
"""Name of a checkpoint's folder; folders of other names, such as copies, are no checkpoints."""

MOST_NUMBERS = 2**26
"""Largest number of entries in an example of a run."""


def ema_file(rate: float) -> str:
    """Returns the name of the file with the average of this rate."""
    return f"ema-{rate:g}.safetensors"


def profile_file(width: float) -> str:
    """Returns the name of the file with the profile of this width."""
    return f"power-{width:g}.safetensors"


def weights_file(meta: Mapping[str, Any], weights: str) -> str:
    """Returns the name of the file with the weights ``raw``, ``ema`` or ``ema-RATE`` of a checkpoint.

    Args:
        meta: values of its meta.json.
    Raises: ValueError for a rate that is not stored.
    """
    if weights in ("raw", "ema"):
        return RAW if weights == "raw" else meta["ema"][0]
    name = ema_file(float(weights.removeprefix("ema-")))
    if name not in meta["ema"]:
        there = ", ".join(name.removesuffix(".safetensors") for name in meta["ema"])
        raise ValueError(f"--weights {weights}: the run keeps raw, {there}")
    return name


def save(
    folder: Path,
    step: int,
    parts: Mapping[str, nn.Module | Gaussian],
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> Path:
    """Writes checkpoint ``step`` below ``folder`` and returns its path.

    Args:
        parts: networks, and the moment-matched Gaussian of the data, by the names of their files.
        state: state of training: tensors, numbers and containers of them.
        meta: JSON values of meta.json.
    """
    target = folder / f"step_{step:08d}"
    former = target.with_name(f".{target.name}.former")
    contents = {name: save_tensors(_contiguous(part)) for name, part in parts.items()}
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    contents["state.pt"] = buffer.getvalue()
    meta = {"step": step, **meta}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    digests["meta.json"] = _own_digest(meta)
    contents["meta.json"] = json.dumps({**meta, "sha256": digests}, indent=2).encode()
    with replacing_folder(target) as partial:
        for name, content in contents.items():
            create(partial / name, content)
        flush_folder(partial)
        try:
            if target.exists():
                remove(former)
                rename(target, former)
            rename(partial, target)
        except BaseException:
            if former.exists() and not target.exists():
                rename(former, target)
            raise
        flush_folder(folder)
    remove(former)
    return target


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(read_bytes(path, half_of_memory())).hexdigest()


def forget(folder: Path, keep: int, every: int = 0) -> None:
    """Deletes all checkpoints but the newest ``keep`` and those whose step is a multiple of ``every``.

    A folder is renamed before it is deleted, so that a partly deleted one is no checkpoint.

    Args:
        keep: 0 keeps all.
        every: 0 for no multiples.
    """
    old = [path for path in steps(folder)[: -keep or None] if not (every and _step(path) % every == 0)] if keep else []
    for path in old:
        rename(path, path.with_name(f".{path.name}.former"))
    for path in folder.glob(".step_*.former"):
        remove(path)


def steps(folder: Path) -> list[Path]:
    """Returns the checkpoints below ``folder``, from the oldest to the newest."""
    return sorted((p for p in folder.glob("step_*") if NAME.fullmatch(p.name) and p.is_dir()), key=_step)


def find(folder: Path, which: str | None = None) -> Path:
    """Returns the newest undamaged checkpoint below ``folder``, or the one of a step or path.

    Prints a warning for each damaged newer checkpoint on standard error.

    Args:
        which: a step or a path; None for the newest.
    Raises: CheckpointError if it does not exist or all are damaged; OSError if a file cannot be read at present.
    """
    if which is not None:
        named = [path for path in (Path(which), folder / which) if (path / "meta.json").is_file()]
        if which.isdecimal():
            named = [path for path in steps(folder) if _step(path) == int(which)]
        if not named:
            there = ", ".join(path.name for path in steps(folder)) or "none"
            raise CheckpointError(f"no checkpoint {which} in {folder}; there are: {there}")
        return named[0]
    if not steps(folder):
        raise CheckpointError(f"no checkpoint in {folder}{looked_at(folder)}; train the run first with --mode train")
    damage = []
    for path in reversed(steps(folder)):
        try:
            _verify(path)
        except Damage as found:
            damage.append(found)
            continue
        for error in damage:
            print(printable(f"warning: {error}; taking {path.name}"), file=sys.stderr)
        return path
    raise CheckpointError(f"{damage[0]}; {NO_OTHER}")


def newest(folder: Path) -> Path | None:
    """Returns the newest undamaged checkpoint, from which training resumes; None if the folder has no checkpoint.

    Renames damaged newer checkpoints, with a warning, since training writes these steps again.

    Raises: CheckpointError if all are damaged.
    """
    if not steps(folder):
        return None
    found = find(folder)
    for path in steps(folder):
        if _step(path) > _step(found):
            aside = path.with_name(f"damaged_{path.name}")
            remove(aside)
            rename(path, aside)
    return found


def verify(path: Path) -> None:
    """Raises: CheckpointError if a file of a checkpoint differs from the one written."""
    with _remedied(path):
        _verify(path)


class Meta(dict[str, Any]):
    """Values of a meta.json, or of its section ``data``.

    Args:
        path: path of the checkpoint.
    Raises: CheckpointError on access to a missing key.
    """

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"{self.path / 'meta.json'} lacks {key}; {_remedy(self.path)}")


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the values of a checkpoint's meta.json.

    Raises: CheckpointError if it is missing or damaged.
    """
    with _remedied(path):
        meta = _meta(path)
    return Meta({key: Meta(value, path) if key == "data" else value for key, value in meta.items()}, path)


def load_network(path: Path, name: str, network: nn.Module) -> None:
    """Loads the weights of one file into a network, with equal names and shapes.

    Raises: CheckpointError if the file is damaged, or holds weights of another network.
    """
    tensors = _tensors(path, name)
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
    network.load_state_dict({key: ranks.spread(value, own[key]) for key, value in tensors.items()})


def load_gaussian(path: Path, shape: tuple[int, ...]) -> Gaussian | None:
    """Returns the moment-matched Gaussian of data of this shape; None for a checkpoint of an earlier version.

    Raises: CheckpointError if the file is damaged, or holds a Gaussian of another shape.
    """
    if GAUSSIAN not in read_meta(path)["sha256"]:
        return None
    tensors = _tensors(path, GAUSSIAN)
    found = {name: (value.dtype, *value.shape) for name, value in tensors.items()}
    rank = tensors["variances"].numel() if "variances" in tensors else 0
    expected = {"mean": shape, "rest": (), "variances": (rank,), "directions": (math.prod(shape), rank)}
    if found != {name: (torch.float64, *sizes) for name, sizes in expected.items()}:
        raise CheckpointError(f"{path / GAUSSIAN} holds no Gaussian of shape {shape}; {_remedy(path)}")
    return Gaussian.from_state_dict(tensors)


def load_state(path: Path) -> dict[str, Any]:
    """Returns the state of training.

    Raises: CheckpointError if the file is damaged, or holds objects other than tensors, numbers and their containers.
    """
    content = _read(path, "state.pt")
    try:
        if unpacked(io.BytesIO(content)) > len(content):
            raise ValueError("torch.save does not compress")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise errors of any kind on malformed files
        raise CheckpointError(f"{path / 'state.pt'} was not written by training; {_remedy(path)}") from error


def _tensors(path: Path, name: str) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file, which may have the right digest and still be no safetensors file."""
    content = _read(path, name)
    try:
        return load_tensors(content)
    except (SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / name} holds no readable tensors; {_remedy(path)}") from error


class Damage(Exception):
    """A file of a checkpoint differs from the one written. The message names it."""


def _read(path: Path, name: str) -> bytes:
    """Returns the content of a checkpoint's file, after comparing its digest."""
    digests = read_meta(path)["sha256"]
    if name not in digests:
        there = ", ".join(sorted(digests))
        raise CheckpointError(f"{path} has no {name}; it has {there}")
    with _remedied(path):
        return _content(path / name, digests[name])


def _verify(path: Path) -> None:
    """Raises: Damage if a file differs from the one written, or the folder is a copy of another step; OSError."""
    meta = _meta(path)
    for name, digest in meta["sha256"].items():
        if name != "meta.json":
            _content(path / name, digest)
    if NAME.fullmatch(path.name) and meta.get("step") != _step(path):
        raise Damage(f"{path} is a copy of the checkpoint of step {meta.get('step')}")


def _meta(path: Path) -> dict[str, Any]:
    """Returns the values of meta.json.

    Raises: Damage if it is missing or differs from the one written; OSError if it cannot be read at present.
    """
    try:
        with _absence(path / "meta.json"):
            meta = json.loads(read_text(path / "meta.json"))
        own = _own_digest(meta)
        if meta["sha256"]["meta.json"] != own or not _sound(meta):
            raise ValueError("the values differ from those written")
    except (Damage, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Damage(f"{path / 'meta.json'} is missing or damaged") from error
    return meta


def _content(file: Path, digest: str) -> bytes:
    """Returns the bytes of a file.

    Raises: Damage if it is missing or has another digest; OSError if it cannot be read at present.
    """
    with _absence(file):
        content = read_bytes(file, half_of_memory())
    if hashlib.sha256(content).hexdigest() != digest:
        raise Damage(f"{file} is truncated or damaged")
    return content


@contextmanager
def _absence(file: Path) -> Iterator[None]:
    """Context that turns the errors of a missing or irregular file into Damage; other read errors may be transient."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, Refused) as error:
        raise Damage(f"{file} cannot be read ({error.strerror})") from error


@contextmanager
def _remedied(path: Path) -> Iterator[None]:
    """Context that turns Damage into a CheckpointError with the remedy."""
    try:
        yield
    except Damage as error:
        raise CheckpointError(f"{error}; {_remedy(path)}") from error


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _sound(meta: Mapping[str, Any]) -> bool:
    """Returns whether the values of a meta.json have valid types and ranges, which its own digest cannot prove.

    Files must be in the folder itself; examples must have positive sides, at most ``MOST_NUMBERS`` entries, and finite
    moments.
    """
    data, averages = meta.get("data", {}), meta.get("ema", [RAW])
    shape, numbers = data.get("shape", [1]), [data.get(key, 0) for key in ("levels", "std", "diameter")]
    classes = data.get("classes", [])  # missing in runs of earlier versions
    codec = [number for values in data.get("codec", {}).values() for number in values]
    return (
        isinstance(averages, list)
        and isinstance(shape, list)
        and all(Path(name).name == name for name in (*meta["sha256"], *averages))
        and len(averages) > 0
        and ("shape" not in data or data.keys() - {"classes", "codec"} == {"shape", "levels", "std", "diameter"})
        and isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and all(type(side) is int and side > 0 for side in shape)
        and 0 < math.prod(shape) <= MOST_NUMBERS
        and all(type(number) in (int, float) and 0 <= number < math.inf for number in numbers)
        and all(type(number) in (int, float) and math.isfinite(number) for number in codec)
        and type(numbers[0]) is type(meta.get("step", 0)) is int
    )


def _own_digest(meta: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the values of meta.json without its list of digests."""
    values = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


NO_OTHER = "restore it from a copy, or train again in another --workdir"


def _remedy(path: Path) -> str:
    """Returns the remedy for a damaged checkpoint: resume from the newest undamaged other one."""
    for other in reversed(steps(path.parent)):
        if other != path and _is_whole(other):
            return f"delete {path.name} to go on from {other.name}"
    return NO_OTHER


def _is_whole(path: Path) -> bool:
    try:
        _verify(path)
    except (Damage, OSError):
        return False
    return True


def _contiguous(part: nn.Module | Gaussian) -> dict[str, torch.Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in part.state_dict().items()}
