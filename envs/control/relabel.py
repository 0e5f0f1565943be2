"""Task rewards of recorded transitions: one exploration serves all tasks of its domain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import hopper, quadruped, walker
from .domain import VectorizedDomain
from .spaces import FlatObservations

DOMAINS: dict[str, VectorizedDomain] = {"walker": walker.DOMAIN, "quadruped": quadruped.DOMAIN, "hopper": hopper.DOMAIN}
"""Vectorized domains, by name."""


@dataclass(frozen=True)
class RelabelingTask:
    """
    Task that can compute the rewards of recorded transitions.

    :param domain: name of the domain, a key of :data:`DOMAINS`
    :param name: name of the task
    """

    domain: str
    name: str

    def compute_rewards(self, observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        """
        Compute the rewards of transitions. A reward depends on the state that a step leads to. Quantities that are not part of
        its observation are computed with MuJoCo.

        :param observations: not used
        :param actions: not used
        :param next_observations: observations of the next states, ``(n, dim)``
        :return: rewards, ``(n,)``, exact but for the rounding of observations to single precision
        :raises ValueError: if the observations have another shape, or do not determine the reward
        """
        domain = DOMAINS[self.domain]
        if self.name in domain.not_relabelable:
            raise ValueError(
                f"The observations of the {self.domain} do not determine the reward of {self.name!r}, so recorded transitions "
                "cannot be relabeled; learn from new transitions only."
            )
        env = domain.make(self.name)
        dim = FlatObservations(env.observation_spec()).dim
        next_observations = np.asarray(next_observations, dtype=np.float64)
        if next_observations.shape[1:] != (dim,):
            raise ValueError(
                f"Observations of the {self.domain} have the shape (n, {dim}), got {next_observations.shape}: were they "
                "recorded in another domain?"
            )
        quantities = domain.infer_quantities(env.physics, next_observations)  # (n, n_quantities)
        return np.asarray(domain.rewards[self.name](*quantities.T), dtype=np.float64)
