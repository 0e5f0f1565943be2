"""Turns observations or actions of any supported Gymnasium space into one float matrix."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

IMAGE_GRID = 8
"""Images are averaged over this many cells along each side."""
IMAGE_DIM = 64
"""Width of the code of an image, after a fixed random projection."""

MAX_DIM = 4096
"""Vectors wider than this are refused: a small model cannot tell rare ones from common ones."""


def check_finite(batch: Any, what: str) -> None:
    """
    Refuse NaN and infinity where they come in, before they spread to everything that is learned.

    :param batch: array, or a mapping of arrays
    :param what: how the error message calls an element
    :raises ValueError: naming the first bad entry
    """
    if isinstance(batch, dict):
        for key, part in batch.items():
            check_finite(part, f"{what}[{key!r}]")
        return
    array = np.asarray(batch)
    if array.dtype.kind != "f":
        return
    # The sum is finite only if every entry is: one pass instead of two. It may overflow, so look closer before refusing.
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum()
    if not math.isfinite(total) and not np.isfinite(array).all():
        row, *place = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(
            f"The {what} holds {array[(row, *place)]} (row {row}, entry {place}). Nothing can be learned from it: "
            "check the environment, or clip its output with gymnasium.wrappers.TransformObservation."
        )


class SpaceEncoder:
    """
    Encodes a batch of elements of a space as a matrix with one row per element.

    Box: flattened. Discrete and MultiDiscrete: one-hot. MultiBinary: zeros and ones. Dict: its entries side by side.
    Images (``uint8`` in [0, 255], three axes): averaged over a coarse grid, then a fixed random projection, which keeps
    distances (Johnson & Lindenstrauss 1984); a random encoder is known to suffice for measuring novelty
    (RE3, arXiv 2102.09430).

    :param space: a Gymnasium space; anything but the above raises a ``ValueError``
    :param what: how error messages call the element
    """

    def __init__(self, space: spaces.Space, what: str = "observation") -> None:
        self.space = space
        self.what = what
        self.dim: int
        self._parts: dict[str, SpaceEncoder] = {}
        self._projection: np.ndarray | None = None
        self._offsets: np.ndarray = np.zeros(0, dtype=np.int64)
        self._counts: np.ndarray = np.zeros(0, dtype=np.int64)
        if isinstance(space, spaces.Dict):
            self._parts = {key: SpaceEncoder(part, f"{what}[{key!r}]") for key, part in space.spaces.items()}
            self.dim = sum(part.dim for part in self._parts.values())
            if self.dim == 0:
                raise ValueError(f"The {what} space is empty: {space}.")
        elif isinstance(space, spaces.Discrete):
            self._set_categories(np.array([space.n]), np.array([space.start]))
        elif isinstance(space, spaces.MultiDiscrete):
            self._set_categories(space.nvec.ravel(), space.start.ravel())
        elif isinstance(space, spaces.MultiBinary):
            self.dim = math.prod(space.shape)
        elif isinstance(space, spaces.Box):
            self.dim = math.prod(space.shape)
            self.is_image = len(space.shape) == 3 and is_image_space(space)
            if self.is_image:
                self._set_image(space.shape)
            if self.dim == 0:
                raise ValueError(f"The {what} space has no dimension: {space}.")
            if self.dim > MAX_DIM:
                raise ValueError(
                    f"The {what} space has {self.dim} dimensions, at most {MAX_DIM} are supported. Images must be uint8 in "
                    "[0, 255] with three axes; anything else this large needs an encoder of its own."
                )
        else:
            raise ValueError(
                f"Unsupported {what} space {space}. Supported are Box, Discrete, MultiDiscrete, MultiBinary and Dict of them; "
                "flatten it with gymnasium.wrappers.FlattenObservation first."
            )

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value of each column of the code, both ``(dim,)``; infinite where nothing is known."""
        if self._parts:
            lows, highs = zip(*(part.bounds for part in self._parts.values()), strict=True)
            return np.concatenate(lows), np.concatenate(highs)
        if not isinstance(self.space, spaces.Box):
            return np.zeros(self.dim), np.ones(self.dim)
        if self._projection is not None:
            return np.full(self.dim, -np.inf), np.full(self.dim, np.inf)
        if self.is_image:
            return np.zeros(self.dim), np.ones(self.dim)
        return self.space.low.ravel().astype(np.float64), self.space.high.ravel().astype(np.float64)

    def _set_categories(self, counts: np.ndarray, starts: np.ndarray) -> None:
        self._counts = counts.astype(np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        self._starts = starts.astype(np.int64)
        self.dim = int(self._counts.sum())

    def _set_image(self, shape: tuple[int, ...]) -> None:
        self._channels_first = is_image_space_channels_first(self.space)  # type: ignore[arg-type]
        channels, height, width = shape if self._channels_first else (shape[2], shape[0], shape[1])
        self._cell = (max(height // IMAGE_GRID, 1), max(width // IMAGE_GRID, 1))
        self._grid = (height // self._cell[0], width // self._cell[1])
        pooled = channels * self._grid[0] * self._grid[1]
        self.dim = min(pooled, IMAGE_DIM)
        if pooled > IMAGE_DIM:
            # The projection is part of the encoding, not of a run: its seed is fixed so that saved models stay valid.
            directions = np.random.default_rng(0).standard_normal((pooled, IMAGE_DIM))
            self._projection = (directions / math.sqrt(pooled)).astype(np.float32)

    def __call__(self, batch: Any) -> np.ndarray:
        """
        :param batch: array of shape ``(n, *space.shape)``, for a Dict space a mapping of such arrays; Stable-Baselines3's
            ``(n, 1)`` for Discrete is accepted too
        :return: ``(n, dim)`` float32, finite
        :raises ValueError: for a wrong shape, a category out of range, NaN or infinity
        """
        if self._parts:
            missing = self._parts.keys() - batch.keys()
            if missing:
                raise ValueError(f"The {self.what} lacks the keys {sorted(missing)} of its space.")
            return np.concatenate([part(batch[key]) for key, part in self._parts.items()], axis=1)
        array = np.asarray(batch)
        if len(self._counts):
            return self._one_hot(array)
        shape = self.space.shape
        if array.shape[1:] != shape:
            raise ValueError(
                f"Expected a batch of {self.what}s of shape (n, {', '.join(map(str, shape or ()))}), got {array.shape}. "
                "A single one needs a leading axis of length 1."
            )
        if isinstance(self.space, spaces.Box) and self.is_image:
            return self._encode_image(array)
        flat = array.reshape(len(array), self.dim).astype(np.float32, copy=False)
        check_finite(flat, self.what)
        return flat

    def _one_hot(self, array: np.ndarray) -> np.ndarray:
        n_values = len(self._counts)
        if array.ndim == 0 or array.size != len(array) * n_values:
            raise ValueError(f"Expected a batch of {self.what}s of shape (n, {n_values}), got {array.shape}.")
        values = array.reshape(len(array), n_values)
        if not np.isfinite(values.astype(np.float64)).all():
            raise ValueError(f"The {self.what} holds NaN or infinity, expected categories of {self.space}.")
        categories = values.astype(np.int64) - self._starts
        if (categories < 0).any() or (categories >= self._counts).any():
            raise ValueError(f"The {self.what} holds a category outside {self.space}.")
        code = np.zeros((len(array), self.dim), dtype=np.float32)
        np.put_along_axis(code, categories + self._offsets, 1.0, axis=1)
        return code

    def _encode_image(self, array: np.ndarray) -> np.ndarray:
        if not self._channels_first:
            array = array.transpose(0, 3, 1, 2)  # (n, channels, height, width)
        (rows, columns), (cell_height, cell_width) = self._grid, self._cell
        array = array[:, :, : rows * cell_height, : columns * cell_width]
        cells = array.reshape(len(array), -1, rows, cell_height, columns, cell_width)
        pooled = cells.mean(axis=(3, 5), dtype=np.float32).reshape(len(array), -1) / 255.0  # (n, channels * rows * columns)
        return pooled if self._projection is None else pooled @ self._projection
