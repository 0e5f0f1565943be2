"""Line charts as SVG in the colors of the page around them."""

import html
from collections.abc import Sequence

import numpy as np

from sb3_exdm.plots.style import short_number

_WIDTH, _HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 32
_MAX_DOTS = 60
"""Curves with at most as many points have a dot at each of them."""


def line_chart(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, label: str, *, ceiling: float | None = None
) -> str:
    """
    Draw a curve over environment steps. A point tells its values to the mouse.

    :param x: environment steps, ``(n,)``, increasing
    :param y: values, ``(n,)``; those that are not finite are left out
    :param label: name of the values, for readers that do not see the chart
    :param ceiling: largest possible value, drawn as a dashed line
    :return: SVG element; its colors are the classes ``axis``, ``grid``, ``curve``, ``area`` and ``ceiling`` of the style sheet
    """
    steps, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    if not len(steps):
        return ""
    x_ticks = _ticks(0.0, steps[-1])
    y_ticks = _ticks(min(values.min(), 0.0), max(values.max(), 0.0 if ceiling is None else ceiling))

    def across(step: float) -> float:
        return _LEFT + (step - x_ticks[0]) / (max(steps[-1], 1.0) - x_ticks[0]) * (_WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (_HEIGHT - _TOP - _BOTTOM)

    points = [(round(across(step), 1), round(up(value), 1)) for step, value in zip(steps, values, strict=True)]
    path = " ".join(f"{a:g},{b:g}" for a, b in points)
    base = round(up(max(y_ticks[0], 0.0)), 1)
    parts = [
        *(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(t):.1f}" y2="{up(t):.1f}"/>' for t in y_ticks),
        *(f'<text class="axis" x="{_LEFT - 6}" y="{up(t) + 4:.1f}" text-anchor="end">{_short(t)}</text>' for t in y_ticks),
        *(
            f'<text class="axis" x="{across(t):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{_short(t)}</text>'
            for t in x_ticks
            if t <= steps[-1]
        ),
        f'<polygon class="area" points="{points[0][0]:g},{base:g} {path} {points[-1][0]:g},{base:g}"/>',
        f'<polyline class="curve" points="{path}"/>',
    ]
    if ceiling is not None:
        parts.append(
            f'<line class="ceiling" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(ceiling):.1f}" y2="{up(ceiling):.1f}"/>'
        )
    radius = 2.5 if len(points) <= _MAX_DOTS else 0
    parts += [
        f'<g class="point"><circle class="target" cx="{a:g}" cy="{b:g}" r="6"/><circle class="dot" cx="{a:g}" cy="{b:g}" '
        f'r="{radius}"/><title>{step:,.0f} steps: {value:.4g}</title></g>'
        for (a, b), step, value in zip(points, steps, values, strict=True)
    ]
    name = html.escape(f"{label} over environment steps, at the end {values[-1]:.4g}", quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from below ``low`` to above ``high``."""
    from matplotlib.ticker import MaxNLocator

    high = high if high > low else low + 1.0
    return [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _short(value: float) -> str:
    return short_number(0.0 if abs(value) < 1e-12 else float(f"{value:.6g}"))
