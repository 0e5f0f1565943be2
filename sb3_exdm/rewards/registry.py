"""Intrinsic rewards by name."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch as th
from gymnasium import spaces

from sb3_exdm.common.serialization import ArtifactError, load_tree
from sb3_exdm.rewards.apt import APTReward
from sb3_exdm.rewards.base import FittedReward, IntrinsicReward
from sb3_exdm.rewards.count import CountReward
from sb3_exdm.rewards.exdm_paper import PaperScoreReward
from sb3_exdm.rewards.rnd import RNDReward
from sb3_exdm.rewards.score import ScoreModel
from sb3_exdm.rewards.zero import ZeroReward

REWARDS: dict[str, Callable[..., IntrinsicReward]] = {
    "score": ScoreModel,
    "edp": partial(ScoreModel, kind="action"),
    "exdm-paper": PaperScoreReward,
    "rnd": RNDReward,
    "apt": APTReward,
    "count": CountReward,
    "zero": ZeroReward,
}
"""
What builds a reward of each name from ``(observation_space, action_space, **kwargs)``. Add an entry to make a reward of
your own known to wrappers, replay buffer and command line.
"""

_CLASSES: tuple[type[FittedReward], ...] = (ScoreModel, PaperScoreReward, RNDReward, APTReward, CountReward, ZeroReward)


def make_reward(
    reward: str | IntrinsicReward,
    observation_space: spaces.Space,
    action_space: spaces.Space | None = None,
    **kwargs: Any,
) -> IntrinsicReward:
    """
    Build a reward by name, or check one that exists.

    :param reward: a name from :data:`REWARDS`, or an object with the methods of
        :class:`~sb3_exdm.rewards.base.IntrinsicReward`, which is returned as it is
    :param observation_space: what the reward will be given
    :param action_space: what the reward will be given, if it looks at actions
    :param kwargs: further arguments of the reward's constructor
    :raises ValueError: for an unknown name, arguments that the reward does not have, or an object for other spaces
    :raises TypeError: for an object that is no intrinsic reward
    """
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise ValueError(f"Unknown reward {reward!r}; choose one of {', '.join(REWARDS)}.")
        return REWARDS[reward](observation_space, action_space, **kwargs)
    if isinstance(reward, type) or not isinstance(reward, IntrinsicReward):
        raise TypeError(
            f"reward must be a name ({', '.join(REWARDS)}) or an object with fit, score, reward, save and needs_actions, "
            f"got {reward!r}."
        )
    if kwargs:
        raise ValueError(f"{sorted(kwargs)} would be ignored: the reward is built already. Pass them to its constructor.")
    # A reward that keeps no space is trusted to fit.
    for name, space in (("observation_space", observation_space), ("action_space", action_space)):
        known = getattr(reward, name, None)
        if known is not None and known != space and (name == "observation_space" or reward.needs_actions):
            raise ValueError(f"The reward was built for the {name} {known}, but the environment has {space}.")
    return reward


def load_reward(path: str | Path, device: th.device | str = "auto") -> FittedReward:
    """
    Read any reward of this package from the file that its ``save`` wrote. Executes no pickle.

    :param path: the file
    :param device: PyTorch device
    :raises ArtifactError: if the file is missing, damaged or holds no reward of this package
    """
    name = json.loads(load_tree(path, kind="intrinsic reward")["header"])["reward"]
    for reward_class in _CLASSES:
        if reward_class.name == name:
            return reward_class.load(path, device=device)
    raise ArtifactError(f"{path} holds the reward {name!r}, which this version of sb3-exdm does not know.")
