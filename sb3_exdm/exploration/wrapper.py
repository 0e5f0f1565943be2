"""Intrinsic reward as a Gymnasium wrapper."""

from copy import deepcopy
from typing import Any, NoReturn, SupportsFloat

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.core import ActType, ObsType
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor

from sb3_exdm.common.spaces import check_action_start, counts_from_zero
from sb3_exdm.common.validation import check_finite
from sb3_exdm.exploration.online import OnlineReward, OnlineRewardMixin, refuse_her
from sb3_exdm.rewards.base import IntrinsicReward, scores_next_state


class ScoreRewardWrapper(OnlineRewardMixin, gym.Wrapper[ObsType, ActType, ObsType, ActType], RecordConstructorArgs):
    """
    Reward an agent for reaching states that were rarely visited.

    The reward of a step is ``intrinsic_coef * intrinsic_reward + extrinsic_coef * extrinsic_reward``; both are in ``info``.
    The intrinsic reward is that of the reached state, or, for a reward that needs actions, of the action and the state in
    which it was taken. The model of the intrinsic reward is fitted during training to states drawn uniformly from the
    last ``buffer_size``. It belongs to this environment alone; see
    :class:`~sb3_exdm.exploration.vec_wrapper.VecScoreRewardWrapper` for one model of several environments.

    Without the wrapper the environment returns the task reward:

    >>> import gymnasium as gym
    >>> env = gym.make("MountainCarContinuous-v0")
    >>> _ = env.reset(seed=0)
    >>> *_, reward, terminated, truncated, info = env.step(env.action_space.high)
    >>> info
    {}

    With it the intrinsic reward, here the same for all states since no model is fitted yet:

    >>> from sb3_exdm import ScoreRewardWrapper
    >>> env = ScoreRewardWrapper(gym.make("MountainCarContinuous-v0"), seed=0)
    >>> _ = env.reset(seed=0)
    >>> *_, reward, terminated, truncated, info = env.step(env.action_space.high)
    >>> reward, info["intrinsic_reward"], round(info["extrinsic_reward"], 2)
    (1.0, 1.0, -0.1)

    ``rollout/ep_rew_mean``, which Stable-Baselines3 logs, is the return of the task: a ``Monitor`` is put around ``env``
    unless it has one, and Stable-Baselines3 adds no other. Around the wrapper a ``Monitor`` would report the return of the
    rewards that the agent gets. :class:`~sb3_exdm.exploration.callbacks.IntrinsicRewardCallback` logs the intrinsic reward.

    Neither ``reset(seed=...)`` nor the seed of an algorithm changes the model, only ``seed`` does. ``HerReplayBuffer`` is
    refused when it samples, because it would drop the intrinsic reward.

    :param env: environment with Box, Discrete, MultiDiscrete, MultiBinary, image or Dict observations; for those that the
        policies of Stable-Baselines3 cannot read see :class:`~sb3_exdm.common.env_wrappers.PolicyObservation`
    :param reward: registered name, see :data:`~sb3_exdm.rewards.registry.REWARDS`, or an instance, which is not recorded in
        ``env.spec``: pass it again to an environment that is made from there
    :param intrinsic_coef: weight of the intrinsic reward
    :param extrinsic_coef: weight of the task reward; with 0 the task reward may be NaN
    :param buffer_size: number of states kept to fit the model; fewer if they are large, see
        :data:`~sb3_exdm.exploration.online.MAX_BYTES`
    :param learning_starts: number of transitions before the first fit; until then all states get the same reward
    :param train_freq: number of transitions between two fits
    :param gradient_steps: gradient steps per fit
    :param batch_size: minibatch of a gradient step
    :param reward_transform: transform of the standardized intrinsic reward, a name in
        :data:`~sb3_exdm.rewards.base.REWARD_TRANSFORMS`; None for the default of the reward
    :param reward_kwargs: further arguments of the reward, if ``reward`` is a name
    :param device: PyTorch device of the model, if ``reward`` is a name
    :param seed: seed of the model and of the states drawn to fit it
    """

    def __init__(
        self,
        env: gym.Env[ObsType, ActType],
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
        if not isinstance(env, gym.Env):
            raise TypeError(
                f"ScoreRewardWrapper wraps one gymnasium.Env, got {env!r}; for a VecEnv use VecScoreRewardWrapper."
            )
        if is_wrapped(env, ScoreRewardWrapper):
            raise ValueError(
                "The environment has a ScoreRewardWrapper already: the outer one would take its reward for the task reward."
            )
        settings: dict[str, Any] = dict(
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
        # A spec must not hold a network, nor a copy of one.
        recorded = reward if isinstance(reward, str) else None
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, reward=recorded, **settings)
        gym.Wrapper.__init__(self, env if is_wrapped(env, Monitor) else TaskMonitor(env))
        self._online = OnlineReward(reward, self.observation_space, self.action_space, **settings)
        self._last_obs: Any = None
        self._starts_elsewhere = not counts_from_zero(self.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[ObsType, dict[str, Any]]:
        """Reset the environment, not the model."""
        obs, info = self.env.reset(seed=seed, options=options)
        check_finite(_batch_of_one(obs), "first observation of an episode", "environment")
        self._remember(obs)
        return obs, info

    def step(self, action: ActType) -> tuple[ObsType, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        Step the environment and compute the reward.

        :param action: action
        :return: as from the environment, with the weighted reward, and both rewards in ``info``
        :raises ValueError: for a discrete action outside of a space whose ``start`` is not zero: Stable-Baselines3 ignores it
        """
        if self._starts_elsewhere and not self.action_space.contains(action):
            check_action_start(self.action_space)
        obs, extrinsic, terminated, truncated, info = self.env.step(action)
        model = self.reward_model
        rewards, intrinsic = self._online.reward_step(
            _batch_of_one(obs if scores_next_state(model) else self._last_obs),
            _batch_of_one(action) if model.needs_actions else None,
            np.array([extrinsic], dtype=np.float64),
        )
        self._remember(obs)
        info["intrinsic_reward"] = float(intrinsic[0])
        info["extrinsic_reward"] = float(extrinsic)
        return obs, float(rewards[0]), terminated, truncated, info

    def compute_reward(self, *args: Any) -> NoReturn:
        """Refuse ``HerReplayBuffer``, which calls this method."""
        refuse_her()

    def _remember(self, obs: ObsType) -> None:
        if not scores_next_state(self.reward_model):
            self._last_obs = deepcopy(obs)  # environments may reuse the array


class TaskMonitor(Monitor, RecordConstructorArgs):
    """``Monitor`` that ``env.spec`` records, so that the environment can be made from it."""

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        Monitor.__init__(self, env)


def _batch_of_one(element: Any) -> Any:
    if isinstance(element, dict):
        return {key: _batch_of_one(value) for key, value in element.items()}
    return np.asarray(element)[None]
