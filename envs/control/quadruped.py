"""Quadruped: dm_control's walk and run, and URLB's stand and jump."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dm_control.mujoco import Physics
from dm_control.mujoco.wrapper.mjbindings import enums
from dm_control.rl.control import Environment
from dm_control.suite import common, quadruped

from .domain import Reader, VectorizedDomain, linear_tolerance

SPEEDS = {"walk": 0.5, "run": 5.0}
"""Forward speed at which the reward of a task is 1, m/s."""
JUMP_HEIGHT = 1.0
"""Height of the center of mass at which the reward is 1, m."""
CONTROL_TIMESTEP = 0.02
FLOOR_SIZE = 20.0 * SPEEDS["walk"]
"""Distance walked in the 20 s of an episode, m."""


def stand_reward(upright: Any) -> Any:
    """
    Compute the reward of standing. All arguments are numbers or arrays of shape ``(n,)``.

    :param upright: cosine of the angle between the torso and the vertical
    :return: reward, from 0 to 1
    """
    return linear_tolerance(upright, 1.0, margin=2.0, value_at_margin=0.0)


def move_reward(upright: Any, speed: Any, target: float) -> Any:
    """
    Compute the reward of moving forward.

    :param upright: cosine of the angle between the torso and the vertical
    :param speed: forward speed, m/s
    :param target: speed at which the reward is 1, m/s
    :return: reward, from 0 to 1
    """
    moving = linear_tolerance(speed, target, margin=target, value_at_margin=0.5)
    return stand_reward(upright) * moving


def jump_reward(upright: Any, height: Any) -> Any:
    """
    Compute the reward of jumping.

    :param upright: cosine of the angle between the torso and the vertical
    :param height: height of the center of mass, m
    :return: reward, from 0 to 1
    """
    high = linear_tolerance(height, JUMP_HEIGHT, margin=JUMP_HEIGHT, value_at_margin=0.5)
    return stand_reward(upright) * high


class Stand(quadruped.Move):
    """Task of standing upright."""

    def __init__(self) -> None:
        super().__init__(desired_speed=0)

    def get_reward(self, physics: quadruped.Physics) -> float:
        return float(stand_reward(physics.torso_upright()))


class Jump(quadruped.Move):
    """Task of jumping: raise the center of mass while upright."""

    def __init__(self) -> None:
        super().__init__(desired_speed=0)

    def get_reward(self, physics: quadruped.Physics) -> float:
        return float(jump_reward(physics.torso_upright(), physics.named.data.subtree_com["torso"][2]))


def make(task: str) -> Environment:
    """Make the environment of a task: ``"stand"``, ``"walk"``, ``"run"`` or ``"jump"``."""
    if task in SPEEDS:
        return quadruped.SUITE[task](time_limit=np.inf)
    physics = quadruped.Physics.from_xml_string(quadruped.make_model(floor_size=FLOOR_SIZE), common.ASSETS)
    return Environment(physics, {"stand": Stand, "jump": Jump}[task](), control_timestep=CONTROL_TIMESTEP)


def reader(physics: Physics) -> Reader:
    """Make the reader of the quantities uprightness, speed and height of the center of mass."""
    model, data = physics.model, physics.data
    torso = model.name2id("torso", "body")
    hinges = np.flatnonzero(model.jnt_type == enums.mjtJoint.mjJNT_HINGE)
    angles, rates = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges]
    velocimeter = _sensor_rows(physics, enums.mjtSensor.mjSENS_VELOCIMETER)
    imu = _sensor_rows(physics, enums.mjtSensor.mjSENS_GYRO, enums.mjtSensor.mjSENS_ACCELEROMETER)
    forces = _sensor_rows(physics, enums.mjtSensor.mjSENS_FORCE, enums.mjtSensor.mjSENS_TORQUE)
    ends = np.cumsum([hinges.size, hinges.size, model.na, 3, 1, imu.size]).tolist()
    views = {
        "qpos": data.qpos,
        "qvel": data.qvel,
        "act": data.act,
        "sensors": data.sensordata,
        "upright": data.xmat[torso, 8, ...],
        "height": data.subtree_com[torso, 2, ...],
    }

    def compute(values: Mapping[str, np.ndarray], observations: np.ndarray) -> Sequence[np.ndarray]:
        sensors, upright = values["sensors"], values["upright"]
        observations[:, : ends[0]] = values["qpos"].take(angles, axis=1)
        observations[:, ends[0] : ends[1]] = values["qvel"].take(rates, axis=1)
        observations[:, ends[1] : ends[2]] = values["act"]
        observations[:, ends[2] : ends[3]] = sensors.take(velocimeter, axis=1)
        observations[:, ends[3]] = upright
        observations[:, ends[4] : ends[5]] = sensors.take(imu, axis=1)
        observations[:, ends[5] :] = np.arcsinh(sensors.take(forces, axis=1))
        return upright, sensors[:, velocimeter[0]], values["height"]

    return Reader(views, compute)


def _sensor_rows(physics: Physics, *types: int) -> np.ndarray:
    """Indices in ``sensordata`` of the sensors of some types, in the order of the model."""
    model = physics.model
    found = np.flatnonzero(np.isin(model.sensor_type, types))
    return np.concatenate([model.sensor_adr[i] + np.arange(model.sensor_dim[i]) for i in found])


def infer_quantities(physics: Physics, observations: np.ndarray) -> np.ndarray:
    """Read the quantities off observations, which hold uprightness and speed, but not the height (NaN)."""
    hinges = np.count_nonzero(physics.model.jnt_type == enums.mjtJoint.mjJNT_HINGE)
    speed = 2 * hinges + physics.model.na
    upright = speed + 3
    return np.stack([observations[:, upright], observations[:, speed], np.full(len(observations), np.nan)], axis=1)


DOMAIN = VectorizedDomain(
    make,
    reader,
    infer_quantities=infer_quantities,
    rewards={
        "stand": lambda upright, speed, height: stand_reward(upright),
        "walk": lambda upright, speed, height: move_reward(upright, speed, SPEEDS["walk"]),
        "run": lambda upright, speed, height: move_reward(upright, speed, SPEEDS["run"]),
        "jump": lambda upright, speed, height: jump_reward(upright, height),
    },
    not_relabelable=frozenset({"jump"}),
)
"""Quadruped and its tasks."""
