"""Images of one size on disk: their split into train and test, and their labels."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import basename, commonpath, dirname, join
from typing import Any

import numpy as np

from data.arrays import read_array
from data.dataset import MOST_CLASSES, SPLITS, DataError, Dataset, check_split, hold_out
from data.decoding import MAX_PIXELS
from data.files import ImageFiles, list_files

SUFFIXES = (".png", ".jpg", ".jpeg")


def read_images(
    split: str, path: str, test_path: str = "", max_pixels: int = MAX_PIXELS, skip_broken: bool = False
) -> Dataset:
    """Gray or RGB images from a folder or a zip of PNG and JPEG files, or from a numpy file.

    The test split is all of test_path if that is given; else the subfolder test/, where path has train/ and test/;
    else every tenth image in the order of the names.

    Labels are those in dataset.json, {"labels": [[name, class], ...]} with null for no labels, or those in the .npz.
    Without a dataset.json, images that lie one folder deep are labelled by their folder, in alphabetical order.

    Args:
        path: a folder, a .zip, an .npy or an .npz.
        test_path: the same, for testing only; empty for a part of path.
        max_pixels: most that an image file may have; it is refused before it is decoded.
        skip_broken: whether image files that cannot be decoded are left out of the split, which then has each decoded
            at once, and counted on standard error; the splits of the others stay as they are.
    Shapes: examples (C, H, W), uint8, C = 1 or 3.
    Raises: ValueError if path is empty or max_pixels below 1. DataError if path is missing, without images or damaged;
        image files are checked when they are decoded, by `batch`.
    """
    check_split(split)
    if max_pixels < 1:
        raise ValueError(f"data.max_pixels {max_pixels}: need at least 1")
    if not path:
        raise ValueError("data.path is empty: give a folder, a .zip, an .npy or an .npz of images")
    sources = [_open(Path(each), max_pixels, skip_broken) for each in (path, test_path) if each]
    shapes = {source.x.shape[1:] for source in sources}
    if len(shapes) > 1:
        raise DataError(f"{path} and {test_path} hold images of different shapes {shapes}: make them alike")
    labels, num_classes = _number_classes([source.label for source in sources])
    chosen = SPLITS.index(split) if test_path else 0
    source = sources[chosen]
    rows = np.arange(source.x.shape[0]) if test_path else source.splits[split]
    if skip_broken and isinstance(source.x, ImageFiles):
        rows = source.x.whole(rows)
    if len(rows) == 0:
        raise DataError(f"{path} has too few images to leave any for {split}: add images or give data.test_path")
    return Dataset(source.x, rows, levels=256, label=labels[chosen], num_classes=num_classes)


@dataclass(frozen=True, eq=False)
class _Source:
    """All that one path holds; label has an entry an image: a number, or the name of a folder."""

    x: Any
    splits: dict[str, np.ndarray]
    label: np.ndarray | None


def _open(path: Path, max_pixels: int, skip_broken: bool) -> _Source:
    if not path.exists():
        raise DataError(f"{path} does not exist: check data.path and data.test_path")
    if path.suffix.lower() in (".npy", ".npz"):
        x, label = read_array(path)
        return _Source(x, hold_out(np.arange(x.shape[0]), every=10), label)
    files, read = list_files(path)
    names = [name for name in files if name.lower().endswith(SUFFIXES) and not basename(name).startswith(".")]
    if not names:
        raise DataError(f"{path} holds no {', '.join(SUFFIXES)} files: check data.path and data.test_path")
    depth = len(PurePosixPath(commonpath([dirname(name) for name in names])).parts)
    parts = [name.split("/")[depth:] for name in names]  # below the folder that holds them all
    splits = hold_out(np.arange(len(names)), every=10)
    if {part[0] for part in parts} >= set(SPLITS):
        splits = {split: np.flatnonzero([part[0] == split for part in parts]) for split in SPLITS}
        parts = [part[1:] for part in parts]
    label = np.array([part[0] for part in parts]) if all(len(part) == 2 for part in parts) else None
    listings = [name for name in files if basename(name) == "dataset.json"]
    if listings:
        label = _listed_labels(path, listings, names, read)
    return _Source(ImageFiles(path, names, read, max_pixels, skip_broken), splits, label)


def _listed_labels(
    path: Path, listings: list[str], names: list[str], read: Callable[[str], bytes]
) -> np.ndarray | None:
    """The labels in every dataset.json, whose names are relative to its own folder."""
    found: dict[str, int] = {}
    for listing in listings:
        try:
            entries = json.loads(read(listing)).get("labels") or []
            found |= {join(dirname(listing), name): label for name, label in entries}
        except Exception as error:  # neither the zip nor the listing in it need be sound
            form = '{"labels": [["folder/name.png", 3], ...]} or {"labels": null}'
            raise DataError(f"{path / listing} is damaged: write it as {form}") from error
    if not found:
        return None
    for name in names:
        label = found.get(name)
        if type(label) is not int or not 0 <= label < MOST_CLASSES:
            most = f"from 0 up, below {MOST_CLASSES:,}"
            raise DataError(f"{path} labels {name} {label} in dataset.json: give each image a whole number {most}")
    return np.array([found[name] for name in names], dtype=np.int64)


def _number_classes(labels: list[np.ndarray | None]) -> tuple[list[np.ndarray | None], int]:
    """One numbering of the classes of all sources, and their number; no labels unless every source has them."""
    if any(label is None for label in labels):
        return [None] * len(labels), 0
    kinds = {label.dtype.kind for label in labels}
    if kinds == {"i"}:
        return labels, 1 + max(int(label.max()) for label in labels)
    if kinds != {"U"}:
        raise DataError("data.path and data.test_path do not both number their classes: give both a dataset.json")
    folders, numbers = np.unique(np.concatenate(labels), return_inverse=True)
    return np.split(numbers, [len(labels[0])])[: len(labels)], len(folders)
