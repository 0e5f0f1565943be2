"""
How much of an environment was visited.

``StateCoverage`` is the measure of the paper, for the mazes. ``BinCoverage`` counts visited bins in any environment, where
there is no number of all bins to divide by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_exdm.envs import MazeLayout


class StateCoverage:
    """
    State coverage of a maze as in ExDM (arXiv 2502.07279): the share of the enclosed area that was visited.

    A grid of square bins lies over the bounding box of the walls, and

    ``value = (visited bins / all bins) / (enclosed area / area of the box)``.

    A position on the rim of the maze counts to the bin inside. Positions outside the maze count for nothing, so the
    value never exceeds ``ceiling``.

    :param layout: The maze, its name (``"SquareA"``) or its env id (``"Maze2d-SquareA-v0"``)
    :raises ValueError: if there is no such maze
    """

    def __init__(self, layout: MazeLayout | str) -> None:
        self.layout = MazeLayout.load(layout) if isinstance(layout, str) else layout
        x_min, y_min, x_max, y_max = self.layout.bounding_box
        per_cell = round(1 / self.layout.coverage_bin)
        if not np.isclose(per_cell * self.layout.coverage_bin, 1.0):
            raise ValueError(f"the bins must divide a cell of side 1, got the width {self.layout.coverage_bin}")
        self._low = np.array([x_min, y_min])
        self._bins_per_unit = float(per_cell)
        # A bin lies in one cell, so the grid of cells, enlarged, says which bins can be visited at all.
        reachable = np.zeros(self.layout.shape, dtype=bool)
        reachable[tuple((np.array(sorted(self.layout.reachable_cells)) - self.layout.origin).T)] = True
        countable = np.kron(reachable, np.ones((per_cell, per_cell), dtype=bool))  # (n_x, n_y)
        self._n_bins = countable.size
        # A frame of bins that do not count takes the positions outside the box: no index is ever out of range.
        countable = np.pad(countable, 1)  # (n_x + 2, n_y + 2)
        self._countable = countable.ravel()
        self._last = np.array(countable.shape) - 2.0
        self._weights = np.array([countable.shape[1], 1.0])
        self._shape = countable.shape
        self._area_share = self.layout.enclosed_area / ((x_max - x_min) * (y_max - y_min))
        self._visits = np.zeros(self._countable.size, dtype=np.int64)  # the frame stays at 0

    def update(self, positions: np.ndarray) -> None:
        """
        Count positions as visited.

        :param positions: Positions in the maze, (n, 2), or one of them, (2,)
        :raises ValueError: if the shape is another one or a number is not finite
        """
        positions = _checked(positions, 2)
        scaled = (positions - self._low) * self._bins_per_unit
        bins = np.floor(scaled)
        flat = self._flat(bins)
        counts = self._countable.take(flat)
        if not counts.all():
            flat = np.concatenate([flat[counts], self._inner_bins(scaled[~counts], bins[~counts])])
        np.add.at(self._visits, flat, 1)

    def _flat(self, bins: np.ndarray) -> np.ndarray:
        """Index in the flat grid with its frame, (n,), of bins (n, 2)."""
        return ((np.minimum(np.maximum(bins, -1.0), self._last) + 1.0) @ self._weights).astype(np.intp)

    def _inner_bins(self, scaled: np.ndarray, bins: np.ndarray) -> np.ndarray:
        """The bins that do count among those that positions touch from above or from the right, (<= n,)."""
        found = np.zeros(len(bins), dtype=np.intp)  # 0 is in the frame
        on_line = scaled == bins
        for shift in ((1, 0), (0, 1), (1, 1)):
            flat = self._flat(bins - shift)
            touches = (on_line | np.logical_not(shift)).all(axis=1) & self._countable[flat]
            found = np.where((found == 0) & touches, flat, found)
        return found[found > 0]

    @property
    def visits(self) -> np.ndarray:
        """How many positions fell into each bin, int64 (n_x, n_y); the first index goes with x. A copy."""
        return self._visits.reshape(self._shape)[1:-1, 1:-1].copy()

    @property
    def visited(self) -> np.ndarray:
        """Which bins were visited, bool (n_x, n_y)."""
        return self._visits.reshape(self._shape)[1:-1, 1:-1] > 0

    @property
    def value(self) -> float:
        """The state coverage, from 0 to ``ceiling``."""
        return np.count_nonzero(self._visits) / self._n_bins / self._area_share

    @property
    def ceiling(self) -> float:
        """
        The coverage of an agent that was everywhere it can get to: 1, except where the enclosed area has parts that no
        start leads to (``SquareD``: 22/28).
        """
        return np.count_nonzero(self._countable) / self._n_bins / self._area_share

    @property
    def of_ceiling(self) -> float:
        """``value / ceiling``: the share of what can be reached, from 0 to 1."""
        return np.count_nonzero(self._visits) / np.count_nonzero(self._countable)

    def reset(self) -> None:
        """Forget all visits."""
        self._visits[:] = 0

    def __repr__(self) -> str:
        return f"StateCoverage({self.layout.name!r}, value={self.value:.3f})"


def state_coverage(positions: np.ndarray, layout: MazeLayout | str) -> float:
    """
    State coverage of a set of positions, see ``StateCoverage``.

    :param positions: Positions in the maze, (n, 2)
    :param layout: The maze, its name or its env id
    :return: The coverage, from 0 to the ceiling of the maze
    :raises ValueError: if the positions have another shape or are not finite, or there is no such maze
    """
    coverage = StateCoverage(layout)
    coverage.update(positions)
    return coverage.value


class BinCoverage:
    """
    Number of distinct bins visited along some dimensions of the observations of any environment.

    The bins are cubes of a fixed grid without bounds, kept as a set, so nothing has to be known about the range of the
    observations. Their width is ``bin_width``, or else, for each dimension, ``width_in_std`` standard deviations of the
    first ``n_calibration`` observations, which are counted once the widths are set. A dimension that does not vary among
    these keeps the width 1. Counts can be compared between runs only if the bins are the same: pass the ``bin_width`` of
    one run (it is an attribute) to the others.

    :param dims: Indices of the observed dimensions, e.g. ``(0, 1)``; all by default. Few are best: the number of bins grows
        exponentially with it, and then every observation is in a bin of its own
    :param bin_width: Width of the bins, a number or one for each of ``dims``, > 0
    :param n_calibration: How many observations set the widths, at least 2; not used with ``bin_width``
    :param width_in_std: Width in standard deviations of these
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        bin_width: float | Sequence[float] | np.ndarray | None = None,
        n_calibration: int = 1000,
        width_in_std: float = 0.2,
    ) -> None:
        if n_calibration < 2:
            raise ValueError(f"n_calibration must be at least 2, got {n_calibration}")
        if not 0 < width_in_std < np.inf:
            raise ValueError(f"width_in_std must be positive and finite, got {width_in_std}")
        if dims is not None and len(dims) == 0:
            raise ValueError("dims must name at least one dimension")
        self.dims = None if dims is None else [int(dim) for dim in dims]
        self.n_calibration = n_calibration
        self.width_in_std = width_in_std
        self._fixed_width = None if bin_width is None else np.asarray(bin_width, dtype=np.float64)
        if self._fixed_width is not None and not (np.isfinite(self._fixed_width) & (self._fixed_width > 0)).all():
            raise ValueError(f"bin_width must be positive and finite, got {bin_width!r}")
        self.reset()

    def reset(self) -> None:
        """Forget all visits, and the widths unless they were given."""
        self.bin_width: np.ndarray | None = self._fixed_width
        self._bins: set[bytes] = set()
        self._waiting: list[np.ndarray] = []

    def update(self, observations: np.ndarray) -> None:
        """
        Count observations as visited.

        :param observations: Observations, (n, n_dims), or one of them, (n_dims,)
        :raises ValueError: if the shape is another one than before or does not have ``dims``, or a number is not finite
        """
        values = self._select(observations)
        if self.bin_width is None:
            self._waiting.append(values)
            if sum(map(len, self._waiting)) < self.n_calibration:
                return
            values = np.concatenate(self._waiting)
            self.bin_width = self._width_from(values)
            self._waiting = []
        self._bins |= self._bins_of(values, self.bin_width)

    @property
    def value(self) -> int:
        """Number of distinct bins visited; before the widths are set, with those that the observations so far would give."""
        if not self._waiting:
            return len(self._bins)
        values = np.concatenate(self._waiting)
        return len(self._bins_of(values, self._width_from(values)))

    def _select(self, observations: np.ndarray) -> np.ndarray:
        values = _checked(observations, None)
        if self.dims is not None:
            if max(self.dims) >= values.shape[1] or min(self.dims) < -values.shape[1]:
                raise ValueError(f"dims {self.dims} are not all among the {values.shape[1]} dimensions of the observations")
            values = values[:, self.dims]
        if self._waiting and self._waiting[0].shape[1] != values.shape[1]:
            raise ValueError(f"observations had {self._waiting[0].shape[1]} dimensions before, now {values.shape[1]}")
        if self.bin_width is not None and self.bin_width.ndim and self.bin_width.shape != values.shape[1:]:
            raise ValueError(f"there are {self.bin_width.size} bin widths for {values.shape[1]} dimensions")
        return np.array(values, order="C")  # float64 (n, len(dims)), and not a view of a buffer that is overwritten

    def _width_from(self, values: np.ndarray) -> np.ndarray:
        spread = values.std(axis=0)
        return np.where(spread > 0, self.width_in_std * spread, 1.0)

    @staticmethod
    def _bins_of(values: np.ndarray, bin_width: np.ndarray) -> set[bytes]:
        bins = np.floor(values / bin_width) + 0.0  # -0.0 becomes 0.0: bins are compared as bytes
        return set(bins.view(f"V{bins.shape[1] * bins.itemsize}").ravel().tolist())

    def __repr__(self) -> str:
        return f"BinCoverage(dims={self.dims}, value={self.value})"


def _checked(positions: Any, n_dims: int | None) -> np.ndarray:
    """Float64 (n, n_dims) from (n, n_dims) or (n_dims,)."""
    array = np.asarray(positions, dtype=np.float64)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or (n_dims is not None and array.shape[1] != n_dims):
        raise ValueError(f"expected an array of shape (n, {n_dims or 'n_dims'}), got {np.shape(positions)}")
    if not np.isfinite(array).all():
        raise ValueError("expected finite numbers, got NaN or infinity")
    return array
