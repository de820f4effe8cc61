"""Images in numpy files: .npy, or .npz with labels."""

from pathlib import Path

import numpy as np

from data.dataset import DataError

IMAGE_KEYS = ("x", "images", "samples", "arr_0")
LABEL_KEYS = ("labels", "y")


def read_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images (N, C, H, W), uint8, and the labels (N,), int64, or None if the file has none.

    An .npy of uint8 is mapped, not read: start-up takes no time and memory holds what is used. The file may hold
    (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3. Pickled objects are never loaded.

    Raises: DataError if the file is damaged, or does not hold whole numbers from 0 to 255 in one of these shapes.
    """
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(stored, np.ndarray):
            keys, arrays = ["x"], {"x": stored}
        else:
            with stored:
                keys = stored.files
                arrays = {key: stored[key] for key in keys if key in IMAGE_KEYS + LABEL_KEYS}
    except Exception as error:  # numpy raises errors of many kinds on damaged files
        raise DataError(f"{path} is empty, damaged or holds Python objects: save it again as plain numbers") from error
    images = next((arrays[key] for key in IMAGE_KEYS if key in arrays), None)
    if images is None:
        raise DataError(f"{path} has the keys {', '.join(keys)}: name the images {' or '.join(IMAGE_KEYS)}")
    if images.size == 0:
        raise DataError(f"{path} holds no images: check data.path and data.test_path")
    label = next((arrays[key] for key in LABEL_KEYS if key in arrays), None)
    images = _whole(path, _channels_first(path, images))
    return images, None if label is None else _classes(path, label, len(images))


def _channels_first(path: Path, images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    axes = [axis for axis in (1, 3) if images.ndim == 4 and images.shape[axis] in (1, 3)]
    if len(axes) != 1:
        raise DataError(f"{path} has the shape {images.shape}: save (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3")
    return np.moveaxis(images, axes[0], 1)


def _whole(path: Path, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "uif":
        raise DataError(f"{path} holds {images.dtype}: save whole numbers from 0 to 255 as uint8")
    if not np.all((images >= 0) & (images <= 255) & (images == np.floor(images))):
        raise DataError(f"{path} holds numbers that are not whole or not within 0 to 255: scale them and save as uint8")
    return images.astype(np.uint8)


def _classes(path: Path, label: np.ndarray, count: int) -> np.ndarray:
    if label.shape != (count,) or label.dtype.kind not in "ui" or np.any(label < 0):
        found = f"labels of shape {label.shape}, {label.dtype}"
        raise DataError(f"{path} has {found}: save one whole number from 0 up for each of the {count} images")
    return label.astype(np.int64)
