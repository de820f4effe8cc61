"""Samples of a trained run, each with the noise that it was generated from."""

from pathlib import Path

import numpy as np
import torch

from score_sde.data.archives import unpack_arrays
from score_sde.data.codecs import Identity, Pixels
from score_sde.data.dataset import DataError, Dataset, check_split, hold_out
from score_sde.storage.reading import obstacle

KEYS = ("latents", "x0", "levels")
REAL = (np.float16, np.float32, np.float64)
REMEDY = "write it with --mode sample --sampler heun --config.sample.keep_latents=true"


def read_pairs(split: str, path: str = "") -> Dataset:
    """Pairs of noise and the end point of a deterministic sampler: the training data of reflow.

    Every tenth pair is for testing. Examples are real values between the levels, so the codec encodes them to the
    original end points, clamped to its range; do not dequantize them.

    Args:
        path: a samples.npz that the mode ``sample`` wrote with ``sample.keep_latents``.
    Shapes: examples and eps as those of the run, float32.
    Raises: ValueError if path is empty; DataError if the file is missing, damaged or contains no pairs.
    Reference: Liu, Gong, Liu, "Flow Straight and Fast", 2022, algorithm 1. arXiv:2209.03003
    """
    check_split(split)
    if not path:
        raise ValueError(f"data.path is empty: give a samples.npz with pairs; {REMEDY}")
    if not Path(path).exists():
        raise DataError(f"{path} does not exist: {REMEDY}")
    try:
        _, arrays = unpack_arrays(Path(path), KEYS.__contains__)
        latents, x0, stored = (arrays[key] for key in KEYS)
        levels = int(stored)
    except DataError:
        raise
    except Exception as error:  # numpy raises errors of many kinds on damaged files
        if reason := obstacle(error):
            raise DataError(f"{path} cannot be read: {reason}") from error
        raise DataError(f"{path} is damaged or does not contain {', '.join(KEYS)}: {REMEDY}") from error
    if latents.shape != x0.shape or x0.size < 2 or len(x0) < 2:
        raise DataError(f"{path} contains latents {latents.shape} for x0 {x0.shape}: {REMEDY}, for 2 or more samples")
    real = latents.dtype in REAL and x0.dtype in REAL and np.isfinite(x0).all() and np.isfinite(latents).all()
    if not real or levels not in (0, *range(2, 257)):
        raise DataError(f"{path} contains {levels} levels, or latents or x0 that are not real numbers: {REMEDY}")
    codec = Pixels(levels) if levels else Identity(0)
    values = codec.values(torch.from_numpy(x0).double())
    if levels:
        values = values.clamp(-0.5, levels - 0.5)
    rows = hold_out(np.arange(len(x0)), every=10)[split]
    return Dataset(
        values.float().numpy(), rows, levels=levels, eps=latents.astype(np.float32), validation="every 10th pair"
    )
