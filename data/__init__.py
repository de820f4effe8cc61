"""What x is: datasets, the order they are read in, and the codecs between data and diffusion."""

from functools import partial

from data.codecs import Identity, Pixels
from data.dataset import DataError, Dataset
from data.digits import read_digits
from data.files import ImageFiles
from data.images import read_images
from data.loader import batch_at, flips, indices, order, reader
from data.pairs import read_pairs
from data.pictures import scatter_png, table, write_gif, write_png
from data.points import checkerboard, draw_points, eight_gaussians, moons, swiss_roll
from data.statistics import Statistics, examples, measure

DATASETS = {
    "digits": read_digits,
    "images": read_images,
    "pairs": read_pairs,
    "moons": partial(draw_points, moons),
    "swiss_roll": partial(draw_points, swiss_roll),
    "checkerboard": partial(draw_points, checkerboard),
    "eight_gaussians": partial(draw_points, eight_gaussians),
}

CODECS = {
    "pixels": Pixels,
    "identity": Identity,
}

__all__ = [
    "CODECS",
    "DATASETS",
    "DataError",
    "Dataset",
    "Identity",
    "ImageFiles",
    "Pixels",
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
    "reader",
    "scatter_png",
    "table",
    "write_gif",
    "write_png",
]
