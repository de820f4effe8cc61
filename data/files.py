"""PNG and JPEG files, in a folder or a zip, as one array: each is decoded when it is first asked for."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.archives import MOST_STORED, open_zip, unpack
from data.dataset import DataError
from data.decoding import MAX_PIXELS, BrokenImage, decode
from storage.reading import Refused, obstacle, read_bytes

MOST_KEPT = 8 * 2**30  # bytes; the images of larger sets are decoded anew each time


def list_files(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """The names of all files in a folder or zip, sorted, with / between folders; and a function from name to content.

    Links to files are followed, links to folders are not. Names of a zip are never places on the disk.

    Raises: DataError if path is no folder and no readable zip, or a zip with names of places outside it.
    """
    if path.is_dir():
        found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        names, read = [file.relative_to(path).as_posix() for file in found], lambda name: _content(path / name)
    elif path.suffix.lower() == ".zip":
        archive = open_zip(path)
        names, read = archive.namelist(), lambda name: unpack(archive, name)
        outside = next((name for name in names if name.startswith("/") or ".." in name.split("/")), None)
        if outside is not None:
            raise DataError(f"{path} has an entry {outside!r}, which is no place within it: pack it again")
    else:
        raise DataError(f"{path} is of no known kind: give a folder, a .zip, an .npy or an .npz of images")
    return sorted(names), read


def _content(file: Path) -> bytes:
    """The content of a file. Raises: BrokenImage for a device, a pipe, more bytes than an image has; OSError."""
    try:
        return read_bytes(file, MOST_STORED)
    except FileNotFoundError as error:
        raise BrokenImage(f"{file} is a link to no file: remove it") from error
    except Refused as error:
        raise BrokenImage(f"{file} is no image: {error.strerror}; remove it") from error


class ImageFiles:
    """Answers x[rows] as an array (N, C, H, W) of uint8 does; the first image sets the shape of all.

    Decoded images are kept in memory, unless the whole set would take more than 8 GiB.

    Args:
        path: where the files are, for messages.
        names: of the files, one image each.
        read: from a name to the file's content.
        max_pixels: most that an image may have.
        skip_broken: whether the first image that can be read sets the shape, for ``whole`` to leave the others out.
    Raises: DataError, here or on reading, if an image is broken, or differs from the first in size or channels.
    """

    def __init__(
        self,
        path: Path,
        names: list[str],
        read: Callable[[str], bytes],
        max_pixels: int = MAX_PIXELS,
        skip_broken: bool = False,
    ) -> None:
        self.path, self.names, self.read, self.max_pixels = path, names, read, max_pixels
        self.first, pixels = self._first(len(names) if skip_broken else 1)
        self.shape = (len(names), *pixels.shape)
        self.decoded = np.zeros(len(names), dtype=bool)
        self.kept = np.empty(self.shape, dtype=np.uint8) if np.prod(self.shape) <= MOST_KEPT else None

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self.kept is None:
            return np.stack([self._read(row) for row in rows])
        for row in rows[~self.decoded[rows]]:
            self.kept[row] = self._read(row)
            self.decoded[row] = True
        return self.kept[rows]

    def whole(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows whose images are not broken; the others are counted on standard error."""
        broken = np.array([self._is_broken(row) for row in rows], dtype=bool)
        if broken.any():
            named = [self.names[row] for row in rows[broken]]
            told = f"{', '.join(named[:3])}{f' and {len(named) - 3} more' if len(named) > 3 else ''}"
            print(f"{self.path}: {len(named)} of {len(rows)} images are broken and left out: {told}", file=sys.stderr)
        return rows[~broken]

    def _is_broken(self, row: int) -> bool:
        try:
            self[np.array([row])]
        except BrokenImage:
            return True
        return False

    def _first(self, tries: int) -> tuple[int, np.ndarray]:
        """Number and pixels of the first image that can be read among so many."""
        for row in range(tries):
            try:
                return row, self._decode(row)
            except BrokenImage:
                if row == tries - 1:
                    raise
        raise DataError(f"{self.path} holds no images: check data.path and data.test_path")

    def _read(self, row: int) -> np.ndarray:
        pixels = self._decode(row)
        if pixels.shape != self.shape[1:]:
            first = self.names[self.first]
            shapes = f"is {_describe(pixels.shape)}, unlike {first}, which is {_describe(self.shape[1:])}"
            raise DataError(f"{self.path / self.names[row]} {shapes}: make all images alike")
        return pixels

    def _decode(self, row: int) -> np.ndarray:
        file = self.path / self.names[row]
        try:
            content = self.read(self.names[row])
        except DataError as error:
            raise BrokenImage(str(error)) from error
        except Exception as error:  # zipfile raises errors of many kinds on damaged entries
            if reason := obstacle(error):
                raise DataError(f"{file} cannot be read: {reason}") from error
            raise BrokenImage(f"{file} is no whole PNG or JPEG image: replace or remove it") from error
        return decode(content, file, self.max_pixels)


def _describe(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width} x {height} in {'gray' if channels == 1 else 'RGB'}"
