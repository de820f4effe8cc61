"""Zip files of strangers: read in memory, never unpacked to disk, and refused before they unpack to too much."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from score_sde.data.dataset import DataError
from score_sde.storage.reading import open_file

MOST_UNPACKED = 8 * 2**30  # bytes that the arrays of an .npz may take together
MOST_STORED = 2**28  # bytes that an image or a listing may take, before it is decoded
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # other methods unpack a whole block before its size is known


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip file, whose names mean nothing outside it.

    Raises: DataError if it is none.
    """
    try:
        return zipfile.ZipFile(open_file(path, math.inf))
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise DataError(f"{path} is no readable zip file{reason}: copy or download it again") from error


def unpack(archive: zipfile.ZipFile, name: str, most: int = MOST_STORED) -> bytes:
    """The content of an entry.

    Raises: DataError before anything is unpacked, if that would be more than ``most`` bytes or takes another method
        than deflate. What zipfile raises for entries that are not there, damaged or encrypted.
    """
    with _entry(archive, name, most) as file:
        return file.read()


def unpack_arrays(path: Path, wanted: Callable[[str], bool]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all arrays of an .npz, and those arrays whose name is wanted; Python objects are never loaded.

    An array is read once its header, the sizes in the zip and ``MOST_UNPACKED`` agree, so that nothing is allocated on
    the word of a header alone.

    Raises: DataError for arrays that are too large. ValueError, and what zipfile raises, for damaged ones.
    """
    with open_file(path, math.inf) as file, zipfile.ZipFile(file) as archive:
        entries = {name.removesuffix(".npy"): name for name in archive.namelist()}
        found, left = {}, MOST_UNPACKED
        for key in filter(wanted, entries):
            with _entry(archive, entries[key], left) as entry:
                shape, _, dtype = read_header(entry)
                size = archive.getinfo(entries[key]).file_size
                if entry.tell() + math.prod(shape) * dtype.itemsize != size:
                    raise ValueError(f"{key} says that its shape is {shape}, and has {size} bytes")
            with archive.open(entries[key]) as entry:
                found[key] = npy.read_array(entry, allow_pickle=False)
            left -= size
    return list(entries), found


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis is the fastest, and type of the .npy in a file, which is left where they begin.

    Raises: ValueError if there is none, a size is negative, or it holds Python objects.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is for names of fields, which images have not")
    shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    if dtype.hasobject or any(size < 0 for size in shape):
        raise ValueError(f"an array of {dtype} of shape {shape} cannot be read")
    return shape, fortran, dtype


def _entry(archive: zipfile.ZipFile, name: str, most: int) -> IO[bytes]:
    info = archive.getinfo(name)
    where = f"{archive.filename}/{name}"
    if info.file_size > most:
        raise DataError(
            f"{where} unpacks to {info.file_size:,} bytes, of {most:,} allowed: save it as .npy, or smaller"
        )
    if info.compress_type not in METHODS:
        raise DataError(f"{where} is packed by another method than deflate: pack it again")
    return archive.open(info)
