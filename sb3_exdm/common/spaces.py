"""Observation and action spaces: encoding as vectors, checks, scaling of actions."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from sb3_exdm.common.validation import check_finite

IMAGE_GRID = 8
"""Images are averaged over this many cells along each side."""
IMAGE_DIM = 64
"""Width of the code of an image, after a fixed random projection."""

MAX_DIM = 4096
"""Vectors wider than this are refused: a small model cannot tell rare ones from common ones."""
MAX_CATEGORIES = 256
"""More categories, of all entries together, are hashed: a model cannot tell rare ones from common ones by a one-hot code."""
HASH_DIM = 64
"""Width of the code of hashed categories, one column for each bit of a hash."""


class SpaceEncoder:
    """
    Encodes a batch of elements of a space as a matrix with one row per element.

    Box: flattened. Discrete and MultiDiscrete: one-hot. MultiBinary: zeros and ones. Dict: its entries side by side.
    More than :data:`MAX_CATEGORIES` categories, or :data:`MAX_DIM` bits: a sum of random signs, one vector of
    :data:`HASH_DIM` signs for every category of every entry. This is the one-hot code times a fixed random projection, which
    keeps distances (Achlioptas 2003); a hash computes the few rows of the projection that are needed. Images (``uint8`` in
    [0, 255], three axes): averaged over a coarse grid, then a fixed random projection (Johnson & Lindenstrauss 1984); a
    random encoder is known to suffice for measuring novelty (RE3, arXiv 2102.09430).

    :param space: a Gymnasium space; anything but the above raises a ``ValueError``
    :param what: how error messages call the element
    """

    def __init__(self, space: spaces.Space, what: str = "observation") -> None:
        self.space = space
        self.what = what
        self.dim: int
        self._parts: dict[str, SpaceEncoder] = {}
        self._projection: np.ndarray | None = None
        self._counts: np.ndarray = np.zeros(0, dtype=np.int64)
        self._is_hashed = False
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
            if self.dim > MAX_DIM:
                self._set_categories(np.full(self.dim, 2), np.zeros(self.dim))
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
    def is_vector(self) -> bool:
        """True if the code of an element is the element itself, flattened."""
        return isinstance(self.space, spaces.Box) and not self.is_image

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value of each column of the code, both ``(dim,)``; infinite where nothing is known."""
        if self._parts:
            lows, highs = zip(*(part.bounds for part in self._parts.values()), strict=True)
            return np.concatenate(lows), np.concatenate(highs)
        if self._is_hashed:
            return np.full(self.dim, -math.sqrt(len(self._counts))), np.full(self.dim, math.sqrt(len(self._counts)))
        if not isinstance(self.space, spaces.Box):
            return np.zeros(self.dim), np.ones(self.dim)
        if self._projection is not None:
            return np.full(self.dim, -np.inf), np.full(self.dim, np.inf)
        if self.is_image:
            return np.zeros(self.dim), np.ones(self.dim)
        return self.space.low.ravel().astype(np.float64), self.space.high.ravel().astype(np.float64)

    def _set_categories(self, counts: np.ndarray, starts: np.ndarray) -> None:
        self._counts = counts.astype(np.int64)
        self._starts = starts.astype(np.int64)
        n_categories = sum(self._counts.tolist())  # integers of Python do not overflow
        self._is_hashed = n_categories > MAX_CATEGORIES
        self.dim = HASH_DIM if self._is_hashed else n_categories

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
        :return: ``(n, dim)``, finite; float32, but float64 for a Box of a type that float32 cannot represent
        :raises ValueError: for a wrong shape, a category out of range, NaN or infinity
        """
        if self._parts:
            missing = self._parts.keys() - batch.keys()
            if missing:
                raise ValueError(f"The {self.what} lacks the keys {sorted(missing)} of its space.")
            return np.concatenate([part(batch[key]) for key, part in self._parts.items()], axis=1)
        array = np.asarray(batch)
        if len(self._counts):
            return self._encode_categories(array)
        shape = self.space.shape
        if array.shape[1:] != shape:
            raise ValueError(
                f"Expected a batch of {self.what}s of shape (n, {', '.join(map(str, shape or ()))}), got {array.shape}. "
                "A single one needs a leading axis of length 1."
            )
        if isinstance(self.space, spaces.Box) and self.is_image:
            return self._encode_image(array)
        flat = array.reshape(len(array), self.dim)
        check_finite(flat, self.what)
        return flat.astype(np.float32 if np.can_cast(flat.dtype, np.float32) else np.float64, copy=False)

    def _encode_categories(self, array: np.ndarray) -> np.ndarray:
        n_values = len(self._counts)
        if array.ndim == 0 or array.size != len(array) * n_values:
            raise ValueError(f"Expected a batch of {self.what}s of shape (n, {n_values}), got {array.shape}.")
        values = array.reshape(len(array), n_values)
        if not np.isfinite(values.astype(np.float64)).all():
            raise ValueError(f"The {self.what} holds NaN or infinity, expected categories of {self.space}.")
        categories = values.astype(np.int64) - self._starts
        if (categories < 0).any() or (categories >= self._counts).any():
            raise ValueError(f"The {self.what} holds a category outside {self.space}.")
        if self._is_hashed:
            return _random_signs(categories)
        code = np.zeros((len(array), self.dim), dtype=np.float32)
        offsets = np.cumsum(self._counts) - self._counts
        np.put_along_axis(code, categories + offsets, 1.0, axis=1)
        return code

    def _encode_image(self, array: np.ndarray) -> np.ndarray:
        if not self._channels_first:
            array = array.transpose(0, 3, 1, 2)  # (n, channels, height, width)
        (rows, columns), (cell_height, cell_width) = self._grid, self._cell
        array = array[:, :, : rows * cell_height, : columns * cell_width]
        cells = array.reshape(len(array), -1, rows, cell_height, columns, cell_width)
        pooled = cells.mean(axis=(3, 5), dtype=np.float32).reshape(len(array), -1) / 255.0  # (n, channels * rows * columns)
        return pooled if self._projection is None else pooled @ self._projection


def _random_signs(categories: np.ndarray) -> np.ndarray:
    """
    Sum vectors of random signs, each a function of entry and category, so that columns have unit variance.

    :param categories: categories of each entry, counted from zero, ``(n, n_entries)``
    :return: float32 ``(n, HASH_DIM)``
    """
    n, n_entries = categories.shape
    n_positive = np.zeros((n, HASH_DIM), dtype=np.int64)
    at_once = max(2**20 // max(n, 1), 1)  # bounds the memory
    for begin in range(0, n_entries, at_once):
        part = categories[:, begin : begin + at_once].astype(np.uint64)
        entries = np.arange(begin, begin + part.shape[1], dtype=np.uint64)
        words = _mix(part + _mix(entries + np.uint64(1)))  # (n, at_once), one bit for every sign
        bits = np.unpackbits(words[..., None].view(np.uint8), axis=-1)  # (n, at_once, HASH_DIM)
        n_positive += bits.sum(axis=1, dtype=np.int64)
    return ((2 * n_positive - n_entries) / math.sqrt(n_entries)).astype(np.float32)


def _mix(words: np.ndarray) -> np.ndarray:
    """Hash 64-bit words, by splitmix64 (Steele, Lea & Flood 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def is_bounded_vector(space: spaces.Space) -> bool:
    """
    Tell bounded vectors from other spaces.

    :param space: any space
    :return: whether it is a Box with one axis and finite bounds; those of float32 count as infinite
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        return False
    return bool(np.all(np.abs(space.low) < 1e6) and np.all(np.abs(space.high) < 1e6))


def check_vector_spaces(observation_space: spaces.Space, action_space: spaces.Space, who: str) -> None:
    """
    :param observation_space: must be a Box, and no images
    :param action_space: must be a Box with finite bounds
    :param who: for the error message
    :raises ValueError: if they are not
    """
    if isinstance(observation_space, spaces.Dict):
        raise ValueError(
            f"{who} needs observations that are vectors, got {observation_space}; flatten them with "
            "gymnasium.wrappers.FlattenObservation."
        )
    if not isinstance(observation_space, spaces.Box) or is_image_space(observation_space):
        raise ValueError(f"{who} needs observations that are vectors (a Box, no images), got {observation_space}.")
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"{who} denoises continuous actions (a Box), got {action_space}.")
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise ValueError(
            f"{who} needs actions with finite bounds, got {action_space}; rescale them with gymnasium.wrappers.RescaleAction."
        )


def counts_from_zero(space: spaces.Space) -> bool:
    """
    Tell whether Stable-Baselines3, which counts discrete actions from zero, understands an action space.

    :param space: any space
    :return: False for a Discrete or MultiDiscrete space whose ``start`` is not zero
    """
    return not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) or not np.any(space.start)


def check_action_start(action_space: spaces.Space) -> None:
    """
    Refuse actions that Stable-Baselines3 would not count from their ``start``.

    :param action_space: action space of an environment
    :raises ValueError: for a Discrete or MultiDiscrete space whose ``start`` is not zero
    """
    if not counts_from_zero(action_space):
        raise ValueError(
            "Stable-Baselines3 counts discrete actions from zero and would send wrong ones to an environment with "
            f"{action_space}. Shift them with gymnasium.wrappers.TransformAction(env, lambda action: action + start, "
            "space_that_starts_at_zero)."
        )


def scale_actions(actions: Any, space: spaces.Box, dtype: Any = np.float64) -> np.ndarray:
    """
    Scale actions to [-1, 1].

    :param actions: actions in the units of the environment, ``(n, *shape)``
    :param space: action space
    :param dtype: precision of the arithmetic, None for that of the actions
    :return: clipped to [-1, 1], float32 ``(n, dim)``
    """
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    rows = np.asarray(actions, dtype=dtype).reshape(len(actions), -1)
    return np.clip(2.0 * (rows - low) / (high - low) - 1.0, -1.0, 1.0).astype(np.float32)


def unscale_actions(actions: np.ndarray, space: spaces.Box) -> np.ndarray:
    """Inverse of :func:`scale_actions`, ``(n, *shape)`` in the type of the space."""
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    rows = np.clip(low + 0.5 * (np.asarray(actions, dtype=np.float64) + 1.0) * (high - low), low, high)
    return rows.reshape(len(rows), *space.shape).astype(space.dtype)


MAX_LOW_DIM = 4
"""Most dimensions of a low-dimensional observation."""


def is_low_dim(space: spaces.Space) -> bool:
    """
    Tell low-dimensional observations, where sines and cosines of single coordinates help, from all others.

    :param space: observation space
    :return: whether it is a bounded vector of at most :data:`MAX_LOW_DIM` dimensions
    """
    return is_bounded_vector(space) and spaces.flatdim(space) <= MAX_LOW_DIM
