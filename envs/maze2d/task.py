"""Task of the mazes: reach the goal. Pre-training ignores it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from .layout import Cell, MazeLayout

RewardType = Literal["sparse", "dense"]

GOAL_RADIUS = 0.15
"""Distance within which a goal is reached, as in the original mazes."""


class GoalTask:
    """
    Goal in the center of a cell, and its reward.

    :param layout: geometry of the maze
    :param reward_type: ``"sparse"``: 1 within ``goal_radius`` of the goal, else 0; ``"dense"``: minus the Euclidean distance
        to the goal, regardless of walls
    :param goal_cell: cell ``(i, j)`` of the goal; ``"farthest"`` for the cell at the greatest graph distance from the start;
        by default the last goal cell of the layout
    :param goal_radius: distance within which the goal is reached, > 0
    :param terminate_on_success: terminate the episode when the goal is reached
    :raises ValueError: if an argument is out of range or unknown
    """

    def __init__(
        self,
        layout: MazeLayout,
        reward_type: RewardType = "sparse",
        goal_cell: Cell | Literal["farthest"] | None = None,
        goal_radius: float = GOAL_RADIUS,
        terminate_on_success: bool = False,
    ) -> None:
        if reward_type not in ("sparse", "dense"):
            raise ValueError(f'reward_type must be "sparse" or "dense", got {reward_type!r}.')
        if not 0 < goal_radius < float("inf"):
            raise ValueError(f"goal_radius must be positive and finite, got {goal_radius!r}.")
        self.reward_type: RewardType = reward_type
        self.goal_radius = float(goal_radius)
        self.terminate_on_success = terminate_on_success
        self.goal_cell = _to_cell(layout, goal_cell)
        self.goal = np.array(self.goal_cell, dtype=np.float64)  # (2,)
        self.goal.flags.writeable = False

    def distance(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """
        Compute the Euclidean distance.

        :param achieved: positions, (..., 2)
        :param desired: goals, broadcast against the positions
        :return: distances, (...)
        """
        # Not np.hypot: Maze2dEnv computes the same expression, and both must round alike.
        offset = achieved - desired
        x, y = offset[..., 0], offset[..., 1]
        return np.sqrt(x * x + y * y)

    def reward(self, distance: np.ndarray) -> np.ndarray:
        """
        Compute the reward at a distance from the goal.

        :param distance: distances, (...)
        :return: rewards, float64 (...)
        """
        if self.reward_type == "sparse":
            return (distance <= self.goal_radius).astype(np.float64)
        return -distance

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any = None) -> Any:
        """
        Compute the reward for other goals, in Gymnasium's convention for goal-conditioned envs.

        :param achieved_goal: positions, (2,) or (n, 2)
        :param desired_goal: goals, (2,) or (n, 2)
        :param info: not used
        :return: reward, a float if both shapes are (2,), else (n,)
        :raises ValueError: for another shape
        """
        reward = self.reward(self._goal_distance(achieved_goal, desired_goal))
        return float(reward) if reward.ndim == 0 else reward

    def compute_terminated(self, achieved_goal: Any, desired_goal: Any, info: Any = None) -> Any:
        """
        Compute if episodes with other goals terminate, in Gymnasium's convention for goal-conditioned envs.

        :param achieved_goal: positions, (2,) or (n, 2)
        :param desired_goal: goals, (2,) or (n, 2)
        :param info: not used
        :return: terminated, a bool if both shapes are (2,), else (n,)
        :raises ValueError: for another shape
        """
        reached = self._goal_distance(achieved_goal, desired_goal) <= self.goal_radius
        terminated = reached & bool(self.terminate_on_success)
        return bool(terminated) if terminated.ndim == 0 else terminated

    def _goal_distance(self, achieved_goal: Any, desired_goal: Any) -> np.ndarray:
        achieved, desired = np.asarray(achieved_goal, dtype=np.float64), np.asarray(desired_goal, dtype=np.float64)
        if achieved.shape[-1:] != (2,) or desired.shape[-1:] != (2,):
            raise ValueError(f"Goals must have shape (2,) or (n, 2), got {achieved.shape} and {desired.shape}.")
        return self.distance(achieved, desired)


def _to_cell(layout: MazeLayout, goal_cell: Any) -> Cell:
    if goal_cell is None:
        return layout.goal_cells[-1]
    if isinstance(goal_cell, str) and goal_cell == "farthest":
        return layout.farthest_cell()
    try:
        i, j = (int(index) for index in goal_cell)
    except (TypeError, ValueError) as error:
        raise ValueError(f'goal_cell must be a cell (i, j), "farthest" or None, got {goal_cell!r}.') from error
    layout.check_cell(tuple(goal_cell))  # not rounded
    return i, j
