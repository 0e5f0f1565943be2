"""Maps over two coordinates of the states: visits, and the intrinsic reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_exdm.envs import MazeLayout
from sb3_exdm.plots.style import COLORS, as_positions, check_picture_path, new_figure, save_figure, short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WALL = "#2E3440"
_OUTSIDE = "#DDE1E8"
_N_BINS = 80  # along each axis, without a maze
_VISIT_TICKS = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
_MAX_GRID_POINTS = 20_000


def plot_visits(
    positions: np.ndarray,
    path: str | Path,
    *,
    layout: MazeLayout | None = None,
    goal: Sequence[float] | None = None,
    labels: tuple[str, str] = ("x", "y"),
    title: str | None = None,
) -> Path:
    """
    Plot the number of visits of each bin, on a logarithmic scale. Bins without visits are white.

    In a maze the bins are those of the state coverage.

    :param positions: two coordinates of the visited states, (n, 2)
    :param path: image file; the ending sets the format
    :param layout: maze, whose walls and start are drawn
    :param goal: position ``(x, y)`` of the goal; None for a run without a task
    :param labels: names of the coordinates
    :param title: title of the figure; the number of visited states by default
    :return: ``path``
    :raises ValueError: if the positions are empty, have another shape or are not finite, or ``path`` is not an image file
    """
    path, positions = check_picture_path(path), as_positions(positions)
    figure, axes = _map_figure(layout)
    from matplotlib.colors import LogNorm

    counts, x_edges, y_edges = _histogram(positions, layout)
    visited = counts[counts > 0]
    # Bins at walls have extreme counts, because agents press against them; without a limit they would use up the color scale.
    most = max(float(np.percentile(visited, 99)), 10.0) if len(visited) else 10.0
    mesh = axes.pcolormesh(
        x_edges,
        y_edges,
        np.ma.masked_equal(counts, 0).T,  # (n_y, n_x)
        norm=LogNorm(1, most),
        cmap="viridis",
        rasterized=True,
    )
    _finish_map(axes, layout, goal, labels, title or f"{len(positions):,} visited states")
    limits = "max" if counts.max() > most else "neither"
    bar = _draw_color_bar(figure, axes, mesh, "visits per bin (white: none)", limits)
    ticks = [tick for tick in _VISIT_TICKS if tick <= most / 1.15] + [round(most)]
    bar.set_ticks(ticks, labels=[short_number(tick) for tick in ticks[:-1]] + [_last_label(most, limits)], minor=False)
    bar.minorticks_off()
    return save_figure(figure, path)


def plot_reward(
    reward_fn: Callable[[np.ndarray], np.ndarray],
    path: str | Path,
    *,
    layout: MazeLayout | None = None,
    positions: np.ndarray | None = None,
    goal: Sequence[float] | None = None,
    labels: tuple[str, str] = ("x", "y"),
    title: str | None = None,
) -> Path:
    """
    Plot the intrinsic reward, in all of a maze or at given positions.

    :param reward_fn: function from positions (n, 2) to rewards (n,)
    :param path: image file; the ending sets the format
    :param layout: maze, whose walls and start are drawn; the reward is computed on a fine grid of its free space
    :param positions: positions at which the reward is computed instead, (n, 2); required without a layout
    :param goal: position ``(x, y)`` of the goal; None for a run without a task
    :param labels: names of the coordinates
    :param title: title of the figure
    :return: ``path``
    :raises ValueError: if there is neither a layout nor positions, the rewards have another shape or are not finite, or
        ``path`` is not an image file
    """
    path = check_picture_path(path)
    figure, axes = _map_figure(layout)
    mesh: Any
    if positions is not None:
        positions = as_positions(positions)
        values, scale = _evaluate(reward_fn, positions)
        order = np.argsort(values)  # high rewards on top
        mesh = axes.scatter(positions[order, 0], positions[order, 1], c=values[order], s=8, linewidths=0, **scale)
    elif layout is not None:
        positions, inside, x_edges, y_edges = _grid(layout)
        values, scale = _evaluate(reward_fn, positions)
        image = np.full(inside.shape, np.nan)
        image[inside] = values
        mesh = axes.pcolormesh(x_edges, y_edges, np.ma.masked_invalid(image).T, **scale)
    else:
        raise ValueError("plot_reward needs a layout, or positions at which to compute the reward.")
    _finish_map(axes, layout, goal, labels, title)
    _draw_color_bar(figure, axes, mesh, "intrinsic reward (high: new to the agent)", "both")
    return save_figure(figure, path)


def _evaluate(reward_fn: Callable[[np.ndarray], np.ndarray], positions: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Compute rewards (n,) and their color scale."""
    values = np.asarray(reward_fn(positions), dtype=np.float64)
    if values.shape != (len(positions),):
        raise ValueError(f"reward_fn must return one number for each of {len(positions)} positions, got shape {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("reward_fn must return finite numbers, got NaN or infinity.")
    low, high = np.percentile(values, [1, 99])  # a few extreme rewards, often in corners, would use up the color scale
    return values, {"vmin": low, "vmax": high if high > low else low + 1.0, "cmap": "plasma", "rasterized": True}


def _histogram(positions: np.ndarray, layout: MazeLayout | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count positions in bins, (n_x, n_y); return the edges of the bins too."""
    if layout is None:
        low, high = positions.min(axis=0), positions.max(axis=0)
        margin = np.where(high > low, 0.0, 0.5)
        x_edges, y_edges = np.linspace(low - margin, high + margin, _N_BINS + 1).T
    else:
        x_edges, y_edges = _edges(layout, round(1 / layout.coverage_bin))
    counts, *_ = np.histogram2d(positions[:, 0], positions[:, 1], bins=[x_edges, y_edges])
    return counts, x_edges, y_edges


def _grid(layout: MazeLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make a grid of squares: centers (n, 2) of those in free space, their mask (n_x, n_y), and the edges of all squares."""
    # An integer number of squares per cell keeps the centers off the walls.
    x_edges, y_edges = _edges(layout, max(4, min(20, math.isqrt(_MAX_GRID_POINTS // len(layout.cells)))))
    centers = np.meshgrid((x_edges[1:] + x_edges[:-1]) / 2, (y_edges[1:] + y_edges[:-1]) / 2, indexing="ij")
    positions = np.stack(centers, axis=-1)  # (n_x, n_y, 2)
    inside = layout.contains(positions)  # (n_x, n_y)
    return positions[inside], inside, x_edges, y_edges


def _edges(layout: MazeLayout, per_cell: int) -> tuple[np.ndarray, np.ndarray]:
    x_min, y_min, x_max, y_max = layout.bounding_box
    n_x, n_y = layout.shape
    return np.linspace(x_min, x_max, n_x * per_cell + 1), np.linspace(y_min, y_max, n_y * per_cell + 1)


def _map_figure(layout: MazeLayout | None) -> tuple[Figure, Axes]:
    width, height = 4.6, 4.0
    if layout is not None:
        n_x, n_y = layout.shape
        unit = 4.4 / math.sqrt(n_x * n_y)  # all mazes are about equally large
        width, height = n_x * unit, n_y * unit
    figure = new_figure(width + 1.4, height + 0.8)
    return figure, figure.add_subplot()


def _finish_map(
    axes: Axes, layout: MazeLayout | None, goal: Sequence[float] | None, labels: tuple[str, str], title: str | None
) -> None:
    """Add walls, start, goal, labels and title."""
    axes.set_title(title or "", fontsize=11)
    marks: dict[str, Any] = {"zorder": 4, "markeredgecolor": "white", "markeredgewidth": 1.2, "linestyle": "none"}
    if layout is None:
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.spines[["top", "right"]].set_visible(False)
    else:
        _draw_maze(axes, layout)
        axes.plot(*np.array(layout.start_cells).T, marker="o", markersize=9, color=COLORS[1], label="start", **marks)
    if goal is not None:
        axes.plot(*goal, marker="*", markersize=15, color=COLORS[2], label="goal", **marks)
    if layout is not None:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False, handletextpad=0.2)
    elif goal is not None:
        axes.legend(frameon=False, handletextpad=0.2)


def _draw_maze(axes: Axes, layout: MazeLayout) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    # Squares that are no cells are shaded, so white is free space.
    for i, j in np.argwhere(~layout.is_cell) + layout.origin:
        axes.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=_OUTSIDE, edgecolor=_OUTSIDE, linewidth=0.5, zorder=0))
    walls = list(layout.wall_array.reshape(-1, 2, 2))  # each two ends (2, 2)
    # A light edge tells walls from dark colors of the map.
    axes.add_collection(LineCollection(walls, colors="white", linewidths=3.6, capstyle="round", zorder=2.9))
    axes.add_collection(LineCollection(walls, colors=_WALL, linewidths=2.2, capstyle="round", zorder=3))
    x_min, y_min, x_max, y_max = layout.bounding_box
    axes.set(xlim=(x_min - 0.08, x_max + 0.08), ylim=(y_min - 0.08, y_max + 0.08), aspect="equal")
    axes.axis("off")


def _last_label(most: float, limits: str) -> str:
    return f"{short_number(round(most))}{' or more' if limits == 'max' else ''}"


def _draw_color_bar(figure: Figure, axes: Axes, mesh: Any, label: str, extend: Any) -> Any:
    # Inset axes are as tall as the maze, for all shapes of mazes.
    bar_axes = axes.inset_axes((1.03, 0.0, 0.035, 1.0))
    bar = figure.colorbar(mesh, cax=bar_axes, label=label, extend=extend, format="{x:g}")
    bar.outline.set_visible(False)
    return bar
