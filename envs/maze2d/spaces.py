"""Spaces of the mazes, and checks of actions and start positions."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
from gymnasium import spaces

from .dynamics import ACTION_LIMIT
from .layout import MazeLayout


def action_space() -> spaces.Box:
    """Make the space of displacements along x and y, in cells."""
    return spaces.Box(-ACTION_LIMIT, ACTION_LIMIT, (2,), dtype=np.float32)


def observation_space(layout: MazeLayout) -> spaces.Box:
    """
    Make the space of positions: the bounding box of the walls, in float64.

    :param layout: geometry of the maze
    """
    x_min, y_min, x_max, y_max = layout.bounding_box
    return spaces.Box(np.array([x_min, y_min]), np.array([x_max, y_max]), dtype=np.float64)


def to_displacement(action: Any) -> tuple[float, float]:
    """
    Check an action and clip it to ``±0.95``.

    :param action: two numbers
    :return: displacement ``(dx, dy)``
    :raises ValueError: if the action is not two finite numbers
    """
    if type(action) is np.ndarray and action.shape == (2,):
        dx, dy = action.tolist()
    else:
        dx, dy = _to_floats(action, "The action", (2,)).tolist()
    if not (-ACTION_LIMIT <= dx <= ACTION_LIMIT and -ACTION_LIMIT <= dy <= ACTION_LIMIT):
        if not (isfinite(dx) and isfinite(dy)):
            raise ValueError(f"The action must be finite, got {action!r}.")
        dx, dy = min(max(dx, -ACTION_LIMIT), ACTION_LIMIT), min(max(dy, -ACTION_LIMIT), ACTION_LIMIT)
    return dx, dy


def to_displacements(actions: Any, num_envs: int) -> np.ndarray:
    """
    Check a batch of actions and clip them to ``±0.95``.

    :param actions: actions, (num_envs, 2)
    :param num_envs: number of actions
    :return: displacements, float64 (num_envs, 2), always a new array
    :raises ValueError: for another shape, NaN or infinity
    """
    displacements = _to_floats(actions, "Actions", (num_envs, 2))
    if np.count_nonzero(np.abs(displacements) <= ACTION_LIMIT) < displacements.size:  # NaN is not <= either
        if not np.isfinite(displacements).all():
            bad = np.flatnonzero(~np.isfinite(displacements).all(axis=1)).tolist()
            raise ValueError(f"Actions must be finite, those of the envs {bad} are not.")
        np.clip(displacements, -ACTION_LIMIT, ACTION_LIMIT, out=displacements)
    return displacements


def to_start_positions(layout: MazeLayout, position: Any, num_envs: int) -> np.ndarray:
    """
    Check the start positions in ``options["position"]``.

    :param layout: geometry of the maze
    :param position: one position (2,) for all envs, or one per env, (num_envs, 2)
    :param num_envs: number of envs
    :return: positions, float64 (num_envs, 2)
    :raises ValueError: for another shape, or a position that is not in free space
    """
    shape = (num_envs, 2) if np.ndim(position) == 2 else (2,)
    positions = np.broadcast_to(_to_floats(position, 'options["position"]', shape), (num_envs, 2)).copy()
    free = layout.contains(positions)
    if not free.all():
        raise ValueError(
            f'options["position"] must be in free space: {positions[~free][0].tolist()} is outside the maze {layout.name}, '
            "on a wall, or not finite."
        )
    return positions


def _to_floats(value: Any, what: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be numbers of shape {shape}, got {value!r}.") from error
    if array.shape != shape:
        raise ValueError(f"{what} must have shape {shape}, got {array.shape}.")
    return array
