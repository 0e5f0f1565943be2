"""What goes into and comes out of the mazes: their spaces, and the checks of actions and start positions."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
from gymnasium import spaces

from .dynamics import ACTION_LIMIT
from .layout import MazeLayout


def action_space() -> spaces.Box:
    """Displacements along x and y, in cells."""
    return spaces.Box(-ACTION_LIMIT, ACTION_LIMIT, (2,), dtype=np.float32)


def observation_space(layout: MazeLayout) -> spaces.Box:
    """
    The bounding box of the walls, in float64 like the positions themselves.

    :param layout: The maze
    """
    x_min, y_min, x_max, y_max = layout.bounding_box
    return spaces.Box(np.array([x_min, y_min]), np.array([x_max, y_max]), dtype=np.float64)


def to_displacement(action: Any) -> tuple[float, float]:
    """
    The displacement that one action asks for, clipped to ``±0.95``.

    :param action: Two numbers
    :return: ``(dx, dy)``
    :raises ValueError: if these are not two finite numbers
    """
    if type(action) is np.ndarray and action.shape == (2,):
        dx, dy = action.tolist()
    else:
        dx, dy = _to_floats(action, "an action", (2,)).tolist()
    if not (-ACTION_LIMIT <= dx <= ACTION_LIMIT and -ACTION_LIMIT <= dy <= ACTION_LIMIT):
        if not (isfinite(dx) and isfinite(dy)):
            raise ValueError(f"an action must be finite, got {action!r}")
        dx, dy = min(max(dx, -ACTION_LIMIT), ACTION_LIMIT), min(max(dy, -ACTION_LIMIT), ACTION_LIMIT)
    return dx, dy


def to_displacements(actions: Any, num_envs: int) -> np.ndarray:
    """
    The displacements that a batch of actions asks for, clipped to ``±0.95``.

    :param actions: Actions, (num_envs, 2)
    :param num_envs: How many there must be
    :return: Displacements, float64 (num_envs, 2); never the array that was passed in
    :raises ValueError: if the shape is another one or a number is not finite
    """
    displacements = _to_floats(actions, "actions", (num_envs, 2))
    if np.count_nonzero(np.abs(displacements) <= ACTION_LIMIT) < displacements.size:  # NaN is not <= either
        if not np.isfinite(displacements).all():
            raise ValueError(f"actions must be finite, those of the envs {_bad_rows(displacements)} are not")
        np.clip(displacements, -ACTION_LIMIT, ACTION_LIMIT, out=displacements)
    return displacements


def to_start_positions(layout: MazeLayout, position: Any, num_envs: int) -> np.ndarray:
    """
    Start positions from ``options["position"]``.

    :param layout: The maze
    :param position: One position (2,) for all envs, or one for each, (num_envs, 2)
    :param num_envs: How many positions to return
    :return: Positions, float64 (num_envs, 2)
    :raises ValueError: if the shape is another one, or a position is not in free space
    """
    shape = (num_envs, 2) if np.ndim(position) == 2 else (2,)
    positions = np.broadcast_to(_to_floats(position, 'options["position"]', shape), (num_envs, 2)).copy()
    free = layout.contains(positions)
    if not free.all():
        raise ValueError(
            f'options["position"] must lie in free space: {positions[~free][0].tolist()} is outside the maze {layout.name}, '
            "on one of its walls, or not finite"
        )
    return positions


def _to_floats(value: Any, what: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be numbers of shape {shape}, got {value!r}") from error
    if array.shape != shape:
        raise ValueError(f"{what} must have shape {shape}, got {array.shape}")
    return array


def _bad_rows(array: np.ndarray) -> list[int]:
    return np.flatnonzero(~np.isfinite(array).all(axis=1)).tolist()
