"""The handwritten digits of scikit-learn: 1,797 gray images of 8 x 8 pixels with 17 levels."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from score_sde.data.dataset import DataError, Dataset, check_split, hold_out
from score_sde.storage.reading import TEXT, open_file


def read_digits(split: str) -> Dataset:
    """Handwritten digits: 1,437 training and 360 test images with nearly equal class fractions.

    Every fifth image is for testing, in the order of the images sorted by class. The file is read from the folder of
    scikit-learn without importing the package, which takes more than a second.

    Shapes: examples (1, 8, 8), uint8 from 0 to 16, with labels 0 to 9.
    Raises: DataError if scikit-learn or its file is missing.
    Reference: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.
    """
    check_split(split)
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
    file = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if not file.is_file():
        raise DataError(f"{file} is missing: reinstall scikit-learn")
    with open_file(file, TEXT) as packed, gzip.open(packed) as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    x, label = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)
    splits = hold_out(np.argsort(label, kind="stable"), every=5)
    return Dataset(
        x, splits[split], levels=17, label=label, num_classes=10, validation="every 5th image, sorted by class"
    )
