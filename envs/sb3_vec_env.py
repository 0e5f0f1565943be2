"""Adapter from vector environments of Gymnasium to the VecEnv of Stable-Baselines3."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn


class SB3VecEnv(VecEnv):
    """
    VecEnv around a vector env of Gymnasium that computes all sub-envs together; several times faster than ``make_vec_env``.

    Like ``Monitor``, it reports the return and the length of finished episodes in ``info["episode"]``, so SB3 logs
    ``ep_rew_mean`` and ``ep_len_mean`` without ``VecMonitor``.

    :param vector_env: vector env with the autoreset mode ``SAME_STEP``
    :param seed: seed of the first ``reset``
    :raises ValueError: for another autoreset mode
    """

    def __init__(self, vector_env: VectorEnv[np.ndarray, np.ndarray, np.ndarray], seed: int | None = None) -> None:
        if vector_env.metadata["autoreset_mode"] != AutoresetMode.SAME_STEP:
            mode = vector_env.metadata["autoreset_mode"]
            raise ValueError(f"The vector env must have the autoreset mode SAME_STEP, got {mode}.")
        self.vector_env = vector_env
        n_envs = vector_env.num_envs
        super().__init__(n_envs, vector_env.single_observation_space, vector_env.single_action_space)
        self._actions = np.zeros(vector_env.action_space.shape or ())
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._start_time = time.time()
        if seed is not None:
            self.seed(seed)

    def reset(self) -> np.ndarray:
        """
        Start an episode in all sub-envs, with the seed of ``seed`` and the options of ``set_options`` if they were called.

        :return: observations, (n_envs, ...)
        """
        observations, infos = self.vector_env.reset(seed=self._seeds[0], options=self._merged_options())
        self.reset_infos = self._split(infos)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """
        Store the actions for ``step_wait``.

        :param actions: actions, (n_envs, ...)
        """
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step all sub-envs; those whose episode ends are reset at once.

        :return: observations (n_envs, ...), rewards and dones (n_envs,), and one info per sub-env
        """
        observations, rewards, terminations, truncations, vector_infos = self.vector_env.step(self._actions)
        dones = terminations | truncations
        infos = self._split(vector_infos)
        for info in infos:
            info["TimeLimit.truncated"] = False
        self._returns += rewards
        self._lengths += 1
        if "final_obs" in vector_infos:
            self._finish_episodes(np.flatnonzero(dones), infos, vector_infos, terminations)
        return observations, rewards.astype(np.float32), dones, infos

    def _finish_episodes(
        self, ended: np.ndarray, infos: list[dict[str, Any]], vector_infos: dict[str, Any], terminations: np.ndarray
    ) -> None:
        """Report the ends of episodes in ``infos``; move the infos of the next ones to ``reset_infos``."""
        elapsed = round(time.time() - self._start_time, 6)
        last = self._split(vector_infos["final_info"])
        for index in ended.tolist():
            self.reset_infos[index] = {key: value for key, value in infos[index].items() if key != "TimeLimit.truncated"}
            infos[index] = info = last[index]
            info["TimeLimit.truncated"] = not terminations[index]
            info["terminal_observation"] = vector_infos["final_obs"][index]
            info["episode"] = {"r": round(float(self._returns[index]), 6), "l": int(self._lengths[index]), "t": elapsed}
        self._returns[ended] = 0.0
        self._lengths[ended] = 0

    def _split(self, vector_infos: dict[str, Any]) -> list[dict[str, Any]]:
        """Split Gymnasium's dict of arrays into one info per sub-env."""
        columns = {key: values.tolist() for key, values in vector_infos.items() if not key.startswith(("_", "final_"))}
        return [{key: values[index] for key, values in columns.items()} for index in range(self.num_envs)]

    def _merged_options(self) -> dict[str, Any] | None:
        """Merge the options of the sub-envs into those of the vector env."""
        if any(self._options):
            raise ValueError(f"{type(self.vector_env).__name__} takes no options.")
        return None

    def close(self) -> None:
        """Close the vector env."""
        self.vector_env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        Render all sub-envs.

        :return: one image per sub-env, or None for each without a ``render_mode``
        """
        images: Any = self.vector_env.render()
        return images or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Get an attribute of the sub-envs, which share their attributes.

        :param attr_name: name of the attribute, e.g. ``"render_mode"`` or ``"observation_space"``
        :param indices: indices of sub-envs, all by default
        :return: its value for each of them
        :raises AttributeError: if there is no such attribute
        """
        if attr_name in ("observation_space", "action_space"):
            attr_name = f"single_{attr_name}"
        return [getattr(self.vector_env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of all sub-envs.

        :param attr_name: name of the attribute
        :param value: its value
        :param indices: all sub-envs, because they share their attributes
        :raises ValueError: if ``indices`` leaves out a sub-env
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"The sub-envs share their attributes: {attr_name!r} can only be set for all of them.")
        setattr(self.vector_env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the sub-envs. Only ``get_wrapper_attr`` is available, because they are no separate objects.

        :param method_name: ``"get_wrapper_attr"``
        :param method_args: its arguments
        :param indices: indices of sub-envs, all by default
        :param method_kwargs: its keyword arguments
        :return: its result for each of them
        :raises AttributeError: for another method
        """
        if method_name == "get_wrapper_attr":
            return self.get_attr(method_args[0] if method_args else method_kwargs["name"], indices)
        raise AttributeError(f"The sub-envs are no separate objects and have no method {method_name!r}.")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        Check if the sub-envs are wrapped.

        :param wrapper_class: class of the wrapper
        :param indices: indices of sub-envs, all by default
        :return: True for ``Monitor``, because ``info["episode"]`` is reported here (``evaluate_policy`` checks it), else False
        """
        return [issubclass(Monitor, wrapper_class)] * len(list(self._get_indices(indices)))
