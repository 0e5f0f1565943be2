"""Intrinsic reward as a wrapper of vectorized environments."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize, is_vecenv_wrapped
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_exdm.common.env_wrappers import CopyObservation
from sb3_exdm.common.spaces import check_action_start
from sb3_exdm.common.validation import check_finite
from sb3_exdm.exploration.online import OnlineReward, OnlineRewardMixin, refuse_her
from sb3_exdm.exploration.wrapper import ScoreRewardWrapper
from sb3_exdm.rewards.base import IntrinsicReward, scores_next_state


class VecScoreRewardWrapper(OnlineRewardMixin, VecEnvWrapper):
    """
    :class:`~sb3_exdm.exploration.wrapper.ScoreRewardWrapper` for several environments with one model of the intrinsic reward:
    a state that one environment has visited is known for all, and the states of a step are scored together.

    >>> from stable_baselines3 import PPO
    >>> from stable_baselines3.common.env_util import make_vec_env
    >>> from sb3_exdm import VecScoreRewardWrapper
    >>> env = VecScoreRewardWrapper(make_vec_env("Pendulum-v1", n_envs=4), seed=0)
    >>> model = PPO("MlpPolicy", env, n_steps=512).learn(2048)
    >>> env.reward_model.fitted
    True

    ``rollout/ep_rew_mean`` is the return of the task: a ``VecMonitor`` is put around ``venv`` unless its environments have a
    ``Monitor``. To normalize observations or rewards, put ``VecNormalize`` around this wrapper.

    The environments of a ``DummyVecEnv`` get a :class:`~sb3_exdm.common.env_wrappers.CopyObservation` around them, so that the
    last state of an episode is not lost if an environment reuses its array. In a ``SubprocVecEnv``, put one around such an
    environment yourself.

    :param venv: vectorized environment; discrete actions must be counted from zero
    :param reward: see :class:`~sb3_exdm.exploration.wrapper.ScoreRewardWrapper`, as all further parameters; transitions and
        states are counted over all environments together
    """

    def __init__(
        self,
        venv: VecEnv,
        reward: str | IntrinsicReward = "score",
        *,
        intrinsic_coef: float = 1.0,
        extrinsic_coef: float = 0.0,
        buffer_size: int = 100_000,
        learning_starts: int = 1000,
        train_freq: int = 128,
        gradient_steps: int = 2,
        batch_size: int = 256,
        reward_transform: str | None = None,
        reward_kwargs: dict[str, Any] | None = None,
        device: th.device | str = "auto",
        seed: int | None = None,
    ) -> None:
        if not isinstance(venv, VecEnv):
            raise TypeError(
                f"VecScoreRewardWrapper wraps a VecEnv of Stable-Baselines3, got {venv!r}; build one with "
                "stable_baselines3.common.env_util.make_vec_env, or use ScoreRewardWrapper for one environment."
            )
        _check_inner_wrappers(venv)
        check_action_start(venv.action_space)
        if isinstance(venv.unwrapped, DummyVecEnv):
            envs = venv.unwrapped.envs
            envs[:] = [env if isinstance(env, CopyObservation) else CopyObservation(env) for env in envs]
        if not any(venv.env_is_wrapped(Monitor)) and not is_vecenv_wrapped(venv, VecMonitor):
            venv = VecMonitor(venv)
        super().__init__(venv)
        self._online = OnlineReward(
            reward,
            self.observation_space,
            self.action_space,
            intrinsic_coef=intrinsic_coef,
            extrinsic_coef=extrinsic_coef,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            batch_size=batch_size,
            reward_transform=reward_transform,
            reward_kwargs=reward_kwargs,
            device=device,
            seed=seed,
        )
        self._last_obs: Any = None
        self._last_actions: Any = None

    def reset(self) -> VecEnvObs:
        """Reset the environments, not the model."""
        obs = self.venv.reset()
        check_finite(obs, "first observation of an episode", "environment")
        self._remember(obs)
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """
        Begin a step of the environments.

        :param actions: one action per environment
        """
        self._last_actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        Finish the step and compute the rewards.

        :return: as from the environments, with the weighted rewards, and both rewards in ``infos``
        """
        obs, extrinsic, dones, infos = self.venv.step_wait()
        if dones.any():
            check_finite(obs, "first observation of an episode", "environment")
        model = self.reward_model
        states = reached_observations(obs, dones, infos) if scores_next_state(model) else self._last_obs
        rewards, intrinsic = self._online.reward_step(states, self._last_actions if model.needs_actions else None, extrinsic)
        self._remember(obs)
        for info, intrinsic_reward, extrinsic_reward in zip(infos, intrinsic.tolist(), extrinsic.tolist(), strict=True):
            info["intrinsic_reward"] = intrinsic_reward
            info["extrinsic_reward"] = extrinsic_reward
        return obs, rewards.astype(np.float32, copy=False), dones, infos

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the environments; refuses ``compute_reward``, which ``HerReplayBuffer`` calls."""
        if method_name == "compute_reward":
            refuse_her()
        return super().env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def _remember(self, obs: VecEnvObs) -> None:
        if not scores_next_state(self.reward_model):
            self._last_obs = deepcopy(obs)  # environments may reuse the array


def reached_observations(obs: Any, dones: np.ndarray, infos: list[dict[str, Any]]) -> Any:
    """
    Replace the first observations of new episodes by the last ones of the episodes that ended, which are in the infos.

    :param obs: observations of a VecEnv after a step, an array or a mapping of arrays
    :param dones: ``(n_envs,)``
    :param infos: infos of the environments
    :return: reached states, of the same form as ``obs``, which is not changed
    """
    if not dones.any():
        return obs
    reached = deepcopy(obs)
    for i in np.flatnonzero(dones):
        last = infos[i]["terminal_observation"]
        if isinstance(reached, dict):
            for key, values in reached.items():
                values[i] = last[key]
        else:
            reached[i] = last
    return reached


def _check_inner_wrappers(venv: VecEnv) -> None:
    if is_vecenv_wrapped(venv, VecNormalize):
        raise ValueError(
            "VecScoreRewardWrapper must be inside of VecNormalize: off-policy algorithms store the rewards that VecNormalize "
            "gets, so the intrinsic reward would be lost. Use VecNormalize(VecScoreRewardWrapper(env))."
        )
    if is_vecenv_wrapped(venv, VecScoreRewardWrapper) or any(venv.env_is_wrapped(ScoreRewardWrapper)):
        raise ValueError(
            "The environments have a ScoreRewardWrapper already: the outer one would take its reward for the task reward."
        )
