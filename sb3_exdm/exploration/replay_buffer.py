"""Replay buffers that compute intrinsic rewards when a batch is sampled."""

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_exdm.common.returns import n_step_returns
from sb3_exdm.common.spaces import check_action_start
from sb3_exdm.common.validation import check_finite, check_integers, check_rewards
from sb3_exdm.exploration.settings import EXTRINSIC_ADVICE, FitSchedule, RewardSettings
from sb3_exdm.rewards.base import IntrinsicReward, scores_next_state, transformed_reward, transformed_reward_tensor
from sb3_exdm.rewards.registry import make_reward


class ScoreRewardReplayBuffer(ReplayBuffer):
    """
    Replay buffer with intrinsic rewards, for ``replay_buffer_class`` of any off-policy algorithm. Use
    :class:`ScoreRewardDictReplayBuffer` for Dict observations.

    >>> from stable_baselines3 import SAC
    >>> from sb3_exdm import ScoreRewardReplayBuffer
    >>> model = SAC("MlpPolicy", "Pendulum-v1", replay_buffer_class=ScoreRewardReplayBuffer,
    ...             replay_buffer_kwargs=dict(reward_kwargs=dict(seed=0)))
    >>> model.learn(200).replay_buffer.reward_model.name
    'score'

    The reward of a transition is ``intrinsic_coef * intrinsic_reward + extrinsic_coef * extrinsic_reward``, the intrinsic
    reward that of the reached state (of the action and the state in which it was taken, for a reward that needs actions),
    computed by the model *as it is when the batch is sampled*. Sampling changes nothing but the random state of the sampler.

    The environment is not changed, so ``rollout/ep_rew_mean``, which Stable-Baselines3 logs, is the return of the task.
    :class:`~sb3_exdm.exploration.callbacks.IntrinsicRewardCallback` logs the intrinsic reward.

    With ``n_steps > 1`` all n rewards are computed anew before they are discounted and summed. Stable-Baselines3 ignores
    the ``n_steps`` of the algorithm for custom buffers: set it here, with the same ``gamma``.

    All arguments but the first ones, which the algorithm passes, are plain data, so that ``model.save`` stays small.

    :param buffer_size: number of transitions
    :param observation_space: observation space
    :param action_space: action space
    :param reward: registered name, see :data:`~sb3_exdm.rewards.registry.REWARDS`; None to pass a model to
        :meth:`set_reward_model` later
    :param reward_kwargs: further arguments of the reward
    :param intrinsic_coef: weight of the intrinsic reward
    :param extrinsic_coef: weight of the task reward; with 0 the task reward may be NaN
    :param learning_starts: number of transitions before the first fit; until then all states get the same reward. By default
        0, not 1000 as in the wrappers, because no reward is needed before the algorithm samples its first batch
    :param train_freq: number of transitions between two fits. By default 8, not 128 as in the wrappers, because a fit changes
        the rewards of all stored transitions, not of new ones alone
    :param gradient_steps: gradient steps per fit; by default 1, 2 in the wrappers
    :param batch_size: minibatch of a gradient step
    :param reward_transform: transform of the standardized intrinsic reward, a name in
        :data:`~sb3_exdm.rewards.base.REWARD_TRANSFORMS`; None for the default of the reward
    :param n_steps: steps of the return
    :param gamma: discount within the n steps, equal to that of the algorithm
    :param kwargs: ``device``, ``n_envs``, ``optimize_memory_usage`` and ``handle_timeout_termination`` of ``ReplayBuffer``
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *args: Any,
        reward: str | None = "score",
        reward_kwargs: dict[str, Any] | None = None,
        intrinsic_coef: float = 1.0,
        extrinsic_coef: float = 0.0,
        learning_starts: int = 0,
        train_freq: int = 8,
        gradient_steps: int = 1,
        batch_size: int = 256,
        reward_transform: str | None = None,
        n_steps: int = 1,
        gamma: float = 0.99,
        **kwargs: Any,
    ) -> None:
        if isinstance(observation_space, spaces.Dict) and not isinstance(self, DictReplayBuffer):
            raise ValueError("For Dict observations use ScoreRewardDictReplayBuffer as replay_buffer_class.")
        check_action_start(action_space)
        super().__init__(buffer_size, observation_space, action_space, *args, **kwargs)
        check_integers(n_steps=(n_steps, 1))
        if n_steps > 1 and self.optimize_memory_usage:
            raise ValueError("optimize_memory_usage does not store the last observation of an episode: use n_steps=1.")
        if reward is not None and not isinstance(reward, str):
            raise TypeError(
                "reward must be a name, because Stable-Baselines3 saves replay_buffer_kwargs by value; to use an instance "
                "pass reward=None and call set_reward_model."
            )
        self.reward_settings = RewardSettings(
            intrinsic_coef, extrinsic_coef, learning_starts, train_freq, gradient_steps, batch_size, reward_transform
        )
        self.n_steps = n_steps
        self.gamma = gamma
        self.fit_metrics: dict[str, float] = {}
        """Metrics of the last fit of the model; empty before."""
        self._schedule = FitSchedule(self.reward_settings)
        # Drawn from the global generator, which the algorithm has seeded.
        seed = int(np.random.randint(2**31))
        self._rng = np.random.default_rng((reward_kwargs or {}).get("seed", seed))
        self._reward_model: IntrinsicReward | None = None
        if reward is not None:
            self._reward_model = self.reward_settings.make_reward(
                reward, observation_space, action_space, reward_kwargs, seed=seed, device=self.device
            )

    @property
    def reward_model(self) -> IntrinsicReward:
        """
        Model of the intrinsic reward.

        :raises RuntimeError: if there is none
        """
        if self._reward_model is None:
            raise RuntimeError(f"{type(self).__name__} has no reward model: call set_reward_model first.")
        return self._reward_model

    def set_reward_model(self, reward_model: IntrinsicReward) -> None:
        """
        Set the model, e.g. a pre-trained one.

        :param reward_model: replaces the present one
        :raises ValueError: if it was built for other spaces
        """
        self._reward_model = make_reward(reward_model, self.observation_space, self.action_space)

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one step of all environments, then fit the model if it is due.

        :raises ValueError: for NaN or infinity in an observation, or in a task reward whose weight is not zero
        """
        model = self.reward_model  # fails at the first step if there is none
        check_finite(obs, "observation", "environment")
        check_finite(next_obs, "next observation", "environment")
        if self.reward_settings.extrinsic_coef:
            when = f"at step {self._schedule.n_transitions // self.n_envs + 1}"
            check_rewards(np.asarray(reward), "extrinsic reward", when, EXTRINSIC_ADVICE)
        super().add(obs, next_obs, action, reward, done, infos)
        for _ in range(self._schedule.advance(self.n_envs)):
            steps = self._rng.integers(self._n_complete, size=self.reward_settings.batch_size)
            if self._n_complete < self.size():
                steps = (steps + self.pos + 1) % self.buffer_size
            envs = self._rng.integers(self.n_envs, size=self.reward_settings.batch_size)
            self.fit_metrics = model.fit(*self._rewarded(steps, envs))

    @property
    def _n_complete(self) -> int:
        """
        Number of steps of which everything is stored. In a full buffer with ``optimize_memory_usage``, the position that is
        written next holds the newest observation beside the oldest action.
        """
        return self.buffer_size - 1 if self.optimize_memory_usage and self.full else self.size()

    def _rewarded(self, steps: np.ndarray, envs: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """States, and actions if the model needs them, that the rewards of the given transitions depend on."""
        actions = self._raw_actions(steps, envs) if self.reward_model.needs_actions else None
        if scores_next_state(self.reward_model):
            return self._next_observations(steps, envs), actions
        return _take(self.observations, steps, envs), actions

    def _next_observations(self, steps: np.ndarray, envs: np.ndarray) -> Any:
        if self.optimize_memory_usage:
            return _take(self.observations, (steps + 1) % self.buffer_size, envs)
        return _take(self.next_observations, steps, envs)

    def _raw_actions(self, steps: np.ndarray, envs: np.ndarray) -> np.ndarray:
        return self.actions[steps, envs].reshape(len(steps), *(self.action_space.shape or ()))

    def intrinsic_rewards(self, steps: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """
        Compute the transformed intrinsic rewards of stored transitions; changes nothing.

        :param steps: positions in the buffer, ``(n,)``
        :param envs: environments, ``(n,)``
        :return: ``(n,)``
        """
        observations, actions = self._rewarded(steps, envs)
        return transformed_reward(self.reward_model, observations, actions, self.reward_settings.reward_transform)

    def _rewards(self, steps: np.ndarray, envs: np.ndarray, env: VecNormalize | None) -> th.Tensor:
        """Weighted sums of both rewards, ``(n,)``."""
        settings = self.reward_settings
        rewards = th.zeros(len(steps), device=self.device)
        if settings.intrinsic_coef:
            observations, actions = self._rewarded(steps, envs)
            if isinstance(observations, np.ndarray):  # was checked when it was added
                observations = self.to_torch(observations, copy=False)
            intrinsic = transformed_reward_tensor(self.reward_model, observations, actions, settings.reward_transform)
            rewards.add_(intrinsic.to(self.device), alpha=settings.intrinsic_coef)
        if settings.extrinsic_coef:
            extrinsic = self._normalize_reward(self.rewards[steps, envs], env)
            rewards.add_(self.to_torch(extrinsic, copy=False), alpha=settings.extrinsic_coef)
        if not math.isfinite(rewards.sum().item()) and not rewards.isfinite().all():
            self._refuse(int((~rewards.isfinite()).nonzero()[0]), steps, envs)
        return rewards

    def _refuse(self, index: int, steps: np.ndarray, envs: np.ndarray) -> NoReturn:
        step, env = steps[index], envs[index]
        intrinsic = self.intrinsic_rewards(steps[[index]], envs[[index]])[0]
        raise ValueError(
            f"The reward of a stored transition is not finite (position {step}, environment {env}): the intrinsic reward of "
            f"{type(self.reward_model).__name__} is {intrinsic}, the extrinsic reward {self.rewards[step, env]}. "
            "A transition with a task reward of NaN is stored while extrinsic_coef is 0; do not change it afterwards."
        )

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None
    ) -> ReplayBufferSamples | DictReplayBufferSamples:
        """
        Draw a minibatch uniformly, with rewards under the present model.

        :param batch_size: number of transitions
        :param env: normalizes observations and task rewards
        """
        return self.sample_minibatches(1, batch_size, env)[0]

    def sample_minibatches(
        self, n_minibatches: int, batch_size: int, env: VecNormalize | None = None
    ) -> list[ReplayBufferSamples | DictReplayBufferSamples]:
        """
        Draw the minibatches of as many calls of :meth:`sample`. Gathering them and computing their rewards together takes
        less time.

        :param n_minibatches: number of minibatches
        :param batch_size: number of transitions of each
        :param env: normalizes observations and task rewards
        """
        draws = [self._draw(batch_size) for _ in range(n_minibatches)]
        steps, envs = (np.concatenate(parts) for parts in zip(*draws, strict=True))
        samples = self._samples_of(steps, envs, env)
        if n_minibatches == 1:
            return [samples]
        parts = zip(*(_split(part, batch_size, n_minibatches) for part in samples), strict=True)
        return [type(samples)(*part) for part in parts]

    def _draw(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw positions and environments with the random numbers of Stable-Baselines3's buffer, ``(batch_size,)`` each."""
        if self.optimize_memory_usage and self.full:  # the next observation of the newest transition is not stored
            steps = (np.random.randint(1, self.buffer_size, size=batch_size) + self.pos) % self.buffer_size
        else:
            steps = np.random.randint(0, self.size(), size=batch_size)
        return steps, np.random.randint(0, self.n_envs, size=batch_size)

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> ReplayBufferSamples | DictReplayBufferSamples:
        return self._samples_of(batch_inds, np.random.randint(0, self.n_envs, size=len(batch_inds)), env)

    def _samples_of(
        self, steps: np.ndarray, envs: np.ndarray, env: VecNormalize | None
    ) -> ReplayBufferSamples | DictReplayBufferSamples:
        """Transitions at given positions of given environments, ``(n,)`` each."""
        if self.n_steps == 1:
            last, rewards, discounts = steps, self._rewards(steps, envs, env).unsqueeze(1), None
        else:
            last, returns, discounts = self._n_step_returns(steps, envs, env)
            rewards = self.to_torch(returns[:, None], copy=False)
        # After a time limit the value of the next state still counts.
        dones = self.dones[last, envs] * (1.0 - self.timeouts[last, envs])
        samples_class = DictReplayBufferSamples if isinstance(self.observations, dict) else ReplayBufferSamples
        return samples_class(
            observations=self._to_tensors(self._normalize_obs(_take(self.observations, steps, envs), env)),
            actions=self.to_torch(self.actions[steps, envs], copy=False),
            next_observations=self._to_tensors(self._normalize_obs(self._next_observations(last, envs), env)),
            dones=self.to_torch(dones[:, None], copy=False),
            rewards=rewards,
            discounts=None if discounts is None else self.to_torch(discounts[:, None], copy=False),
        )

    def _n_step_returns(
        self, starts: np.ndarray, envs: np.ndarray, env: VecNormalize | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Sum the discounted rewards of up to ``n_steps`` transitions, until the end of the episode or the newest transition.

        :return: last transition of each sum, the sums, and the discounts of the next values, each ``(batch,)``
        """
        steps = (starts[:, None] + np.arange(self.n_steps)) % self.buffer_size  # (batch, n_steps)
        newest = (self.pos - 1) % self.buffer_size  # followed by the oldest transition, or none
        ends = (self.dones[steps, envs[:, None]] > 0) | (steps == newest)  # (batch, n_steps)
        of_steps = np.broadcast_to(envs[:, None], steps.shape)
        counts, returns, discounts = n_step_returns(
            ends, self.gamma, lambda mask: self._rewards(steps[mask], of_steps[mask], env).cpu().numpy()
        )
        return (starts + counts - 1) % self.buffer_size, returns, discounts

    def _to_tensors(self, observations: Any) -> Any:
        if isinstance(observations, dict):
            return {key: self.to_torch(value, copy=False) for key, value in observations.items()}
        return self.to_torch(observations, copy=False)  # gathered, so already a copy


class ScoreRewardDictReplayBuffer(ScoreRewardReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """:class:`ScoreRewardReplayBuffer` for Dict observations (``"MultiInputPolicy"``)."""


def _split(part: Any, size: int, n_parts: int) -> Sequence[Any]:
    """Split tensors, dicts of them or None into rows of minibatches."""
    if part is None:
        return [None] * n_parts
    if isinstance(part, dict):
        split = {key: value.split(size) for key, value in part.items()}
        return [{key: value[i] for key, value in split.items()} for i in range(n_parts)]
    return part.split(size)


def _take(store: Any, steps: np.ndarray, envs: np.ndarray) -> Any:
    if isinstance(store, dict):
        return {key: value[steps, envs] for key, value in store.items()}
    return store[steps, envs]
