"""Description of a domain of dm_control's suite that :class:`~sb3_exdm.envs.control.ControlVectorEnv` can step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from dm_control.mujoco import Physics
from dm_control.rl.control import Environment

Reader = Callable[[np.ndarray, np.ndarray], None]
"""Writes the observation ``(dim,)`` and the reward quantities ``(n_quantities,)`` of a physics into the two given arrays."""


@dataclass(frozen=True)
class VectorizedDomain:
    """
    Robot and its tasks.

    :param make: factory of dm_control's environment of a task, given its name, without a time limit
    :param reader: factory of the :data:`Reader` of a physics, which holds views of MuJoCo's arrays
    :param n_quantities: number of quantities that rewards depend on
    :param infer_quantities: function from a physics and observations, ``(n, dim)``, to quantities, ``(n, n_quantities)``
    :param rewards: function of each task from the quantities, each ``(n,)``, to rewards, ``(n,)``
    :param not_relabelable: tasks whose rewards cannot be computed from observations
    """

    make: Callable[[str], Environment]
    reader: Callable[[Physics], Reader]
    n_quantities: int
    infer_quantities: Callable[[Physics, np.ndarray], np.ndarray]
    rewards: Mapping[str, Callable[..., Any]]
    not_relabelable: frozenset[str] = frozenset()


def quantities_of_states(
    domain: VectorizedDomain, physics: Physics, qpos: np.ndarray, qvel: np.ndarray, observation_dim: int
) -> np.ndarray:
    """
    Compute the reward quantities of MuJoCo states.

    :param domain: domain of the physics
    :param physics: physics to compute with; it is left in the last of the states
    :param qpos: positions, ``(n, nq)``
    :param qvel: velocities, ``(n, nv)``
    :param observation_dim: dimension of the observations
    :return: quantities, ``(n, n_quantities)``
    """
    model, data = physics.model.ptr, physics.data.ptr
    read = domain.reader(physics)
    observation, quantities = np.empty(observation_dim), np.empty((len(qpos), domain.n_quantities))
    for row, position, velocity in zip(quantities, qpos, qvel, strict=True):
        data.qpos[:], data.qvel[:] = position, velocity
        mujoco.mj_step1(model, data)
        read(observation, row)
    return quantities
