"""Geometry of a maze: cells, walls, graph distances, free space and start positions."""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

Cell = tuple[int, int]
Wall = tuple[float, float, float, float]

START_WALL_DISTANCE = 0.05
"""Smallest distance of a start position from the walls."""

_DATA_FILE = Path(__file__).parent.parent / "layouts.json"
_ENV_ID = re.compile(r"^Maze2d-(\w+)-v\d+$")


@cache
def _read_layouts() -> dict[str, dict[str, Any]]:
    return json.loads(_DATA_FILE.read_text(encoding="utf-8"))["mazes"]


@dataclass(frozen=True, eq=False)
class MazeLayout:
    """
    Maze of unit cells centered on integer coordinates; cell ``(i, j)`` is the square ``[i ± 0.5] x [j ± 0.5]``.

    Every side of a cell without a neighboring cell is a wall; walls may also separate two cells. All lengths are in cells.
    Arrays derived from the geometry are read-only.

    :param name: short name, e.g. ``"SquareA"``
    :param cells: centers ``(i, j)`` of the cells
    :param walls: unit segments ``(x1, y1, x2, y2)`` with ``x1 <= x2``, ``y1 <= y2``, on the half-integer grid lines
    :param start_cells: cells in which episodes start
    :param goal_cells: cells with a goal in the original maze; the last one is the default goal
    :param bounding_box: ``(x_min, y_min, x_max, y_max)`` of the walls
    :param enclosed_area: area in the denominator of the state coverage, as in the paper. In ``SquareD`` it is the whole box
        with 6 unreachable squares, so the coverage cannot reach 1
    :param coverage_bin: bin width of the state coverage
    :raises ValueError: if a wall is not on the grid, an outer side of a cell has no wall, or a start or goal is not a cell
    """

    name: str
    cells: tuple[Cell, ...]
    walls: tuple[Wall, ...] = field(repr=False)
    start_cells: tuple[Cell, ...]
    goal_cells: tuple[Cell, ...]
    bounding_box: tuple[float, float, float, float]
    enclosed_area: float
    coverage_bin: float

    def __post_init__(self) -> None:
        for wall in self.walls:
            x1, y1, x2, y2 = wall
            if (x2 - x1, y2 - y1) not in ((1, 0), (0, 1)) or any(value % 1 != 0.5 for value in wall):
                raise ValueError(f"Maze {self.name}: {wall} is not a unit segment of the half-integer grid.")
        for kind, cells in (("start", self.start_cells), ("goal", self.goal_cells)):
            missing = [cell for cell in cells if not self.has_cell(cell)]
            if missing or not cells:
                raise ValueError(f"Maze {self.name}: the {kind} cells {missing or '(none given)'} are not among its cells.")
        for cell in self.cells:
            for i, j in _around(cell):
                if not self.has_cell((i, j)) and not self.has_wall(cell, (i, j)):
                    raise ValueError(f"Maze {self.name}: cell {cell} is open towards {(i, j)}, which is not a cell.")

    @classmethod
    def load(cls, name: str) -> MazeLayout:
        """
        Load a maze of the paper.

        :param name: one of ``MAZE_NAMES``, or an env id such as ``"Maze2d-SquareA-v0"``
        :return: layout; the same object for the same maze
        :raises ValueError: if there is no such maze
        """
        match = _ENV_ID.match(name)
        return _load(match.group(1) if match else name)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the derived arrays; a copy of frozen data is the data itself.
        if self.name in MAZE_NAMES and _load(self.name) is self:
            return MazeLayout.load, (self.name,)
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        return MazeLayout, tuple(values)

    def __copy__(self) -> MazeLayout:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> MazeLayout:
        return self

    # ------------------------------------------------------------------ grid

    @cached_property
    def origin(self) -> Cell:
        """Cell in the lower left corner of the bounding box; index ``[0, 0]`` of every grid of cells."""
        return round(self.bounding_box[0] + 0.5), round(self.bounding_box[1] + 0.5)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Number of cells of the bounding box along x and y."""
        x_min, y_min, x_max, y_max = self.bounding_box
        return round(x_max - x_min), round(y_max - y_min)

    @cached_property
    def is_cell(self) -> np.ndarray:
        """Mask of the squares of the bounding box that are cells, bool of ``shape``."""
        grid = np.zeros(self.shape, dtype=bool)
        grid[tuple((np.array(self.cells) - self.origin).T)] = True
        return _frozen(grid)

    @cached_property
    def _cell_set(self) -> frozenset[Cell]:
        return frozenset(self.cells)

    @cached_property
    def _wall_set(self) -> frozenset[Wall]:
        return frozenset(self.walls)

    def has_cell(self, cell: Cell) -> bool:
        """Return True if the square is a cell of the maze."""
        return cell in self._cell_set

    @cached_property
    def wall_array(self) -> np.ndarray:
        """Walls as a float array, (n_walls, 4)."""
        return _frozen(np.array(self.walls, dtype=np.float64))

    def has_wall(self, cell: Cell, neighbor: Cell) -> bool:
        """
        Return True if a wall separates two squares that share a side.

        :param cell: square, not necessarily a cell of the maze
        :param neighbor: square beside it
        """
        x, y = (cell[0] + neighbor[0]) / 2, (cell[1] + neighbor[1]) / 2
        if cell[1] == neighbor[1]:
            return (x, y - 0.5, x, y + 0.5) in self._wall_set
        return (x - 0.5, y, x + 0.5, y) in self._wall_set

    def neighbors(self, cell: Cell) -> list[Cell]:
        """List the cells that can be entered from ``cell`` across one side."""
        return [other for other in _around(cell) if self.has_cell(other) and not self.has_wall(cell, other)]

    # ------------------------------------------------------------------ graph

    def distances(self, cell: Cell) -> dict[Cell, int]:
        """
        Compute the graph distances from a cell, in cells.

        :param cell: cell with the distance 0
        :return: distance of every cell that can be reached
        :raises ValueError: if it is not a cell of the maze
        """
        self.check_cell(cell)
        distance = {cell: 0}
        queue = deque([cell])
        while queue:
            here = queue.popleft()
            for other in self.neighbors(here):
                if other not in distance:
                    distance[other] = distance[here] + 1
                    queue.append(other)
        return distance

    def farthest_cell(self, cell: Cell | None = None) -> Cell:
        """
        Find the cell at the greatest graph distance; of several, the last one in ``cells``.

        :param cell: cell with the distance 0, the first start cell by default
        """
        distance = self.distances(self.start_cells[0] if cell is None else cell)
        return max(reversed(self.cells), key=lambda other: distance.get(other, -1))

    @cached_property
    def reachable_cells(self) -> frozenset[Cell]:
        """Cells that can be reached from a start cell."""
        return frozenset(cell for start in self.start_cells for cell in self.distances(start))

    def check_cell(self, cell: Cell) -> None:
        """Raise a ValueError if a square is not a cell of the maze."""
        if not self.has_cell(cell):
            raise ValueError(f"{cell!r} is not a cell of the maze {self.name}; its cells are {sorted(self.cells)}.")

    # ------------------------------------------------------------------ positions

    def contains(self, positions: np.ndarray) -> np.ndarray:
        """
        Check which positions are in free space: in a cell and not on a wall.

        :param positions: positions, float (..., 2)
        :return: mask, bool (...); False for positions that are not finite
        """
        positions = _as_positions(positions)
        points = positions.reshape(-1, 2)
        free = np.isfinite(points).all(axis=1)
        shifted = np.where(free[:, None], points, 0.0) + 0.5
        index = np.floor(shifted) - self.origin
        free &= ((index >= 0) & (index < self.shape)).all(axis=1)
        rows, columns = np.where(free[:, None], index, 0.0).astype(np.intp).T
        free &= self.is_cell[rows, columns]
        on_line = np.flatnonzero(free & (shifted == np.floor(shifted)).any(axis=1))
        free[on_line] = self.wall_distance(points[on_line]) > 0
        return free.reshape(positions.shape[:-1])

    def wall_distance(self, positions: np.ndarray) -> np.ndarray:
        """
        Compute the Euclidean distance to the nearest wall.

        :param positions: positions, float (..., 2)
        :return: distances, float (...)
        """
        return _distance_to(self.wall_array, _as_positions(positions))

    @cached_property
    def _start_walls(self) -> np.ndarray:
        # Walls within the margin of a start cell: the only ones that a start position can be too close to.
        beyond = _beyond(self.wall_array, np.array(self.start_cells, dtype=np.float64))  # (n_start_cells, n_walls, 2)
        return _frozen(self.wall_array[(beyond.max(axis=-1) <= 0.5 + START_WALL_DISTANCE).any(axis=0)])

    def sample_starts(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """
        Sample positions uniformly in the start cells, at least 0.05 from every wall, by rejection.

        :param rng: random generator
        :param n: number of positions
        :return: positions, (n, 2)
        """
        cells = np.array(self.start_cells, dtype=np.float64)
        starts = np.empty((n, 2))
        rows = np.arange(n)
        while rows.size:
            uniform = rng.random((rows.size, 3))
            chosen = cells[(uniform[:, 2] * len(cells)).astype(np.intp)]
            starts[rows] = chosen + uniform[:, :2] - 0.5
            rows = rows[_distance_to(self._start_walls, starts[rows]) < START_WALL_DISTANCE]
        return starts


@cache
def _load(name: str) -> MazeLayout:
    data = _read_layouts().get(name)
    if data is None:
        raise ValueError(f"There is no maze {name!r}; the mazes are {', '.join(MAZE_NAMES)}.")
    return MazeLayout(
        name=name,
        cells=tuple((i, j) for i, j in data["cells"]),
        walls=tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in data["walls"]),
        start_cells=tuple((i, j) for i, j in data["start_cells"]),
        goal_cells=tuple((i, j) for i, j in data["goal_cells"]),
        bounding_box=tuple(data["bounding_box"]),
        enclosed_area=data["enclosed_area"],
        coverage_bin=data["coverage_bin"],
    )


def _around(cell: Cell) -> list[Cell]:
    i, j = cell
    return [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]


def _beyond(walls: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Distance of positions (..., 2) from each wall's extent along x and y, negative inside: (..., n_walls, 2)."""
    return np.maximum(walls[:, :2] - positions[..., None, :], positions[..., None, :] - walls[:, 2:])


def _distance_to(walls: np.ndarray, positions: np.ndarray) -> np.ndarray:
    outside = np.maximum(_beyond(walls, positions), 0.0)  # (..., n_walls, 2)
    return np.hypot(outside[..., 0], outside[..., 1]).min(axis=-1, initial=np.inf)  # (...)


def _as_positions(positions: np.ndarray) -> np.ndarray:
    positions = np.asarray(positions, dtype=np.float64)
    if positions.ndim == 0 or positions.shape[-1] != 2:
        raise ValueError(f"positions must have shape (..., 2), got {positions.shape}.")
    return positions


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


MAZE_NAMES: tuple[str, ...] = tuple(_read_layouts())
"""Names of the mazes of the paper, in its order."""
