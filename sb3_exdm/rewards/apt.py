"""Distance to the nearest visited states."""

from typing import Annotated, Any

import torch as th
from gymnasium import spaces

from sb3_exdm.common.validation import Between
from sb3_exdm.rewards.base import FittedReward
from sb3_exdm.rewards.registry import register_reward


@register_reward("apt")
class APTReward(FittedReward):
    r"""
    Particle-based entropy (APT, Liu & Abbeel 2021, arXiv 2103.04551, eq. 5; RE3, Seo et al. 2021, arXiv 2102.09430):
    :math:`R(s) = \log(1 + \frac1k \sum_{j \in N_k(s)} \|s - s_j\|)` with the k nearest of the reference states. The log
    of that distance estimates :math:`-\frac1d \log p(s)` up to a constant.

    The references are the last ``n_references`` states that :meth:`fit` was given, whitened: with minibatches from a
    replay memory, a recent sample of all visited states. A reference is its own nearest neighbor, at distance zero, as in
    the authors' code. Before the first fit every score is zero. Distances are between the whitened states themselves: they
    distinguish neighboring states as they are, without the sines and cosines that networks need.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, image or Dict space; images are compared through
        a fixed random projection, as in RE3
    :param action_space: not used
    :param n_references: number of reference states
    :param n_neighbors: number k of neighbors to average over
    :param kwargs: ``batch_size``, ``seed`` and ``device``, see :class:`~sb3_exdm.rewards.base.FittedReward`
    """

    name = "apt"
    references: th.Tensor
    n_fitted: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        n_references: Annotated[int, Between(1, 10**6)] = 1024,
        n_neighbors: Annotated[int, Between(1, 10**6)] = 12,
        **kwargs: Any,
    ) -> None:
        if n_neighbors > n_references:
            raise ValueError(f"n_neighbors must be at most n_references = {n_references}, got {n_neighbors}.")
        super().__init__(observation_space, action_space, **kwargs)
        self.n_neighbors = n_neighbors
        self.register_buffer("references", th.zeros(n_references, self.observation_dim, device=self.device))
        self.register_buffer("n_fitted", th.zeros((), dtype=th.int64))

    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        n_references = len(self.references)
        newest = observations[-n_references:]
        slots = (self.n_fitted.item() + th.arange(len(newest), device=self.device)) % n_references
        self.references[slots] = newest
        self.n_fitted += len(newest)
        return {"apt_references": float(min(self.n_fitted.item(), n_references))}

    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        return self._log_distance(observations, without_nearest=False)

    def _score_fitted(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        return self._log_distance(observations, without_nearest=True)  # the nearest is the state itself

    def _log_distance(self, observations: th.Tensor, without_nearest: bool) -> th.Tensor:
        references = self.references[: int(self.n_fitted)]
        if len(references) <= without_nearest:
            return th.zeros(len(observations), device=self.device)
        # The faster product form loses small distances to round-off.
        distances = th.cdist(observations, references, compute_mode="donot_use_mm_for_euclid_dist")
        k = min(self.n_neighbors + without_nearest, len(references))
        nearest = distances.topk(k, dim=1, largest=False, sorted=True).values  # (batch, k)
        return nearest[:, int(without_nearest) :].mean(dim=1).log1p()
