"""Common parts of all figures: colors, axes, checks of arguments, and atomic writing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_exdm.common.serialization import atomic_path

if TYPE_CHECKING:  # matplotlib is slow to import, so it is imported with the first figure
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colors for color-blind readers (Okabe & Ito 2008), without yellow, which is hard to see on white."""
ENDINGS = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
"""Supported image formats."""
_DPI = 120


def new_figure(width: float, height: float) -> Figure:
    """
    Make an empty figure that needs no display.

    :param width: width, in inches
    :param height: height, in inches
    """
    from matplotlib.figure import Figure

    # Not through pyplot, which would keep every figure and might look for a display.
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def check_picture_path(path: str | Path) -> Path:
    """
    Check the path of an image file.

    :param path: path with one of :data:`ENDINGS`
    :raises ValueError: for another ending, or a folder
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not the name of an image file.")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} is not the name of an image file: use one of {', '.join(ENDINGS)}.")
    return path


def save_figure(figure: Figure, path: Path) -> Path:
    """
    Write a figure to an image file.

    :param figure: figure
    :param path: path from :func:`check_picture_path`
    :return: ``path``
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return path


def style_curves(axes: Axes, ylabel: str, title: str | None, xlabel: str = "environment steps") -> None:
    """Set labels, grid and ticks of axes with curves."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if title:
        axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda step, _: short_number(step))


def draw_ceiling(axes: Axes, ceiling: float) -> None:
    """Draw a dashed line at the largest possible coverage."""
    axes.axhline(ceiling, color="#777777", linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"ceiling {ceiling:.3g}",
        (0.01, ceiling),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=8,
        color="#555555",
        verticalalignment="bottom",
    )


def short_number(number: float) -> str:
    """Format ``25000`` as ``25k``."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{suffix}"
    return f"{number:g}"


def as_positions(positions: Any) -> np.ndarray:
    """Convert positions (n, 2) to float64; raise a ValueError for another shape, n = 0, NaN or infinity."""
    return _as_floats(positions, "positions", (2,))


def as_vector(values: Any, name: str) -> np.ndarray:
    """Convert numbers (n,) to float64; raise a ValueError that names them for another shape, n = 0, NaN or infinity."""
    return _as_floats(values, name, ())


def _as_floats(values: Any, name: str, item: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape[1:] != item or array.ndim != 1 + len(item) or not len(array):
        expected = ", ".join(["n", *map(str, item)]) if item else "n,"
        raise ValueError(f"{name} must have shape ({expected}) with n >= 1, got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    return array
