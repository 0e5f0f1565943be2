"""VecEnv of Stable-Baselines3 for the vectorized mazes."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_exdm.envs.sb3_vec_env import SB3VecEnv

from .layout import MazeLayout
from .vector_env import Maze2dVectorEnv


class Maze2dSB3VecEnv(SB3VecEnv):
    """
    ``Maze2dVectorEnv`` as a VecEnv. ``set_options({"position": (x, y)})`` sets the start position of the next ``reset``.

    :param layout: geometry of the maze, its name or its env id
    :param n_envs: number of sub-envs
    :param seed: seed of the first ``reset``
    :param env_kwargs: arguments of ``Maze2dVectorEnv``, e.g. ``reward_type``, ``goal_cell``, ``max_episode_steps``
    """

    vector_env: Maze2dVectorEnv

    def __init__(
        self, layout: MazeLayout | str = "SquareA", n_envs: int = 1, seed: int | None = None, **env_kwargs: Any
    ) -> None:
        layout = MazeLayout.load(layout) if isinstance(layout, str) else layout
        super().__init__(Maze2dVectorEnv(n_envs, layout=layout, autoreset_mode=AutoresetMode.SAME_STEP, **env_kwargs), seed)

    @property
    def layout(self) -> MazeLayout:
        """Geometry of the maze."""
        return self.vector_env.layout

    def _merged_options(self) -> dict[str, Any] | None:
        positions = [options.get("position") for options in self._options]
        if all(position is None for position in positions):
            return None
        if any(position is None for position in positions):
            raise ValueError('Set options["position"] for every sub-env or for none.')
        return {"position": np.array(positions, dtype=np.float64)}

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Get an attribute of the sub-envs.

        :param attr_name: ``"position"``, or a shared attribute, e.g. ``"layout"``, ``"goal"`` or ``"render_mode"``
        :param indices: indices of sub-envs, all by default
        :return: its value for each of them
        :raises AttributeError: if there is no such attribute
        """
        if attr_name == "position":
            return list(self.vector_env.positions[list(self._get_indices(indices))])
        return super().get_attr(attr_name, indices)
