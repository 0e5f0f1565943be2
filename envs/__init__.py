"""
Environments. Importing this package registers ``Maze2d-SquareA-v0`` and the other mazes with Gymnasium.

``gym.make`` gives one maze, ``gym.make_vec`` many at once, moved by numpy without a loop over them.
"""

import gymnasium as gym

from .maze2d import (
    MAZE_NAMES,
    GoalTask,
    Maze2dEnv,
    Maze2dSB3VecEnv,
    Maze2dVectorEnv,
    MazeLayout,
    PointMassDynamics,
)

MAZE_ENV_IDS: tuple[str, ...] = tuple(f"Maze2d-{name}-v0" for name in MAZE_NAMES)
"""Ids of the mazes, in the order of ``MAZE_NAMES``."""

__all__ = [
    "MAZE_ENV_IDS",
    "MAZE_NAMES",
    "GoalTask",
    "Maze2dEnv",
    "Maze2dSB3VecEnv",
    "Maze2dVectorEnv",
    "MazeLayout",
    "PointMassDynamics",
    "register_mazes",
]


def register_mazes() -> None:
    """Register the mazes with Gymnasium, those that are not registered yet."""
    for env_id, name in zip(MAZE_ENV_IDS, MAZE_NAMES, strict=True):
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point=f"{__name__}.maze2d:Maze2dEnv",
                vector_entry_point=f"{__name__}.maze2d:Maze2dVectorEnv",
                max_episode_steps=50,
                kwargs={"layout": name},
            )


register_mazes()
