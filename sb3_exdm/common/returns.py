"""N-step returns."""

from collections.abc import Callable

import numpy as np


def n_step_returns(
    ends: np.ndarray, gamma: float, rewards_of: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""
    Compute the returns :math:`\sum_{k<m} \gamma^k r_k` of up to n steps, which stop where an episode ends.

    :param ends: whether a sequence of transitions stops after a step, ``(batch, n_steps)``
    :param gamma: discount factor
    :param rewards_of: maps a mask ``(batch, n_steps)`` of the m steps of each return to their rewards ``(mask.sum(),)``
    :return: number of steps m, return, and discount :math:`\gamma^m` of what follows, each ``(batch,)``
    """
    n_steps = ends.shape[1]
    counts = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, n_steps)  # (batch,)
    offsets = np.arange(n_steps)
    mask = offsets < counts[:, None]  # (batch, n_steps)
    rewards = np.zeros(ends.shape, dtype=np.float32)
    rewards[mask] = rewards_of(mask)
    return counts, rewards @ (gamma**offsets).astype(np.float32), (gamma**counts).astype(np.float32)
