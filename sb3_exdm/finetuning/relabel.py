"""Task rewards of transitions that were recorded without a reward."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_exdm.common.validation import check_finite

RewardFn = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray | tuple[np.ndarray, np.ndarray]]
"""Maps observations, actions (in the units of the environment) and next observations, each ``(n, ...)``, to rewards ``(n,)``,
or to rewards and terminations, ``(n,)`` each."""

PASS_A_FUNCTION = "Pass reward_fn(observations, actions, next_observations), which returns the rewards (n,)."


@runtime_checkable
class TaskWithRewards(Protocol):
    """Task that computes the rewards of transitions."""

    def compute_rewards(self, observations: np.ndarray, actions: np.ndarray, next_observations: np.ndarray) -> np.ndarray:
        """Compute the rewards, ``(n,)``."""


@runtime_checkable
class TaskWithGoal(Protocol):
    """Task with a goal, in Gymnasium's convention; the next observation is the achieved goal."""

    goal: np.ndarray

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
        """Compute the rewards, ``(n,)``."""


@runtime_checkable
class TaskWithTermination(TaskWithGoal, Protocol):
    """Task with a goal that can terminate episodes."""

    def compute_terminated(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
        """Compute the terminations, ``(n,)``."""


def relabel(
    transitions: dict[str, np.ndarray], env: VecEnv | None = None, reward_fn: RewardFn | None = None
) -> dict[str, np.ndarray]:
    """
    Relabel reward-free transitions with task rewards.

    Without ``reward_fn`` the environment must have an attribute ``task``: a :class:`TaskWithRewards`, a
    :class:`TaskWithGoal` or a :class:`TaskWithTermination`.

    A transition is terminated where the task says so, although the recorded episode continued. The end of a recorded episode
    elsewhere is a truncation. Without terminations of the task ``terminated`` stays as it is.

    :param transitions: ``observations``, ``next_observations``, ``actions``, ``terminated`` and ``truncated``, each
        ``(n, ...)``; not changed
    :param env: environment with the task; not needed with ``reward_fn``
    :param reward_fn: task reward; called once with all transitions
    :return: copy with new ``rewards``, ``terminated`` and ``truncated``; the other arrays are shared
    :raises ValueError: if the task has no rewards for transitions, or they have another shape or are not finite
    """
    keys = ("observations", "next_observations", "actions", "terminated", "truncated")
    if absent := [key for key in keys if key not in transitions]:
        raise ValueError(f"The transitions lack {', '.join(absent)}; they need {', '.join(keys)}.")
    observations, next_observations, actions = (transitions[key] for key in keys[:3])
    terminations = None
    if reward_fn is not None:
        source, rewards = "reward_fn", reward_fn(observations, actions, next_observations)
        if isinstance(rewards, tuple):
            rewards, terminations = rewards
    else:
        task = _find_task(env)
        if isinstance(task, TaskWithRewards):
            source, rewards = "task.compute_rewards", task.compute_rewards(observations, actions, next_observations)
        else:
            source, (rewards, terminations) = "task.compute_reward", _goal_rewards(task, next_observations)
    rewards = np.asarray(rewards, dtype=np.float32)
    recorded = np.asarray(transitions["terminated"], dtype=bool)
    terminated = recorded if terminations is None else np.asarray(terminations, dtype=bool)
    shape = (len(next_observations),)
    for name, values in (("rewards", rewards), ("terminated", terminated)):
        if values.shape != shape:
            raise ValueError(f"The {name} of {source} must have the shape {shape}, one per transition; got {values.shape}.")
    check_finite(rewards, f"rewards of {source}")
    truncated = (np.asarray(transitions["truncated"], dtype=bool) | recorded) & ~terminated
    return {**transitions, "rewards": rewards, "terminated": terminated.copy(), "truncated": truncated}


def _find_task(env: VecEnv | None) -> TaskWithRewards | TaskWithGoal:
    """The task of all sub-environments."""
    if env is None:
        raise ValueError(f"Neither an environment nor a reward function was given. {PASS_A_FUNCTION}")
    if isinstance(env.observation_space, spaces.Dict):
        raise ValueError(f"Goals in Dict observations are not supported. {PASS_A_FUNCTION}")
    tasks: list[Any] = env.get_attr("task") if env.has_attr("task") else [None]
    first = tasks[0]
    if isinstance(first, TaskWithRewards):
        if any(task != first for task in tasks):
            raise ValueError(f"The sub-environments have different tasks, so no common reward. {PASS_A_FUNCTION}")
    elif isinstance(first, TaskWithGoal):
        if not all(np.array_equal(task.goal, first.goal) for task in tasks):
            raise ValueError(f"The sub-environments have different goals, so no common reward. {PASS_A_FUNCTION}")
    else:
        raise ValueError(
            "The environment cannot compute the rewards of recorded transitions: it has no attribute `task` with "
            "`compute_rewards(observations, actions, next_observations)`, or with `goal` and "
            f"`compute_reward(achieved_goal, desired_goal, info)`. {PASS_A_FUNCTION}"
        )
    return first


def _goal_rewards(task: TaskWithGoal, achieved: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Rewards, and terminations if the task has any."""
    goal = np.asarray(task.goal)
    if achieved.shape[1:] != goal.shape:
        raise ValueError(
            f"The next observations have the shape {achieved.shape[1:]}, the goal {goal.shape}: observations are more than "
            f"positions. {PASS_A_FUNCTION}"
        )
    goals = np.broadcast_to(goal, achieved.shape)
    infos: list[dict[str, Any]] = [{}] * len(achieved)
    terminations = task.compute_terminated(achieved, goals, infos) if isinstance(task, TaskWithTermination) else None
    return task.compute_reward(achieved, goals, infos), terminations
