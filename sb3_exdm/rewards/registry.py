"""Intrinsic rewards by name."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch as th
from gymnasium import spaces

from sb3_exdm.common.registry import Registry
from sb3_exdm.common.serialization import ArtifactError, load_tree, parse_json, read_from
from sb3_exdm.common.validation import check_kwargs, did_you_mean
from sb3_exdm.rewards.base import FILE_KIND, FittedReward, IntrinsicReward

RewardFactory = Callable[..., IntrinsicReward]
RewardT = TypeVar("RewardT", bound=RewardFactory)

REWARDS: Registry[RewardFactory] = Registry("reward")
"""Registered rewards: subclasses of :class:`~sb3_exdm.rewards.base.FittedReward`, and other factories."""


def register_reward(name: str) -> Callable[[RewardT], RewardT]:
    """
    Return a decorator that registers a reward, for wrappers, replay buffers, recipes, run folders and the command line.

    :param name: unused name; that of the class, for a subclass of :class:`~sb3_exdm.rewards.base.FittedReward`. Any other
        callable ``(observation_space, action_space, **kwargs) -> IntrinsicReward`` can be registered as well; it has to
        accept ``batch_size``, ``seed`` and ``device``
    :raises ValueError: if the name is taken, or the class has another one
    """

    def register(factory: RewardT) -> RewardT:
        reward_class = factory if inspect.isclass(factory) and issubclass(factory, FittedReward) else None
        if reward_class is not None and vars(reward_class).get("name", name) != name:
            raise ValueError(f"{factory!r} has the name {reward_class.name!r} but is registered as {name!r}; use one name.")
        REWARDS.register(name)(factory)
        if reward_class is not None:
            reward_class.name = name
        return factory

    return register


def make_reward(
    reward: str | IntrinsicReward,
    observation_space: spaces.Space,
    action_space: spaces.Space | None = None,
    **kwargs: Any,
) -> IntrinsicReward:
    """
    Build a reward by name, or check an instance.

    >>> from gymnasium import spaces
    >>> make_reward("rnd", spaces.Box(-1, 1, (2,)), net_arch=[64]).name
    'rnd'

    :param reward: a name in :data:`REWARDS`, or an :class:`~sb3_exdm.rewards.base.IntrinsicReward`, which is returned
    :param observation_space: observations that the reward will be given
    :param action_space: actions that the reward will be given, if it needs actions
    :param kwargs: further arguments of the reward's constructor
    :raises ValueError: for an unknown name or argument, an argument of the wrong type, or an instance for other spaces
    :raises TypeError: for an object that is not an intrinsic reward
    """
    if isinstance(reward, str):
        factory = REWARDS[reward]
        check_kwargs(factory, kwargs, "reward_kwargs", ignore=("observation_space", "action_space"))
        return factory(observation_space, action_space, **kwargs)
    if inspect.isclass(reward) or not isinstance(reward, IntrinsicReward):
        raise TypeError(
            f"reward must be a name ({', '.join(REWARDS)}) or an instance with the methods and attributes of "
            f"sb3_exdm.IntrinsicReward, got {reward!r}."
        )
    if kwargs:
        raise ValueError(f"{sorted(kwargs)} would be ignored: the reward is built already. Pass them to its constructor.")
    for name, known, given in (
        ("observation_space", reward.observation_space, observation_space),
        ("action_space", reward.action_space, action_space),
    ):
        if known != given and (name == "observation_space" or reward.needs_actions):
            raise ValueError(f"The reward was built for the {name} {known}, but the environment has {given}.")
    return reward


def load_reward(path: str | Path, device: th.device | str = "auto") -> FittedReward:
    """
    Read a reward from the file that its ``save`` wrote. Executes no pickle.

    :param path: the file
    :param device: PyTorch device
    :raises ArtifactError: if the file is missing or damaged, or its reward is not registered
    """
    return reward_from_tree(load_tree(path, kind=FILE_KIND), path, device)


def reward_from_tree(tree: dict[str, Any], path: str | Path, device: th.device | str = "auto") -> FittedReward:
    """Build a reward from the content of a file ``path``, see :func:`load_reward`."""
    with read_from(path):
        name = str(parse_json(tree["header"])["reward"])
    if name not in REWARDS:
        raise ArtifactError(
            f"{path} holds the reward {name!r}, which is not registered{did_you_mean(name, REWARDS)}: import the module that "
            "registers it first."
        )
    reward_class = REWARDS[name]
    if not (inspect.isclass(reward_class) and issubclass(reward_class, FittedReward)):
        raise ArtifactError(
            f"{path} holds the reward {name!r}, which is registered as a function: register its class instead."
        )
    return reward_class.from_tree(tree, device, path)
