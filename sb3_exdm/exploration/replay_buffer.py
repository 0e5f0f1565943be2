"""A replay buffer whose rewards are computed when a batch is sampled, by a reward that is fitted as transitions come in."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_exdm.common.validation import check_finite, check_integers
from sb3_exdm.exploration.settings import check_coefficients
from sb3_exdm.rewards.base import REWARD_TRANSFORMS, IntrinsicReward
from sb3_exdm.rewards.registry import make_reward


class IntrinsicRewardReplayBuffer(ReplayBuffer):
    """
    What the two buffers below share. All arguments but the first ones, which the algorithm gives, are plain data, so that
    ``model.save`` stays small.

    The reward of a transition is ``intrinsic_coef * intrinsic + extrinsic_coef * extrinsic`` with the intrinsic reward of the
    state that was reached (for a reward that looks at actions: of the state and the action taken), computed by the
    reward model *as it is when the batch is sampled*. Sampling changes nothing but the random state of the sampler.

    With ``n_steps > 1`` every one of the n rewards is computed anew before they are discounted and summed. The algorithm's
    own ``n_steps`` is ignored by Stable-Baselines3 for custom buffers: set it here, with the same ``gamma``.

    :param buffer_size: number of transitions
    :param observation_space: observation space
    :param action_space: action space
    :param reward: name of a reward, see :data:`~sb3_exdm.rewards.registry.REWARDS`; None to attach one later with
        :meth:`set_reward_model`
    :param reward_kwargs: further arguments of the reward
    :param intrinsic_coef: weight of the intrinsic reward
    :param extrinsic_coef: weight of the task's reward
    :param train_freq: number of transitions between two fits
    :param gradient_steps: gradient steps per fit
    :param batch_size: states drawn for each gradient step
    :param reward_transform: what the agent is paid for a standardized novelty, a name in
        :data:`~sb3_exdm.rewards.base.REWARD_TRANSFORMS`; None for the one that suits the reward
    :param n_steps: steps of the return
    :param gamma: discount within the n steps; the same as the algorithm's
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
        train_freq: int = 8,
        gradient_steps: int = 1,
        batch_size: int = 256,
        reward_transform: str | None = None,
        n_steps: int = 1,
        gamma: float = 0.99,
        **kwargs: Any,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, *args, **kwargs)
        check_integers(
            train_freq=(train_freq, 1), gradient_steps=(gradient_steps, 0), batch_size=(batch_size, 1), n_steps=(n_steps, 1)
        )
        check_coefficients(intrinsic_coef, extrinsic_coef, reward_transform)
        if n_steps > 1 and self.optimize_memory_usage:
            raise ValueError("optimize_memory_usage keeps no last observation of an episode: it needs n_steps=1.")
        if reward is not None and not isinstance(reward, str):
            raise TypeError(
                "reward must be a name, because Stable-Baselines3 saves replay_buffer_kwargs by value; to use a model that "
                "exists pass reward=None and call set_reward_model."
            )
        self.intrinsic_coef = intrinsic_coef
        self.extrinsic_coef = extrinsic_coef
        self.train_freq = train_freq
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.reward_transform = reward_transform
        self.n_steps = n_steps
        self.gamma = gamma
        self.fit_metrics: dict[str, float] = {}
        self._n_added = 0
        # Drawn from the global generator, which the algorithm's seed has set.
        reward_kwargs = {"seed": int(np.random.randint(2**31)), "device": self.device, **(reward_kwargs or {})}
        self._rng = np.random.default_rng(reward_kwargs["seed"])
        self._reward_model: IntrinsicReward | None = None
        if reward is not None:
            self._reward_model = make_reward(reward, observation_space, action_space, **reward_kwargs)

    @property
    def reward_model(self) -> IntrinsicReward:
        """
        The model of novelty.

        :raises RuntimeError: if there is none
        """
        if self._reward_model is None:
            raise RuntimeError(
                f"{type(self).__name__} has no reward model: transitions would carry no reward. Call set_reward_model first."
            )
        return self._reward_model

    def set_reward_model(self, reward_model: IntrinsicReward) -> None:
        """
        Attach a model, for instance one that was pre-trained.

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
        """Store one step of all environments, then fit the reward if it is due."""
        _ = self.reward_model  # refuse at once, rather than after learning_starts steps, if there is none
        check_finite(next_obs, "observation")
        super().add(obs, next_obs, action, reward, done, infos)
        before = self._n_added // self.train_freq
        self._n_added += self.n_envs
        n_due = self._n_added // self.train_freq - before
        if n_due and self.gradient_steps:
            self._fit(n_due * self.gradient_steps)

    def _fit(self, gradient_steps: int) -> None:
        for _ in range(gradient_steps):
            steps = self._rng.integers(self.size(), size=self.batch_size)
            envs = self._rng.integers(self.n_envs, size=self.batch_size)
            self.fit_metrics = self.reward_model.fit(*self._scored(steps, envs))

    def _scored(self, steps: np.ndarray, envs: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Raw states, and actions if the reward looks at them, that belong to the given transitions."""
        if self.reward_model.needs_actions:
            return _take(self.observations, steps, envs), self._raw_actions(steps, envs)
        return self._next_observations(steps, envs), None

    def _next_observations(self, steps: np.ndarray, envs: np.ndarray) -> Any:
        if self.optimize_memory_usage:
            return _take(self.observations, (steps + 1) % self.buffer_size, envs)
        return _take(self.next_observations, steps, envs)

    def _raw_actions(self, steps: np.ndarray, envs: np.ndarray) -> np.ndarray:
        return self.actions[steps, envs].reshape(len(steps), *(self.action_space.shape or ()))

    def intrinsic_rewards(self, steps: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """
        Shaped intrinsic rewards of stored transitions; changes nothing.

        :param steps: positions in the buffer, ``(n,)``
        :param envs: environments, ``(n,)``
        :return: ``(n,)``
        """
        reward_transform = str(self.reward_transform or getattr(self.reward_model, "reward_transform", "exp"))
        return REWARD_TRANSFORMS[reward_transform](self.reward_model.reward(*self._scored(steps, envs)))

    def _rewards(self, steps: np.ndarray, envs: np.ndarray, env: VecNormalize | None) -> np.ndarray:
        rewards = np.zeros(len(steps), dtype=np.float32)
        if self.intrinsic_coef:
            rewards += self.intrinsic_coef * self.intrinsic_rewards(steps, envs)
        if self.extrinsic_coef:
            rewards += self.extrinsic_coef * self._normalize_reward(self.rewards[steps, envs], env)
        return rewards

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> ReplayBufferSamples | DictReplayBufferSamples:
        envs = np.random.randint(0, self.n_envs, size=len(batch_inds))
        if self.n_steps == 1:
            last, rewards, discounts = batch_inds, self._rewards(batch_inds, envs, env), None
        else:
            last, rewards, discounts = self._n_step_returns(batch_inds, envs, env)
        # A time limit is no end: the value of what follows still counts.
        dones = self.dones[last, envs] * (1.0 - self.timeouts[last, envs])
        samples_class = DictReplayBufferSamples if isinstance(self.observations, dict) else ReplayBufferSamples
        return samples_class(
            observations=self._to_tensors(self._normalize_obs(_take(self.observations, batch_inds, envs), env)),
            actions=self.to_torch(self.actions[batch_inds, envs]),
            next_observations=self._to_tensors(self._normalize_obs(self._next_observations(last, envs), env)),
            dones=self.to_torch(dones[:, None]),
            rewards=self.to_torch(rewards[:, None]),
            discounts=None if discounts is None else self.to_torch(discounts[:, None]),
        )

    def _n_step_returns(
        self, starts: np.ndarray, envs: np.ndarray, env: VecNormalize | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Discounted sums of the rewards of up to ``n_steps`` transitions, cut where an episode ends or the buffer does.

        :return: the last transition of each sum, the sum, and the discount of what follows it, each ``(batch,)``
        """
        offsets = np.arange(self.n_steps)
        steps = (starts[:, None] + offsets) % self.buffer_size  # (batch, n_steps)
        newest = (self.pos - 1) % self.buffer_size  # the transition after it is the oldest one, or none
        ends = (self.dones[steps, envs[:, None]] > 0) | (steps == newest)  # (batch, n_steps)
        n_valid = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, self.n_steps)  # (batch,)
        valid = offsets < n_valid[:, None]  # (batch, n_steps)
        rewards = np.zeros(steps.shape, dtype=np.float32)
        rewards[valid] = self._rewards(steps[valid], np.repeat(envs, n_valid), env)
        returns = rewards @ (self.gamma**offsets).astype(np.float32)
        discounts = (self.gamma**n_valid).astype(np.float32)
        return (starts + n_valid - 1) % self.buffer_size, returns, discounts

    def _to_tensors(self, observations: Any) -> Any:
        if isinstance(observations, dict):
            return {key: self.to_torch(value) for key, value in observations.items()}
        return self.to_torch(observations)


class ScoreRewardReplayBuffer(IntrinsicRewardReplayBuffer):
    """
    Replay buffer with intrinsic rewards, for ``replay_buffer_class`` of any off-policy algorithm. See
    :class:`IntrinsicRewardReplayBuffer` for the arguments, and :class:`ScoreRewardDictReplayBuffer` for Dict observations.

    >>> from stable_baselines3 import SAC
    >>> from sb3_exdm import ScoreRewardReplayBuffer
    >>> model = SAC("MlpPolicy", "Pendulum-v1", replay_buffer_class=ScoreRewardReplayBuffer,
    ...             replay_buffer_kwargs=dict(reward_kwargs=dict(seed=0)))
    >>> model.learn(200).replay_buffer.reward_model.name
    'score'
    """

    def __init__(self, buffer_size: int, observation_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        if isinstance(observation_space, spaces.Dict):
            raise ValueError("For Dict observations use ScoreRewardDictReplayBuffer as replay_buffer_class.")
        super().__init__(buffer_size, observation_space, *args, **kwargs)


class ScoreRewardDictReplayBuffer(IntrinsicRewardReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """:class:`ScoreRewardReplayBuffer` for Dict observations (``"MultiInputPolicy"``)."""


def _take(store: Any, steps: np.ndarray, envs: np.ndarray) -> Any:
    if isinstance(store, dict):
        return {key: value[steps, envs] for key, value in store.items()}
    return store[steps, envs]
