"""Pictures of examples, by the kind of the data: images, signals, and points or rows of a table."""

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
"""Images in a grid.png and in the previews of training."""

IN_PLOT = 2_000
"""Points in a scatter plot, and so in the previews of training."""

SIGNALS, MOST_ROWS = 8, 4
"""Signals in a row of a grid of lines, and plots below each other."""

BEYOND = 0.01
"""Fraction of the values of real-valued images that are darker than black, and as many brighter than white."""


MOST_VALUES = 2**20
"""Values of a channel that this fraction is measured on."""


def unit(facts: DataFacts) -> str:
    """What the examples are called, in the plural."""
    return "points" if facts.shape == (2,) else {2: "signals", 3: "images"}.get(len(facts.shape), "examples")


def is_image(facts: DataFacts) -> bool:
    """Whether an example is a picture, (C, H, W) with levels and one or three channels."""
    return facts.levels > 0 and len(facts.shape) == 3 and facts.shape[0] in (1, 3)


def num_shown(facts: DataFacts) -> int:
    """How many examples ``picture`` shows."""
    return {1: IN_PLOT, 2: SIGNALS * max(1, MOST_ROWS // facts.shape[0])}.get(len(facts.shape), IN_GRID)


def picture(path: Path, examples: Tensor, facts: DataFacts, columns: int = 0) -> None:
    """Write the first ``num_shown`` examples, decoded: a grid of images or lines, or a scatter plot.

    Args:
        columns: images in a row; below 2, as many as make the grid square.
    Shapes: examples (N, *).
    """
    examples = examples[: num_shown(facts)].cpu()
    if len(facts.shape) == 3:
        write_png(path, _shades(examples, facts), _levels(facts), columns if columns > 1 else None)
        return
    if len(facts.shape) == 2:
        rows = {f"{k} to {k + SIGNALS - 1}": _padded(part) for k, part in _parts(examples)}
        figure = lines(rows, [""] * SIGNALS)
    else:
        figure = scatter({unit(facts): examples})
    replace(path, lambda file: figure.savefig(file, format="png"))


def compared(
    rows: Mapping[str, Sequence[Tensor | None]], columns: Sequence[Sequence[str]], facts: DataFacts
) -> Picture:
    """Decoded examples under each other: a table of images or lines, or one scatter plot with a colour for each row.

    Args:
        rows: examples by label, one for each column; None leaves a place empty.
        columns: labels, in groups that stand apart in tables of images.
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
    """Write a picture of Pillow as PNG."""
    replace(path, lambda file: shown.save(file, format="PNG"))


def _levels(facts: DataFacts) -> int:
    """Levels of what ``_shades`` returns."""
    return facts.levels if is_image(facts) else 256


def _shades(images: Tensor, facts: DataFacts) -> Tensor:
    """Images (N, C, H, W) as levels: as they are, or for real values and other channels than 1 and 3 as shades."""
    if is_image(facts):
        return images
    values = images.double().transpose(0, 1).flatten(1)
    if len(values) == 3:  # colours share a range
        values = values.reshape(1, -1).expand(3, -1)
    values = values[:, :: max(1, values.shape[1] // MOST_VALUES)]
    return shades(images, *torch.quantile(values, torch.tensor([BEYOND, 1 - BEYOND]).double(), 1))


def _parts(examples: Tensor) -> list[tuple[int, Tensor]]:
    return [(k, examples[k : k + SIGNALS]) for k in range(0, len(examples), SIGNALS)]


def _padded(part: Tensor) -> list[Tensor | None]:
    return [*part, *[None] * (SIGNALS - len(part))]
