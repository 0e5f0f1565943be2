"""
Environments: seven mazes, and the continuous control tasks of URLB.

Importing this package registers ``Maze2d-SquareA-v0`` and the other mazes with Gymnasium, and ``URLB/walker-walk-v0`` and the
other tasks of URLB, whose physics need the extra ``dmc`` (see :mod:`sb3_exdm.envs.control`).

``gym.make`` creates a single environment. ``gym.make_vec`` creates a vectorized one: the mazes are vectorized with numpy, the
walker, quadruped and hopper step MuJoCo directly.
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
from .sb3_vec_env import SB3VecEnv
from .urlb import TASKS, VECTORIZED_DOMAINS, ControlTask, expert_return

MAZE_ENV_IDS: tuple[str, ...] = tuple(f"Maze2d-{name}-v0" for name in MAZE_NAMES)
"""Ids of the mazes, in the order of ``MAZE_NAMES``."""

__all__ = [
    "MAZE_ENV_IDS",
    "MAZE_NAMES",
    "TASKS",
    "VECTORIZED_DOMAINS",
    "ControlTask",
    "GoalTask",
    "Maze2dEnv",
    "Maze2dSB3VecEnv",
    "Maze2dVectorEnv",
    "MazeLayout",
    "PointMassDynamics",
    "SB3VecEnv",
    "expert_return",
    "register_envs",
]


def register_envs() -> None:
    """Register all environments with Gymnasium that are not registered yet. Does not import MuJoCo."""
    for env_id, name in zip(MAZE_ENV_IDS, MAZE_NAMES, strict=True):
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point=f"{__name__}.maze2d:Maze2dEnv",
                vector_entry_point=f"{__name__}.maze2d:Maze2dVectorEnv",
                max_episode_steps=50,
                kwargs={"layout": name},
            )
    for env_id, task in TASKS.items():
        if env_id not in gym.registry:
            is_vectorized = task.domain in VECTORIZED_DOMAINS
            gym.register(
                id=env_id,
                entry_point=f"{__name__}.control:ControlEnv",
                vector_entry_point=f"{__name__}.control:ControlVectorEnv" if is_vectorized else None,
                max_episode_steps=task.max_episode_steps,
                kwargs={"domain": task.domain, "task": task.name},
            )


register_envs()
