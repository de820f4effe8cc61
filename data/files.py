"""Image files in a folder or a zip as one array; each image is decoded on first access."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from score_sde.data.archives import MOST_STORED, open_zip, unpack
from score_sde.data.dataset import DataError
from score_sde.data.decoding import MAX_PIXELS, BrokenImage, decode, pixels, square
from score_sde.data.layout import listed
from score_sde.storage.naming import printable
from score_sde.storage.reading import Refused, half_of_memory, obstacle, read_bytes

MOST_KEPT = min(8 * 2**30, half_of_memory() / 2)  # bytes; larger sets are not cached but decoded on each access


class Files(NamedTuple):
    """The files of a folder or zip.

    Args:
        names: names of all files, sorted, relative to the folder or zip, with / between folders.
        folders: names of all folders, in the same form.
        read: maps a name to the content of the file.
        notes: messages on what is left out.
    """

    names: list[str]
    folders: list[str]
    read: Callable[[str], bytes]
    notes: list[str]


def list_files(path: Path) -> Files:
    """Lists the files of a folder or zip.

    Links to files and folders are followed; names in a zip are never used as paths on disk.

    Raises: DataError if path is neither a folder nor a readable zip, has a folder that cannot be listed, or is a zip
        with entries outside it.
    """
    if path.is_dir():
        return _list_folder(path)
    if path.suffix.lower() == ".zip":
        return _list_zip(path)
    raise DataError(f"{path} is of an unknown kind: give a folder, a .zip, an .npy or an .npz of images")


def _list_folder(path: Path) -> Files:
    """Lists a folder; reads each folder once, under its own name and not a link's, so cyclic links terminate."""
    names, folders, repeated = [], [], []
    visited, waiting = set(), [path]
    while waiting:
        for folder, inner, files in os.walk(waiting.pop(0), onerror=_cannot_list):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                repeated.append(Path(folder).relative_to(path).as_posix())
                inner.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            waiting += [link for link in map(Path(folder).joinpath, sorted(inner)) if link.is_symlink()]
            folders += [Path(folder, name).relative_to(path).as_posix() for name in inner]
            names += [Path(folder, name).relative_to(path).as_posix() for name in files]
    notes = [f"links to folders already read, left out: {listed(sorted(repeated))}"] if repeated else []
    return Files(sorted(names), sorted({*folders} - {*repeated}), lambda name: _content(path / name), notes)


def _list_zip(path: Path) -> Files:
    """Lists a zip; backslashes, which some Windows programs write, separate folders, too."""
    archive = open_zip(path)
    entries = {name.replace("\\", "/"): name for name in archive.namelist()}
    outside = next((name for name in entries if name.startswith("/") or ".." in name.split("/")), None)
    if outside is not None:
        raise DataError(f"{path} has an entry {outside!r}, which leads outside it: pack it again")
    names = sorted(name for name in entries if not name.endswith("/"))
    folders = {parent for name in entries for parent in _parents(name)}
    return Files(names, sorted(folders), lambda name: unpack(archive, entries[name]), [])


