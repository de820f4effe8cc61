"""Numpy files: images or real values in an .npy, or in an .npz with labels."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from score_sde.data.archives import read_header, unpack_arrays
from score_sde.data.dataset import MOST_CLASSES, DataError
from score_sde.storage.reading import obstacle, open_file

IMAGE_KEYS = ("x", "images", "samples", "arr_0")
NUMBER_KEYS = ("x", "data", "signals", "samples", "images", "arr_0")
LABEL_KEYS = ("labels", "y", "arr_1")


class MappedArray:
    """An array (N, C, H, W) of uint8 in an .npy; x[rows] reads the requested rows from the file only.

    Args:
        path: path of the file.
        offset: position of the first example, in bytes.
        stored: shape of the array in the file.
    Raises: DataError for an unknown layout; on reading, if the file has changed.
    """

    def __init__(self, path: Path, offset: int, stored: tuple[int, ...]) -> None:
        self.path, self.offset, self.stored = path, offset, stored
        self.axis = _channel_axis(path, stored)
        others = [size for axis, size in enumerate(stored) if axis not in (0, self.axis)]
        self.shape = (stored[0], stored[self.axis] if self.axis else 1, *others)
        with open_file(path, math.inf) as file:
            self.stamp = _stamp(file.fileno())

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        size, content = math.prod(self.stored[1:]), []
        try:
            with open_file(self.path, math.inf) as file:
                for row in rows:
                    file.seek(self.offset + int(row) * size)
                    content.append(file.read(size))
                same = _stamp(file.fileno()) == self.stamp
        except OSError as error:
            raise DataError(f"{self.path} is no longer readable ({error.strerror}): put it back") from error
        if not same or any(len(each) != size for each in content):
            raise DataError(f"{self.path} has changed since it was opened: run the command again once it is complete")
        return _channels_first(
            np.frombuffer(bytearray().join(content), np.uint8).reshape(-1, *self.stored[1:]), self.axis
        )

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[np.arange(self.shape[0])], dtype)


def read_array(path: Path) -> tuple[np.ndarray | MappedArray, np.ndarray | None]:
    """The images (N, C, H, W), uint8, and the labels (N,), int64, or None if the file has none.

    An .npy of uint8 is read on access, which saves start-up time and memory. The stored shape is (N, H, W),
    (N, H, W, C) or (N, C, H, W) with C = 1 or 3. Pickled objects are never loaded.

    Raises: DataError if the file is damaged, or does not contain integers from 0 to 255 in one of these shapes.
    """
    found, label = _read(path, IMAGE_KEYS, "images", _open_npy)
    if isinstance(found, np.ndarray):
        found = _channels_first(_whole(path, found), _channel_axis(path, found.shape))
    return found, None if label is None else _classes(path, label, found.shape[0])


def read_numbers(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The real values of a file, float32 of any shape, and the labels (N,), int64, or None if the file has none.

    Raises: DataError if the file is missing, damaged, neither .npy nor .npz, or contains non-finite or other values.
    """
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(f"{path} is not an .npy or .npz: save the data with numpy.save")
    if not path.exists():
        raise DataError(f"{path} does not exist: check data.path and data.test_path")
    found, label = _read(path, NUMBER_KEYS, "data", _load_npy)
    if found.dtype.kind not in "uif" or found.ndim == 0:
        raise DataError(f"{path} contains {found.dtype} of shape {found.shape}: save rows of real numbers")
    with np.errstate(over="ignore"):
        x = found.astype(np.float32)
    bad = ~np.isfinite(x)
    if bad.any():
        first, rows = np.argwhere(bad)[0].tolist(), int(bad.reshape(len(x), -1).any(1).sum())
        raise DataError(
            f"{path} contains {found[tuple(first)]} in row {first[0]}; {rows} of {len(x)} rows have values that are "
            "missing, infinite or beyond float32: remove these rows or fill in the values"
        )
    return x, None if label is None else _classes(path, label, len(x))


Array = TypeVar("Array", bound=np.ndarray | MappedArray)


def _read(
    path: Path, names: tuple[str, ...], kind: str, read_npy: Callable[[Path], Array]
) -> tuple[np.ndarray | Array, np.ndarray | None]:
    """The array of a file as stored, and its labels; in an .npz, the array under the first existing name of ``names``.

    Raises: DataError if the file is damaged, has none of the names, or the array is empty.
    """
    label: np.ndarray | None = None
    found: np.ndarray | Array | None
    try:
        if path.suffix.lower() == ".npz":
            keys, arrays = unpack_arrays(path, (names + LABEL_KEYS).__contains__)
            found = next((arrays[key] for key in names if key in arrays), None)
            label = next((arrays[key] for key in LABEL_KEYS if key in arrays), None)
        else:
            keys, found = ["x"], read_npy(path)
    except DataError:
        raise
    except Exception as error:  # numpy raises errors of many kinds on damaged files
        if reason := obstacle(error):
            raise DataError(f"{path} cannot be read: {reason}") from error
        raise DataError(
            f"{path} is empty, damaged or contains Python objects: save it again as plain numbers"
        ) from error
    if found is None:
        raise DataError(f"{path} has the keys {', '.join(keys)}: save the {kind} as {' or '.join(names)}")
    if 0 in found.shape:
        raise DataError(f"{path} contains no {kind}: check the path")
    return found, label


def _open_npy(path: Path) -> np.ndarray | MappedArray:
    """The array of an .npy; uint8 arrays are read on access."""
    shape, fortran, dtype, offset = _header(path)
    if dtype == np.uint8 and not fortran and math.prod(shape) > 0:
        return MappedArray(path, offset, shape)
    return _load_npy(path)


def _load_npy(path: Path) -> np.ndarray:
    """The array of an .npy, loaded into memory."""
    _header(path)
    with open_file(path, math.inf) as file:
        return np.load(file, allow_pickle=False)


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """The result of ``read_header`` for an .npy, and the position of its values, in bytes.

    Raises: ValueError if the size of the file does not match the header.
    """
    with open_file(path, math.inf) as file:
        shape, fortran, dtype = read_header(file)
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
    if offset + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"its header gives shape {shape}, but it has {size} bytes")
    return shape, fortran, dtype, offset


def _stamp(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns


def _channel_axis(path: Path, shape: tuple[int, ...]) -> int | None:
    """The channel axis; None for gray images without one."""
    if len(shape) == 3:
        return None
    axes = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] in (1, 3)]
    if len(axes) != 1:
        raise DataError(f"{path} has the shape {shape}: save (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3")
    return axes[0]


def _channels_first(images: np.ndarray, axis: int | None) -> np.ndarray:
    return images[:, None] if axis is None else np.moveaxis(images, axis, 1)


def _whole(path: Path, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "uif":
        raise DataError(f"{path} contains {images.dtype}: save whole numbers from 0 to 255 as uint8")
    if not np.all((images >= 0) & (images <= 255) & (images == np.floor(images))):
        raise DataError(f"{path} contains numbers that are not whole or outside [0, 255]: scale them and save as uint8")
    return images.astype(np.uint8)


def _classes(path: Path, label: np.ndarray, count: int) -> np.ndarray:
    whole = label.shape == (count,) and label.dtype.kind in "ui"
    if not whole or np.any(label < 0) or np.any(label >= MOST_CLASSES):
        found = f"labels of shape {label.shape}, {label.dtype}"
        most = f"one whole number from 0 up, below {MOST_CLASSES:,},"
        raise DataError(f"{path} has {found}: save {most} for each of the {count} images")
    return label.astype(np.int64)
