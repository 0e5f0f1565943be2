"""Physical parameters of robots: masses, damping, friction, gears, gravity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np
from dm_control.mujoco import Physics
from numpy.typing import ArrayLike

PARAMETERS: tuple[str, ...] = (
    "body_mass",
    "body_inertia",
    "dof_armature",
    "dof_damping",
    "dof_frictionloss",
    "jnt_stiffness",
    "geom_friction",
    "actuator_gear",
    "gravity",
)
"""
Parameters that can be set, by their names in MuJoCo's model, where their units and shapes are documented: ``body_mass``
``(n_bodies,)`` in kg (row 0 is the world), ``body_inertia`` ``(n_bodies, 3)``, ``geom_friction`` ``(n_geoms, 3)``,
``actuator_gear`` ``(n_actuators, 6)``, ``gravity`` ``(3,)`` in m/s², the others ``(n_dofs,)`` or ``(n_joints,)``.
"""
_ANY_SIGN = frozenset({"actuator_gear", "gravity"})
_POSITIVE = frozenset({"body_mass", "body_inertia"})


class ParameterTable:
    """
    Physical parameters of several physics of one robot.

    :param physics: physics whose parameters are read and set
    """

    def __init__(self, physics: Sequence[Physics]) -> None:
        self._models = [(one.model.ptr, one.data.ptr) for one in physics]
        model = self._models[0][0]
        self._is_moved = {name: np.array(_field(model, name)) > 0 for name in _POSITIVE}

    def read(self) -> dict[str, np.ndarray]:
        """
        Read the parameters.

        :return: copies of all :data:`PARAMETERS`, each ``(n_physics, ...)``
        """
        return {name: np.stack([_field(model, name) for model, _ in self._models]) for name in PARAMETERS}

    def set(self, values: Mapping[str, ArrayLike]) -> None:
        """
        Set parameters. Positions and velocities stay as they are.

        :param values: new values of some :data:`PARAMETERS`, each ``(n_physics, ...)``
        :raises ValueError: for an unknown name, another shape, or values that are not finite, negative where this has no
            meaning, or no mass or inertia of a moving body; then nothing is changed
        """
        checked = {name: self._check(name, np.array(value, dtype=np.float64)) for name, value in values.items()}
        for row, (model, data) in enumerate(self._models if checked else []):
            for name, value in checked.items():
                _field(model, name)[...] = value[row]
            # Recomputes what the model derives from its parameters (documentation of mj_setConst). It overwrites the state.
            mujoco.mj_setConst(model, mujoco.MjData(model))
            # The next step of dm_control begins with mj_step2, which needs the results of mj_step1.
            mujoco.mj_step1(model, data)

    def scale(self, factors: Mapping[str, ArrayLike]) -> None:
        """
        Multiply parameters by factors.

        :param factors: factors of some :data:`PARAMETERS`: ``(n_physics,)``, one for each physics, or more of the axes of the
            parameter, such as ``(n_physics, n_geoms)`` for ``geom_friction``
        :raises ValueError: for an unknown name, a shape that does not fit, or factors that lead to invalid values
        """
        current, values = self.read(), {}
        for name, given in factors.items():
            _check_name(name)
            factor, shape = np.array(given, dtype=np.float64), current[name].shape
            if factor.ndim == 0 or factor.shape != shape[: factor.ndim]:
                raise ValueError(f"Factors of {name} must have the shape {shape}, or its first axes, got {factor.shape}.")
            values[name] = current[name] * factor.reshape(factor.shape + (1,) * (len(shape) - factor.ndim))
        self.set(values)

    def _check(self, name: str, value: np.ndarray) -> np.ndarray:
        _check_name(name)
        shape = (len(self._models), *_field(self._models[0][0], name).shape)
        if value.shape != shape:
            raise ValueError(f"Values of {name} must have the shape {shape}, got {value.shape}.")
        if not np.isfinite(value).all():
            raise ValueError(f"Values of {name} must be finite.")
        if name not in _ANY_SIGN and (value < 0).any():
            raise ValueError(f"Values of {name} must not be negative, got {value.min():g}.")
        if name in _POSITIVE and (value[:, self._is_moved[name]] == 0).any():
            raise ValueError(f"Values of {name} must be positive for all bodies but the world.")
        return value


def _check_name(name: str) -> None:
    if name not in PARAMETERS:
        raise ValueError(f"There is no parameter {name!r}; choose from {', '.join(PARAMETERS)}.")


def _field(model: Any, name: str) -> np.ndarray:
    """View of a parameter of MuJoCo's model."""
    return model.opt.gravity if name == "gravity" else getattr(model, name)
