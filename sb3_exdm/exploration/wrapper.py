"""The intrinsic reward as a Gymnasium wrapper."""

from copy import deepcopy
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.core import ActType, ObsType
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor

from sb3_exdm.exploration.online import OnlineReward
from sb3_exdm.rewards.base import IntrinsicReward


class ScoreRewardWrapper(gym.Wrapper[ObsType, ActType, ObsType, ActType], RecordConstructorArgs):
    """
    Pays an agent for reaching states that were rarely visited, whatever the task.

    The reward of a step is ``intrinsic_coef * intrinsic + extrinsic_coef * extrinsic``; both parts are in ``info`` as
    ``intrinsic_reward`` (after reward_transform, before weighting) and ``extrinsic_reward``. The intrinsic part is the novelty of
    the state that was *reached*; a reward that looks at actions gets the state they were taken in. The model of novelty
    is fitted as the agent goes, to states drawn uniformly from the last ``buffer_size``.

    Each environment has a model of its own. For several environments with one model see
    :class:`~sb3_exdm.exploration.vec_wrapper.VecScoreRewardWrapper`.

    Without the wrapper an agent is paid by the task:

    >>> import gymnasium as gym
    >>> env = gym.make("MountainCarContinuous-v0")
    >>> _ = env.reset(seed=0)
    >>> *_, reward, terminated, truncated, info = env.step(env.action_space.high)
    >>> info
    {}

    With it by novelty, here the same for all states since nothing is learned yet:

    >>> from sb3_exdm.exploration.wrapper import ScoreRewardWrapper
    >>> env = ScoreRewardWrapper(gym.make("MountainCarContinuous-v0"), seed=0)
    >>> _ = env.reset(seed=0)
    >>> *_, reward, terminated, truncated, info = env.step(env.action_space.high)
    >>> reward, info["intrinsic_reward"], round(info["extrinsic_reward"], 2)
    (1.0, 1.0, -0.1)

    A ``Monitor`` is put around ``env`` if there is none, so that ``rollout/ep_rew_mean``, which Stable-Baselines3 logs, is the
    return of the task and not that of novelty. Neither ``reset(seed=...)`` nor the seed of an algorithm touches the model:
    only ``seed`` does.

    :param env: environment with Box, Discrete, MultiDiscrete, MultiBinary, image or Dict observations
    :param reward: name of a reward, see :data:`~sb3_exdm.rewards.registry.REWARDS`, or one that exists. An object is
        not recorded in ``env.spec``: who rebuilds the environment from there has to pass one
    :param intrinsic_coef: weight of the intrinsic reward
    :param extrinsic_coef: weight of the task's reward
    :param buffer_size: number of states kept to fit on; fewer if they are large, see
        :data:`~sb3_exdm.exploration.online.MAX_BYTES`
    :param learning_starts: number of states before the first fit. Until then all are paid alike, like one of average novelty
    :param train_freq: number of states between two fits
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
                "The environment has a ScoreRewardWrapper already: the outer one would take its reward for the task's."
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
        # Deep copies would copy the network, and a spec must not hold one.
        recorded = reward if isinstance(reward, str) else None
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, reward=recorded, **settings)
        gym.Wrapper.__init__(self, env if is_wrapped(env, Monitor) else TaskMonitor(env))
        self._online = OnlineReward(reward, self.observation_space, self.action_space, **settings)
        self._last_obs: Any = None

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

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[ObsType, dict[str, Any]]:
        """Reset the environment; the model stays."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._remember(obs)
        return obs, info

    def step(self, action: ActType) -> tuple[ObsType, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        :param action: an action
        :return: as from the environment, but for the reward and the two parts of it in ``info``
        """
        obs, extrinsic, terminated, truncated, info = self.env.step(action)
        needs_actions = self.reward_model.needs_actions
        rewards, intrinsic = self._online.reward_step(
            _batch_of_one(self._last_obs if needs_actions else obs),
            _batch_of_one(action) if needs_actions else None,
            np.array([extrinsic], dtype=np.float64),
        )
        self._remember(obs)
        info["intrinsic_reward"] = float(intrinsic[0])
        info["extrinsic_reward"] = float(extrinsic)
        return obs, float(rewards[0]), terminated, truncated, info

    def _remember(self, obs: ObsType) -> None:
        if self.reward_model.needs_actions:
            self._last_obs = deepcopy(obs)  # an environment may write the next one over it


class TaskMonitor(Monitor, RecordConstructorArgs):
    """A ``Monitor`` that an environment can be rebuilt with from its ``spec``."""

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        Monitor.__init__(self, env)


def _batch_of_one(element: Any) -> Any:
    if isinstance(element, dict):
        return {key: _batch_of_one(value) for key, value in element.items()}
    return np.asarray(element)[None]
