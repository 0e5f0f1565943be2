"""Wrappers for observations that Stable-Baselines3 misreads."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_exdm.common.spaces import MAX_DIM, SpaceEncoder


class CopyObservation(gym.ObservationWrapper):
    """
    Copy every observation. An environment may return the same array again and again; the last observation of an episode,
    which a ``VecEnv`` reports after it has reset the environment, would be the first one of the next episode.

    :param env: environment
    """

    def observation(self, observation: Any) -> Any:
        """Return a copy."""
        return deepcopy(observation)


class PolicyObservation(gym.ObservationWrapper):
    """
    Change the observations, or parts of a Dict, that the policies of Stable-Baselines3 cannot read, and keep all others:

    - Discrete and MultiDiscrete with another ``start`` than zero are counted from zero;
    - those with more categories than :data:`~sb3_exdm.common.spaces.MAX_DIM`, which a policy would encode as vectors of that
      width, get the code of :class:`~sb3_exdm.common.spaces.SpaceEncoder`;
    - a Box of shape ``()`` gets the shape ``(1,)``.

    :param env: environment
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = policy_space(env.observation_space)

    def observation(self, observation: Any) -> Any:
        """Return the changed observation."""
        return _converted(observation, self.env.observation_space)


def policy_space(space: spaces.Space) -> spaces.Space:
    """
    Return the observation space of :class:`PolicyObservation`.

    :param space: observation space
    :return: equal to ``space`` if policies can read it
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, policy_space(part)) for key, part in space.spaces.items()])
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        if _is_large(space):
            low, high = SpaceEncoder(space).bounds
            return spaces.Box(low.astype(np.float32), high.astype(np.float32))
        return spaces.Discrete(space.n) if isinstance(space, spaces.Discrete) else spaces.MultiDiscrete(space.nvec)
    if isinstance(space, spaces.Box) and space.shape == ():
        return spaces.Box(space.low.reshape(1), space.high.reshape(1), dtype=space.low.dtype.type)
    return space


def _converted(observation: Any, space: spaces.Space) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _converted(observation[key], part) for key, part in space.spaces.items()}
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return SpaceEncoder(space)(np.asarray(observation)[None])[0] if _is_large(space) else observation - space.start
    return np.reshape(observation, 1) if space.shape == () else observation


def _is_large(space: spaces.Discrete | spaces.MultiDiscrete) -> bool:
    counts = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.ravel().tolist()
    return sum(counts) > MAX_DIM
