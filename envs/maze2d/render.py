"""Images of a maze, drawn with numpy alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .layout import MazeLayout

_OUTSIDE = (236, 239, 244)
_FLOOR = (255, 255, 255)
_START = (214, 234, 248)
_GOAL = (39, 174, 96)
_WALL = (46, 52, 64)
_TRAIL = (94, 129, 172)
_POINT = (208, 71, 71)


class MazeRenderer:
    """
    Renderer of a maze with its start cells, the goal, the point and its trajectory.

    Every shape is a capsule, the set of points within a radius of a segment, blended by the distance for smooth edges. Walls,
    start and goal are drawn once.

    :param layout: geometry of the maze
    :param goal: center of the goal, (2,)
    :param goal_radius: radius of the goal, in cells
    :param size: approximate length of the longer side of the image, in pixels
    """

    def __init__(self, layout: MazeLayout, goal: np.ndarray, goal_radius: float, size: int = 480) -> None:
        x_min, y_min, x_max, y_max = layout.bounding_box
        self._scale = max(12, size // max(layout.shape))  # pixels a cell
        self._margin = self._scale // 4
        self._corner = np.array([x_min, y_max])
        height = round((y_max - y_min) * self._scale) + 2 * self._margin
        width = round((x_max - x_min) * self._scale) + 2 * self._margin
        canvas = np.empty((height, width, 3), dtype=np.float32)
        canvas[:] = _OUTSIDE
        for cell in layout.cells:
            column, row = np.round(self._to_pixels(np.array([cell[0] - 0.5, cell[1] + 0.5]))).astype(int)
            canvas[row : row + self._scale, column : column + self._scale] = _START if cell in layout.start_cells else _FLOOR
        goal_pixels = self._to_pixels(goal)
        self._capsule(canvas, goal_pixels, goal_pixels, max(goal_radius * self._scale, 3.0), _GOAL, 0.85)
        for x1, y1, x2, y2 in layout.walls:
            ends = self._to_pixels(np.array([[x1, y1], [x2, y2]]))
            self._capsule(canvas, ends[0], ends[1], max(0.035 * self._scale, 1.0), _WALL)
        self._background = canvas

    def draw(self, trail: np.ndarray) -> np.ndarray:
        """
        Draw a point and its trajectory.

        :param trail: positions from the start of the episode to the current one, (n, 2); may be empty
        :return: image, uint8 (height, width, 3)
        """
        canvas = self._background.copy()
        pixels = self._to_pixels(trail)
        for begin, end in pairwise(pixels):
            self._capsule(canvas, begin, end, max(0.018 * self._scale, 0.6), _TRAIL, 0.6)
        for place in pixels[:-1]:
            self._capsule(canvas, place, place, max(0.035 * self._scale, 1.2), _TRAIL)
        for place in pixels[-1:]:
            self._capsule(canvas, place, place, max(0.09 * self._scale, 2.5), _POINT)
        return np.round(canvas).astype(np.uint8)

    def _to_pixels(self, positions: np.ndarray) -> np.ndarray:
        """Convert positions (..., 2), y upwards, to columns and rows (..., 2), y downwards."""
        return (positions - self._corner) * (self._scale, -self._scale) + self._margin

    @staticmethod
    def _capsule(
        canvas: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
        radius: float,
        color: tuple[int, int, int],
        opacity: float = 1.0,
    ) -> None:
        low = np.maximum(np.floor(np.minimum(begin, end) - radius - 1).astype(int), 0)
        high = np.ceil(np.maximum(begin, end) + radius + 1).astype(int)
        window = canvas[low[1] : high[1], low[0] : high[0]]
        # Vectors from `begin` to the centers of the pixels of the window.
        x = np.arange(low[0], low[0] + window.shape[1]) + 0.5 - begin[0]  # (columns,)
        y = (np.arange(low[1], low[1] + window.shape[0]) + 0.5 - begin[1])[:, None]  # (rows, 1)
        along_x, along_y = end - begin
        length_squared = along_x * along_x + along_y * along_y
        share = np.clip((x * along_x + y * along_y) / max(length_squared, 1e-12), 0.0, 1.0)  # (rows, columns)
        distance = np.hypot(x - share * along_x, y - share * along_y)
        alpha = opacity * np.clip(radius + 0.5 - distance, 0.0, 1.0)[..., None]  # (rows, columns, 1)
        window += alpha * (np.array(color, dtype=np.float32) - window)
