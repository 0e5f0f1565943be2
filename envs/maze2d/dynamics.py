"""
Physics of the mazes: a point mass that is displaced by the action, stopped by walls, and slides along them.

A move ``(dx, dy)`` with ``|dx|, |dy| < 1`` crosses at most one vertical and one horizontal grid line. Which of them are walls
depends on the start cell, on the target cell (9 cases) and, for a diagonal neighbor, on which line is crossed first. The
outcomes are computed once per layout and stored in a table, which the vectorized and the scalar form of a move share.

Cells are computed as ``floor(p + 0.5)``, and every coordinate ends strictly inside a cell: a blocked one in the cell where it
was blocked, and one that lands exactly on a grid line just above it. So a point changes cells only through open sides and
never lies on a wall, whatever the rounding.
"""

from __future__ import annotations

from itertools import product
from math import floor, inf, nextafter

import numpy as np

from .layout import Cell, MazeLayout

ACTION_LIMIT = 0.95
"""Largest displacement along an axis."""

MAX_PUSH_BACK = 0.01
"""Largest push-back from a wall at a contact; push-backs are uniform."""

# The smallest push-back survives rounding, so no point lies on a wall.
MIN_PUSH_BACK = 1e-9
_PUSH_BACK_SPAN = MAX_PUSH_BACK - MIN_PUSH_BACK

# Outcome of a move: blocked coordinates if the vertical line is crossed first (low bits) or the horizontal one (high bits).
BLOCKED_X = 1
BLOCKED_Y = 2
_Y_FIRST_SHIFT = 2
_N_OUTCOMES = 16
# Whether x and y are blocked, (2 * 16, 2): by outcome if x is crossed first, and again by outcome if y is.
_IS_BLOCKED = np.array(
    [
        [bool(outcome >> shift & BLOCKED_X), bool(outcome >> shift & BLOCKED_Y)]
        for shift in (0, _Y_FIRST_SHIFT)
        for outcome in range(_N_OUTCOMES)
    ]
)


