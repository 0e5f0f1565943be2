"""Replay buffer of fine-tuning: offline beside online transitions, oversampled successes, cached actions."""

from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_exdm.common.validation import check_finite, check_integers, check_rewards
from sb3_exdm.finetuning.replay.action_cache import ActionCache, ActionSampler
from sb3_exdm.finetuning.replay.success_index import SuccessIndex, near_success
from sb3_exdm.finetuning.replay.transitions import Transitions, offline_transitions

SelfFinetuneReplayBuffer = TypeVar("SelfFinetuneReplayBuffer", bound="FinetuneReplayBuffer")


class FinetuneSamples(NamedTuple):
    """``ReplayBufferSamples`` of Stable-Baselines3, with cached actions."""

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor
    cached_actions: th.Tensor | None = None
    """Actions for the observations, ``(batch, n_actions, action_dim)``."""
    next_cached_actions: th.Tensor | None = None
    """Actions for the next observations."""


class FinetuneReplayBuffer(ReplayBuffer):
    """
    Replay buffer of fine-tuning, for ``replay_buffer_class`` of any off-policy algorithm with Box spaces.

    ``success_fraction`` of a batch are transitions near a success, which means at most ``success_horizon`` steps before a
    positive reward of the same episode. The rest is drawn uniformly, ``offline_fraction`` of it from the offline transitions.
    If more than half of all transitions are near a success, rewards are not sparse and none are oversampled. The order of the
    transitions in a batch is not random.

    With ``n_steps > 1`` returns stop where an episode ends. A transition whose observation is not the next observation of
    the transition before starts an episode, because an environment may be reset between two calls of ``learn``.
    Stable-Baselines3 ignores the algorithm's ``n_steps`` for custom buffers: set it here, with the algorithm's ``gamma``.

    :param buffer_size: maximum number of online transitions
    :param observation_space: a Box
    :param action_space: a Box with finite bounds
    :param device: PyTorch device of the samples
    :param n_envs: number of parallel environments
    :param optimize_memory_usage: not supported
    :param handle_timeout_termination: whether the value of the state after a time limit counts
    :param n_steps: number of steps of a return, at least 1
    :param gamma: discount factor within a return, in [0, 1]
    :param success_fraction: fraction of a batch near a success, in [0, 1]
    :param success_horizon: largest number of steps to a success, at least 0
    :param offline_fraction: fraction of offline transitions in the rest of a batch, in [0, 1]
    :param seed: seed of the sampling; None to draw it from numpy's global generator, which the algorithm's seed has set
    :raises ValueError: for other spaces, or settings out of range
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        success_fraction: float = 0.15,
        success_horizon: int = 30,
        offline_fraction: float = 0.5,
        seed: int | None = None,
    ) -> None:
        if not isinstance(observation_space, spaces.Box):
            raise ValueError(
                f"FinetuneReplayBuffer needs Box observations, got {observation_space}. Flatten others with "
                "gymnasium.wrappers.FlattenObservation."
            )
        if not isinstance(action_space, spaces.Box) or not action_space.is_bounded():
            raise ValueError(f"FinetuneReplayBuffer needs a Box of actions with finite bounds, got {action_space}.")
        check_integers(n_steps=(n_steps, 1), success_horizon=(success_horizon, 0))
        for name, value in dict(gamma=gamma, success_fraction=success_fraction, offline_fraction=offline_fraction).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")
        if optimize_memory_usage:
            raise ValueError(
                "FinetuneReplayBuffer does not support optimize_memory_usage=True, which loses the last observation of an "
                "episode. Leave it out, or choose a smaller buffer_size."
            )
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs=n_envs,
            handle_timeout_termination=handle_timeout_termination,
        )
        self.n_steps = n_steps
        self.gamma = gamma
        self.success_fraction = success_fraction
        self.success_horizon = success_horizon
        self.offline_fraction = offline_fraction
        self._rng = np.random.default_rng(np.random.randint(2**31) if seed is None else seed)
        self._success_index = SuccessIndex(self.buffer_size, n_envs, success_horizon)
        self._offline: Transitions | None = None
        self._near_success_offline = np.zeros(0, dtype=np.int64)
        self._lowest_reward, self._highest_reward = float("inf"), -float("inf")
        self.clear_cached_actions()

    @classmethod
    def from_buffer(cls: type[SelfFinetuneReplayBuffer], buffer: ReplayBuffer, **kwargs: Any) -> SelfFinetuneReplayBuffer:
        """
        Copy the transitions of another buffer, with its size and its number of steps of a return.

        :param buffer: replay buffer with Box spaces
        :param kwargs: further arguments of the constructor
        :raises ValueError: if the buffer uses ``optimize_memory_usage``, or for other spaces
        """
        settings = {
            "device": buffer.device,
            "n_envs": buffer.n_envs,
            "optimize_memory_usage": buffer.optimize_memory_usage,
            "handle_timeout_termination": buffer.handle_timeout_termination,
        }
        if isinstance(buffer, (NStepReplayBuffer, FinetuneReplayBuffer)):
            settings.update(n_steps=buffer.n_steps, gamma=buffer.gamma)
        new = cls(buffer.buffer_size * buffer.n_envs, buffer.observation_space, buffer.action_space, **{**settings, **kwargs})
        for i in range(buffer.size()):
            pos = (i + buffer.pos) % buffer.buffer_size if buffer.full else i  # in the order of time
            infos = [{"TimeLimit.truncated": bool(timeout)} for timeout in buffer.timeouts[pos]]
            step = buffer.observations[pos], buffer.next_observations[pos], buffer.actions[pos], buffer.rewards[pos]
            new.add(*step, buffer.dones[pos], infos)
        if isinstance(buffer, FinetuneReplayBuffer) and buffer._offline is not None:
            new._set_offline(buffer._offline)
        return new

    @property
    def n_online(self) -> int:
        """Number of online transitions."""
        return self.size() * self.n_envs

    @property
    def n_offline(self) -> int:
        """Number of offline transitions."""
        return 0 if self._offline is None else len(self._offline)

    @property
    def n_near_success(self) -> int:
        """Number of transitions near a success."""
        return self._success_index.n_near_success + len(self._near_success_offline)

    @property
    def has_signal(self) -> bool:
        """True if two different rewards were stored. There is nothing to learn from equal rewards."""
        return self._lowest_reward < self._highest_reward

    def _update_reward_range(self, rewards: np.ndarray) -> None:
        self._lowest_reward = min(self._lowest_reward, float(rewards.min()))
        self._highest_reward = max(self._highest_reward, float(rewards.max()))

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Add one step of all environments.

        :raises ValueError: for NaN or infinity in an observation or a reward
        """
        check_finite(obs, "observation", "environment")
        check_finite(next_obs, "next observation", "environment")
        check_rewards(np.asarray(reward), "reward", f"at position {self.pos}", "Check the environment.")
        pos, is_first = self.pos, self.size() == 0
        super().add(obs, next_obs, action, reward, done, infos)
        same = (self.observations[pos] == self.next_observations[pos - 1]).reshape(self.n_envs, -1).all(axis=1)
        continues = same & (self.dones[pos - 1] == 0) & (not is_first)
        self._success_index.add(pos, continues, self.rewards[pos] > 0)
        self._update_reward_range(self.rewards[pos])
        for cache in self._online_cache.values():
            cache.is_filled[pos * self.n_envs : (pos + 1) * self.n_envs] = False
        self._cache_is_current = False

    def reset(self) -> None:
        """Remove the online transitions. The offline ones stay."""
        super().reset()
        self._success_index.clear()
        for cache in self._online_cache.values():
            cache.is_filled[:] = False

    def add_offline(self, transitions: dict[str, np.ndarray]) -> None:
        """
        Add transitions that are never overwritten, for instance those of pre-training after
        :func:`~sb3_exdm.finetuning.relabel.relabel`.

        :param transitions: ``observations``, ``next_observations`` ``(n, *obs_shape)``, ``actions`` ``(n, *action_shape)`` in
            the units of the environment, ``rewards``, ``terminated``, ``truncated`` and the integers ``env_indices``
            ``(n,)``, in the order of time for each environment; other keys are ignored
        :raises ValueError: if an array is missing, has another shape or is not finite
        """
        assert isinstance(self.observation_space, spaces.Box) and isinstance(self.action_space, spaces.Box)
        new = offline_transitions(transitions, self.observation_space, self.action_space, self.handle_timeout_termination)
        self._set_offline(new if self._offline is None else self._offline.concatenate(new))

    def _set_offline(self, transitions: Transitions) -> None:
        self._offline = transitions
        near = near_success(transitions.rewards[:, None] > 0, transitions.ends[:, None], self.success_horizon)
        self._near_success_offline = np.flatnonzero(near)
        self._update_reward_range(transitions.rewards)
        self._offline_cache.clear()
        self._cache_is_current = False

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> FinetuneSamples:  # type: ignore[override]
        """
        Sample a batch.

        :param batch_size: number of transitions
        :param env: normalizes observations and rewards
        :raises ValueError: if the buffer is empty
        :raises RuntimeError: if transitions were added since :meth:`cache_actions`
        """
        if self.n_online + self.n_offline == 0:
            raise ValueError("The buffer is empty: add transitions before sampling.")
        online, offline = self._sample_near_success(batch_size)
        rest = batch_size - len(online) - len(offline)
        n_offline = rest if not self.n_online else round(self.offline_fraction * rest) if self.n_offline else 0
        if n_offline:
            offline = np.concatenate((offline, self._rng.integers(self.n_offline, size=n_offline)))
        if rest > n_offline:
            online = np.concatenate((online, self._rng.integers(self.n_online, size=rest - n_offline)))
        return self._gather(online, offline, env)

    def _sample_near_success(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of online and offline transitions near a success."""
        n_near_success = self.n_near_success
        # Half of the transitions: beyond that rewards are not sparse, and oversampling would only narrow the batch.
        if not 0 < n_near_success <= (self.n_online + self.n_offline) / 2:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        online = self._success_index.near_success_indices()
        drawn = self._rng.integers(n_near_success, size=round(self.success_fraction * batch_size))
        is_online = drawn < len(online)
        return online[drawn[is_online]], self._near_success_offline[drawn[~is_online] - len(online)]

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> FinetuneSamples:  # type: ignore[override]
        envs = self._rng.integers(self.n_envs, size=len(batch_inds))
        return self._gather(batch_inds * self.n_envs + envs, np.zeros(0, dtype=np.int64), env)

    def _gather(self, online: np.ndarray, offline: np.ndarray, env: VecNormalize | None) -> FinetuneSamples:
        if self._online_cache and not self._cache_is_current:
            raise RuntimeError(
                "Transitions were added since their actions were cached: call cache_actions before sampling, or "
                "clear_cached_actions to do without."
            )
        settings = (self.n_steps, self.gamma, partial(self._normalize_reward, env=env))
        parts = []
        if len(online):
            parts.append(self._ring().gather(online, *settings, self._online_cache))
        if len(offline):
            assert self._offline is not None
            parts.append(self._offline.gather(offline, *settings, self._offline_cache))
        batch = parts[0]
        if len(parts) > 1:
            batch = {key: np.concatenate([part[key] for part in parts]) for key in batch}
        if env is not None:
            batch |= {key: env.normalize_obs(batch[key]) for key in ("observations", "next_observations")}  # type: ignore[misc]
        return FinetuneSamples(**{key: self.to_torch(array, copy=False) for key, array in batch.items()})

    def _ring(self) -> Transitions:
        # Views, made anew every time, because stored views would be pickled as copies.
        n = self.buffer_size * self.n_envs
        return Transitions(
            self.observations.reshape(n, *self.obs_shape),
            self.next_observations.reshape(n, *self.obs_shape),
            self.actions.reshape(n, self.action_dim),
            self.rewards.ravel(),
            self.dones.ravel(),
            self.timeouts.ravel(),
            self._success_index.ends.ravel(),
            stride=self.n_envs,
        )

    def cache_actions(
        self, sampler: ActionSampler, n_actions: int, *, next_observations: bool = False, chunk_size: int = 4096
    ) -> None:
        """
        Cache actions for the observations of all transitions; samples then hold them. Only new transitions are computed, all
        if ``n_actions`` changes. After the first call, call it again between adding and sampling.

        :param sampler: maps raw observations ``(n, *obs_shape)`` to scaled actions ``(n, n_actions, action_dim)``
        :param n_actions: actions per transition, at least 1
        :param next_observations: whether actions for the next observations are cached too
        :param chunk_size: observations per call of the sampler, at least 1
        :raises ValueError: if the actions have another shape, or are not finite
        """
        check_integers(n_actions=(n_actions, 1), chunk_size=(chunk_size, 1))
        if self._online_cache and self._online_cache["observations"].actions.shape[1] != n_actions:
            self.clear_cached_actions()
        self._cache_is_current = False  # should the sampler fail
        parts = [(self._online_cache, self._ring(), self.n_online)]
        if self._offline is not None:
            parts.append((self._offline_cache, self._offline, self.n_offline))
        for cache, transitions, n in parts:
            observations = {"observations": transitions.observations}
            if next_observations:
                observations["next_observations"] = transitions.next_observations
            else:
                cache.pop("next_observations", None)
            for name, array in observations.items():
                if name not in cache:
                    cache[name] = ActionCache(len(transitions), n_actions, self.action_dim)
                cache[name].fill(array[:n], sampler, chunk_size)
        self._cache_is_current = True

    def clear_cached_actions(self) -> None:
        """Remove the cached actions, for instance because the policy that drew them has changed."""
        self._online_cache: dict[str, ActionCache] = {}  # of "observations" and "next_observations"
        self._offline_cache: dict[str, ActionCache] = {}
        self._cache_is_current = False

    def online_cache_arrays(self) -> dict[str, np.ndarray]:
        """Cached actions of the online transitions, by name, views ``(buffer_size, n_envs, n_actions, action_dim)``."""
        return {
            f"cached_actions.{name}": cache.actions.reshape(self.buffer_size, self.n_envs, *cache.actions.shape[1:])
            for name, cache in self._online_cache.items()
        }

    def cache_memories(self) -> list[np.ndarray]:
        """All arrays of cached actions, and for the offline transitions the masks of those that are filled."""
        offline = list(self._offline_cache.values())
        return [
            *(cache.actions for cache in (*self._online_cache.values(), *offline)),
            *(cache.is_filled for cache in offline),
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the cached actions, which can be computed again."""
        return {**self.__dict__, "_online_cache": {}, "_offline_cache": {}, "_cache_is_current": False}
