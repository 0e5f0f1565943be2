"""The part that both reward wrappers share: remember states, fit the reward to them, reward_step for them."""

import math
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_exdm.common.validation import check_integers
from sb3_exdm.exploration.settings import check_coefficients
from sb3_exdm.rewards.base import REWARD_TRANSFORMS, IntrinsicReward
from sb3_exdm.rewards.registry import make_reward

MAX_BYTES = 2**29
"""Bytes of states that are kept at most, whatever ``buffer_size`` says: 19,000 images of 84 x 84 x 4."""


class StateMemory:
    """
    Ring buffer of elements of a space.

    :param space: Box, Discrete, MultiDiscrete, MultiBinary or Dict of these
    :param buffer_size: number of elements
    """

    def __init__(self, space: spaces.Space, buffer_size: int) -> None:
        self._parts: dict[str, StateMemory] = {}
        if isinstance(space, spaces.Dict):
            self._parts = {key: StateMemory(part, buffer_size) for key, part in space.spaces.items()}
            return
        # Rewards compute in single precision: no need to keep double.
        dtype = np.dtype(np.float32) if np.issubdtype(space.dtype, np.floating) else np.dtype(space.dtype)
        self._array = np.zeros((buffer_size, *(space.shape or ())), dtype=dtype)

    @staticmethod
    def bytes_per_element(space: spaces.Space) -> int:
        """Size of one element in memory."""
        if isinstance(space, spaces.Dict):
            return sum(StateMemory.bytes_per_element(part) for part in space.spaces.values())
        itemsize = 4 if np.issubdtype(space.dtype, np.floating) else np.dtype(space.dtype).itemsize
        return itemsize * math.prod(space.shape or ())

    def __setitem__(self, rows: slice | np.ndarray, batch: Any) -> None:
        for key, part in self._parts.items():
            part[rows] = batch[key]
        if not self._parts:
            self._array[rows] = batch

    def __getitem__(self, rows: np.ndarray) -> Any:
        if self._parts:
            return {key: part[rows] for key, part in self._parts.items()}
        return self._array[rows]


class OnlineReward:
    """
    Fits an intrinsic reward to the states that environments reach and turns it into what an agent is paid.

    Every ``train_freq`` states it takes ``gradient_steps`` steps on states drawn uniformly from the last ``buffer_size``, so
    that regions visited long ago stay known. Nothing is fitted before ``learning_starts`` states were reached; the steps
    that are owed by then are made up for. Until then every state is paid like one of average novelty.

    The parameters are those of :class:`~sb3_exdm.exploration.wrapper.ScoreRewardWrapper`.
    """

    def __init__(
        self,
        reward: str | IntrinsicReward,
        observation_space: spaces.Space,
        action_space: spaces.Space,
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
        check_integers(
            buffer_size=(buffer_size, 1),
            learning_starts=(learning_starts, 0),
            train_freq=(train_freq, 1),
            gradient_steps=(gradient_steps, 0),
            batch_size=(batch_size, 1),
        )
        check_coefficients(intrinsic_coef, extrinsic_coef, reward_transform)
        model_kwargs = dict(reward_kwargs or {})
        if isinstance(reward, str):
            model_kwargs = {"batch_size": batch_size, "seed": seed, "device": device, **model_kwargs}
        self.model = make_reward(reward, observation_space, action_space, **model_kwargs)
        self.intrinsic_coef = float(intrinsic_coef)
        self.extrinsic_coef = float(extrinsic_coef)
        self.learning_starts = learning_starts
        self.train_freq = train_freq
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.reward_transform = str(reward_transform or getattr(self.model, "reward_transform", "exp"))
        self._shape = REWARD_TRANSFORMS[self.reward_transform]
        self.frozen = False
        self.n_seen = 0
        self._n_steps = 0
        self._n_fits = 0
        self._is_fitted = False
        self._rng = np.random.default_rng(seed)
        size = StateMemory.bytes_per_element(observation_space)
        size += StateMemory.bytes_per_element(action_space) if self.model.needs_actions else 0
        self.buffer_size = max(min(buffer_size, MAX_BYTES // size), 1)
        self._observations = StateMemory(observation_space, self.buffer_size)
        self._actions = StateMemory(action_space, self.buffer_size) if self.model.needs_actions else None

    def reward_step(self, observations: Any, actions: Any, extrinsic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Price one step of ``n`` environments; then, unless ``frozen``, remember the states and fit the reward when it is due.

        :param observations: the states that were reached, ``(n, *observation_space.shape)``; if the reward looks at actions,
            those in which the actions were taken
        :param actions: ``(n, *action_space.shape)``, only if the reward looks at actions
        :param extrinsic: rewards of the task, ``(n,)``
        :return: what the agent gets, and the shaped intrinsic reward in it, both ``(n,)``
        :raises ValueError: for NaN, infinity or a wrong shape in a state or a reward
        """
        n_envs = len(extrinsic)
        self._n_steps += 1
        try:
            intrinsic = self.model.reward(observations, actions)
        except ValueError as error:
            raise ValueError(f"No reward for step {self._n_steps} of the environment: {error}") from error
        if not self._is_fitted:
            # Asked again at every step, since another wrapper may fit the same model. One that does not say is trusted.
            self._is_fitted = bool(getattr(self.model, "fitted", True))
            intrinsic = intrinsic if self._is_fitted else np.zeros(n_envs, dtype=np.float32)
        intrinsic = self._shape(intrinsic)
        if intrinsic.shape != (n_envs,) or not np.isfinite(intrinsic).all():
            raise ValueError(
                f"The intrinsic reward of {n_envs} states must be as many finite numbers, got {intrinsic} at step "
                f"{self._n_steps} of the environment from {type(self.model).__name__}."
            )
        if not self.frozen:
            self._learn(observations, actions, n_envs)
        rewards = self.intrinsic_coef * intrinsic
        if self.extrinsic_coef:  # an unwanted task reward may even be NaN
            rewards = rewards + self.extrinsic_coef * extrinsic
        return rewards, intrinsic

    def _learn(self, observations: Any, actions: Any, n_envs: int) -> None:
        start = self.n_seen % self.buffer_size
        # A slice is faster than indices, where the states do not run over the end.
        is_inside = start + n_envs <= self.buffer_size
        rows = slice(start, start + n_envs) if is_inside else (start + np.arange(n_envs)) % self.buffer_size
        self._observations[rows] = observations
        if self._actions is not None:
            self._actions[rows] = actions
        self.n_seen += n_envs
        if self.n_seen < self.learning_starts:
            return
        n_due = self.n_seen // self.train_freq - self._n_fits
        self._n_fits += n_due
        gradient_steps = n_due * self.gradient_steps
        if gradient_steps == 0:
            return
        drawn = self._rng.integers(min(self.n_seen, self.buffer_size), size=gradient_steps * self.batch_size)
        self.model.fit(
            self._observations[drawn],
            None if self._actions is None else self._actions[drawn],
            gradient_steps=gradient_steps,
        )
