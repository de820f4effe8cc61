"""Pictures of examples: images, signals, and points or rows of a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from score_sde.data import table, write_png
from score_sde.data.plots import as_picture, lines, scatter, shades
from score_sde.engine.facts import DataFacts
from score_sde.storage.writing import replace

IN_GRID = 64
"""Images in a grid.png and in a preview during training."""

IN_PLOT = 2_000
"""Points in a scatter plot."""

SIGNALS, MOST_ROWS = 8, 4
"""Signals in a row, and rows, of a grid of line plots."""

BEYOND = 0.01
"""Fraction of the values of real-valued images that are clipped to black, and the fraction clipped to white."""


MOST_VALUES = 2**20
"""Most values of a channel from which the quantiles are computed."""


def unit(facts: DataFacts) -> str:
    """Plural noun for the examples."""
    return "points" if facts.shape == (2,) else {2: "signals", 3: "images"}.get(len(facts.shape), "examples")


def is_image(facts: DataFacts) -> bool:
    """Whether examples are pictures: (C, H, W) with levels and one or three channels."""
    return facts.levels > 0 and len(facts.shape) == 3 and facts.shape[0] in (1, 3)


def num_shown(facts: DataFacts) -> int:
    """Number of examples that ``picture`` shows."""
    return {1: IN_PLOT, 2: SIGNALS * max(1, MOST_ROWS // facts.shape[0])}.get(len(facts.shape), IN_GRID)


def picture(path: Path, examples: Tensor, facts: DataFacts, columns: int = 0) -> None:
    """Writes a picture of the first ``num_shown`` decoded examples: a grid of images or lines, or a scatter plot.

    Args:
        columns: images in a row; below 2 for a square grid.
    Shapes: examples (N, *).
    """
    examples = examples[: num_shown(facts)].cpu()
    if len(facts.shape) == 3:
        write_png(path, _shades(examples, facts), _levels(facts), columns if columns > 1 else None)
        return
    if len(facts.shape) == 2:
        rows = {f"{k} to {k + SIGNALS - 1}": _padded(part) for k, part in _in_rows(examples)}
        figure = lines(rows, [""] * SIGNALS)
    else:
        figure = scatter({unit(facts): examples})
    replace(path, lambda file: figure.savefig(file, format="png"))


def compared(
    rows: Mapping[str, Sequence[Tensor | None]], columns: Sequence[Sequence[str]], facts: DataFacts
) -> Picture:
    """Picture that compares rows of decoded examples: a table of images or lines, or a scatter plot with coloured rows.

    Args:
        rows: label -> examples, one for each column; None for an empty cell.
        columns: labels, in groups; a table of images has gaps between groups.
    """
    if len(facts.shape) == 1:
        return as_picture(scatter({name: torch.stack([x for x in row if x is not None]) for name, row in rows.items()}))
    if len(facts.shape) == 2:
        return as_picture(lines(rows, [label for group in columns for label in group]))
    there = [x for row in rows.values() for x in row if x is not None]
    shown = iter(_shades(torch.stack(there).cpu(), facts))
    return table(
        {label: [None if x is None else next(shown) for x in row] for label, row in rows.items()},
        columns,
        _levels(facts),
    )


def save(path: Path, shown: Picture) -> None:
    """Writes a picture of Pillow as PNG."""
    replace(path, lambda file: shown.save(file, format="PNG"))


def _levels(facts: DataFacts) -> int:
    """Number of levels of the images from ``_shades``."""
    return facts.levels if is_image(facts) else 256


def _shades(images: Tensor, facts: DataFacts) -> Tensor:
    """Images (N, C, H, W) as levels; real values, or channels other than 1 and 3, are mapped to 256 shades."""
    if is_image(facts):
        return images
    values = images.double().transpose(0, 1).flatten(1)
    if len(values) == 3:  # colours share a range
        values = values.reshape(1, -1).expand(3, -1)
    values = values[:, :: max(1, values.shape[1] // MOST_VALUES)]
    return shades(images, *torch.quantile(values, torch.tensor([BEYOND, 1 - BEYOND]).double(), 1))


def _in_rows(examples: Tensor) -> list[tuple[int, Tensor]]:
    return [(k, examples[k : k + SIGNALS]) for k in range(0, len(examples), SIGNALS)]


def _padded(part: Tensor) -> list[Tensor | None]:
    return [*part, *[None] * (SIGNALS - len(part))]
