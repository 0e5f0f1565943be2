"""Transitions as flat arrays, and the n-step transitions that start at some of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_exdm.common.returns import n_step_returns
from sb3_exdm.common.spaces import scale_actions
from sb3_exdm.common.state import Derived
from sb3_exdm.common.validation import check_finite
from sb3_exdm.finetuning.replay.action_cache import ActionCache


@dataclass(frozen=True, slots=True)
class Transitions(Derived):
    """
    Transitions as flat arrays. The successor of transition ``i`` in the same environment is ``i + stride``, modulo n.

    :param observations: observations, ``(n, *obs_shape)``
    :param next_observations: next observations, ``(n, *obs_shape)``
    :param actions: actions scaled to [-1, 1], ``(n, action_dim)``
    :param rewards: rewards, ``(n,)``
    :param dones: 1 where an episode terminated or was truncated, ``(n,)``
    :param timeouts: 1 where it was truncated, ``(n,)``
    :param ends: whether the successor belongs to another episode or is missing, ``(n,)``
    :param stride: number of interleaved environments
    """

    observations: np.ndarray
    next_observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray
    timeouts: np.ndarray
    ends: np.ndarray
    stride: int = 1

    def __len__(self) -> int:
        return len(self.rewards)

    def gather(
        self,
        starts: np.ndarray,
        n_steps: int,
        gamma: float,
        normalize_reward: Callable[[np.ndarray], np.ndarray],
        cache: Mapping[str, ActionCache],
    ) -> dict[str, np.ndarray]:
        """
        Gather n-step transitions. A return has fewer steps where its episode ends.

        :param starts: indices of the first transitions, ``(batch,)``
        :param n_steps: number of steps of a return
        :param gamma: discount factor
        :param normalize_reward: applied to every single reward
        :param cache: cached actions of the ``"observations"`` and the ``"next_observations"``, if any
        :return: arrays of a batch, by name
        """
        if n_steps == 1:
            last, returns = starts, normalize_reward(self.rewards.take(starts))
            discounts = np.full(len(starts), gamma, dtype=np.float32)
        else:
            steps = (starts[:, None] + self.stride * np.arange(n_steps)) % len(self)  # (batch, n_steps)
            counts, returns, discounts = n_step_returns(
                self.ends.take(steps), gamma, lambda mask: normalize_reward(self.rewards.take(steps[mask]))
            )
            last = steps[np.arange(len(starts)), counts - 1]
        batch = {
            "observations": self.observations.take(starts, axis=0),
            "actions": self.actions.take(starts, axis=0),
            "next_observations": self.next_observations.take(last, axis=0),
            # The value of the state after a time limit counts.
            "dones": (self.dones.take(last) * (1.0 - self.timeouts.take(last)))[:, None],
            "rewards": returns[:, None],
            "discounts": discounts[:, None],
        }
        if "observations" in cache:
            batch["cached_actions"] = cache["observations"].actions.take(starts, axis=0)
        if "next_observations" in cache:
            batch["next_cached_actions"] = cache["next_observations"].actions.take(last, axis=0)
        return batch

    def concatenate(self, other: "Transitions") -> "Transitions":
        """Append transitions of other episodes; both of stride 1."""
        names = [field.name for field in fields(self) if field.name != "stride"]
        joined: dict[str, Any] = {name: np.concatenate((getattr(self, name), getattr(other, name))) for name in names}
        return replace(self, **joined)


def offline_transitions(
    transitions: dict[str, np.ndarray], observation_space: spaces.Box, action_space: spaces.Box, handle_timeouts: bool
) -> Transitions:
    """
    Convert recorded transitions, the environments one after the other.

    :param transitions: see :meth:`~sb3_exdm.finetuning.replay.buffer.FinetuneReplayBuffer.add_offline`
    :param observation_space: observation space
    :param action_space: action space
    :param handle_timeouts: whether the value of the state after a truncation counts
    :raises ValueError: if an array is missing, has another shape or is not finite
    """
    scalars = ("rewards", "terminated", "truncated", "env_indices")
    shapes: dict[str, tuple[int, ...]] = {
        "observations": observation_space.shape,
        "next_observations": observation_space.shape,
        "actions": action_space.shape,
        **dict.fromkeys(scalars, ()),
    }
    if absent := [key for key in shapes if key not in transitions]:
        raise ValueError(f"The transitions lack {', '.join(absent)}; they need {', '.join(shapes)}.")
    arrays: dict[str, Any] = {key: np.asarray(transitions[key]) for key in shapes}
    n = arrays["rewards"].size
    for key, shape in shapes.items():
        if arrays[key].shape != (n, *shape):
            raise ValueError(
                f"transitions[{key!r}] must have the shape {(n, *shape)} (n rewards, the spaces of the buffer), "
                f"got {arrays[key].shape}."
            )
        check_finite(arrays[key], f"transitions[{key!r}]")
    if n == 0:
        raise ValueError("There are no transitions to add: every array is empty.")
    if arrays["env_indices"].dtype.kind not in "iu":
        raise ValueError(
            f"transitions['env_indices'] must be integers, got {arrays['env_indices'].dtype}; they tell the episodes of "
            "different environments apart."
        )
    order = np.argsort(arrays["env_indices"], kind="stable")
    arrays = {key: array[order] for key, array in arrays.items()}
    terminated, truncated = arrays["terminated"].astype(bool), arrays["truncated"].astype(bool)
    is_last = np.append(np.diff(arrays["env_indices"]) != 0, True)  # of its environment
    return Transitions(
        observations=arrays["observations"].astype(observation_space.dtype),
        next_observations=arrays["next_observations"].astype(observation_space.dtype),
        actions=scale_actions(arrays["actions"], action_space, dtype=None),
        rewards=arrays["rewards"].astype(np.float32),
        dones=(terminated | truncated).astype(np.float32),
        timeouts=(truncated & ~terminated & handle_timeouts).astype(np.float32),
        ends=terminated | truncated | is_last,
    )
