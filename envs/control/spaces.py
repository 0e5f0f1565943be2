"""Spaces of dm_control environments for RL algorithms: flat observations, actions in [-1, 1]."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from dm_env import specs
from gymnasium import spaces


class FlatObservations:
    """
    Concatenation of the parts of an observation, in dm_control's order.

    :param spec: dm_control's specification of the parts
    :raises ValueError: if a part is an image, or not numeric
    """

    def __init__(self, spec: Mapping[str, specs.Array]) -> None:
        self._slices: dict[str, slice] = {}
        self.dim = 0
        for name, part in spec.items():
            if not np.issubdtype(part.dtype, np.number) or part.dtype == np.uint8:
                raise ValueError(f"Observations must be numeric and no images, but {name!r} is {part}.")
            size = int(np.prod(part.shape))
            self._slices[name] = slice(self.dim, self.dim + size)
            self.dim += size

    @property
    def space(self) -> spaces.Box:
        """Unbounded float32 space of shape ``(dim,)``."""
        return spaces.Box(-np.inf, np.inf, (self.dim,), np.float32)

    def __call__(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """
        Flatten an observation.

        :param parts: parts of the observation, by name
        :return: flat observation, float32 ``(dim,)``
        """
        flat = np.empty(self.dim, dtype=np.float32)
        for name, where in self._slices.items():
            part = parts[name]
            flat[where] = part if part.ndim < 2 else part.ravel()
        return flat


class ScaledActions:
    """
    Linear map from actions in [-1, 1] to those of dm_control.

    :param low: lower bounds of dm_control's actions, ``(n_actions,)``
    :param high: upper bounds of dm_control's actions, ``(n_actions,)``
    :raises ValueError: if the bounds are not finite
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(f"Actions need finite bounds, got {low} and {high}.")
        low, high = low.astype(np.float64), high.astype(np.float64)
        self._center, self._half_range = (low + high) / 2, (high - low) / 2
        self._is_scaled = bool((self._center != 0).any() or (self._half_range != 1).any())
        self.space = spaces.Box(-1.0, 1.0, low.shape, np.float32)

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """
        Scale actions.

        :param actions: actions in [-1, 1], ``(..., n_actions)``
        :return: actions within dm_control's bounds, float64 ``(..., n_actions)``
        """
        actions = np.asarray(actions, dtype=np.float64)
        return self._center + self._half_range * actions if self._is_scaled else actions
