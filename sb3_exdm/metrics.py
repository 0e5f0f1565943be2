"""
Coverage of the states that an agent visited.

``StateCoverage`` is the metric of the paper, for mazes. ``BinCoverage`` counts visited bins in any environment, where the
number of all bins is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_exdm.common.validation import check_integers
from sb3_exdm.envs import MazeLayout


class StateCoverage:
    """
    State coverage of a maze as in ExDM (arXiv 2502.07279): the visited fraction of the enclosed area.

    The bounding box of the walls is divided into square bins, and

    ``value = (visited bins / all bins) / (enclosed area / area of the box)``.

    Positions on an outer wall belong to the bin inside. Positions outside the maze are ignored, so ``value <= ceiling``.

    :param layout: geometry of the maze, its name (``"SquareA"``) or its env id (``"Maze2d-SquareA-v0"``)
    :raises ValueError: if there is no such maze
    """

    def __init__(self, layout: MazeLayout | str) -> None:
        self.layout = MazeLayout.load(layout) if isinstance(layout, str) else layout
        x_min, y_min, x_max, y_max = self.layout.bounding_box
        per_cell = round(1 / self.layout.coverage_bin)
        if not np.isclose(per_cell * self.layout.coverage_bin, 1.0):
            raise ValueError(f"The bin width must divide the side 1 of a cell, got {self.layout.coverage_bin}.")
        self._low = np.array([x_min, y_min])
        self._bins_per_unit = float(per_cell)
        # Every bin is inside one cell, so the grid of reachable cells, enlarged, is the mask of reachable bins.
        reachable = np.zeros(self.layout.shape, dtype=bool)
        reachable[tuple((np.array(sorted(self.layout.reachable_cells)) - self.layout.origin).T)] = True
        countable = np.kron(reachable, np.ones((per_cell, per_cell), dtype=bool))  # (n_x, n_y)
        self._n_bins = countable.size
        # Positions outside the box fall into a frame of bins that do not count, so no index is out of range.
        countable = np.pad(countable, 1)  # (n_x + 2, n_y + 2)
        self._countable = countable.ravel()
        self._last = np.array(countable.shape) - 2.0
        self._weights = np.array([countable.shape[1], 1.0])
        self._shape = countable.shape
        self._area_share = self.layout.enclosed_area / ((x_max - x_min) * (y_max - y_min))
        self._visits = np.zeros(self._countable.size, dtype=np.int64)  # the frame stays at 0

    def update(self, positions: np.ndarray) -> None:
        """
        Count visited positions.

        :param positions: positions in the maze, (n, 2), or one position, (2,)
        :raises ValueError: for another shape, NaN or infinity
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
        """Indices (n,) of bins (n, 2) in the flat grid with its frame."""
        return ((np.minimum(np.maximum(bins, -1.0), self._last) + 1.0) @ self._weights).astype(np.intp)

    def _inner_bins(self, scaled: np.ndarray, bins: np.ndarray) -> np.ndarray:
        """Reachable bins whose upper or right edge positions lie on, (<= n,)."""
        found = np.zeros(len(bins), dtype=np.intp)  # 0 is in the frame
        on_line = scaled == bins
        for shift in ((1, 0), (0, 1), (1, 1)):
            flat = self._flat(bins - shift)
            touches = (on_line | np.logical_not(shift)).all(axis=1) & self._countable[flat]
            found = np.where((found == 0) & touches, flat, found)
        return found[found > 0]

    @property
    def visits(self) -> np.ndarray:
        """Copy of the number of positions in each bin, int64 (n_x, n_y); the first index belongs to x."""
        return self._visits.reshape(self._shape)[1:-1, 1:-1].copy()

    @property
    def visited(self) -> np.ndarray:
        """Mask of the visited bins, bool (n_x, n_y)."""
        return self._visits.reshape(self._shape)[1:-1, 1:-1] > 0

    @property
    def value(self) -> float:
        """State coverage, from 0 to ``ceiling``."""
        return np.count_nonzero(self._visits) / self._n_bins / self._area_share

    @property
    def ceiling(self) -> float:
        """Coverage if all reachable bins are visited: 1, except in ``SquareD``, where parts are unreachable (22/28)."""
        return np.count_nonzero(self._countable) / self._n_bins / self._area_share

    @property
    def of_ceiling(self) -> float:
        """``value / ceiling``: visited fraction of the reachable bins, from 0 to 1."""
        return np.count_nonzero(self._visits) / np.count_nonzero(self._countable)

    def reset(self) -> None:
        """Forget all visits."""
        self._visits[:] = 0

    def __repr__(self) -> str:
        return f"StateCoverage({self.layout.name!r}, value={self.value:.3f})"


def state_coverage(positions: np.ndarray, layout: MazeLayout | str) -> float:
    """
    Compute the state coverage of a set of positions, see ``StateCoverage``.

    :param positions: positions in the maze, (n, 2)
    :param layout: geometry of the maze, its name or its env id
    :return: state coverage, from 0 to the ceiling of the maze
    :raises ValueError: if the positions have another shape or are not finite, or there is no such maze
    """
    coverage = StateCoverage(layout)
    coverage.update(positions)
    return coverage.value


