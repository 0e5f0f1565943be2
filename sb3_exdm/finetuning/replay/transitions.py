"""Transitions as flat arrays, whatever holds them, and the n-step returns that begin at some of them."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_exdm.common.validation import check_finite
from sb3_exdm.finetuning.replay.action_cache import ActionCache


@dataclass(frozen=True, slots=True)
class Transitions:
    """
    One row per transition. The row that follows row ``i`` in the same environment is ``i + stride``, modulo their number.

    :param observations: ``(n, *obs_shape)``
    :param next_observations: ``(n, *obs_shape)``
    :param actions: scaled to [-1, 1], ``(n, action_dim)``
    :param rewards: ``(n,)``
    :param dones: 1 where an episode terminated or was truncated, ``(n,)``
    :param timeouts: 1 where it was only truncated, ``(n,)``
    :param ends: whether the row that follows belongs to something else, or is not there yet, ``(n,)``
    :param stride: number of environments whose rows take turns
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

    def last_of(self, starts: np.ndarray, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Where sums of up to ``n_steps`` rewards stop: at the latest where the episode does.

        :param starts: first rows, ``(batch,)``
        :param n_steps: at least 1
        :return: the rows of every sum ``(batch, n_steps)``, and how many of them count ``(batch,)``
        """
        steps = (starts[:, None] + self.stride * np.arange(n_steps)) % len(self)  # (batch, n_steps)
        ends = self.ends.take(steps)  # (batch, n_steps)
        return steps, np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, n_steps)

    def gather(
        self,
        starts: np.ndarray,
        n_steps: int,
        gamma: float,
        normalize_reward: Callable[[np.ndarray], np.ndarray],
        kept: dict[str, ActionCache],
    ) -> dict[str, np.ndarray]:
        """
        The n-step transitions that begin at some rows.

        :param starts: first rows, ``(batch,)``
        :param n_steps: steps of the return
        :param gamma: discount
        :param normalize_reward: applied to every single reward
        :param kept: actions kept for the ``"observations"`` and the ``"next_observations"``, or for neither
        :return: what a batch of samples consists of, by name
        """
        if n_steps == 1:
            last, returns = starts, normalize_reward(self.rewards.take(starts))
            discounts = np.full(len(starts), gamma, dtype=np.float32)
        else:
            offsets = np.arange(n_steps)
            steps, counts = self.last_of(starts, n_steps)
            rewards = normalize_reward(self.rewards.take(steps)) * (offsets < counts[:, None])  # (batch, n_steps)
            last, returns = steps[np.arange(len(starts)), counts - 1], rewards @ (gamma**offsets).astype(np.float32)
            discounts = (gamma**counts).astype(np.float32)
        # A time limit is no end: the value of what follows still counts.
        dones = self.dones.take(last) * (1.0 - self.timeouts.take(last))
        batch = {
            "observations": self.observations.take(starts, axis=0),
            "actions": self.actions.take(starts, axis=0),
            "next_observations": self.next_observations.take(last, axis=0),
            "dones": dones[:, None],
            "rewards": returns[:, None],
            "discounts": discounts[:, None],
        }
        if "observations" in kept:
            batch["candidates"] = kept["observations"].actions.take(starts, axis=0)
        if "next_observations" in kept:
            batch["next_candidates"] = kept["next_observations"].actions.take(last, axis=0)
        return batch

    def followed_by(self, other: "Transitions") -> "Transitions":
        """
        :param other: rows that are nobody's continuation
        :return: these rows, then those; both of stride 1
        """
        names = [field.name for field in fields(self) if field.name != "stride"]
        joined: dict[str, Any] = {name: np.concatenate((getattr(self, name), getattr(other, name))) for name in names}
        return replace(self, **joined)


def check_boxes(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    :param observation_space: must be a Box
    :param action_space: must be a Box with finite bounds
    :raises ValueError: if one is not
    """
    if not isinstance(observation_space, spaces.Box):
        raise ValueError(
            f"FinetuneReplayBuffer needs Box observations, got {observation_space}. Flatten others with "
            "gymnasium.wrappers.FlattenObservation."
        )
    if not isinstance(action_space, spaces.Box) or not action_space.is_bounded():
        raise ValueError(
            f"FinetuneReplayBuffer needs a Box of actions with finite bounds, which are scaled to [-1, 1]; got {action_space}."
        )


def offline_transitions(
    transitions: dict[str, np.ndarray], observation_space: spaces.Box, action_space: spaces.Box, handle_timeouts: bool
) -> Transitions:
    """
    Recorded transitions as rows, the environments one after the other.

    :param transitions: see :meth:`~sb3_exdm.finetuning.replay.buffer.FinetuneReplayBuffer.add_offline`
    :param observation_space: observation space
    :param action_space: action space
    :param handle_timeouts: whether the value of what follows a truncation counts
    :raises ValueError: if something is missing, has another shape or is not finite
    """
    per_row = ("rewards", "terminated", "truncated", "env_indices")
    shapes: dict[str, tuple[int, ...]] = {
        "observations": observation_space.shape,
        "next_observations": observation_space.shape,
        "actions": action_space.shape,
        **dict.fromkeys(per_row, ()),
    }
    if absent := [key for key in shapes if key not in transitions]:
        raise ValueError(f"The transitions lack {', '.join(absent)}; they need {', '.join(shapes)}.")
    arrays: dict[str, Any] = {key: np.asarray(transitions[key]) for key in shapes}
    n_rows = arrays["rewards"].size
    for key, shape in shapes.items():
        if arrays[key].shape != (n_rows, *shape):
            raise ValueError(
                f"transitions[{key!r}] must have the shape {(n_rows, *shape)} (a row per reward, the spaces of the buffer), "
                f"got {arrays[key].shape}."
            )
        check_finite(arrays[key], f"transitions[{key!r}]")
    if n_rows == 0:
        raise ValueError("There are no transitions to add: every array is empty.")
    if arrays["env_indices"].dtype.kind not in "iu":
        raise ValueError(
            f"transitions['env_indices'] must be integers, got {arrays['env_indices'].dtype}: rows of different "
            "environments would be taken for one episode."
        )
    order = np.argsort(arrays["env_indices"], kind="stable")
    arrays = {key: array[order] for key, array in arrays.items()}
    terminated, truncated = arrays["terminated"].astype(bool), arrays["truncated"].astype(bool)
    borders = np.append(np.diff(arrays["env_indices"]) != 0, True)  # the last row of each environment
    low, high = action_space.low, action_space.high
    actions = np.clip(2.0 * (arrays["actions"] - low) / (high - low) - 1.0, -1.0, 1.0)
    return Transitions(
        observations=arrays["observations"].astype(observation_space.dtype),
        next_observations=arrays["next_observations"].astype(observation_space.dtype),
        actions=actions.reshape(n_rows, -1).astype(np.float32),
        rewards=arrays["rewards"].astype(np.float32),
        dones=(terminated | truncated).astype(np.float32),
        timeouts=(truncated & ~terminated & handle_timeouts).astype(np.float32),
        ends=terminated | truncated | borders,
    )
