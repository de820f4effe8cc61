"""Image datasets on disk: splits and labels."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import basename, dirname, join
from typing import Any

import numpy as np

from score_sde.data.arrays import read_array
from score_sde.data.dataset import MOST_CLASSES, SPLITS, DataError, Dataset, check_split, hold_out
from score_sde.data.decoding import MAX_PIXELS
from score_sde.data.files import ImageFiles, list_files
from score_sde.data.layout import LISTING, is_hidden, lay_out, listed, natural

MOST_SIZE = 2**14  # pixels a side


def read_images(
    split: str,
    path: str = "",
    test_path: str = "",
    max_pixels: int = MAX_PIXELS,
    skip_broken: bool = False,
    size: int = 0,
) -> Dataset:
    """Gray or RGB images from a folder or a zip of PNG, JPEG and WebP files, or from a numpy file.

    The test split is test_path if given. Otherwise it is the subfolder test or val of path, if path also has a
    subfolder train (``layout.SPLIT_FOLDERS``), or else every tenth image in the order of names. With test_path, all of
    path is the train split and all of test_path the test split, except that a path with such subfolders contributes
    only the matching one.

    Labels come from dataset.json, {"labels": [[name, class], ...]} with null for no labels, or from the .npz. Without a
    dataset.json, images one folder deep are labelled by their folder, numbered in natural order: 2 before 10. The
    folders are the names of the classes, also with a dataset.json that has one number for each folder.

    Args:
        path: a folder, a .zip, an .npy or an .npz of images.
        test_path: the same for the test split; empty takes a part of path.
        max_pixels: largest width times height of an image file; larger files are refused before decoding.
        skip_broken: whether image files that cannot be decoded are left out of the split and counted on standard error,
            instead of raising. This decodes all files at once; the split of the other files does not change.
        size: side in pixels of the squares to which image files are cropped and resized (``decoding.square``); 0 leaves
            them as stored.
    Shapes: examples (C, H, W), uint8, C = 1 or 3.
    Raises: ValueError if path is empty, max_pixels below 1, size below 0, or size is given for a numpy file. DataError
        if path is missing, without images or damaged, or its folders are neither splits nor classes; image files are
        checked when ``batch`` decodes them.
    """
    check_split(split)
    if max_pixels < 1:
        raise ValueError(f"data.max_pixels {max_pixels}: need at least 1")
    if not 0 <= size <= MOST_SIZE:
        raise ValueError(f"data.size {size}: need 1 to {MOST_SIZE:,} pixels a side, or 0 for images as stored")
    if not path:
        raise ValueError("data.path is empty: give a folder, a .zip, an .npy or an .npz of images")
    sources = [_open(Path(each), max_pixels, skip_broken, size) for each in (path, test_path) if each]
    shapes = {source.x.shape[1:] for source in sources}
    if len(shapes) > 1:
        remedy = "give them the same shape; data.size crops and resizes image files"
        raise DataError(f"{path} and {test_path} hold images of different shapes {shapes}: {remedy}")
    labels, num_classes, classes = _number_classes(sources)
    chosen = SPLITS.index(split) if test_path else 0
    source, label = sources[chosen], labels[chosen]
    rows = source.rows(split, whole=bool(test_path))
    if skip_broken and isinstance(source.x, ImageFiles):
        rows = source.x.whole(rows)
    if len(rows) == 0:
        raise DataError(f"{path} has too few images to leave any for {split}: add images or give data.test_path")
    notes = [*source.notes]
    if any(each.label is not None for each in sources) and not num_classes:
        without = next(place for place, each in zip((path, test_path), sources, strict=False) if each.label is None)
        notes.append(f"no labels: {without} has none")
    if num_classes and label is not None:
        notes += _without_images(split, label[rows], num_classes, classes)
    validation = test_path or ("the folder of test images" if source.splits else "every 10th image")
    return Dataset(source.x, rows, 256, label, num_classes, classes=classes, notes=tuple(notes), validation=validation)


@dataclass(frozen=True, eq=False)
class _Source:
    """The images and labels of one path.

    Args:
        x: array of the images.
        label: one entry per image, a number or the name of a folder; None without labels.
        names: names of the classes, if label contains numbers; empty if they have none.
        splits: indices of the images of each split, if folders give them.
        notes: messages for the user.
    """

    x: Any
    label: np.ndarray | None
    names: tuple[str, ...] = ()
    splits: dict[str, np.ndarray] | None = None
    notes: tuple[str, ...] = ()

    def rows(self, split: str, whole: bool) -> np.ndarray:
        """Indices of a split's images: the images of its folder, or all of them if ``whole``, or a part."""
        every = np.arange(self.x.shape[0])
        return (self.splits or (dict.fromkeys(SPLITS, every) if whole else hold_out(every, every=10)))[split]


