"""
A crossroads whose goal is drawn in every episode, and is shown late: both branches are needed, from the same state.

The maze is SquareTree, which is symmetric. The goal is the last cell of the outer left or of the outer right branch. Its side
is the third number of the observation, 0 until the point is near the crossroads. Exploration takes both branches equally
often, so the actions that it took at the crossroads have two modes, and a Gaussian fitted to them points at the wall between.
Importing this file registers ``Crossroads-v0``.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_exdm.envs import Maze2dEnv

CROSSROADS = np.array([0.0, -2.0])
"""Position of the crossroads."""
GOALS = {-1: np.array([-6.0, -6.0]), 1: np.array([6.0, -6.0])}
"""Goals by their side."""
SIGHT, GOAL_RADIUS, MAX_STEPS = 1.0, 0.5, 50
"""Distance to the crossroads that shows the side, distance to the goal that ends an episode, and steps of an episode."""


class CrossroadsEnv(gym.Env[np.ndarray, np.ndarray]):
    """Reach the goal, whose side is drawn in every episode. The observation is (x, y, side), with side 0 until it is shown."""

    def __init__(self) -> None:
        self._maze = Maze2dEnv("SquareTree")
        box = self._maze.observation_space
        assert isinstance(box, spaces.Box)
        self.observation_space = spaces.Box(np.append(box.low, -1.0), np.append(box.high, 1.0), dtype=np.float64)
        self.action_space = self._maze.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode.

        :param seed: seed of the sides and of the maze
        :param options: those of the maze
        :return: observation and an empty info
        """
        super().reset(seed=seed)
        self._side = int(self.np_random.choice((-1, 1)))
        self._is_shown = False
        position, _ = self._maze.reset(seed=seed, options=options)
        return self._observe(position), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Move the point.

        :param action: displacement, (2,)
        :return: observation, reward, terminated, truncated and an info with ``is_success``
        """
        position, *_ = self._maze.step(action)
        is_success = bool(np.linalg.norm(position - GOALS[self._side]) <= GOAL_RADIUS)
        return self._observe(position), float(is_success), is_success, False, {"is_success": is_success}

    def _observe(self, position: np.ndarray) -> np.ndarray:
        self._is_shown = self._is_shown or bool(np.linalg.norm(position - CROSSROADS) <= SIGHT)
        return np.append(position, self._side if self._is_shown else 0.0)


gym.register("Crossroads-v0", entry_point=CrossroadsEnv, max_episode_steps=MAX_STEPS)
