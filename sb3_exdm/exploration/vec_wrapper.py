"""The intrinsic reward as a wrapper of Stable-Baselines3's vectorized environments."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_exdm.exploration.online import OnlineReward
from sb3_exdm.exploration.wrapper import ScoreRewardWrapper
from sb3_exdm.rewards.base import IntrinsicReward


class VecScoreRewardWrapper(VecEnvWrapper):
    """
    :class:`~sb3_exdm.exploration.wrapper.ScoreRewardWrapper` for several environments with one model of novelty: what one
    of them has visited is no longer new to the others, and all states of a step are scored at once.

    A ``VecMonitor`` is put around ``venv`` if its environments have no ``Monitor``, so that ``rollout/ep_rew_mean`` is the
    return of the task. To normalize observations or rewards, put ``VecNormalize`` around this wrapper.

    :param venv: vectorized environment
    :param reward: name of a reward, see :data:`~sb3_exdm.rewards.registry.REWARDS`, or one that exists
    :param intrinsic_coef: weight of the intrinsic reward
    :param extrinsic_coef: weight of the task's reward
    :param buffer_size: number of states of all environments kept to fit on; fewer if they are large, see
        :data:`~sb3_exdm.exploration.online.MAX_BYTES`
    :param learning_starts: number of states of all environments before the first fit. Until then all are paid alike
    :param train_freq: number of states of all environments between two fits
    :param gradient_steps: gradient steps per fit
    :param batch_size: minibatch of a gradient step
    :param reward_transform: what the agent is paid for a standardized novelty, a name in
        :data:`~sb3_exdm.rewards.base.REWARD_TRANSFORMS`; None for the one that suits the reward
    :param reward_kwargs: further arguments of the reward, if ``reward`` is a name
    :param device: PyTorch device of the model, if ``reward`` is a name
    :param seed: seed of the model and of the states drawn to fit it
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
        if not any(venv.env_is_wrapped(Monitor)) and not _is_inside(venv, VecMonitor):
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

    @property
    def reward_model(self) -> IntrinsicReward:
        """The model of novelty."""
        return self._online.model

    @property
    def frozen(self) -> bool:
        """Whether the model stays as it is, for evaluation: states are still paid, but neither remembered nor fitted."""
        return self._online.frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        self._online.frozen = frozen

    def reset(self) -> VecEnvObs:
        """Reset the environments; the model stays."""
        obs = self.venv.reset()
        self._remember(obs)
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """:param actions: one action per environment"""
        self._last_actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """:return: as from the environments, but for the rewards and the two parts of them in ``infos``"""
        obs, extrinsic, dones, infos = self.venv.step_wait()
        if self.reward_model.needs_actions:
            rewards, intrinsic = self._online.reward_step(self._last_obs, self._last_actions, extrinsic)
        else:
            rewards, intrinsic = self._online.reward_step(reached_observations(obs, dones, infos), None, extrinsic)
        self._remember(obs)
        for info, intrinsic_reward, extrinsic_reward in zip(infos, intrinsic.tolist(), extrinsic.tolist(), strict=True):
            info["intrinsic_reward"] = intrinsic_reward
            info["extrinsic_reward"] = extrinsic_reward
        return obs, rewards.astype(np.float32, copy=False), dones, infos

    def _remember(self, obs: VecEnvObs) -> None:
        if self.reward_model.needs_actions:
            self._last_obs = deepcopy(obs)  # environments may write the next ones over it


def reached_observations(obs: Any, dones: np.ndarray, infos: list[dict[str, Any]]) -> Any:
    """
    The states that were reached. Where an episode has ended, ``obs`` is already of the next one, and the last is in the info.

    :param obs: raw observations of a VecEnv after a step, an array or a mapping of arrays
    :param dones: ``(n_envs,)``
    :param infos: one per environment
    :return: like ``obs``, which stays as it is
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


def _is_inside(venv: VecEnv, wrapper_class: type[VecEnvWrapper]) -> bool:
    while isinstance(venv, VecEnvWrapper):
        if isinstance(venv, wrapper_class):
            return True
        venv = venv.venv
    return False


def _check_inner_wrappers(venv: VecEnv) -> None:
    if _is_inside(venv, VecNormalize):
        raise ValueError(
            "VecScoreRewardWrapper must not be put around VecNormalize: off-policy algorithms store the reward that "
            "VecNormalize saw, so the intrinsic reward would be lost without a word. Use "
            "VecNormalize(VecScoreRewardWrapper(env))."
        )
    if _is_inside(venv, VecScoreRewardWrapper) or any(venv.env_is_wrapped(ScoreRewardWrapper)):
        raise ValueError(
            "The environments have a ScoreRewardWrapper already: the outer one would take its reward for the task's."
        )
