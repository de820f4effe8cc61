"""Untrusted zip files: read in memory, never unpacked to disk, and refused before they unpack to too many bytes."""

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
    """Opens a zip file; its names are never used as paths.

    Raises: DataError for a file that is not a readable zip.
    """
    try:
        return zipfile.ZipFile(open_file(path, math.inf))
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise DataError(f"{path} is not a readable zip file{reason}: copy or download it again") from error


def unpack(archive: zipfile.ZipFile, name: str, most: int = MOST_STORED) -> bytes:
    """The content of an entry.

    Raises: DataError before unpacking, for an entry of more than ``most`` bytes or a compression other than deflate;
        zipfile's errors for a missing, damaged or encrypted entry.
    """
    with _entry(archive, name, most) as file:
        return file.read()


def unpack_arrays(path: Path, wanted: Callable[[str], bool]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all arrays of an .npz, and the arrays with wanted names; Python objects are never loaded.

    Before an array is read, its header must agree with the sizes in the zip and with ``MOST_UNPACKED``, so memory is
    never allocated from a header alone.

    Raises: DataError for arrays that are too large; ValueError and zipfile's errors for damaged arrays.
    """
    with open_file(path, math.inf) as file, zipfile.ZipFile(file) as archive:
        entries = {name.removesuffix(".npy"): name for name in archive.namelist()}
        found, left = {}, MOST_UNPACKED
        for key in filter(wanted, entries):
            with _entry(archive, entries[key], left) as entry:
                shape, _, dtype = read_header(entry)
                size = archive.getinfo(entries[key]).file_size
                if entry.tell() + math.prod(shape) * dtype.itemsize != size:
                    raise ValueError(f"{key} has shape {shape} in its header, but {size} bytes")
            with archive.open(entries[key]) as entry:
                found[key] = npy.read_array(entry, allow_pickle=False)
            left -= size
    return list(entries), found


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of the .npy in a file; leaves the file at the start of its values.

    Raises: ValueError for a missing header, a negative size, or Python objects.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is for structured arrays, which are not supported")
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
        raise DataError(f"{where} uses a compression other than deflate: pack it again")
    return archive.open(info)
