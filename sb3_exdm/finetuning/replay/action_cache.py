"""Actions that are kept for the observations of a replay buffer."""

from collections.abc import Callable

import numpy as np

from sb3_exdm.common.validation import check_finite

ActionSampler = Callable[[np.ndarray], np.ndarray]
"""Raw observations ``(n, *obs_shape)`` to scaled actions ``(n, n_candidates, action_dim)``."""


class ActionCache:
    """
    Actions kept for the observations of rows, computed once for each.

    :param n_rows: number of rows
    :param n_candidates: actions per row
    :param action_dim: size of an action
    """

    def __init__(self, n_rows: int, n_candidates: int, action_dim: int) -> None:
        self.actions = np.zeros((n_rows, n_candidates, action_dim), dtype=np.float32)
        self.known = np.zeros(n_rows, dtype=bool)

    def complete(self, observations: np.ndarray, sampler: ActionSampler, chunk: int) -> None:
        """
        Compute what is missing.

        :param observations: of the rows that hold a transition, ``(n, *obs_shape)`` with n at most ``n_rows``
        :param sampler: gives actions for observations
        :param chunk: observations per call
        :raises ValueError: if what it gives has another shape, or is not finite
        """
        missing = np.flatnonzero(~self.known[: len(observations)])
        for begin in range(0, len(missing), chunk):
            rows = missing[begin : begin + chunk]
            actions = np.asarray(sampler(observations[rows]))
            expected = (len(rows), *self.actions.shape[1:])
            if actions.shape != expected:
                raise ValueError(
                    f"The sampler must return actions (n, n_candidates, action_dim) = {expected}, got {actions.shape}."
                )
            check_finite(actions, "sampler's actions")
            self.actions[rows] = actions
            self.known[rows] = True
