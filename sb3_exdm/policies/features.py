"""Features of observations for policies and critics."""

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_exdm.common.spaces import is_bounded_vector, is_low_dim

N_FREQUENCIES = 5
"""Octaves of sines and cosines for low-dimensional observations."""


class FourierExtractor(BaseFeaturesExtractor):
    """
    Scale a bounded observation to [-1, 1] and append sines and cosines of it, so that policy and critic distinguish
    neighboring positions (Li & Pathak 2021, arXiv 2112.03257).

    :param observation_space: Box with finite bounds and one axis
    :param n_frequencies: octaves of sines and cosines, the lowest with half a period over the range of the observation
    :raises ValueError: for another space
    """

    scale: th.Tensor
    offset: th.Tensor
    frequencies: th.Tensor
    shift: th.Tensor

    def __init__(self, observation_space: gym.Space, n_frequencies: int = N_FREQUENCIES) -> None:
        if not is_bounded_vector(observation_space):
            raise ValueError(f"FourierExtractor needs a Box with finite bounds and one axis, got {observation_space}.")
        assert isinstance(observation_space, spaces.Box)
        dim = observation_space.shape[0]
        super().__init__(observation_space, features_dim=dim * (1 + 2 * n_frequencies))
        low, high = observation_space.low.astype(np.float64), observation_space.high.astype(np.float64)
        scale = 2.0 / np.maximum(high - low, 1e-8)
        self.register_buffer("scale", th.as_tensor(scale, dtype=th.float32))
        self.register_buffer("offset", th.as_tensor(-1.0 - low * scale, dtype=th.float32))
        # All phases in one product, with cos(z) = sin(z + pi / 2).
        frequencies = 0.5 * th.pi * 2.0 ** th.arange(n_frequencies)
        sines = th.kron(th.eye(dim), frequencies)  # (dim, dim * n_frequencies)
        self.register_buffer("frequencies", th.cat([sines, sines], dim=1), persistent=False)
        shift = th.cat([th.zeros(sines.shape[1]), th.full((sines.shape[1],), 0.5 * th.pi)])
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        x = th.addcmul(self.offset, observations, self.scale)  # (batch, dim), in [-1, 1]
        return th.cat([x, th.addmm(self.shift, x, self.frequencies).sin_()], dim=1)


CLIP = 10.0
"""Standardized observations are clipped to plus and minus this, as ``VecNormalize`` does."""


class ObservationFeatures(nn.Module):
    """
    Features that all networks of a :class:`~sb3_exdm.policies.diffusion_policy.DiffusionPolicy` share: Fourier features, or
    observations standardized with fixed moments.

    :param observation_space: Box of vectors
    :param n_frequencies: octaves of sines and cosines, 0 to standardize instead; by default :data:`N_FREQUENCIES` for
        low-dimensional observations (:func:`~sb3_exdm.common.spaces.is_low_dim`), else 0
    :raises ValueError: for Fourier features of an unbounded observation
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, observation_space: spaces.Box, n_frequencies: int | None = None) -> None:
        super().__init__()
        dim = spaces.flatdim(observation_space)
        if n_frequencies is None:
            n_frequencies = N_FREQUENCIES if is_low_dim(observation_space) else 0
        self.n_frequencies = n_frequencies
        self.fourier = FourierExtractor(observation_space, n_frequencies) if n_frequencies else None
        self.dim = dim if self.fourier is None else self.fourier.features_dim
        # Only unbounded observations are clipped, as those of an agent under VecNormalize.
        self.limit = float("inf") if is_bounded_vector(observation_space) else CLIP
        self.register_buffer("mean", th.zeros(dim))
        self.register_buffer("std", th.ones(dim))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Compute the features ``(batch, dim)`` of raw observations ``(batch, *shape)``."""
        observations = observations.flatten(1).float()
        if self.fourier is not None:
            return self.fourier(observations)
        return ((observations - self.mean) / self.std).clamp(-self.limit, self.limit)

    def fit(self, observations: np.ndarray) -> None:
        """Set mean and standard deviation, which Fourier features do not use, to those of data ``(n, *shape)``."""
        rows = np.asarray(observations, dtype=np.float64).reshape(len(observations), -1)
        self.mean.copy_(th.as_tensor(rows.mean(axis=0)))
        self.std.copy_(th.as_tensor(np.maximum(rows.std(axis=0), 1e-4)))
