"""From the names of files to splits, classes and the files that are left out. Nothing here reads a file."""

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
CACHES = {"__macosx", "@eadir", "__pycache__", "$recycle.bin"}  # folders that systems put among one's own
SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
MOST_NAMED = 5


@dataclass(frozen=True, eq=False)
class Layout:
    """The images of a folder or zip.

    Args:
        names: of the image files, sorted.
        splits: the image numbers of train and of test, if folders are named so; else None.
        label: the class folder of each image (N,); None if folders are no classes.
        notes: lines on files that are left out and on folders that are no classes.
    """

    names: list[str]
    splits: dict[str, np.ndarray] | None
    label: np.ndarray | None
    notes: tuple[str, ...]


def lay_out(path: Path, files: Sequence[str], folders: Iterable[str], listed: bool) -> Layout:
    """Sort the files of a folder or zip into images, splits and classes.

    Folders named as in ``SPLIT_FOLDERS``, in upper or lower case, below the folder that holds all images, are the
    splits. Images that lie one folder below that or below a split are labelled by this folder.

    Args:
        path: of the folder or zip, for messages.
        files: their names relative to path, sorted, with / between folders.
        folders: names of all folders, relative to path.
        listed: whether a dataset.json gives the labels, so that folders are no classes.
    Raises: DataError if there are no images, or their folders are neither splits nor classes.
    """
    images = [name for name in files if name.lower().endswith(SUFFIXES) and not is_hidden(name)]
    if not images:
        raise DataError(f"{path} holds no {', '.join(SUFFIXES)} files: check data.path and data.test_path")
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
            notes.append(f"no labels: images lie {found} folders deep, and class folders hold them directly")
    return Layout(images, splits, label, tuple(notes))


def is_hidden(name: str) -> bool:
    """Whether any part of a name is hidden, or the folder of a cache, of thumbnails or of a system's own files."""
    return any(part.startswith(".") or part.lower() in CACHES for part in name.split("/"))


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts the numbers in names by value: 2 before 10, and a2 before a10."""
    pieces = re.split(r"([0-9]+)", name)
    return [int(piece) if k % 2 else piece for k, piece in enumerate(pieces)], name


def listed(names: Iterable[str], most: int = MOST_NAMED) -> str:
    """The first of the names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _split_folders(heads: set[str]) -> dict[str, str]:
    """The folder of each split; none unless both splits have one. Of several, the first in ``SPLIT_FOLDERS`` is it."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        ranked = [(names.index(head.lower()), head) for head in heads if head.lower() in names]
        if ranked:
            found[split] = min(ranked)[1]
    return found if found.keys() == SPLIT_FOLDERS.keys() else {}


def _depth(path: Path, parts: list[list[str]]) -> int:
    """How many folders deep all images of a split lie.

    Raises: DataError if they do not lie equally deep.
    """
    low, high = min(parts, key=len), max(parts, key=len)
    if len(low) != len(high):
        raise DataError(
            f"{path} holds images {len(low) - 1} and {len(high) - 1} folders deep ({'/'.join(low)}, {'/'.join(high)}), "
            'so that folders are no classes: move them, or give it a dataset.json with {"labels": null} or the labels'
        )
    return len(low) - 1


def _check_splits_lie_on_top(path: Path, parts: list[list[str]]) -> None:
    """Raises: DataError if folders of both splits lie within other folders."""
    inner = {folder for part in parts for folder in part[1:-1]}
    if folders := _split_folders(inner):
        raise DataError(
            f"{path} has the folders {folders['train']} and {folders['test']} within others, which would mix them up: "
            "give the folder that holds both as data.path, or each of them as data.path and data.test_path"
        )


def _left_out(files: Sequence[str]) -> Iterable[str]:
    """A line that counts the files that are no images or are hidden, if there are any."""
    hidden = sum(map(is_hidden, files))
    others = [PurePosixPath(name) for name in files if not is_hidden(name) and not name.lower().endswith(SUFFIXES)]
    endings = Counter(name.suffix.lower() or "without an ending" for name in others if name.name != LISTING)
    counts = [f"{hidden} hidden"] * (hidden > 0) + [f"{count} {ending}" for ending, count in endings.most_common()]
    if counts:
        yield f"files left out: {listed(counts)}; images are {', '.join(SUFFIXES)}"


def _outside(images: list[str], kept: list[str], chosen: dict[str, str]) -> Iterable[str]:
    """A line on the images beside the folders of the splits, if there are any."""
    if outside := sorted(set(images) - set(kept)):
        names = listed(outside, 3)
        yield f"{len(outside)} images left out, which are neither in {' nor in '.join(chosen.values())}: {names}"


def _empty(folders: Iterable[str], images: list[str], parents: set[str]) -> Iterable[str]:
    """A line on the folders beside the class folders that hold no image, if there are any."""
    full = {dirname(name) for name in images}
    empty = [name for name in folders if dirname(name) in parents and name not in full and not is_hidden(name)]
    if empty:
        yield f"folders without images, which are no classes: {listed(sorted(empty, key=natural))}"