class BinCoverage:
    """
    Number of distinct visited bins in some dimensions of the observations, for any environment.

    The visited bins of an unbounded grid are stored in a set, so the range of the observations need not be known. The bins
    have the width ``bin_width``. Without it, the width of each dimension is ``width_in_std`` standard deviations of the first
    ``n_calibration`` observations, or 1 if they do not vary. Counts of different runs are comparable only with equal widths:
    pass the ``bin_width`` of one run to the others.

    :param dims: indices of the dimensions, e.g. ``(0, 1)``; all by default. The number of bins grows exponentially with the
        number of dimensions, so use few
    :param bin_width: width of the bins, > 0, one number or one per dimension; None to compute it from observations
    :param n_calibration: number of observations that set the widths, at least 2; not used with ``bin_width``
    :param width_in_std: width in standard deviations of these observations, > 0
    :raises ValueError: if an argument is out of range
    """

    ceiling: float | None = None
    """Always None: the number of all bins is unknown."""
    of_ceiling: float | None = None
    """Always None, like ``ceiling``."""

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        bin_width: float | Sequence[float] | np.ndarray | None = None,
        n_calibration: int = 1000,
        width_in_std: float = 0.2,
    ) -> None:
        check_integers(n_calibration=(n_calibration, 2))
        if not 0 < width_in_std < np.inf:
            raise ValueError(f"width_in_std must be positive and finite, got {width_in_std}.")
        if dims is not None and len(dims) == 0:
            raise ValueError("dims must name at least one dimension.")
        self.dims = None if dims is None else [int(dim) for dim in dims]
        self.n_calibration = n_calibration
        self.width_in_std = width_in_std
        self._given_width = None if bin_width is None else np.atleast_1d(np.asarray(bin_width, dtype=np.float64))
        if self._given_width is not None:
            if self._given_width.ndim > 1 or not (np.isfinite(self._given_width) & (self._given_width > 0)).all():
                raise ValueError(f"bin_width must be positive and finite, one number or one per dimension, got {bin_width!r}.")
            if self.dims is not None:
                self._given_width = self._for_each_dim(self._given_width, len(self.dims))
        self.reset()

    def reset(self) -> None:
        """Forget all visits, and the widths unless they were given."""
        self._width = self._given_width
        self._bins: set[bytes] = set()
        self._waiting: list[np.ndarray] = []

    @property
    def is_calibrated(self) -> bool:
        """True if the widths of the bins are set: given, or computed from ``n_calibration`` observations."""
        return self._width is not None

    @property
    def bin_width(self) -> list[float] | None:
        """Width of the bins in each dimension; None if not ``is_calibrated``."""
        return None if self._width is None else self._width.tolist()

    def update(self, observations: np.ndarray) -> None:
        """
        Count visited observations.

        :param observations: observations, (n, n_dims), or one observation, (n_dims,)
        :raises ValueError: for another shape than before or one without ``dims``, NaN or infinity
        """
        values = self._select(observations)
        if self._width is None:
            self._waiting.append(values)
            if sum(map(len, self._waiting)) < self.n_calibration:
                return
            values = np.concatenate(self._waiting)
            self._width = self._width_from(values)
            self._waiting = []
        self._bins |= self._bins_of(values, self._width)

    @property
    def value(self) -> int:
        """Number of visited bins; before the calibration, with the widths from the observations so far."""
        if not self._waiting:
            return len(self._bins)
        values = np.concatenate(self._waiting)
        return len(self._bins_of(values, self._width_from(values)))

    def _select(self, observations: np.ndarray) -> np.ndarray:
        values = _checked(observations, None)
        if self.dims is not None:
            if max(self.dims) >= values.shape[1] or min(self.dims) < -values.shape[1]:
                raise ValueError(f"dims {self.dims} are not all among the {values.shape[1]} dimensions of the observations.")
            values = values[:, self.dims]
        if self._waiting and self._waiting[0].shape[1] != values.shape[1]:
            raise ValueError(f"observations had {self._waiting[0].shape[1]} dimensions before, now {values.shape[1]}.")
        if self._width is not None and self._width.size != values.shape[1]:
            self._width = self._for_each_dim(self._width, values.shape[1])
        return np.array(values, order="C")  # float64 (n, len(dims)); a copy, because buffers may be overwritten

    @staticmethod
    def _for_each_dim(width: np.ndarray, n_dims: int) -> np.ndarray:
        """Repeat a single width for each dimension."""
        if width.size not in (1, n_dims):
            raise ValueError(f"There are {width.size} bin widths for {n_dims} dimensions.")
        return np.resize(width, n_dims)

    def _width_from(self, values: np.ndarray) -> np.ndarray:
        spread = values.std(axis=0)
        return np.where(spread > 0, self.width_in_std * spread, 1.0)

    @staticmethod
    def _bins_of(values: np.ndarray, bin_width: np.ndarray) -> set[bytes]:
        bins = np.floor(values / bin_width) + 0.0  # -0.0 becomes 0.0, because bins are compared as bytes
        return set(bins.view(f"V{bins.shape[1] * bins.itemsize}").ravel().tolist())

    def __repr__(self) -> str:
        return f"BinCoverage(dims={self.dims}, value={self.value})"


def _checked(positions: Any, n_dims: int | None) -> np.ndarray:
    """Convert (n, n_dims) or (n_dims,) to float64 (n, n_dims)."""
    array = np.asarray(positions, dtype=np.float64)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or (n_dims is not None and array.shape[1] != n_dims):
        raise ValueError(f"Expected an array of shape (n, {n_dims or 'n_dims'}), got {np.shape(positions)}.")
    if not np.isfinite(array).all():
        raise ValueError("Expected finite numbers, got NaN or infinity.")
    return array
