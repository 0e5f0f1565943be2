"""Description of a domain of dm_control's suite that :class:`~sb3_exdm.envs.control.ControlVectorEnv` can step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from dm_control.mujoco import Physics
from dm_control.rl.control import Environment

Compute = Callable[[Mapping[str, np.ndarray], np.ndarray], Sequence[np.ndarray]]
"""
Writes observations ``(n, dim)`` into the second argument, given copies ``(n, ...)`` of the views of ``n`` physics. Returns the
quantities that rewards depend on, each ``(n,)``.
"""


@dataclass(frozen=True)
class Reader:
    """
    Parts of a physics that its observation and reward depend on.

    :param views: views of MuJoCo's arrays, by name
    :param compute: function from copies of such views to observations and reward quantities
    """

    views: Mapping[str, np.ndarray]
    compute: Compute


class Readings:
    """
    Copies of the views of several physics of one robot, from which observations are computed for all at once.

    :param readers: readers of the physics
    :param observation_dim: dimension of the observations
    :param n: number of rows; by default one for each reader
    """

    def __init__(self, readers: Sequence[Reader], observation_dim: int, n: int | None = None) -> None:
        n = len(readers) if n is None else n
        self._compute = readers[0].compute
        self._observation_dim = observation_dim
        self._values = {name: np.zeros((n, *view.shape)) for name, view in readers[0].views.items()}
        self._views = [list(reader.views.values()) for reader in readers]

    def copies(self, reader: int, row: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """
        List what to copy when a physics has changed.

        :param reader: index of the reader
        :param row: row to copy to
        :return: pairs of a target and a source; ``target[...] = source`` copies one
        """
        return [(values[row, ...], view) for values, view in zip(self._values.values(), self._views[reader], strict=True)]

    def compute(self) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        """
        Compute observations and reward quantities.

        :return: observations, a new float32 array ``(n, dim)``, and quantities, each ``(n,)``
        """
        observations = np.empty((len(next(iter(self._values.values()))), self._observation_dim), dtype=np.float32)
        return observations, self._compute(self._values, observations)


@dataclass(frozen=True)
class VectorizedDomain:
    """
    Robot and its tasks.

    :param make: factory of dm_control's environment of a task, given its name, without a time limit
    :param reader: factory of the :class:`Reader` of a physics
    :param infer_quantities: function from a physics and observations, ``(n, dim)``, to quantities, ``(n, n_quantities)``
    :param rewards: function of each task from the quantities, each ``(n,)``, to rewards, ``(n,)``
    :param not_relabelable: tasks whose rewards cannot be computed from observations
    """

    make: Callable[[str], Environment]
    reader: Callable[[Physics], Reader]
    infer_quantities: Callable[[Physics, np.ndarray], np.ndarray]
    rewards: Mapping[str, Callable[..., Any]]
    not_relabelable: frozenset[str] = frozenset()


def linear_tolerance(value: Any, target: float, margin: float, value_at_margin: float) -> Any:
    """
    Compute dm_control's ``tolerance`` of values that should reach a target, with a linear sigmoid. It is the same to the last
    bit, without the checks, which take several times as long.

    :param value: a number or ``(n,)``
    :param target: value from which the result is 1
    :param margin: distance from the target
    :param value_at_margin: result at this distance
    :return: tolerance, from 0 to 1
    """
    missing = np.maximum(target - value, 0.0) / margin
    return np.maximum(1.0 - missing * (1.0 - value_at_margin), 0.0)


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
    readings = Readings([domain.reader(physics)], observation_dim, n=len(qpos))
    for row, (position, velocity) in enumerate(zip(qpos, qvel, strict=True)):
        data.qpos[:], data.qvel[:] = position, velocity
        mujoco.mj_step1(model, data)
        for target, source in readings.copies(0, row):
            target[...] = source
    return np.stack(readings.compute()[1], axis=1)
