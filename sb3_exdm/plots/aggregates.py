"""Aggregates over many runs: one panel per aggregate, one row per method."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sb3_exdm.plots.style import COLORS, check_picture_path, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR = 0.62  # height of a bar, where the rows are 1 apart
_LABEL_WIDTH = 32  # characters


def plot_aggregates(
    methods: Sequence[str], aggregates: Mapping[str, np.ndarray], path: str | Path, *, xlabel: str | None = None
) -> Path:
    """
    Plot aggregates with their intervals, as rliable does: a bar for the interval, a line for the aggregate.

    :param methods: names of the rows, from top to bottom
    :param aggregates: value, lower and upper end for each method, (n_methods, 3), by the title of the panel; the ends are NaN
        without an interval
    :param path: image file; the ending sets the format
    :param xlabel: name of the aggregated score
    :return: ``path``
    :raises ValueError: if there is nothing to plot, an array has another shape, a value is not finite, or ``path`` is not an
        image file
    """
    path = check_picture_path(path)
    if not methods or not aggregates:
        raise ValueError("There is nothing to plot: give at least one method and one aggregate.")
    for title, table in aggregates.items():
        if np.shape(table) != (len(methods), 3):
            raise ValueError(f"{title!r} must have shape ({len(methods)}, 3), got {np.shape(table)}.")
        if not np.isfinite(np.asarray(table)[:, 0]).all():
            raise ValueError(f"{title!r} must be finite, got NaN or infinity.")
    labels = [_wrap(method) for method in methods]
    n_lines = max(label.count("\n") + 1 for label in labels)
    row_height = max(0.38, 0.18 * n_lines + 0.08)
    # A letter is about 0.075 inches wide.
    label_width = 0.075 * max(len(line) for label in labels for line in label.splitlines())
    figure = new_figure(2.2 * len(aggregates) + label_width + 0.3, row_height * len(methods) + 1.0)
    grid = figure.subplots(1, len(aggregates), squeeze=False, sharey=True)
    for axes, (title, table) in zip(grid.flat, aggregates.items(), strict=True):
        _draw_panel(axes, np.asarray(table, dtype=np.float64), title)
    grid[0, 0].set_yticks(range(len(methods)), labels, fontsize=9)
    grid[0, 0].set_ylim(len(methods) - 0.4, -0.6)  # first row on top
    figure.set_layout_engine("constrained", wspace=0.06)  # tick labels of neighboring panels would touch
    if xlabel is not None:
        figure.supxlabel(xlabel, fontsize=10)
    return save_figure(figure, path)


def _wrap(method: str) -> str:
    """Break a name into lines, after commas."""
    words = method.replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")
    return textwrap.fill(words, _LABEL_WIDTH, break_on_hyphens=False, break_long_words=False)


def _draw_panel(axes: Axes, table: np.ndarray, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for row, (value, low, high) in enumerate(table):
        color = COLORS[row % len(COLORS)]
        has_interval = np.isfinite(low) and np.isfinite(high)
        if has_interval:
            axes.barh(row, high - low, left=low, height=_BAR, color=color, alpha=0.55, linewidth=0)
        ends = (row - _BAR / 2, row + _BAR / 2)
        axes.plot((value, value), ends, color="black" if has_interval else color, linewidth=2.0, solid_capstyle="butt")
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.use_sticky_edges = False  # margins on both sides of the bars
    axes.margins(x=0.08)
