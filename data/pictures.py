"""Pictures of images: grids, labelled tables and animations."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from score_sde.storage.writing import replace

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

WIDTH = 640  # pixels; small images are magnified until a grid is about this wide
CELL = 64  # pixels; small images are magnified until a cell of a table is about this wide
FONT = 15  # pixels
GAP = 2  # pixels between images
GRAY = 128


def write_png(path: str | Path, images: Tensor | np.ndarray, levels: int = 256, columns: int | None = None) -> None:
    """Writes images as a grid, row by row, with each pixel magnified by an integer factor.

    Args:
        levels: values run from 0, shown black, to levels - 1, shown white.
        columns: images per row; None makes the grid square.
    Shapes: images (N, C, H, W), uint8, C = 1 (gray) or 3 (RGB).
    Raises: ValueError if images have another shape.
    """
    images = torch.as_tensor(images).cpu()
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images of shape {tuple(images.shape)}: give (N, C, H, W) with C = 1 or 3 and N > 0")
    n, channels, height, width = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    zoom = max(1, WIDTH // (columns * width))
    shown = _magnify(images, levels, zoom)

    high, wide = height * zoom + GAP, width * zoom + GAP
    grid = torch.full((channels, math.ceil(n / columns) * high + GAP, columns * wide + GAP), GRAY, dtype=torch.uint8)
    for i, image in enumerate(shown):
        top, left = i // columns * high + GAP, i % columns * wide + GAP
        grid[:, top : top + height * zoom, left : left + width * zoom] = image
    replace(Path(path), lambda file: _as_picture(grid).save(file, format="PNG"))


def table(
    rows: Mapping[str, Sequence[Tensor | None]], columns: Sequence[Sequence[str]], levels: int = 256
) -> "Picture":
    """A table of images on white, with row labels to the left and column labels above.

    Args:
        rows: row label -> images, one per column; None leaves a cell empty.
        columns: column labels, in groups separated by space.
        levels: as in ``write_png``.
    Shapes: images (C, H, W), uint8, the same for all, C = 1 or 3.
    """
    from PIL import Image, ImageDraw, ImageFont

    _, height, width = next(image for row in rows.values() for image in row if image is not None).shape
    zoom, font = max(1, CELL // width), ImageFont.load_default(FONT)
    high, wide = height * zoom + 3 * GAP, width * zoom + 3 * GAP
    left, top = math.ceil(max(map(font.getlength, rows))) + 2 * FONT, 2 * FONT
    labels = [(group, label) for group, labels in enumerate(columns) for label in labels]
    lefts = [left + c * wide + group * FONT for c, (group, _) in enumerate(labels)]
    picture = Image.new("RGB", (lefts[-1] + wide + FONT, top + len(rows) * high + FONT), "white")
    draw = ImageDraw.Draw(picture)
    for left, (_, label) in zip(lefts, labels, strict=True):
        draw.text((left + width * zoom / 2, top / 2), label, "black", font, anchor="mm")
    for r, (label, row) in enumerate(rows.items()):
        draw.text((lefts[0] - FONT / 2, top + r * high + height * zoom / 2), label, "black", font, anchor="rm")
        for left, image in zip(lefts, row, strict=True):
            if image is not None:
                picture.paste(_as_picture(_magnify(image, levels, zoom)), (left, top + r * high))
    return picture


def write_gif(path: str | Path, pictures: Sequence["Picture"], milliseconds: int = 120) -> None:
    """Writes an endless animation that plays forwards and backwards, with ``milliseconds`` per picture."""
    first, *others = [*pictures, *pictures[-2:0:-1]]
    options = {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0}
    replace(Path(path), lambda file: first.save(file, format="GIF", **options))


def _magnify(images: Tensor, levels: int, zoom: int) -> Tensor:
    """Scales levels to 0 to 255 and repeats each pixel ``zoom`` times per axis; (*, H, W) uint8."""
    shown = (images.double() * 255 / (levels - 1)).round().to(torch.uint8)
    return shown.repeat_interleave(zoom, dim=-2).repeat_interleave(zoom, dim=-1)


def _as_picture(image: Tensor) -> "Picture":
    """Converts (C, H, W) uint8, C = 1 or 3, to a Pillow image."""
    from PIL import Image

    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy())
