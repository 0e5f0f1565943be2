"""Feature extractors for policies."""

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor


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
