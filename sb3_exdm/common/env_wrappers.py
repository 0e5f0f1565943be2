"""Wrappers without which Stable-Baselines3 misreads the observations of some environments."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
from gymnasium import spaces


class CopyObservation(gym.ObservationWrapper):
    """
    Copy every observation. An environment may return the same array again and again; the last observation of an episode,
    which a ``VecEnv`` reports after it has reset the environment, would be the first one of the next episode.

    :param env: environment
    """

    def observation(self, observation: Any) -> Any:
        """Return a copy."""
        return deepcopy(observation)


class CountFromZero(gym.ObservationWrapper):
    """
    Shift the categories of Discrete and MultiDiscrete observations, also inside of a Dict, so that they are counted from
    zero. Stable-Baselines3 ignores the ``start`` of a space.

    :param env: environment
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = _from_zero(env.observation_space)

    def observation(self, observation: Any) -> Any:
        """Return the observation less ``start``."""
        return _shifted(observation, self.env.observation_space)


def _from_zero(space: spaces.Space) -> spaces.Space:
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, _from_zero(part)) for key, part in space.spaces.items()])
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec, dtype=space.dtype.type)
    return space


def _shifted(observation: Any, space: spaces.Space) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _shifted(observation[key], part) for key, part in space.spaces.items()}
    return observation - space.start if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else observation
