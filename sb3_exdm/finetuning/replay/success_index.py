"""Where the episodes of recorded transitions end, and which transitions led to a success."""

import numpy as np


class SuccessIndex:
    """
    The marks of a ring of steps, kept up to date as steps are added.

    :param n_steps: length of the ring
    :param n_envs: number of environments
    :param horizon: steps before a success that are favored with it
    """

    def __init__(self, n_steps: int, n_envs: int, horizon: int) -> None:
        self.ends = np.zeros((n_steps, n_envs), dtype=bool)  # true for the newest step: nothing follows it yet
        self._horizon = horizon
        self._lengths = np.zeros(n_envs, dtype=np.int64)  # steps of each environment's present episode
        self._near_success = np.zeros((n_steps, n_envs), dtype=bool)
        self._count: int | None = 0  # None: to be counted again
        self._rows: np.ndarray | None = None  # None: to be listed again

    @property
    def n_near_success(self) -> int:
        """Number of transitions shortly before a success."""
        if self._count is None:
            self._count = int(np.count_nonzero(self._near_success))
        return self._count

    def near_success_rows(self) -> np.ndarray:
        """Their places in the flattened ring, ``(n_near_success,)``."""
        if self._rows is None:
            self._rows = np.flatnonzero(self._near_success)
        return self._rows

    def add(self, pos: int, follows: np.ndarray, success: np.ndarray) -> None:
        """
        Mark a new step, and forget what it overwrites.

        :param pos: its place
        :param follows: whether it goes on with the episode of the step before, ``(n_envs,)``
        :param success: whether it was rewarded, ``(n_envs,)``
        """
        n_steps = len(self.ends)
        self.ends[pos - 1] = ~follows
        self.ends[pos] = True
        self._lengths = np.where(follows, self._lengths + 1, 1)
        changed = self._near_success[pos].any()
        self._near_success[pos] = False
        envs = np.flatnonzero(success)
        if envs.size:
            offsets = np.arange(min(self._horizon + 1, n_steps))[:, None]
            back, which = np.nonzero(offsets < self._lengths[envs])  # of (n_offsets, n_successes)
            self._near_success[(pos - back) % n_steps, envs[which]] = True
        if changed or envs.size:
            self._count = self._rows = None

    def rebuild(self, order: np.ndarray, ends: np.ndarray, success: np.ndarray) -> None:
        """
        What :meth:`add` would have noted about steps that are already there.

        :param order: their places in the order of time, ``(n,)``
        :param ends: whether an episode ended after them, ``(n, n_envs)``
        :param success: whether they were rewarded, ``(n, n_envs)``
        """
        if not len(order):
            return
        self._lengths = np.where(ends.any(axis=0), ends[::-1].argmax(axis=0), len(order))  # steps after the last end
        self._near_success[order] = near_success(success, ends, self._horizon)
        self.ends[order] = ends
        self.ends[order[-1:]] = True
        self._count = self._rows = None

    def clear(self) -> None:
        """Forget all favored transitions."""
        self._near_success[:] = False
        self._count = self._rows = None


def near_success(success: np.ndarray, ends: np.ndarray, horizon: int) -> np.ndarray:
    """
    Transitions at most ``horizon`` steps before a success of the same episode, or with one.

    :param success: in the order of time, bool ``(n_steps, n_envs)``
    :param ends: whether the next step belongs to another episode, ``(n_steps, n_envs)``
    :param horizon: at least 0
    :return: bool ``(n_steps, n_envs)``
    """
    steps = np.arange(len(success))[:, None]
    never = len(success) + horizon
    next_success, next_end = (
        np.minimum.accumulate(np.where(marked, steps, never)[::-1], axis=0)[::-1] for marked in (success, ends)
    )
    return (next_success - steps <= horizon) & (next_success <= next_end)
