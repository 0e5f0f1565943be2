"""What recorded transitions of a body are worth in a task: one exploration serves all tasks of its body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import hopper, quadruped, walker
from .domain import VectorizedDomain
from .spaces import FlatObservations

DOMAINS: dict[str, VectorizedDomain] = {"walker": walker.BODY, "quadruped": quadruped.BODY, "hopper": hopper.BODY}
"""The bodies of dm_control's suite."""


@dataclass(frozen=True)
class RelabelingTask:
    """
    A task that pays for recorded transitions what it would have paid for them.

    :param domain: The body, a key of :data:`DOMAINS`
    :param name: What it is rewarded for
    """

    domain: str
    name: str

    def compute_rewards(self, observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        """
        The task pays for the state that a step leads to. What it pays for is computed from the observation of that state, with
        MuJoCo where it is not part of it.

        :param observations: Not used
        :param actions: Not used
        :param next_observations: ``(n, dim)``
        :return: Rewards, ``(n,)``, exact but for the rounding of observations to single precision
        :raises ValueError: if the observations have another shape, or do not say what the task pays for
        """
        body = DOMAINS[self.domain]
        if self.name in body.unrecorded:
            raise ValueError(
                f"The observations of the {self.domain} do not say what {self.name!r} pays for, so recorded transitions have "
                "no known reward; learn from new ones only."
            )
        env = body.make(self.name)
        dim = FlatObservations(env.observation_spec()).dim
        next_observations = np.asarray(next_observations, dtype=np.float64)
        if next_observations.shape[1:] != (dim,):
            raise ValueError(
                f"Observations of the {self.domain} have the shape (n, {dim}), got {next_observations.shape}: were they "
                "recorded with another body?"
            )
        return np.asarray(body.rewards[self.name](*body.recall(env.physics, next_observations).T), dtype=np.float64)
