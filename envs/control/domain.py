"""What a body of dm_control's suite has to say for many of it to be stepped together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from dm_control.mujoco import Physics
from dm_control.rl.control import Environment

Reader = Callable[[np.ndarray, np.ndarray], None]
"""Writes the observation ``(dim,)`` and the quantities that rewards depend on ``(n_quantities,)`` of one physics into rows."""


@dataclass(frozen=True)
class VectorizedDomain:
    """
    A body and its tasks.

    :param make: Makes dm_control's environment of a task, given its name, without a time limit
    :param reader: Makes the :data:`Reader` of a physics. It holds views of MuJoCo's arrays, which stay where they are
    :param n_quantities: How many quantities rewards depend on
    :param recall: The quantities ``(n, n_quantities)`` that observations ``(n, dim)`` imply, given a physics to compute with
    :param rewards: For each task, what it pays: from the quantities, each ``(n,)``, to rewards ``(n,)``
    :param unrecorded: Tasks that reward_step for what observations do not imply
    """

    make: Callable[[str], Environment]
    reader: Callable[[Physics], Reader]
    n_quantities: int
    recall: Callable[[Physics, np.ndarray], np.ndarray]
    rewards: Mapping[str, Callable[..., Any]]
    unrecorded: frozenset[str] = frozenset()


def quantities_of_states(
    body: VectorizedDomain, physics: Physics, qpos: np.ndarray, qvel: np.ndarray, observation_dim: int
) -> np.ndarray:
    """
    :param body: A body
    :param physics: Its physics, left in the last of the states
    :param qpos: Positions, ``(n, nq)``
    :param qvel: Velocities, ``(n, nv)``
    :param observation_dim: Width of its observations
    :return: The quantities of these states, ``(n, n_quantities)``
    """
    model, data = physics.model.ptr, physics.data.ptr
    read = body.reader(physics)
    observation, quantities = np.empty(observation_dim), np.empty((len(qpos), body.n_quantities))
    for row, position, velocity in zip(quantities, qpos, qvel, strict=True):
        data.qpos[:], data.qvel[:] = position, velocity
        mujoco.mj_step1(model, data)
        read(observation, row)
    return quantities
