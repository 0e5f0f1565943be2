"""Cache of actions of the pre-trained policy."""

from collections.abc import Callable

import numpy as np

from sb3_exdm.common.validation import check_finite

ActionSampler = Callable[[np.ndarray], np.ndarray]
"""Maps raw observations ``(n, *obs_shape)`` to scaled actions ``(n, n_actions, action_dim)``."""


class ActionCache:
    """
    Actions for the observations of stored transitions, each computed once.

    The memory is ``4 * n_actions * action_dim`` bytes a transition: 26 MB for 100,000 transitions with 32 actions of 2
    dimensions, 77 MB with 6. Linux commits it as it is filled, so a large buffer costs nothing before.

    :param n_transitions: number of transitions
    :param n_actions: actions per transition
    :param action_dim: dimension of an action
    """

    def __init__(self, n_transitions: int, n_actions: int, action_dim: int) -> None:
        self.actions = np.zeros((n_transitions, n_actions, action_dim), dtype=np.float32)
        self.is_filled = np.zeros(n_transitions, dtype=bool)

    def fill(self, observations: np.ndarray, sampler: ActionSampler, chunk_size: int) -> None:
        """
        Compute the missing actions.

        :param observations: observations of the stored transitions, ``(n, *obs_shape)`` with n at most ``n_transitions``
        :param sampler: draws actions
        :param chunk_size: observations per call of the sampler
        :raises ValueError: if the actions have another shape, or are not finite
        """
        missing = np.flatnonzero(~self.is_filled[: len(observations)])
        for begin in range(0, len(missing), chunk_size):
            indices = missing[begin : begin + chunk_size]
            actions = np.asarray(sampler(observations[indices]))
            expected = (len(indices), *self.actions.shape[1:])
            if actions.shape != expected:
                raise ValueError(
                    f"The sampler must return actions (n, n_actions, action_dim) = {expected}, got {actions.shape}."
                )
            check_finite(actions, "sampler's actions")
            self.actions[indices] = actions
            self.is_filled[indices] = True
