"""PNG and JPEG files, in a folder or a zip, as one array: each is decoded when it is first asked for."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.dataset import DataError

MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # colour modes as stored, and as read
MOST_KEPT = 8 * 2**30  # bytes; the images of larger sets are decoded anew each time


def list_files(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """The names of all files in a folder or zip, sorted, with / between folders; and a function from name to content.

    Raises: DataError if path is no folder and no readable zip.
    """
    if path.is_dir():
        found = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        names, read = [file.relative_to(path).as_posix() for file in found], lambda name: (path / name).read_bytes()
    elif path.suffix.lower() == ".zip":
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is no readable zip file: copy or download it again") from error
        names, read = archive.namelist(), archive.read
    else:
        raise DataError(f"{path} is of no known kind: give a folder, a .zip, an .npy or an .npz of images")
    return sorted(names), read


class ImageFiles:
    """Answers x[rows] as an array (N, C, H, W) of uint8 does; the first image sets the shape of all.

    Decoded images are kept in memory, unless the whole set would take more than 8 GiB.

    Args:
        path: where the files are, for messages.
        names: of the files, one image each.
        read: from a name to the file's content.
    Raises: DataError, here or on reading, if an image is damaged, or differs from the first in size or channels.
    """

    def __init__(self, path: Path, names: list[str], read: Callable[[str], bytes]) -> None:
        self.path, self.names, self.read = path, names, read
        self.shape = (len(names), *self._decode(0).shape)
        self.decoded = np.zeros(len(names), dtype=bool)
        self.kept = np.empty(self.shape, dtype=np.uint8) if np.prod(self.shape) <= MOST_KEPT else None

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self.kept is None:
            return np.stack([self._read(row) for row in rows])
        for row in rows[~self.decoded[rows]]:
            self.kept[row] = self._read(row)
            self.decoded[row] = True
        return self.kept[rows]

    def _read(self, row: int) -> np.ndarray:
        pixels = self._decode(row)
        if pixels.shape != self.shape[1:]:
            shapes = f"is {_describe(pixels.shape)}, unlike {self.names[0]}, which is {_describe(self.shape[1:])}"
            raise DataError(f"{self.path / self.names[row]} {shapes}: make all images alike")
        return pixels

    def _decode(self, row: int) -> np.ndarray:
        from PIL import Image

        file = self.path / self.names[row]
        try:
            image = Image.open(io.BytesIO(self.read(self.names[row])), formats=("PNG", "JPEG"))
            image.load()
        except Exception as error:  # decoders raise errors of many kinds on damaged files
            raise DataError(f"{file} is no whole PNG or JPEG image: replace or remove it") from error
        if image.mode not in MODES:
            raise DataError(f"{file} has the colour mode {image.mode}: convert it to gray or RGB of 8 bits")
        pixels = np.asarray(image.convert(MODES[image.mode]))
        return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _describe(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width} x {height} in {'gray' if channels == 1 else 'RGB'}"
