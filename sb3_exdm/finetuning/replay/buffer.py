"""A replay buffer for adapting to a task: offline rows beside the online ones, more of the rare successes, kept actions."""

from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_exdm.common.validation import check_integers
from sb3_exdm.finetuning.replay.action_cache import ActionCache, ActionSampler
from sb3_exdm.finetuning.replay.success_index import SuccessIndex, near_success
from sb3_exdm.finetuning.replay.transitions import Transitions, check_boxes, offline_transitions

SelfFinetuneReplayBuffer = TypeVar("SelfFinetuneReplayBuffer", bound="FinetuneReplayBuffer")


class FinetuneSamples(NamedTuple):
    """Stable-Baselines3's ``ReplayBufferSamples``, and the actions kept for the observations."""

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor
    candidates: th.Tensor | None = None
    """``(batch, n_candidates, action_dim)``"""
    next_candidates: th.Tensor | None = None
    """The same for ``next_observations``."""


class FinetuneReplayBuffer(ReplayBuffer):
    """
    Replay buffer for adapting to a task, for ``replay_buffer_class`` of any off-policy algorithm with Box spaces.

    A batch is made of ``success_fraction`` favored rows, drawn uniformly from those at most ``success_horizon`` steps
    before a positive reward of the same episode (if there are any), and of rows drawn uniformly from the offline part
    (``offline_fraction`` of the rest, if both parts hold some) and from what the agent collected. If more than half of all
    rows are favored, rewards are not rare and nothing is favored. Transitions come in groups; their order means nothing.

    With ``n_steps > 1`` up to n rewards are summed, fewer where an episode ends or the buffer does. A row whose observation
    is not the next observation of the row before begins an episode, so that an environment that was reset between two calls
    of ``learn`` is no trap. The algorithm's own ``n_steps`` is ignored by Stable-Baselines3 for custom buffers: set it here,
    with the same ``gamma``.

    :param buffer_size: number of online transitions
    :param observation_space: a Box
    :param action_space: a Box with finite bounds
    :param device: PyTorch device of the samples
    :param n_envs: number of parallel environments
    :param optimize_memory_usage: not supported
    :param handle_timeout_termination: whether the value of what follows a time limit counts
    :param n_steps: steps of the return, at least 1
    :param gamma: discount within the n steps, in [0, 1]; the same as the algorithm's
    :param success_fraction: part of a batch that is favored rows, in [0, 1]
    :param success_horizon: steps before a success that are favored with it, at least 0
    :param offline_fraction: part of the rest that is offline rows, in [0, 1]
    :param seed: of the generator that draws the batches; None to draw the seed from numpy's global generator, which the
        algorithm's seed has set
    :raises ValueError: for anything else
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
        check_boxes(observation_space, action_space)
        check_integers(n_steps=(n_steps, 1), success_horizon=(success_horizon, 0))
        for name, value in dict(gamma=gamma, success_fraction=success_fraction, offline_fraction=offline_fraction).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")
        if optimize_memory_usage:
            raise ValueError(
                "FinetuneReplayBuffer does not support optimize_memory_usage=True: the last observation of an episode would "
                "be lost. Leave it out, or choose a smaller buffer_size."
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
        self.drop_candidates()

    @classmethod
    def from_buffer(cls: type[SelfFinetuneReplayBuffer], buffer: ReplayBuffer, **kwargs: Any) -> SelfFinetuneReplayBuffer:
        """
        A buffer of the same size that holds copies of the same rows. The return has as many steps as the other buffer's.

        :param buffer: any replay buffer with Box spaces
        :param kwargs: further arguments of the constructor
        :raises ValueError: if it was made with ``optimize_memory_usage``, or for other spaces
        """
        settings = {
            "device": buffer.device,
            "n_envs": buffer.n_envs,
            "optimize_memory_usage": buffer.optimize_memory_usage,
            "handle_timeout_termination": buffer.handle_timeout_termination,
            **{name: getattr(buffer, name) for name in ("n_steps", "gamma") if hasattr(buffer, name)},
            **kwargs,
        }
        new = cls(buffer.buffer_size * buffer.n_envs, buffer.observation_space, buffer.action_space, **settings)
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
            getattr(new, name)[:] = getattr(buffer, name)
        new.pos, new.full = buffer.pos, buffer.full
        order = (np.arange(new.size()) + (new.pos if new.full else 0)) % new.buffer_size  # in the order of time
        ends = new.dones[order] > 0  # (size, n_envs)
        jumps = new.observations[order[1:]] != new.next_observations[order[:-1]]
        ends[:-1] |= jumps.any(axis=tuple(range(2, jumps.ndim)))
        new._success_index.rebuild(order, ends, new.rewards[order] > 0)
        if len(order):
            new._see_rewards(new.rewards[order])
        if isinstance(buffer, FinetuneReplayBuffer) and buffer._offline is not None:
            new._set_offline(buffer._offline)
        return new

    @property
    def n_online(self) -> int:
        """Number of rows that the agent collected."""
        return self.size() * self.n_envs

    @property
    def n_offline(self) -> int:
        """Number of offline rows."""
        return 0 if self._offline is None else len(self._offline)

    @property
    def n_near_success(self) -> int:
        """Number of rows shortly before a success, even if they are too many to be favored."""
        return self._success_index.n_near_success + len(self._near_success_offline)

    @property
    def has_signal(self) -> bool:
        """Whether two rewards ever differed. As long as all are the same there is nothing to learn from them."""
        return self._lowest_reward < self._highest_reward

    def _see_rewards(self, rewards: np.ndarray) -> None:
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
        """Store one step of all environments."""
        pos, is_first = self.pos, self.size() == 0
        super().add(obs, next_obs, action, reward, done, infos)
        same = (self.observations[pos] == self.next_observations[pos - 1]).reshape(self.n_envs, -1).all(axis=1)
        follows = same & (self.dones[pos - 1] == 0) & (not is_first)
        self._success_index.add(pos, follows, self.rewards[pos] > 0)
        self._see_rewards(self.rewards[pos])
        for candidates in self._kept_online.values():
            candidates.known[pos * self.n_envs : (pos + 1) * self.n_envs] = False
        self._complete = False

    def reset(self) -> None:
        """Forget the online rows; the offline ones stay."""
        super().reset()
        self._success_index.clear()
        for candidates in self._kept_online.values():
            candidates.known[:] = False

    def add_offline(self, transitions: dict[str, np.ndarray]) -> None:
        """
        Add transitions that are never overwritten, for instance those of pre-training after
        :func:`~sb3_exdm.finetuning.relabel.relabel`.

        :param transitions: ``observations``, ``next_observations`` ``(n, *obs_shape)``, ``actions`` ``(n, *action_shape)`` in
            the units of the environment, ``rewards``, ``terminated``, ``truncated`` and the integers ``env_indices``
            ``(n,)``, the rows of each environment in the order of time; other keys are ignored
        :raises ValueError: if something is missing, has another shape or is not finite
        """
        assert isinstance(self.observation_space, spaces.Box) and isinstance(self.action_space, spaces.Box)
        new = offline_transitions(transitions, self.observation_space, self.action_space, self.handle_timeout_termination)
        self._set_offline(new if self._offline is None else self._offline.followed_by(new))

    def _set_offline(self, rows: Transitions) -> None:
        self._offline = rows
        near = near_success(rows.rewards[:, None] > 0, rows.ends[:, None], self.success_horizon)
        self._near_success_offline = np.flatnonzero(near)
        self._see_rewards(rows.rewards)
        self._kept_offline.clear()
        self._complete = False

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> FinetuneSamples:  # type: ignore[override]
        """
        Draw a batch.

        :param batch_size: number of rows
        :param env: normalizes observations and rewards
        :raises ValueError: if there are no rows
        :raises RuntimeError: if rows were added since :meth:`cache_candidates`
        """
        if self.n_online + self.n_offline == 0:
            raise ValueError("The buffer is empty: add transitions before sampling.")
        online, offline = self._draw_near_success(batch_size)
        rest = batch_size - len(online) - len(offline)
        n_offline = rest if not self.n_online else round(self.offline_fraction * rest) if self.n_offline else 0
        if n_offline:
            offline = np.concatenate((offline, self._rng.integers(self.n_offline, size=n_offline)))
        if rest > n_offline:
            online = np.concatenate((online, self._rng.integers(self.n_online, size=rest - n_offline)))
        return self._collect(online, offline, env)

    def _draw_near_success(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Favoured online and offline rows for a batch."""
        n_near_success = self.n_near_success
        # Half of the rows: beyond that successes are no rarity, and their neighborhoods would only narrow the batch.
        if not 0 < n_near_success <= (self.n_online + self.n_offline) / 2:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        favored_online = self._success_index.near_success_rows()
        drawn = self._rng.integers(n_near_success, size=round(self.success_fraction * batch_size))
        is_online = drawn < len(favored_online)
        return favored_online[drawn[is_online]], self._near_success_offline[drawn[~is_online] - len(favored_online)]

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> FinetuneSamples:  # type: ignore[override]
        envs = self._rng.integers(self.n_envs, size=len(batch_inds))
        return self._collect(batch_inds * self.n_envs + envs, np.zeros(0, dtype=np.int64), env)

    def _collect(self, online: np.ndarray, offline: np.ndarray, env: VecNormalize | None) -> FinetuneSamples:
        if self._kept_online and not self._complete:
            raise RuntimeError(
                "Transitions were added since their candidates were computed: call cache_candidates before sampling, or "
                "drop_candidates to do without."
            )
        settings = (self.n_steps, self.gamma, partial(self._normalize_reward, env=env))
        parts = []
        if len(online):
            parts.append(self._ring().gather(online, *settings, self._kept_online))
        if len(offline):
            assert self._offline is not None
            parts.append(self._offline.gather(offline, *settings, self._kept_offline))
        batch = parts[0]
        if len(parts) > 1:
            batch = {key: np.concatenate([part[key] for part in parts]) for key in batch}
        if env is not None:
            batch |= {key: env.normalize_obs(batch[key]) for key in ("observations", "next_observations")}  # type: ignore[misc]
        return FinetuneSamples(**{key: self.to_torch(array, copy=False) for key, array in batch.items()})

    def _ring(self) -> Transitions:
        # Made of views every time: views that were kept would become copies when the buffer is pickled.
        n_rows = self.buffer_size * self.n_envs
        return Transitions(
            self.observations.reshape(n_rows, *self.obs_shape),
            self.next_observations.reshape(n_rows, *self.obs_shape),
            self.actions.reshape(n_rows, self.action_dim),
            self.rewards.ravel(),
            self.dones.ravel(),
            self.timeouts.ravel(),
            self._success_index.ends.ravel(),
            stride=self.n_envs,
        )

    def cache_candidates(
        self, sampler: ActionSampler, n_candidates: int, *, next_observations: bool = False, chunk: int = 4096
    ) -> None:
        """
        Make sure that every row has actions for its observation, which samples then carry. Only rows that were added since
        the last call are computed; another ``n_candidates`` starts afresh. Once it was called, it must be called again
        between adding and sampling.

        :param sampler: raw observations ``(n, *obs_shape)`` to scaled actions ``(n, n_candidates, action_dim)``
        :param n_candidates: actions per row, at least 1
        :param next_observations: also for the next observations
        :param chunk: observations per call of the sampler, at least 1
        :raises ValueError: if the actions have another shape, or are not finite
        """
        check_integers(n_candidates=(n_candidates, 1), chunk=(chunk, 1))
        if self._kept_online and self._kept_online["observations"].actions.shape[1] != n_candidates:
            self.drop_candidates()
        self._complete = False  # should the sampler fail
        parts = [(self._kept_online, self._ring(), self.n_online)]
        if self._offline is not None:
            parts.append((self._kept_offline, self._offline, self.n_offline))
        for kept, rows, n_rows in parts:
            for side in ("observations", "next_observations") if next_observations else ("observations",):
                if side not in kept:
                    kept[side] = ActionCache(len(rows), n_candidates, self.action_dim)
                kept[side].complete(getattr(rows, side)[:n_rows], sampler, chunk)
            if not next_observations:
                kept.pop("next_observations", None)
        self._complete = True

    def drop_candidates(self) -> None:
        """Forget the kept actions, for instance because the policy that they were drawn from has changed."""
        self._kept_online: dict[str, ActionCache] = {}
        self._kept_offline: dict[str, ActionCache] = {}
        self._complete = False  # whether every row has its actions

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the kept actions, which can be computed again."""
        return {**self.__dict__, "_kept_online": {}, "_kept_offline": {}, "_complete": False}
