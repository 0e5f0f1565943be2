"""Gymnasium env of a maze."""

from __future__ import annotations

from math import sqrt
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from .dynamics import PointMassDynamics
from .layout import Cell, MazeLayout
from .render import MazeRenderer
from .spaces import action_space, observation_space, to_displacement, to_start_positions
from .task import GOAL_RADIUS, GoalTask, RewardType


class Maze2dEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Point mass in a maze of unit cells, after the toy mazes of sibling rivalry (Trott et al., 2019, arXiv 1911.01417) as used
    by EDL (Campos et al., 2020, arXiv 2002.03647) and ExDM (arXiv 2502.07279).

    - Observation: position, float64 (2,), within the bounding box of the walls.
    - Action: displacement, each component clipped to ``±0.95``. A wall stops the motion across it, the point slides along it
      for the rest of the move, and a contact pushes the point back from the wall by U(0, 0.01).
    - Start: uniform in the start cell, at least 0.05 from every wall, or ``reset(options={"position": (x, y)})``.
    - Reward: see ``reward_type``; ``info["is_success"]`` is True if the point is at the goal.
    - Episodes are truncated by ``gym.make`` after 50 steps.

    Recorded transitions are relabeled with ``task.compute_reward(achieved_goal, desired_goal, info)`` and
    ``task.compute_terminated``. They are not methods of the env, because SB3's checker would expect Dict observations then.

    :param layout: geometry of the maze, or its name
    :param reward_type: ``"sparse"`` (1 within ``goal_radius`` of the goal, else 0) or ``"dense"`` (minus the distance)
    :param goal_cell: cell ``(i, j)`` of the goal; ``"farthest"`` for the cell at the greatest graph distance from the start;
        by default the last goal cell of the layout
    :param goal_radius: distance within which the goal is reached
    :param terminate_on_success: terminate the episode when the goal is reached
    :param render_mode: ``"rgb_array"`` or None
    :raises ValueError: if an argument is out of range or unknown
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - declared so by Gymnasium

    def __init__(
        self,
        layout: MazeLayout | str = "SquareA",
        *,
        reward_type: RewardType = "sparse",
        goal_cell: Cell | Literal["farthest"] | None = None,
        goal_radius: float = GOAL_RADIUS,
        terminate_on_success: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be one of {self.metadata['render_modes']} or None, got {render_mode!r}.")
        self.layout = MazeLayout.load(layout) if isinstance(layout, str) else layout
        self.dynamics = PointMassDynamics(self.layout)
        self.task = GoalTask(self.layout, reward_type, goal_cell, goal_radius, terminate_on_success)
        self.render_mode = render_mode
        self.action_space = action_space()
        self.observation_space = observation_space(self.layout)
        # Floats, because a step in plain Python is several times faster than with numpy arrays of two.
        self._goal_x, self._goal_y = self.task.goal.tolist()
        self._position: tuple[float, float] | None = None
        self._trail: list[tuple[float, float]] = []
        self._renderer: MazeRenderer | None = None

    @property
    def goal(self) -> np.ndarray:
        """Position of the goal, (2,)."""
        return self.task.goal

    @property
    def terminate_on_success(self) -> bool:
        """Terminate the episode when the goal is reached; can be set."""
        return self.task.terminate_on_success

    @terminate_on_success.setter
    def terminate_on_success(self, terminate_on_success: bool) -> None:
        self.task.terminate_on_success = terminate_on_success

    @property
    def position(self) -> np.ndarray:
        """Position of the point, float64 (2,)."""
        if self._position is None:
            raise ResetNeeded("Call reset before reading the position.")
        return np.array(self._position)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode.

        :param seed: seed of the start positions and the push-backs
        :param options: ``{"position": (x, y)}`` sets the start position
        :return: position and an info with ``is_success``
        :raises ValueError: if the position is malformed or not in free space
        """
        super().reset(seed=seed)
        if options is not None and options.get("position") is not None:
            start = to_start_positions(self.layout, options["position"], 1)
        else:
            start = self.layout.sample_starts(self.np_random, 1)  # (1, 2)
        x, y = start[0].tolist()
        self._position = x, y
        self._trail = [(x, y)]
        return start[0], {"is_success": self._goal_distance(x, y) <= self.task.goal_radius}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Move the point.

        :param action: displacement, (2,)
        :return: position, reward, terminated, False and an info with ``is_success``
        :raises ValueError: if the action is not two finite numbers
        """
        if self._position is None:
            raise ResetNeeded("Call reset before step.")
        dx, dy = to_displacement(action)
        x, y = self._position = self.dynamics.move_one(*self._position, dx, dy, self.np_random)
        distance = self._goal_distance(x, y)
        is_success = distance <= self.task.goal_radius
        reward = float(is_success) if self.task.reward_type == "sparse" else -distance
        if self.render_mode is not None:
            self._trail.append((x, y))
        return np.array((x, y)), reward, is_success and self.terminate_on_success, False, {"is_success": is_success}

    def render(self) -> np.ndarray | None:
        """
        Draw the maze, the start, the goal, the point and its trajectory in this episode.

        :return: image, uint8 (height, width, 3), or None without a ``render_mode``
        """
        if self.render_mode is None:
            gym.logger.warn('There is no render_mode; pass gym.make(..., render_mode="rgb_array") for images.')
            return None
        if self._renderer is None:
            self._renderer = MazeRenderer(self.layout, self.goal, self.task.goal_radius)
        return self._renderer.draw(np.array(self._trail).reshape(-1, 2))

    def _goal_distance(self, x: float, y: float) -> float:
        x, y = x - self._goal_x, y - self._goal_y
        return sqrt(x * x + y * y)
