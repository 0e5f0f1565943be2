"""Seven mazes of the paper: geometry, physics and task; as an env, as a vector env, and as a VecEnv of Stable-Baselines3."""

from .dynamics import ACTION_LIMIT, PointMassDynamics
from .env import Maze2dEnv
from .layout import MAZE_NAMES, MazeLayout
from .sb3_vec_env import Maze2dSB3VecEnv
from .task import GoalTask
from .vector_env import Maze2dVectorEnv

__all__ = [
    "ACTION_LIMIT",
    "MAZE_NAMES",
    "GoalTask",
    "Maze2dEnv",
    "Maze2dSB3VecEnv",
    "Maze2dVectorEnv",
    "MazeLayout",
    "PointMassDynamics",
]
