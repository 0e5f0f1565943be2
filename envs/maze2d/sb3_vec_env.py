"""The vectorised mazes as a Stable-Baselines3 VecEnv."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from .layout import MazeLayout
from .vector_env import Maze2dVectorEnv


class Maze2dSB3VecEnv(VecEnv):
    """
    ``Maze2dVectorEnv`` behind Stable-Baselines3's interface: what ``make_vec_env`` would give, several times faster.

    Like a ``Monitor``, it reports the return and the length of every finished episode in ``info["episode"]``, so that
    SB3 logs ``ep_rew_mean`` and ``ep_len_mean`` without ``VecMonitor`` around it.

    :param layout: The maze, its name or its env id
    :param n_envs: Number of sub-envs
    :param seed: Seeds the first ``reset``
    :param env_kwargs: Passed to ``Maze2dVectorEnv``, e.g. ``reward_type``, ``goal_cell``, ``max_episode_steps``
    """

    def __init__(
        self, layout: MazeLayout | str = "SquareA", n_envs: int = 1, seed: int | None = None, **env_kwargs: Any
    ) -> None:
        layout = MazeLayout.load(layout) if isinstance(layout, str) else layout
        self.vector_env = Maze2dVectorEnv(n_envs, layout=layout, autoreset_mode=AutoresetMode.SAME_STEP, **env_kwargs)
        super().__init__(n_envs, self.vector_env.single_observation_space, self.vector_env.single_action_space)
        self._actions = np.zeros((n_envs, 2))
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._began = time.time()
        if seed is not None:
            self.seed(seed)

    @property
    def layout(self) -> MazeLayout:
        """The maze."""
        return self.vector_env.layout

    def reset(self) -> np.ndarray:
        """
        Begin an episode in every sub-env, with the seed of ``seed`` and the options of ``set_options`` if they were called.

        :return: Positions, (n_envs, 2)
        :raises ValueError: if only some sub-envs are given a position
        """
        observations, infos = self.vector_env.reset(seed=self._seeds[0], options=self._merged_options())
        self.reset_infos = [{"is_success": is_success} for is_success in infos["is_success"].tolist()]
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """
        Keep the actions for ``step_wait``.

        :param actions: Displacements, (n_envs, 2)
        """
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Move every point; finished sub-envs begin their next episode at once.

        :return: Positions (n_envs, 2), rewards and dones (n_envs,), and an info for each sub-env
        """
        observations, rewards, terminations, truncations, vector_infos = self.vector_env.step(self._actions)
        dones = terminations | truncations
        infos = [{"is_success": s, "TimeLimit.truncated": False} for s in vector_infos["is_success"].tolist()]
        self._returns += rewards
        self._lengths += 1
        if "final_obs" in vector_infos:
            self._finish_episodes(np.flatnonzero(dones), infos, vector_infos, terminations)
        return observations, rewards.astype(np.float32), dones, infos

    def _finish_episodes(
        self, ended: np.ndarray, infos: list[dict[str, Any]], vector_infos: dict[str, Any], terminations: np.ndarray
    ) -> None:
        elapsed = round(time.time() - self._began, 6)
        for index in ended.tolist():
            info = infos[index]
            info["is_success"] = bool(vector_infos["final_info"]["is_success"][index])
            info["TimeLimit.truncated"] = not terminations[index]
            info["terminal_observation"] = vector_infos["final_obs"][index]
            info["episode"] = {"r": round(float(self._returns[index]), 6), "l": int(self._lengths[index]), "t": elapsed}
            self.reset_infos[index] = {"is_success": bool(vector_infos["is_success"][index])}
        self._returns[ended] = 0.0
        self._lengths[ended] = 0

    def _merged_options(self) -> dict[str, Any] | None:
        positions = [options.get("position") for options in self._options]
        if all(position is None for position in positions):
            return None
        if any(position is None for position in positions):
            raise ValueError('either every sub-env is given options["position"] or none is')
        return {"position": np.array(positions, dtype=np.float64)}

    def close(self) -> None:
        """Nothing to release."""
        self.vector_env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        Draw every sub-env.

        :return: An image a sub-env, or None for each without a ``render_mode``
        """
        return self.vector_env.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        An attribute of the sub-envs.

        :param attr_name: ``"position"``, or anything that they share: ``"layout"``, ``"goal"``, ``"render_mode"``, …
        :param indices: Which sub-envs, all by default
        :return: Its value for each of them
        :raises AttributeError: if there is no such attribute
        """
        rows = list(self._get_indices(indices))
        if attr_name == "position":
            return list(self.vector_env.positions[rows])
        if attr_name in ("observation_space", "action_space"):
            attr_name = f"single_{attr_name}"
        return [getattr(self.vector_env, attr_name)] * len(rows)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of all sub-envs.

        :param attr_name: Name of the attribute
        :param value: Its value
        :param indices: All sub-envs, as they share their attributes
        :raises ValueError: if ``indices`` leaves out a sub-env
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"the sub-envs share their attributes: {attr_name!r} can only be set for all of them")
        setattr(self.vector_env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the sub-envs. They are rows of arrays, so the only one they have is ``get_wrapper_attr``.

        :param method_name: ``"get_wrapper_attr"``
        :param method_args: Its arguments
        :param indices: Which sub-envs, all by default
        :param method_kwargs: Its keyword arguments
        :return: The result for each of them
        :raises AttributeError: for another method
        """
        if method_name == "get_wrapper_attr":
            return self.get_attr(method_args[0] if method_args else method_kwargs["name"], indices)
        raise AttributeError(f"the sub-envs are rows of arrays and have no method {method_name!r} of their own")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        Whether the sub-envs are wrapped.

        :param wrapper_class: The wrapper
        :param indices: Which sub-envs, all by default
        :return: True for ``Monitor``, whose work is done here (``evaluate_policy`` asks before it relies on
            ``info["episode"]``), false for everything else
        """
        return [issubclass(Monitor, wrapper_class)] * len(list(self._get_indices(indices)))
