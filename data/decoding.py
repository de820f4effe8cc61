"""Decoding of image files to pixels."""

import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from score_sde.data.dataset import DataError
from score_sde.storage.reading import obstacle

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFile import ImageFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")  # no others: Pillow's parsers of GIF and TIFF take unbounded time or memory
MODES = {
    "1": "L",
    "L": "L",
    "LA": "L",
    "P": "RGB",
    "RGB": "RGB",
    "RGBA": "RGB",
}  # stored -> decoded colour mode
MAX_PIXELS = 2**24  # 4096 x 4096
MOST_SCANS = 100  # of a JPEG: encoders write about 10, and each costs a pass over all pixels

SOS, EOI, TEM = 0xDA, 0xD9, 0x01
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither a stuffed 255 nor a restart marker


class BrokenImage(DataError):
    """An image that cannot be decoded, or has too many pixels or scans."""


def decode(content: bytes, file: Path, max_pixels: int = MAX_PIXELS) -> "Picture":
    """Decodes a PNG, JPEG or WebP file to a gray or RGB image; of an animation, its first frame.

    The EXIF orientation is applied. An alpha channel or transparent colour is dropped if all pixels are opaque.

    Args:
        content: content of the file.
        file: path of the file, for messages.
        max_pixels: largest number of pixels, checked in the header before decoding.
    Returns: a Pillow image of mode L or RGB.
    Raises: BrokenImage if it is damaged, too large or has more than ``MOST_SCANS`` scans; DataError if it has
        transparent pixels, 16 bits a channel, or is neither gray nor RGB.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes, which max_pixels limits, and about metadata
            opened = Image.open(io.BytesIO(content), formats=FORMATS)
            _check_header(opened, content, file, max_pixels)
            image = ImageOps.exif_transpose(opened)
            opaque = not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema()[0] == 255
            picture = image.convert(MODES[image.mode]) if opaque and image.mode in MODES else None
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenImage(f"{file} has more pixels than Pillow opens: scale it down or remove it") from error
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        if reason := obstacle(error):
            raise DataError(f"{file} cannot be read: {reason}") from error
        raise BrokenImage(f"{file} is not a complete PNG, JPEG or WebP image: replace or remove it") from error
    if not opaque:
        raise DataError(f"{file} has transparent pixels: flatten it to gray or RGB")
    if picture is None:
        raise DataError(f"{file} has the colour mode {image.mode}: convert it to gray or RGB of 8 bits")
    return picture


def pixels(picture: "Picture") -> np.ndarray:
    """The pixels of an image of mode L or RGB. Shapes: returns (C, H, W) uint8, C = 1 or 3."""
    array = np.asarray(picture)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def square(picture: "Picture", size: int) -> "Picture":
    """Crops the largest central square and resizes it to ``size`` x ``size`` pixels with Pillow's Lanczos filter.

    An image of that size is returned unchanged.

    Reference: Karras et al., 2022, dataset_tool.py, --transform=center-crop, which prepares the data for the reference
        statistics of EDM. arXiv:2206.00364
    """
    from PIL import Image

    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)


def count_scans(content: bytes) -> int:
    """The number of scans of a JPEG, up to ``MOST_SCANS`` + 1, without decoding.

    Segments are skipped by their length, so scans of a thumbnail in the metadata do not count.

    Reference: ITU-T Recommendation T.81, 1992, B.1.1 and B.2.
    """
    scans, position = 0, 2
    while scans <= MOST_SCANS and (marker := MARKER.search(content, position)):
        position, code = marker.end(), content[marker.end() - 1]
        if code == EOI:
            break
        if code != TEM:
            position += int.from_bytes(content[position : position + 2], "big")
        scans += code == SOS
    return scans


def _check_header(image: "ImageFile", content: bytes, file: Path, max_pixels: int) -> None:
    """Checks an opened image before decoding. Raises: as ``decode``."""
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise BrokenImage(f"{file} has {size}: scale it down or remove it, or raise data.max_pixels from {max_pixels}")
    if image.format not in ("PNG", "WEBP") and count_scans(content) > MOST_SCANS:
        raise BrokenImage(f"{file} has more than {MOST_SCANS} scans: save it again or remove it")
    if image.format == "PNG" and str(image.tile[0][3]).endswith("16B"):  # of RGB, Pillow would keep the upper 8 bits
        raise DataError(f"{file} has 16 bits a channel: convert it to gray or RGB of 8 bits")
