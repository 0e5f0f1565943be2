"""What all pictures share: colors, axes, and files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_exdm.common.serialization import atomic_path

# matplotlib is an extra of this package, so it is imported when the first picture is drawn.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colors that color-blind readers tell apart (Okabe & Ito 2008), without the yellow that is lost on white."""
ENDINGS = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
"""Endings of the names of pictures."""
_DPI = 120


def new_figure(width: float, height: float) -> Figure:
    """
    An empty figure that needs no display.

    :param width: in inches
    :param height: in inches
    :raises ImportError: if matplotlib is not installed
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Pictures need matplotlib, which is not installed: pip install 'sb3-exdm[plots]'.") from None
    # Not through pyplot, which would keep every figure and might look for a display.
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def check_picture_path(path: str | Path) -> Path:
    """
    :param path: where a picture is to be written
    :raises ValueError: if the name does not end like a picture's, or is that of a folder
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not the name of a picture.")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} does not end like a picture: use one of {', '.join(ENDINGS)}.")
    return path


def save_figure(figure: Figure, path: Path) -> Path:
    """
    :param figure: what to write
    :param path: from :func:`check_picture_path`
    :return: ``path``
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    return path


def style_curves(axes: Axes, ylabel: str, title: str | None) -> None:
    """Labels, grid and short numbers of steps for curves over time that start at step 0."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("environment steps")
    axes.set_ylabel(ylabel)
    if title:
        axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: short_number(step))


def draw_ceiling(axes: Axes, ceiling: float) -> None:
    """A dashed line at the most that can be covered."""
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
    """``25000`` as ``25k``."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{suffix}"
    return f"{number:g}"


def as_positions(positions: Any) -> np.ndarray:
    """
    :param positions: (n, 2)
    :return: the same as float64
    :raises ValueError: for another shape, no rows, NaN or infinity
    """
    array = np.asarray(positions, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError(f"positions must have shape (n, 2) with n >= 1, got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError("positions must be finite, got NaN or infinity.")
    return array


def as_vector(values: Any, name: str) -> np.ndarray:
    """
    :param values: (n,)
    :param name: for the error message
    :return: the same as float64
    :raises ValueError: for another shape, no numbers, NaN or infinity
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must have shape (n,) with n >= 1, got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    return array
