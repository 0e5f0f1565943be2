"""Index of the transitions near a success."""

import numpy as np


class SuccessIndex:
    """
    Index of the stored transitions near a success, and of the ends of episodes, updated with every step.

    :param n_steps: length of the ring buffer
    :param n_envs: number of environments
    :param horizon: largest number of steps to the success
    """

    def __init__(self, n_steps: int, n_envs: int, horizon: int) -> None:
        self.ends = np.zeros((n_steps, n_envs), dtype=bool)  # also true for the newest step
        self._horizon = horizon
        self._lengths = np.zeros(n_envs, dtype=np.int64)  # of the current episodes
        self._near_success = np.zeros((n_steps, n_envs), dtype=bool)
        self._count: int | None = 0  # None if outdated
        self._indices: np.ndarray | None = None  # None if outdated

    @property
    def n_near_success(self) -> int:
        """Number of transitions near a success."""
        if self._count is None:
            self._count = int(np.count_nonzero(self._near_success))
        return self._count

    def near_success_indices(self) -> np.ndarray:
        """Return the indices of these transitions in the flattened ring buffer, ``(n_near_success,)``."""
        if self._indices is None:
            self._indices = np.flatnonzero(self._near_success)
        return self._indices

    def add(self, pos: int, continues: np.ndarray, success: np.ndarray) -> None:
        """
        Index a new step in place of the oldest one.

        :param pos: position of the step in the ring buffer
        :param continues: whether the step continues the episode of the step before, ``(n_envs,)``
        :param success: whether the reward is positive, ``(n_envs,)``
        """
        n_steps = len(self.ends)
        self.ends[pos - 1] = ~continues
        self.ends[pos] = True
        self._lengths = np.where(continues, self._lengths + 1, 1)
        changed = self._near_success[pos].any()
        self._near_success[pos] = False
        envs = np.flatnonzero(success)
        if envs.size:
            offsets = np.arange(min(self._horizon + 1, n_steps))[:, None]
            back, which = np.nonzero(offsets < self._lengths[envs])  # of (n_offsets, n_successes)
            self._near_success[(pos - back) % n_steps, envs[which]] = True
        if changed or envs.size:
            self._count = self._indices = None

    def clear(self) -> None:
        """Remove all transitions from the index."""
        self._near_success[:] = False
        self._count = self._indices = None


def near_success(success: np.ndarray, ends: np.ndarray, horizon: int) -> np.ndarray:
    """
    Find the transitions at most ``horizon`` steps before a success of the same episode, the success included.

    :param success: whether the reward is positive, in the order of time, ``(n_steps, n_envs)``
    :param ends: whether the episode ends after the step, ``(n_steps, n_envs)``
    :param horizon: largest number of steps to the success, at least 0
    :return: mask, ``(n_steps, n_envs)``
    """
    steps = np.arange(len(success))[:, None]
    never = len(success) + horizon
    next_success, next_end = (
        np.minimum.accumulate(np.where(marked, steps, never)[::-1], axis=0)[::-1] for marked in (success, ends)
    )
    return (next_success - steps <= horizon) & (next_success <= next_end)
