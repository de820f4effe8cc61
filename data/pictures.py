"""Pictures to look at: a grid of images, or a scatter plot of points."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WIDTH = 640  # pixels; small images are magnified until a grid is about this wide
GAP = 2  # pixels between images
GRAY = 128


def write_png(path: str | Path, images: Tensor | np.ndarray, levels: int = 256, columns: int | None = None) -> None:
    """Write images as one grid, row by row, each pixel magnified by a whole number.

    Args:
        levels: values run from 0, shown black, to levels - 1, shown white.
        columns: images in a row; as many as make the grid square if not given.
    Shapes: images (N, C, H, W), uint8, C = 1 (gray) or 3 (RGB).
    Raises: ValueError if images have another shape.
    """
    from PIL import Image

    images = torch.as_tensor(images).cpu()
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images of shape {tuple(images.shape)}: give (N, C, H, W) with C = 1 or 3 and N > 0")
    n, channels, height, width = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    zoom = max(1, WIDTH // (columns * width))
    shown = (images.double() * 255 / (levels - 1)).round().to(torch.uint8)
    shown = shown.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)

    high, wide = height * zoom + GAP, width * zoom + GAP
    grid = torch.full((channels, math.ceil(n / columns) * high + GAP, columns * wide + GAP), GRAY, dtype=torch.uint8)
    for i, image in enumerate(shown):
        top, left = i // columns * high + GAP, i % columns * wide + GAP
        grid[:, top : top + height * zoom, left : left + width * zoom] = image
    picture = Image.fromarray(grid[0].numpy() if channels == 1 else grid.permute(1, 2, 0).contiguous().numpy())
    with _replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def scatter_png(path: str | Path, points: Tensor | np.ndarray, title: str = "") -> None:
    """Write points in the plane as a scatter plot with equal axes.

    Shapes: points (N, 2).
    Raises: ValueError if points have another shape.
    """
    from matplotlib.figure import Figure

    points = torch.as_tensor(points).cpu()
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points of shape {tuple(points.shape)}: give (N, 2)")
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(title=title, aspect="equal")
    axes.scatter(*points.T.numpy(), s=2, alpha=0.5, linewidths=0)
    with _replacing(path) as temporary:
        figure.savefig(temporary, format="png")


@contextmanager
def _replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside path, renamed to it when all is written: no reader finds half a file."""
    temporary = Path(f"{path}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
