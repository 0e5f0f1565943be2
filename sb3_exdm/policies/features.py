"""What policies and critics see of an observation."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class FourierExtractor(BaseFeaturesExtractor):
    """
    Scales a bounded observation to [-1, 1] and appends sines and cosines of it, so that policy and critic can tell
    neighbouring places apart (Li & Pathak 2021, arXiv 2112.03257).

    :param observation_space: Box with finite bounds and one axis
    :param n_frequencies: octaves of sines and cosines, the lowest with half a period over the range of the observation
    """

    low: th.Tensor
    scale: th.Tensor
    frequencies: th.Tensor

    def __init__(self, observation_space: gym.Space, n_frequencies: int = 5) -> None:
        if not is_bounded_vector(observation_space):
            raise ValueError(f"FourierExtractor needs a Box with finite bounds and one axis, got {observation_space}.")
        assert isinstance(observation_space, spaces.Box)
        dim = observation_space.shape[0]
        super().__init__(observation_space, features_dim=dim * (1 + 2 * n_frequencies))
        low, high = observation_space.low.astype(np.float64), observation_space.high.astype(np.float64)
        self.register_buffer("low", th.as_tensor(low, dtype=th.float32))
        self.register_buffer("scale", th.as_tensor(2.0 / np.maximum(high - low, 1e-8), dtype=th.float32))
        self.register_buffer("frequencies", 0.5 * th.pi * 2.0 ** th.arange(n_frequencies))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        x = (observations - self.low) * self.scale - 1.0  # (batch, dim), in [-1, 1]
        phases = (x.unsqueeze(-1) * self.frequencies).flatten(1)  # (batch, dim * n_frequencies)
        return th.cat([x, phases.sin(), phases.cos()], dim=1)


def is_bounded_vector(space: gym.Space) -> bool:
    """Whether a space is a Box with one axis and finite bounds (those of float32 count as none)."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        return False
    return bool(np.all(np.abs(space.low) < 1e6) and np.all(np.abs(space.high) < 1e6))


MAX_FOURIER_DIM = 4
"""Observations with more dimensions get no sines and cosines: detail along single axes is not what matters there."""

CLIP = 10.0
"""Standardised observations are clipped to plus and minus this, as ``VecNormalize`` does."""


def has_fourier_features(space: gym.Space) -> bool:
    """Whether an observation space is a bounded vector with few dimensions."""
    return is_bounded_vector(space) and spaces.flatdim(space) <= MAX_FOURIER_DIM


class ObservationFeatures(nn.Module):
    """
    Raw observations as the networks of a :class:`~sb3_exdm.policies.diffusion_policy.DiffusionPolicy` see them: with sines and
    cosines if they are bounded and few, else standardised with fixed moments. All networks share them, so they are computed
    once a batch.

    :param observation_space: Box of vectors
    :param mean: of the observations, ``(dim,)``; 0 by default
    :param std: of the observations, ``(dim,)``; 1 by default
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, observation_space: spaces.Box, mean: np.ndarray | None = None, std: np.ndarray | None = None) -> None:
        super().__init__()
        dim = spaces.flatdim(observation_space)
        self.fourier = FourierExtractor(observation_space) if has_fourier_features(observation_space) else None
        self.dim = dim if self.fourier is None else self.fourier.features_dim
        # Where nothing is standardised there is nothing to clip.
        self.limit = float("inf") if is_bounded_vector(observation_space) else CLIP
        self.register_buffer("mean", th.zeros(dim) if mean is None else th.as_tensor(mean, dtype=th.float32).clone())
        self.register_buffer("std", th.ones(dim) if std is None else th.as_tensor(std, dtype=th.float32).clone())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: raw, ``(batch, *shape)``
        :return: ``(batch, dim)``
        """
        observations = observations.flatten(1).float()
        if self.fourier is not None:
            return self.fourier(observations)
        return ((observations - self.mean) / self.std).clamp(-self.limit, self.limit)

    def fit(self, observations: np.ndarray) -> None:
        """
        Take mean and standard deviation from data; bounded features have no use for them.

        :param observations: ``(n, *shape)``
        """
        rows = np.asarray(observations, dtype=np.float64).reshape(len(observations), -1)
        self.mean.copy_(th.as_tensor(rows.mean(axis=0)))
        self.std.copy_(th.as_tensor(np.maximum(rows.std(axis=0), 1e-4)))


def check_vector_spaces(observation_space: gym.Space, action_space: gym.Space, who: str) -> None:
    """
    :param observation_space: must be a Box, and no images
    :param action_space: must be a Box with finite bounds
    :param who: for the error message
    :raises ValueError: if they are not
    """
    if isinstance(observation_space, spaces.Dict):
        raise ValueError(
            f"{who} needs observations that are vectors, got {observation_space}; flatten them with "
            "gymnasium.wrappers.FlattenObservation."
        )
    if not isinstance(observation_space, spaces.Box) or is_image_space(observation_space):
        raise ValueError(f"{who} needs observations that are vectors (a Box, no images), got {observation_space}.")
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"{who} denoises continuous actions (a Box), got {action_space}.")
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise ValueError(
            f"{who} needs actions with finite bounds, got {action_space}; rescale them with gymnasium.wrappers.RescaleAction."
        )


def scale_actions(actions: Any, space: spaces.Box) -> np.ndarray:
    """
    :param actions: in the units of the environment, ``(n, *shape)``
    :param space: their space
    :return: in [-1, 1], float32 ``(n, dim)``; what lies outside is clipped
    """
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    rows = np.asarray(actions, dtype=np.float64).reshape(len(actions), -1)
    return np.clip(2.0 * (rows - low) / (high - low) - 1.0, -1.0, 1.0).astype(np.float32)


def unscale_actions(actions: np.ndarray, space: spaces.Box) -> np.ndarray:
    """Inverse of :func:`scale_actions`, ``(n, *shape)`` in the type of the space."""
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    rows = np.clip(low + 0.5 * (np.asarray(actions, dtype=np.float64) + 1.0) * (high - low), low, high)
    return rows.reshape(len(rows), *space.shape).astype(space.dtype)
