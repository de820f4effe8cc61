"""Derives splits, classes and left-out files from file names, without reading files."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import commonpath, dirname

import numpy as np

from score_sde.data.dataset import DataError
from score_sde.data.decoding import SUFFIXES

LISTING = "dataset.json"
CACHES = {"__macosx", "@eadir", "__pycache__", "$recycle.bin"}  # folders that operating systems add
SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
MOST_NAMED = 5


@dataclass(frozen=True, eq=False)
class Layout:
    """The images of a folder or zip.

    Args:
        names: names of the image files, sorted.
        splits: indices of the images of train and test, if there are folders for them; otherwise None.
        label: the class folder of each image (N,); None if folders are not classes.
        notes: messages on files that are left out and on folders that are not classes.
    """

    names: list[str]
    splits: dict[str, np.ndarray] | None
    label: np.ndarray | None
    notes: tuple[str, ...]


def lay_out(path: Path, files: Sequence[str], folders: Iterable[str], listed: bool) -> Layout:
    """Sorts the files of a folder or zip into images, splits and classes.

    Let the root be the deepest folder that contains all images. Subfolders of the root with a name in
    ``SPLIT_FOLDERS``, in any case, are the splits. Images one folder below the root, or below a split, have this folder
    as their label.

    Args:
        path: path of the folder or zip, for messages.
        files: names of the files relative to path, sorted, with / between folders.
        folders: names of all folders, relative to path.
        listed: whether a dataset.json gives the labels, so that folders are not classes.
    Raises: DataError if there are no images, or their folders are neither splits nor classes.
    """
    images = [name for name in files if name.lower().endswith(SUFFIXES) and not is_hidden(name)]
    if not images:
        raise DataError(f"{path} contains no {', '.join(SUFFIXES)} files: check data.path and data.test_path")
    depth = len(PurePosixPath(commonpath([dirname(name) for name in images])).parts)
    chosen = _split_folders({name.split("/")[depth] for name in images if name.count("/") > depth})
    notes = [*_left_out(files)]
    if chosen:
        kept = [name for name in images if name.split("/")[depth] in chosen.values()]
        notes += _outside(images, kept, chosen)
        images = kept
    parts = [name.split("/")[depth + bool(chosen) :] for name in images]
    split_of = np.array([name.split("/")[depth] for name in images])
    splits = {split: np.flatnonzero(split_of == folder) for split, folder in chosen.items()} or None
    if not splits:
        _check_splits_lie_on_top(path, parts)
    groups = [[parts[row] for row in rows] for rows in splits.values()] if splits else [parts]
    label = None
    if not listed:
        depths = [_depth(path, group) for group in groups]
        if set(depths) == {1}:
            label = np.array([part[0] for part in parts])
            notes += _empty(folders, images, {dirname(dirname(name)) for name in images})
        elif any(depths):
            found = " and ".join(str(depth) for depth in sorted(set(depths)))
            notes.append(f"no labels: images lie {found} folders deep, and class folders must contain them directly")
    return Layout(images, splits, label, tuple(notes))


def is_hidden(name: str) -> bool:
    """Whether any part of a name is hidden, or a folder of caches, thumbnails or system files."""
    return any(part.startswith(".") or part.lower() in CACHES for part in name.split("/"))


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key that orders numbers in names by value: 2 before 10, and a2 before a10."""
    pieces = re.split(r"([0-9]+)", name)
    return [int(piece) if k % 2 else piece for k, piece in enumerate(pieces)], name


def listed(names: Iterable[str], most: int = MOST_NAMED) -> str:
    """The first ``most`` names and the number of the others, as text."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _split_folders(heads: set[str]) -> dict[str, str]:
    """The folder of each split, the first in ``SPLIT_FOLDERS`` of several; empty unless both splits have one."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        ranked = [(names.index(head.lower()), head) for head in heads if head.lower() in names]
        if ranked:
            found[split] = min(ranked)[1]
    return found if found.keys() == SPLIT_FOLDERS.keys() else {}


def _depth(path: Path, parts: list[list[str]]) -> int:
    """The common folder depth of all images of a split.

    Raises: DataError if their depths differ.
    """
    low, high = min(parts, key=len), max(parts, key=len)
    if len(low) != len(high):
        raise DataError(
            f"{path} contains images {len(low) - 1} and {len(high) - 1} folders deep ({'/'.join(low)}, "
            f"{'/'.join(high)}), so folders are not classes: move them, or add a "
            'dataset.json with {"labels": null} or the labels'
        )
    return len(low) - 1


def _check_splits_lie_on_top(path: Path, parts: list[list[str]]) -> None:
    """Raises: DataError if folders of both splits lie within other folders."""
    inner = {folder for part in parts for folder in part[1:-1]}
    if folders := _split_folders(inner):
        raise DataError(
            f"{path} has the folders {folders['train']} and {folders['test']} within others, which mixes the splits: "
            "give the folder that contains both as data.path, or each of them as data.path and data.test_path"
        )


def _left_out(files: Sequence[str]) -> Iterable[str]:
    """A message with the numbers of hidden files and of files that are not images, if any."""
    hidden = sum(map(is_hidden, files))
    others = [PurePosixPath(name) for name in files if not is_hidden(name) and not name.lower().endswith(SUFFIXES)]
    endings = Counter(name.suffix.lower() or "without an ending" for name in others if name.name != LISTING)
    counts = [f"{hidden} hidden"] * (hidden > 0) + [f"{count} {ending}" for ending, count in endings.most_common()]
    if counts:
        yield f"files left out: {listed(counts)}; images are {', '.join(SUFFIXES)}"


def _outside(images: list[str], kept: list[str], chosen: dict[str, str]) -> Iterable[str]:
    """A message on the images outside the folders of the splits, if any."""
    if outside := sorted(set(images) - set(kept)):
        names = listed(outside, 3)
        yield f"{len(outside)} images left out, which are neither in {' nor in '.join(chosen.values())}: {names}"


def _empty(folders: Iterable[str], images: list[str], parents: set[str]) -> Iterable[str]:
    """A message on folders next to the class folders that contain no images, if any."""
    full = {dirname(name) for name in images}
    empty = [name for name in folders if dirname(name) in parents and name not in full and not is_hidden(name)]
    if empty:
        yield f"folders without images, which are not classes: {listed(sorted(empty, key=natural))}"