class PointMassDynamics:
    """
    Motion of points in a maze, vectorized (``move``) or one by one (``move_one``).

    A wall stops the motion across it; the point slides along the wall for the rest of the move. A move crosses at most two
    grid lines and so has at most two contacts. ``move`` of ``n`` points draws the same random numbers as ``n`` calls of
    ``move_one``, so the two forms agree bit by bit.

    :param layout: geometry of the maze
    """

    def __init__(self, layout: MazeLayout) -> None:
        self.layout = layout
        n_y = layout.shape[1]
        outcomes = [
            _outcome(layout, (i, j), (di, dj))
            for i, j in product(*(range(start, start + n) for start, n in zip(layout.origin, layout.shape, strict=True)))
            for di, dj in product((-1, 0, 1), repeat=2)
        ]
        # Position in the table: 9 * (index of the cell) + 3 * (di + 1) + (dj + 1), linear in both cells.
        self._outcomes = np.array(outcomes, dtype=np.intp)
        self._outcome_list = outcomes
        self._stride = 9 * n_y
        self._offset = 4 - layout.origin[0] * self._stride - layout.origin[1] * 9
        self._cell_weights = np.array([self._stride - 3.0, 9.0 - 1.0])
        self._next_weights = np.array([3.0, 1.0])

    def move(self, positions: np.ndarray, displacements: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        Move ``n`` points, each in its own copy of the maze.

        :param positions: positions in the maze, float64 (n, 2)
        :param displacements: displacements, float64 (n, 2), each within ``±0.95``
        :param rng: generator of the push-backs; two numbers are drawn for every point that may hit a wall
        :return: new positions, float64 (n, 2)
        """
        targets = positions + displacements
        cells = np.floor(positions + 0.5)
        shifted = targets + 0.5
        next_cells = np.floor(shifted)
        on_line = shifted == next_cells
        if np.count_nonzero(on_line):
            targets[on_line] = np.nextafter(next_cells[on_line] - 0.5, np.inf)
        # Integers, (n,). These numpy functions are the fastest for a handful of points.
        keys = cells.dot(self._cell_weights) + next_cells.dot(self._next_weights) + self._offset
        outcomes = self._outcomes.take(keys.astype(np.intp))
        rows = outcomes.nonzero()[0]
        if rows.size:
            # Only the m points that may hit a wall from here on.
            cells, next_cells = cells.take(rows, axis=0), next_cells.take(rows, axis=0)  # (m, 2)
            lines = (cells + next_cells) * 0.5
            # x is crossed first if |line_x - x| / |dx| <= |line_y - y| / |dy|, multiplied out.
            gaps = np.abs((lines - positions.take(rows, axis=0)) * displacements.take(rows, axis=0)[:, ::-1])
            y_first = gaps[:, 0] > gaps[:, 1]
            blocked = _IS_BLOCKED.take(outcomes.take(rows) + _N_OUTCOMES * y_first, axis=0)  # (m, 2)
            push_back = MIN_PUSH_BACK + _PUSH_BACK_SPAN * rng.random((rows.size, 2))
            targets[rows] = np.where(blocked, lines - (next_cells - cells) * push_back, targets.take(rows, axis=0))
        return targets

    def move_one(self, x: float, y: float, dx: float, dy: float, rng: np.random.Generator) -> tuple[float, float]:
        """
        Move one point: ``move`` in plain Python, which is faster for a single point.

        :param x: first coordinate of the position
        :param y: second coordinate of the position
        :param dx: displacement along x, within ``±0.95``
        :param dy: displacement along y, within ``±0.95``
        :param rng: generator of the push-backs; two numbers are drawn if the point may hit a wall
        :return: new position
        """
        target_x, target_y = x + dx, y + dy
        i, j = floor(x + 0.5), floor(y + 0.5)
        next_i, next_j = floor(target_x + 0.5), floor(target_y + 0.5)
        if target_x + 0.5 == next_i:
            target_x = nextafter(next_i - 0.5, inf)
        if target_y + 0.5 == next_j:
            target_y = nextafter(next_j - 0.5, inf)
        step_i, step_j = next_i - i, next_j - j
        outcome = self._outcome_list[i * self._stride + j * 9 + 3 * step_i + step_j + self._offset]
        if outcome:
            line_x, line_y = (i + next_i) * 0.5, (j + next_j) * 0.5
            if abs((line_x - x) * dy) > abs((line_y - y) * dx):
                outcome >>= _Y_FIRST_SHIFT
            push_x, push_y = MIN_PUSH_BACK + _PUSH_BACK_SPAN * rng.random(), MIN_PUSH_BACK + _PUSH_BACK_SPAN * rng.random()
            if outcome & BLOCKED_X:
                target_x = line_x - step_i * push_x
            if outcome & BLOCKED_Y:
                target_y = line_y - step_j * push_y
        return target_x, target_y


def _outcome(layout: MazeLayout, cell: Cell, step: tuple[int, int]) -> int:
    """Coordinates of a move from ``cell`` to the neighbor ``cell + step`` that are blocked, for both orders of crossing."""
    (i, j), (di, dj) = cell, step

    def blocked(here: Cell, there: Cell) -> bool:
        # Squares that are no cells are never entered, even without a wall.
        return here != there and (layout.has_wall(here, there) or not layout.has_cell(there))

    # The second line is crossed from the cell that the point is in after the first one.
    x_first = BLOCKED_X * blocked((i, j), (i + di, j))
    column = i if x_first else i + di
    x_first |= BLOCKED_Y * blocked((column, j), (column, j + dj))
    y_first = BLOCKED_Y * blocked((i, j), (i, j + dj))
    row = j if y_first else j + dj
    y_first |= BLOCKED_X * blocked((i, row), (i + di, row))
    return x_first | y_first << _Y_FIRST_SHIFT