def _open(path: Path, max_pixels: int, skip_broken: bool, size: int) -> _Source:
    if not path.exists():
        raise DataError(f"{path} does not exist: check data.path and data.test_path")
    if path.suffix.lower() in (".npy", ".npz"):
        if size:
            raise ValueError(f"data.size {size} is for image files, not for {path}: resize the array, or leave it out")
        return _Source(*read_array(path))
    files = list_files(path)
    listings = [name for name in files.names if basename(name) == LISTING and not is_hidden(name)]
    layout = lay_out(path, files.names, files.folders, listed=bool(listings))
    label = _listed_labels(path, listings, layout.names, files.read) if listings else layout.label
    x = ImageFiles(path, layout.names, files.read, max_pixels, skip_broken, size)
    notes = [*files.notes, *layout.notes]
    if size:
        notes.append(f"images are cropped to the square at their centre and resized to {size} x {size} (Lanczos)")
    names = _listed_names(layout.names, label) if listings and label is not None else ()
    return _Source(x, label, names, layout.splits, tuple(notes))


def _listed_labels(
    path: Path, listings: list[str], names: list[str], read: Callable[[str], bytes]
) -> np.ndarray | None:
    """The labels of all dataset.json files, each with names relative to its folder."""
    found: dict[str, int] = {}
    for listing in listings:
        try:
            entries = json.loads(read(listing)).get("labels") or []
            found |= {join(dirname(listing), name): label for name, label in entries}
        except Exception as error:  # the zip or its listing may be damaged
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


def _listed_names(names: list[str], label: np.ndarray) -> tuple[str, ...]:
    """The folder of each class, if every class has exactly one folder; otherwise empty."""
    folders = {number: basename(dirname(name)) for name, number in zip(names, label.tolist(), strict=True)}
    pairs = {(basename(dirname(name)), number) for name, number in zip(names, label.tolist(), strict=True)}
    known = sorted(folders) == list(range(len(folders))) and len(pairs) == len(folders) == len({*folders.values()})
    return tuple(folders[number] for number in sorted(folders)) if known and len(folders) > 1 else ()


def _number_classes(sources: Sequence[_Source]) -> tuple[list[np.ndarray | None], int, tuple[str, ...]]:
    """Labels of all sources in a common numbering, the number of classes, and their names, if any.

    Labels are used only if every source has them.
    """
    labels = [source.label for source in sources if source.label is not None]
    if len(labels) < len(sources):
        return [None] * len(sources), 0, ()
    kinds = {label.dtype.kind for label in labels}
    if kinds == {"i"}:
        names = {source.names for source in sources}
        return [*labels], 1 + max(int(label.max()) for label in labels), names.pop() if len(names) == 1 else ()
    if kinds != {"U"}:
        raise DataError("data.path and data.test_path do not both number their classes: give both a dataset.json")
    classes = tuple(sorted(set(np.concatenate(labels).tolist()), key=natural))
    number = {name: k for k, name in enumerate(classes)}
    return [np.array([number[name] for name in label.tolist()]) for label in labels], len(classes), classes


def _without_images(split: str, label: np.ndarray, num_classes: int, classes: tuple[str, ...]) -> list[str]:
    """A message on classes without images in a split; empty if all have some."""
    empty = np.flatnonzero(np.bincount(label, minlength=num_classes) == 0)
    if len(empty) == 0:
        return []
    return [f"classes without images in {split}: {listed(f'{k} {classes[k]}' if classes else f'{k}' for k in empty)}"]
