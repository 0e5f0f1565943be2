"""Vector environments of Gymnasium as VecEnvs of Stable-Baselines3."""

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
    A vector env whose sub-envs are rows of arrays, behind Stable-Baselines3's interface: what ``make_vec_env`` would give,
    several times faster.

    Like a ``Monitor``, it reports the return and the length of every finished episode in ``info["episode"]``, so that
    SB3 logs ``ep_rew_mean`` and ``ep_len_mean`` without ``VecMonitor`` around it.

    :param vector_env: Resets finished sub-envs in the same step
    :param seed: Seeds the first ``reset``
    :raises ValueError: if the vector env resets in another way
    """

    def __init__(self, vector_env: VectorEnv[np.ndarray, np.ndarray, np.ndarray], seed: int | None = None) -> None:
        if vector_env.metadata["autoreset_mode"] != AutoresetMode.SAME_STEP:
            raise ValueError(f"the vector env must reset in the same step, got {vector_env.metadata['autoreset_mode']}")
        self.vector_env = vector_env
        n_envs = vector_env.num_envs
        super().__init__(n_envs, vector_env.single_observation_space, vector_env.single_action_space)
        self._actions = np.zeros(vector_env.action_space.shape or ())
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._began = time.time()
        if seed is not None:
            self.seed(seed)

    def reset(self) -> np.ndarray:
        """
        Begin an episode in every sub-env, with the seed of ``seed`` and the options of ``set_options`` if they were called.

        :return: Observations, (n_envs, ...)
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
        Keep the actions for ``step_wait``.

        :param actions: Actions, (n_envs, ...)
        """
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step every sub-env; finished ones begin their next episode at once.

        :return: Observations (n_envs, ...), rewards and dones (n_envs,), and an info for each sub-env
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
        """Move what the next episode begins with to ``reset_infos``, and report the end of the last one."""
        elapsed = round(time.time() - self._began, 6)
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
        """Gymnasium's infos, arrays with a row for each sub-env, as one info for each."""
        columns = {key: values.tolist() for key, values in vector_infos.items() if not key.startswith(("_", "final_"))}
        return [{key: values[index] for key, values in columns.items()} for index in range(self.num_envs)]

    def _merged_options(self) -> dict[str, Any] | None:
        """The options of all sub-envs as those of the vector env."""
        if any(self._options):
            raise ValueError(f"{type(self.vector_env).__name__} takes no options of single sub-envs")
        return None

    def close(self) -> None:
        """Close the vector env."""
        self.vector_env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        Draw every sub-env.

        :return: An image a sub-env, or None for each without a ``render_mode``
        """
        images: Any = self.vector_env.render()
        return images or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        An attribute of the sub-envs, which share them: ``"render_mode"``, ``"observation_space"``, …

        :param attr_name: Name of the attribute
        :param indices: Which sub-envs, all by default
        :return: Its value for each of them
        :raises AttributeError: if there is no such attribute
        """
        if attr_name in ("observation_space", "action_space"):
            attr_name = f"single_{attr_name}"
        return [getattr(self.vector_env, attr_name)] * len(list(self._get_indices(indices)))

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
