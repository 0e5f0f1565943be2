"""Vectorized mazes: many points in copies of one maze, computed with numpy."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .dynamics import PointMassDynamics
from .layout import Cell, MazeLayout
from .render import MazeRenderer
from .spaces import action_space, observation_space, to_displacements, to_start_positions
from .task import GOAL_RADIUS, GoalTask, RewardType


class Maze2dVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """
    Vectorized ``Maze2dEnv``, as made by ``gym.make_vec("Maze2d-SquareA-v0", num_envs=8)``, without a Python loop.

    The time limit and autoreset are built in. All sub-envs share one random generator: a vector env with one sub-env draws the
    same numbers as ``Maze2dEnv`` with that seed.

    In the mode ``SAME_STEP``, the last observations of the finished episodes are in ``infos["final_obs"]`` and the last
    infos in ``infos["final_info"]``. In the mode ``DISABLED``, ``reset(options={"reset_mask": mask})`` resets some sub-envs.

    :param num_envs: number of sub-envs
    :param max_episode_steps: number of steps after which an episode is truncated; None for no limit
    :param layout: geometry of the maze, or its name
    :param reward_type: ``"sparse"`` or ``"dense"``, see ``Maze2dEnv``
    :param goal_cell: cell of the goal, see ``Maze2dEnv``
    :param goal_radius: distance within which the goal is reached
    :param terminate_on_success: terminate the episode when the goal is reached
    :param autoreset_mode: autoreset mode of Gymnasium, for sub-envs whose episode ended
    :param render_mode: ``"rgb_array"`` (one image per sub-env, without the trajectory) or None
    :raises ValueError: if an argument is out of range or unknown
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so, and every env makes its own copy
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }
    _NO_LIMIT: ClassVar[int] = np.iinfo(np.int64).max

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 50,
        layout: MazeLayout | str = "SquareA",
        *,
        reward_type: RewardType = "sparse",
        goal_cell: Cell | Literal["farthest"] | None = None,
        goal_radius: float = GOAL_RADIUS,
        terminate_on_success: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1 or None, got {max_episode_steps}.")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be one of {self.metadata['render_modes']} or None, got {render_mode!r}.")
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        self.layout = MazeLayout.load(layout) if isinstance(layout, str) else layout
        self.dynamics = PointMassDynamics(self.layout)
        self.task = GoalTask(self.layout, reward_type, goal_cell, goal_radius, terminate_on_success)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}

        self.single_action_space = action_space()
        self.single_observation_space = observation_space(self.layout)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

        self._limit = self._NO_LIMIT if max_episode_steps is None else max_episode_steps
        self._positions: np.ndarray | None = None  # (num_envs, 2)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._finished = np.zeros(num_envs, dtype=bool)  # episodes that ended and are not reset yet
        self._any_finished = False
        self._all = np.ones(num_envs, dtype=bool)  # Gymnasium's mask of the sub-envs with an info
        self._all.flags.writeable = False
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
    def positions(self) -> np.ndarray:
        """Positions of the points, float64 (num_envs, 2)."""
        if self._positions is None:
            raise ResetNeeded("Call reset before reading the positions.")
        return self._positions.copy()

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode in all sub-envs, or in some of them.

        :param seed: seed of the start positions and the push-backs of all sub-envs
        :param options: ``"position"``: start positions, (2,) or (num_envs, 2); ``"reset_mask"``: bool (num_envs,), resets only
            these sub-envs
        :return: positions (num_envs, 2), and infos with ``is_success``
        :raises ValueError: if a position is malformed or not in free space, or the mask has another shape or type or is False
            everywhere
        """
        super().reset(seed=seed)
        options = options or {}
        mask = self._check_mask(options["reset_mask"]) if options.get("reset_mask") is not None else self._all
        if options.get("position") is not None:
            starts = to_start_positions(self.layout, options["position"], self.num_envs)[mask]
        else:
            starts = self.layout.sample_starts(self.np_random, int(mask.sum()))
        positions = np.empty((self.num_envs, 2)) if self._positions is None else self.positions
        positions[mask] = starts
        self._positions = positions
        self._elapsed[mask] = 0
        self._finished[mask] = False
        self._any_finished = bool(self._finished.any())
        return positions.copy(), self._infos(self._is_success(positions) & mask, mask)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        Move every point.

        :param actions: displacements, (num_envs, 2)
        :return: positions (num_envs, 2), rewards, terminations, truncations (num_envs,), and infos with ``is_success``
        :raises ValueError: if the actions have another shape or are not finite
        """
        if self._positions is None:
            raise ResetNeeded("Call reset before step.")
        displacements = to_displacements(actions, self.num_envs)
        restarted = None
        if self._any_finished:
            if self.autoreset_mode == AutoresetMode.DISABLED:
                raise ResetNeeded(f"The episodes of the envs {np.flatnonzero(self._finished).tolist()} ended: reset them.")
            restarted = np.flatnonzero(self._finished)
            displacements[restarted] = 0.0  # this step only resets them

        positions = self.dynamics.move(self._positions, displacements, self.np_random)
        self._elapsed += 1
        if restarted is not None:
            positions[restarted] = self.layout.sample_starts(self.np_random, restarted.size)
            self._elapsed[restarted] = 0

        distances = self.task.distance(positions, self.task.goal)
        is_success = distances <= self.task.goal_radius
        rewards = is_success.astype(np.float64) if self.task.reward_type == "sparse" else -distances
        truncations = self._elapsed >= self._limit
        terminations = is_success.copy() if self.terminate_on_success else np.zeros(self.num_envs, dtype=bool)
        if restarted is not None:
            rewards[restarted] = 0.0
            terminations[restarted] = False

        infos = self._infos(is_success, self._all)
        self._positions = positions
        self._finished = terminations | truncations
        self._any_finished = bool(np.count_nonzero(self._finished))
        if self._any_finished and self.autoreset_mode == AutoresetMode.SAME_STEP:
            infos = self._reset_in_same_step(is_success)
        return self._positions.copy(), rewards, terminations, truncations, infos

    def _reset_in_same_step(self, is_success: np.ndarray) -> dict[str, Any]:
        """Reset the sub-envs whose episode ended; return infos with their last observations and infos."""
        assert self._positions is not None
        finished, ended = self._finished, np.flatnonzero(self._finished)
        final_obs = np.full(self.num_envs, None, dtype=object)
        # One object per row, as in Gymnasium's own vector envs.
        final_obs[ended] = np.fromiter(self._positions[ended], dtype=object, count=ended.size)
        self._positions[ended] = self.layout.sample_starts(self.np_random, ended.size)
        self._elapsed[ended] = 0
        self._finished = np.zeros(self.num_envs, dtype=bool)
        self._any_finished = False
        infos = self._infos(np.where(finished, self._is_success(self._positions), is_success), self._all)
        infos["final_obs"], infos["_final_obs"] = final_obs, finished
        infos["final_info"], infos["_final_info"] = self._infos(is_success & finished, finished), finished
        return infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """
        Draw all sub-envs: the maze, the start, the goal and the point.

        :return: one image per sub-env, uint8 (height, width, 3), or None without a ``render_mode``
        """
        if self.render_mode is None:
            gym.logger.warn('There is no render_mode; pass gym.make_vec(..., render_mode="rgb_array") for images.')
            return None
        if self._renderer is None:
            self._renderer = MazeRenderer(self.layout, self.goal, self.task.goal_radius)
        return tuple(self._renderer.draw(position[None]) for position in self.positions)

    def capture_state(self) -> dict[str, Any]:
        """Return the state of all sub-envs and of their generator; copies."""
        return {
            "generator": self.np_random.bit_generator.state,
            "positions": self.positions,
            "elapsed": self._elapsed.copy(),
            "finished": self._finished.copy(),
        }

    def restore_state(self, state: dict[str, Any]) -> None:
        """
        Go on from a state.

        :param state: from :meth:`capture_state`
        """
        self.np_random.bit_generator.state = state["generator"]
        self._positions = np.array(state["positions"])
        self._elapsed[:], self._finished[:] = state["elapsed"], state["finished"]
        self._any_finished = bool(self._finished.any())

    def _is_success(self, positions: np.ndarray) -> np.ndarray:
        return self.task.distance(positions, self.task.goal) <= self.task.goal_radius

    def _infos(self, is_success: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        return {"is_success": is_success, "_is_success": mask}

    def _check_mask(self, mask: Any) -> np.ndarray:
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f'options["reset_mask"] must be bool, of shape ({self.num_envs},), and name at least one env.')
        if self._positions is None and not mask.all():
            raise ResetNeeded("The first reset must be of all envs.")
        return mask
