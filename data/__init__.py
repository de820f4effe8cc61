"""Datasets, the order of training examples, and the codecs between data and x."""

if __name__ != "score_sde.data":  # a second copy would have its own tables
    raise ImportError("import score_sde.data: data is a part of the package score_sde")

from collections.abc import Callable
from functools import partial

from score_sde.data.codecs import Codec, Identity, Pixels, Standardize
from score_sde.data.dataset import DataError, Dataset
from score_sde.data.digits import read_digits
from score_sde.data.files import ImageFiles
from score_sde.data.images import read_images
from score_sde.data.loader import batch_at, flips, indices, order, reader
from score_sde.data.pairs import read_pairs
from score_sde.data.pictures import table, write_gif, write_png
from score_sde.data.points import checkerboard, draw_points, eight_gaussians, moons, swiss_roll
from score_sde.data.real import correlated_table, read_real, smooth_fields, waves
from score_sde.data.statistics import Statistics, examples, measure

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": read_digits,
    "images": read_images,
    "pairs": read_pairs,
    "table": partial(read_real, 2, correlated_table),
    "signals": partial(read_real, 3, waves),
    "fields": partial(read_real, 4, smooth_fields),
    "moons": partial(draw_points, moons),
    "swiss_roll": partial(draw_points, swiss_roll),
    "checkerboard": partial(draw_points, checkerboard),
    "eight_gaussians": partial(draw_points, eight_gaussians),
}

CODECS = {
    "pixels": Pixels,
    "identity": Identity,
    "standardize": Standardize,
}

__all__ = [
    "CODECS",
    "DATASETS",
    "Codec",
    "DataError",
    "Dataset",
    "Identity",
    "ImageFiles",
    "Pixels",
    "Standardize",
    "Statistics",
    "batch_at",
    "draw_points",
    "examples",
    "flips",
    "indices",
    "measure",
    "order",
    "read_digits",
    "read_images",
    "read_pairs",
    "read_real",
    "reader",
    "table",
    "write_gif",
    "write_png",
]
