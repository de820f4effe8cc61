"""From the content of an image file to pixels."""

import io
import warnings
from pathlib import Path

import numpy as np

from data.dataset import DataError
from storage.reading import obstacle

MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # colour modes as stored, and as read
MAX_PIXELS = 2**24  # 4096 x 4096


class BrokenImage(DataError):
    """An image that cannot be decoded, or that has too many pixels to be."""


def decode(content: bytes, file: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of a PNG or JPEG image, and of no other format; the first picture where there are several.

    Args:
        content: of the file.
        file: its path, for messages.
        max_pixels: most pixels that an image may have, which its header tells before any is decoded.
    Shapes: returns (C, H, W) uint8, C = 1 or 3.
    Raises: BrokenImage if it is damaged or too large; DataError if it is neither gray nor RGB of 8 bits.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes: ours is the limit; and of metadata, which nothing here reads
            image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
            pixels = image.width * image.height
            if pixels <= max_pixels:
                image.load()
    except Image.DecompressionBombError as error:
        raise BrokenImage(f"{file} has more pixels than Pillow opens: scale it down or remove it") from error
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        if reason := obstacle(error):
            raise DataError(f"{file} cannot be read: {reason}") from error
        raise BrokenImage(f"{file} is no whole PNG or JPEG image: replace or remove it") from error
    if pixels > max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise BrokenImage(f"{file} has {size}: scale it down or remove it, or raise data.max_pixels from {max_pixels}")
    if image.mode not in MODES:
        raise DataError(f"{file} has the colour mode {image.mode}: convert it to gray or RGB of 8 bits")
    array = np.asarray(image.convert(MODES[image.mode]))
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
