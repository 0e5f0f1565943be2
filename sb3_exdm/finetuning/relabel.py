"""What transitions that were recorded without a reward are worth for a task."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_exdm.common.validation import check_finite

RewardFn = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray | tuple[np.ndarray, np.ndarray]]
"""Observations, actions (in the units of the environment) and next observations, each ``(n, ...)``, to rewards ``(n,)``, or
to rewards and whether the task is over ``(n,)``."""

PASS_A_FUNCTION = "Pass reward_fn(observations, actions, next_observations), which returns the rewards (n,)."


def relabel(
    transitions: dict[str, np.ndarray], env: VecEnv | None = None, reward_fn: RewardFn | None = None
) -> dict[str, np.ndarray]:
    """
    The same transitions with the rewards of a task.

    Without ``reward_fn`` the environment must have an attribute ``task``. It offers either
    ``task.compute_rewards(observations, actions, next_observations)``, as the bodies do, or Gymnasium's convention for goals,
    as the mazes do: ``task.goal``, ``task.compute_reward(achieved_goal, desired_goal, info)`` and, if episodes can end at the
    goal, ``task.compute_terminated``; what was achieved is the next observation.

    Where the task is over the transition counts as terminated, though the recorded episode went on. Where only the recorded
    episode was over it counts as truncated. If nobody says where the task is over, ``terminated`` is left as it is.

    :param transitions: with ``observations``, ``next_observations``, ``actions``, ``terminated`` and ``truncated``, a row per
        transition; is left as it is
    :param env: environment with the task; not needed with ``reward_fn``
    :param reward_fn: rewards of the task; called once with all transitions
    :return: a copy with other ``rewards``, ``terminated`` and ``truncated``; the other arrays are shared
    :raises ValueError: if the rewards of the task cannot be found, or have another shape, or are not finite
    """
    if absent := [
        key for key in ("observations", "next_observations", "actions", "terminated", "truncated") if key not in transitions
    ]:
        raise ValueError(f"The transitions lack {', '.join(absent)}: without them no task can be queried.")
    n_rows = len(transitions["next_observations"])
    if reward_fn is not None:
        answer = reward_fn(transitions["observations"], transitions["actions"], transitions["next_observations"])
        rewards, over = answer if isinstance(answer, tuple) else (answer, None)
        source = "reward_fn"
    else:
        task = _find_task(env)
        if hasattr(task, "compute_rewards"):
            rewards = task.compute_rewards(
                transitions["observations"], transitions["actions"], transitions["next_observations"]
            )
            over, source = None, "task.compute_rewards"
        else:
            rewards, over = _ask_task(task, transitions["next_observations"])
            source = "task.compute_reward"
    rewards = np.asarray(rewards, dtype=np.float32)
    before = np.asarray(transitions["terminated"], dtype=bool)
    terminated = before if over is None else np.asarray(over, dtype=bool)
    for name, values in (("rewards", rewards), ("terminated", terminated)):
        if values.shape != (n_rows,):
            raise ValueError(
                f"The {name} of {source} must have the shape {(n_rows,)}, one per transition; got {values.shape}."
            )
    check_finite(rewards, f"rewards of {source}")
    truncated = (np.asarray(transitions["truncated"], dtype=bool) | before) & ~terminated
    return {**transitions, "rewards": rewards, "terminated": terminated.copy(), "truncated": truncated}


def _find_task(env: VecEnv | None) -> Any:
    """The task that all sub-environments share."""
    if env is None:
        raise ValueError(f"Neither an environment nor a reward function was given. {PASS_A_FUNCTION}")
    if isinstance(env.observation_space, spaces.Dict):
        raise ValueError(f"Goals in Dict observations are not supported. {PASS_A_FUNCTION}")
    tasks = env.get_attr("task") if env.has_attr("task") else []
    if tasks and callable(getattr(tasks[0], "compute_rewards", None)):
        if any(task != tasks[0] for task in tasks[1:]):
            raise ValueError(
                f"The sub-environments have different tasks: the transitions have no single reward. {PASS_A_FUNCTION}"
            )
        return tasks[0]
    if not tasks or not callable(getattr(tasks[0], "compute_reward", None)) or not hasattr(tasks[0], "goal"):
        raise ValueError(
            "The environment cannot say what a transition would have been worth: it has no attribute `task` with "
            "`compute_rewards(observations, actions, next_observations)`, or with `goal` and "
            f"`compute_reward(achieved_goal, desired_goal, info)`. {PASS_A_FUNCTION}"
        )
    if any(not np.array_equal(task.goal, tasks[0].goal) for task in tasks[1:]):
        raise ValueError(
            f"The sub-environments have different goals: the transitions have no single reward. {PASS_A_FUNCTION}"
        )
    return tasks[0]


def _ask_task(task: Any, achieved: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    goal = np.asarray(task.goal)
    if achieved.shape[1:] != goal.shape:
        raise ValueError(
            f"What was achieved has the shape {achieved.shape[1:]}, the goal {goal.shape}: observations are more than "
            f"positions. {PASS_A_FUNCTION}"
        )
    goals = np.broadcast_to(goal, achieved.shape)
    infos: list[dict[str, Any]] = [{}] * len(achieved)
    rewards = task.compute_reward(achieved, goals, infos)
    return rewards, task.compute_terminated(achieved, goals, infos) if hasattr(task, "compute_terminated") else None