def _parents(name: str) -> list[str]:
    """All folders in the name of an entry."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[: k + 1]) for k in range(len(parts))]


def _cannot_list(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be listed ({error.strerror}): make it readable or remove it") from error


def _content(file: Path) -> bytes:
    """The content of a file.

    Raises: BrokenImage for a device, a pipe, a dangling link, or more bytes than an image has; OSError.
    """
    try:
        return read_bytes(file, MOST_STORED)
    except FileNotFoundError as error:
        raise BrokenImage(f"{file} is a dangling link: remove it") from error
    except Refused as error:
        raise BrokenImage(f"{file} is not an image: {error.strerror}; remove it") from error


class ImageFiles:
    """Image files as an array (N, C, H, W) of uint8, indexed as x[rows]; the first image sets the shape.

    Gray images in an RGB set are converted to three equal channels. Decoded images are cached in memory, unless the set
    takes more than 8 GiB or a quarter of the machine's memory.

    Args:
        path: folder or zip of the files, for messages.
        names: names of the files, one image each.
        read: maps a name to the file's content.
        max_pixels: largest number of pixels of an image.
        skip_broken: whether the first readable image sets the shape, so that ``whole`` can leave out broken ones.
        size: side in pixels to which ``decoding.square`` crops and resizes images; 0 leaves them as stored.
    Raises: DataError, here or on access, if an image is broken, or differs from the first in size or channels.
    """

    def __init__(
        self,
        path: Path,
        names: list[str],
        read: Callable[[str], bytes],
        max_pixels: int = MAX_PIXELS,
        skip_broken: bool = False,
        size: int = 0,
    ) -> None:
        self.path, self.names, self.read, self.max_pixels, self.size = path, names, read, max_pixels, size
        self.stored = np.zeros((len(names), 2), dtype=np.int32)  # width and height, once decoded
        self.first, first = self._first(len(names) if skip_broken else 1)
        self.shape = (len(names), *first.shape)
        self.decoded = np.zeros(len(names), dtype=bool)
        self.kept = np.empty(self.shape, dtype=np.uint8) if np.prod(self.shape) <= MOST_KEPT else None

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self.kept is None:
            found = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
            for index, row in enumerate(rows):
                found[index] = self._read(row)
            return found
        for row in rows[~self.decoded[rows]]:
            self.kept[row] = self._read(row)
            self.decoded[row] = True
        return self.kept[rows]

    def whole(self, rows: np.ndarray) -> np.ndarray:
        """The rows with intact images; the number of broken ones is printed to standard error."""
        broken = np.array([self._is_broken(row) for row in rows], dtype=bool)
        if broken.any():
            named = listed([self.names[row] for row in rows[broken]], 3)
            line = f"{self.path}: {broken.sum()} of {len(rows)} images are broken and left out: {named}"
            print(printable(line), file=sys.stderr)
        return rows[~broken]

    def describe_stored(self) -> str:
        """Stored sizes of the images decoded so far, in pixels, and the number of enlarged ones, as text."""
        sizes = self.stored[self.stored.any(1)]
        low, high = (" x ".join(map(str, size)) for size in (sizes.min(0), sizes.max(0)))
        enlarged = int((sizes.min(1) < self.size).sum())
        return f"{len(sizes)} images decoded, stored as {low} to {high} pixels; {enlarged} of them were enlarged"

    def _is_broken(self, row: int) -> bool:
        try:
            self[np.array([row])]
        except BrokenImage:
            return True
        return False

    def _first(self, tries: int) -> tuple[int, np.ndarray]:
        """Index and pixels of the first readable image among the first ``tries``."""
        for row in range(tries):
            try:
                return row, self._decode(row)
            except BrokenImage:
                if row == tries - 1:
                    raise
        raise DataError(f"{self.path} contains no images: check data.path and data.test_path")

    def _read(self, row: int) -> np.ndarray:
        found = self._decode(row)
        if found.shape[1:] != self.shape[2:] or len(found) > self.shape[1]:
            first = self.names[self.first]
            shapes = f"is {_describe(found.shape)}, unlike {first}, which is {_describe(self.shape[1:])}"
            remedy = "give all images the same size and channels"
            if found.shape[1:] != self.shape[2:]:
                remedy = "set data.size to crop and resize all images to squares of that side"
            raise DataError(f"{self.path / self.names[row]} {shapes}: {remedy}")
        return found

    def _decode(self, row: int) -> np.ndarray:
        file = self.path / self.names[row]
        try:
            content = self.read(self.names[row])
        except DataError as error:
            raise BrokenImage(str(error)) from error
        except Exception as error:  # zipfile raises errors of many kinds on damaged entries
            if reason := obstacle(error):
                raise DataError(f"{file} cannot be read: {reason}") from error
            raise BrokenImage(f"{file} is not a complete PNG, JPEG or WebP image: replace or remove it") from error
        picture = decode(content, file, self.max_pixels)
        self.stored[row] = picture.size
        return pixels(square(picture, self.size) if self.size else picture)


def _describe(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width} x {height} in {'gray' if channels == 1 else 'RGB'}"
