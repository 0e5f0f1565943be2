"""Pictures over two coordinates of the states: where an agent went, and what it holds to be novel."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_exdm.envs import MazeLayout
from sb3_exdm.plots.style import COLORS, as_positions, check_picture_path, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WALL = "#2E3440"
_OUTSIDE = "#DDE1E8"
_N_BINS = 80  # along each axis, where there is no maze
_MAX_GRID_POINTS = 20_000


def plot_visits(
    positions: np.ndarray,
    path: str | Path,
    *,
    layout: MazeLayout | None = None,
    labels: tuple[str, str] = ("x", "y"),
    title: str | None = None,
) -> Path:
    """
    How often every place was visited, on a logarithmic scale. Places that never were are white.

    In a maze the bins are those of the state coverage, so the white ones are just those that it misses.

    :param positions: two coordinates of the visited states, (n, 2)
    :param path: the picture; its ending says the format
    :param layout: the maze, whose walls, start and goal are drawn
    :param labels: names of the coordinates
    :param title: title of the picture
    :return: ``path``
    :raises ValueError: if the positions have another shape, are none, or are not finite, or ``path`` is no picture's
    """
    path, positions = check_picture_path(path), as_positions(positions)
    figure, axes = _map_figure(layout)
    from matplotlib.colors import LogNorm

    counts, x_edges, y_edges = _histogram(positions, layout)
    visited = counts[counts > 0]
    # Agents press against walls: the bins there would take all the colors.
    most = max(float(np.percentile(visited, 99)), 10.0) if len(visited) else 10.0
    mesh = axes.pcolormesh(
        x_edges,
        y_edges,
        np.ma.masked_equal(counts, 0).T,  # (n_y, n_x)
        norm=LogNorm(1, most),
        cmap="viridis",
        rasterized=True,
    )
    title = title or f"{len(positions):,} visited states"
    _finish_map(figure, axes, mesh, layout, labels, title, "visits (white: none)", "max" if counts.max() > most else "neither")
    return save_figure(figure, path)


def plot_reward(
    reward_fn: Callable[[np.ndarray], np.ndarray],
    path: str | Path,
    *,
    layout: MazeLayout | None = None,
    positions: np.ndarray | None = None,
    labels: tuple[str, str] = ("x", "y"),
    title: str | None = None,
) -> Path:
    """
    The learned novelty: over all of a maze, or at given places.

    :param reward_fn: novelty (n,) of positions (n, 2)
    :param path: the picture; its ending says the format
    :param layout: the maze; its free space is covered by a fine grid
    :param positions: where to ask, (n, 2), if there is no layout, or if its free space is not what to ask for
    :param labels: names of the coordinates
    :param title: title of the picture
    :return: ``path``
    :raises ValueError: if there is neither a layout nor positions, if ``reward_fn`` gives another shape or something that is
        not finite, or ``path`` is no picture's
    """
    path = check_picture_path(path)
    figure, axes = _map_figure(layout)
    mesh: Any
    if positions is not None:
        places = as_positions(positions)
        values, scale = _ask(reward_fn, places)
        order = np.argsort(values)  # the most novel ones on top
        mesh = axes.scatter(places[order, 0], places[order, 1], c=values[order], s=8, linewidths=0, **scale)
    elif layout is not None:
        places, inside, x_edges, y_edges = _grid(layout)
        values, scale = _ask(reward_fn, places)
        image = np.full(inside.shape, np.nan)
        image[inside] = values
        mesh = axes.pcolormesh(x_edges, y_edges, np.ma.masked_invalid(image).T, **scale)
    else:
        raise ValueError("plot_reward needs a layout, or positions where to ask for the reward.")
    _finish_map(figure, axes, mesh, layout, labels, title or "learned novelty", "intrinsic reward", "both")
    return save_figure(figure, path)


def _ask(reward_fn: Callable[[np.ndarray], np.ndarray], places: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Rewards (n,) and the colors they are drawn in."""
    values = np.asarray(reward_fn(places), dtype=np.float64)
    if values.shape != (len(places),):
        raise ValueError(f"reward_fn must give one number for each of {len(places)} positions, got shape {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("reward_fn must give finite numbers, got NaN or infinity.")
    # A few extreme places, in corners mostly, would take all the colors.
    low, high = np.percentile(values, [1, 99])
    return values, {"vmin": low, "vmax": high if high > low else low + 1.0, "cmap": "plasma", "rasterized": True}


def _histogram(positions: np.ndarray, layout: MazeLayout | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts (n_x, n_y) and the edges of their bins."""
    if layout is None:
        low, high = positions.min(axis=0), positions.max(axis=0)
        margin = np.where(high > low, 0.0, 0.5)
        x_edges, y_edges = np.linspace(low - margin, high + margin, _N_BINS + 1).T
    else:
        x_edges, y_edges = _edges(layout, round(1 / layout.coverage_bin))
    counts, *_ = np.histogram2d(positions[:, 0], positions[:, 1], bins=[x_edges, y_edges])
    return counts, x_edges, y_edges


def _grid(layout: MazeLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centers (n, 2) of small squares in free space, which of all squares they are (n_x, n_y), and the squares' edges."""
    # A whole number of squares per cell keeps every center off the walls.
    x_edges, y_edges = _edges(layout, max(4, min(20, math.isqrt(_MAX_GRID_POINTS // len(layout.cells)))))
    centers = np.meshgrid((x_edges[1:] + x_edges[:-1]) / 2, (y_edges[1:] + y_edges[:-1]) / 2, indexing="ij")
    places = np.stack(centers, axis=-1)  # (n_x, n_y, 2)
    inside = layout.contains(places)  # (n_x, n_y)
    return places[inside], inside, x_edges, y_edges


def _edges(layout: MazeLayout, per_cell: int) -> tuple[np.ndarray, np.ndarray]:
    x_min, y_min, x_max, y_max = layout.bounding_box
    n_x, n_y = layout.shape
    return np.linspace(x_min, x_max, n_x * per_cell + 1), np.linspace(y_min, y_max, n_y * per_cell + 1)


def _map_figure(layout: MazeLayout | None) -> tuple[Figure, Axes]:
    width, height = 4.6, 4.0
    if layout is not None:
        n_x, n_y = layout.shape
        unit = 4.4 / math.sqrt(n_x * n_y)  # all mazes about equally large
        width, height = n_x * unit, n_y * unit
    figure = new_figure(width + 1.4, height + 0.8)
    return figure, figure.add_subplot()


def _finish_map(
    figure: Figure,
    axes: Axes,
    mesh: Any,
    layout: MazeLayout | None,
    labels: tuple[str, str],
    title: str,
    bar_label: str,
    extend: Any,
) -> None:
    axes.set_title(title, fontsize=11)
    if layout is None:
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.spines[["top", "right"]].set_visible(False)
    else:
        _draw_maze(axes, layout)
    # An inset is as tall as the maze, whatever the maze's shape.
    bar_axes = axes.inset_axes((1.03, 0.0, 0.035, 1.0))
    bar = figure.colorbar(mesh, cax=bar_axes, label=bar_label, extend=extend, format="{x:g}")
    bar.outline.set_visible(False)


def _draw_maze(axes: Axes, layout: MazeLayout) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    # What is no cell is shaded, so that white means free space.
    for i, j in np.argwhere(~layout.is_cell) + layout.origin:
        axes.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=_OUTSIDE, edgecolor=_OUTSIDE, linewidth=0.5, zorder=0))
    walls = list(layout.wall_array.reshape(-1, 2, 2))  # each two ends (2, 2)
    axes.add_collection(LineCollection(walls, colors=_WALL, linewidths=2.2, capstyle="round", zorder=3))
    marks: dict[str, Any] = {"zorder": 4, "markeredgecolor": "white", "markeredgewidth": 1.2, "linestyle": "none"}
    axes.plot(*np.array(layout.start_cells).T, marker="o", markersize=9, color=COLORS[1], label="start", **marks)
    axes.plot(*layout.goal_cells[-1], marker="*", markersize=15, color=COLORS[2], label="goal", **marks)
    x_min, y_min, x_max, y_max = layout.bounding_box
    axes.set(xlim=(x_min - 0.08, x_max + 0.08), ylim=(y_min - 0.08, y_max + 0.08), aspect="equal")
    axes.axis("off")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False, handletextpad=0.2)
