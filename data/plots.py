"""Plots of data other than images: scatter plots of points and tables, line plots of signals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

MOST_COLUMNS = 6
"""Largest number of plotted columns."""

MOST_UNEQUAL = 3.0
"""Largest ratio of the ranges of two columns for which both axes have the same scale."""

BINS = 40


def scatter(named: Mapping[str, Tensor | np.ndarray], title: str = "") -> "Figure":
    """Scatter plots of all pairs of columns, with one colour per set of rows and histograms on the diagonal.

    Two columns give a single scatter plot and one column a single histogram; of more than six columns, the first six
    are plotted.

    Args:
        named: name -> set of rows; a single set has no legend.
    Shapes: rows (N, D), the same D for all.
    Raises: ValueError for rows of another shape.
    """
    from matplotlib.figure import Figure

    sets = {name: np.asarray(torch.as_tensor(rows).cpu(), np.float64) for name, rows in named.items()}
    for rows in sets.values():
        if rows.ndim != 2 or rows.shape[1] != next(iter(sets.values())).shape[1]:
            raise ValueError(f"rows of shape {rows.shape}: give (N, D), the same D for all")
    num = min(rows.shape[1], MOST_COLUMNS)
    num_axes = 1 if num < 3 else num
    size = 6 if num < 3 else 1 + 1.8 * num
    figure = Figure(figsize=(size, size), dpi=100, layout="constrained")
    figure.suptitle(title)
    all_axes = figure.subplots(num_axes, num_axes, squeeze=False)
    for row in range(num_axes):
        for column in range(num_axes):
            axes = all_axes[row, column]
            if num == 2:
                _points(axes, sets, 0, 1)
            elif row == column:
                _histogram(axes, sets, row)
            else:
                _points(axes, sets, column, row)
            axes.label_outer()
    if len(sets) > 1:
        all_axes[0, 0].legend(fontsize="small")
    return figure


def _points(axes: "Axes", sets: Mapping[str, np.ndarray], x: int, y: int) -> None:
    """A scatter plot of two columns."""
    for name, rows in sets.items():
        axes.scatter(rows[:, x], rows[:, y], s=2, alpha=0.5, linewidths=0, label=name)
    ranges = [np.ptp(np.concatenate([rows[:, c] for rows in sets.values()])) for c in (x, y)]
    equal = max(ranges) <= MOST_UNEQUAL * min(ranges) and next(iter(sets.values())).shape[1] == 2
    axes.set(xlabel=f"column {x}", ylabel=f"column {y}", aspect="equal" if equal else "auto")


def _histogram(axes: "Axes", sets: Mapping[str, np.ndarray], column: int) -> None:
    """A histogram of one column, as fractions of each set."""
    edges = np.histogram_bin_edges(np.concatenate([rows[:, column] for rows in sets.values()]), BINS).tolist()
    for name, rows in sets.items():
        weights = np.full(len(rows), 1 / len(rows))
        axes.hist(rows[:, column], edges, weights=weights, alpha=0.6, label=name)
    alone = next(iter(sets.values())).shape[1] == 1
    axes.set(xlabel=f"column {column}", ylabel="fraction of the rows" if alone else f"column {column}")
    if not alone:  # this axis differs from the row's other plots
        axes.set_yticks([])


def lines(rows: Mapping[str, Sequence[Tensor | None]], columns: Sequence[str]) -> "Figure":
    """Line plots of signals: one row of plots per label and channel, with one range per channel.

    Args:
        rows: label -> signals, one per column; None leaves a plot empty.
        columns: titles of the columns.
    Shapes: signals (C, L), the same for all.
    """
    from matplotlib.figure import Figure

    found = torch.stack([signal for row in rows.values() for signal in row if signal is not None]).double()
    channels, length = found.shape[1:]
    low, high = found.amin((0, 2)), found.amax((0, 2))
    margin = 0.05 * (high - low) + 1e-12 * (1 + high.abs())
    size = (1.2 + 1.2 * len(columns), 0.7 + 0.9 * channels * len(rows))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    all_axes = figure.subplots(channels * len(rows), len(columns), squeeze=False)
    for r, (label, row) in enumerate(rows.items()):
        for c, signal in enumerate(row):
            for channel in range(channels):
                axes = all_axes[r * channels + channel, c]
                axes.tick_params(labelsize=6)
                if signal is not None:
                    axes.plot(signal[channel].numpy(), linewidth=0.8, color=f"C{channel % 10}")
                limits = ((low - margin)[channel].item(), (high + margin)[channel].item())
                axes.set(xlim=(0, max(length - 1, 1)), ylim=limits)
                if c == 0:
                    axes.set_ylabel(f"{label}\nchannel {channel}" if channels > 1 else label, fontsize=7)
                if r == channel == 0:
                    axes.set_title(columns[c], fontsize=7)
                axes.label_outer()
    figure.supxlabel("position", fontsize=7)
    return figure


def as_picture(figure: "Figure") -> "Picture":
    """Renders a figure to a Pillow image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def shades(fields: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Converts real-valued images to gray or RGB images of 256 levels; other numbers of channels are stacked in H.

    Args:
        low, high: values shown as black and white, one per channel.
    Shapes: fields (N, C, H, W), low and high (C,); returns (N, 1 or 3, H', W) uint8.
    """
    low, high = (limit.double().reshape(-1, 1, 1) for limit in (low, high))
    shown = (255 * (fields.double() - low) / (high - low).clamp_min(1e-30)).round().clamp(0, 255).to(torch.uint8)
    return shown if shown.shape[1] in (1, 3) else shown.flatten(1, 2)[:, None]
