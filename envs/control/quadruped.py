"""Quadruped: dm_control's walk and run, and URLB's stand and jump."""

from __future__ import annotations

from typing import Any

import numpy as np
from dm_control.mujoco import Physics
from dm_control.mujoco.wrapper.mjbindings import enums
from dm_control.rl.control import Environment
from dm_control.suite import common, quadruped
from dm_control.utils.rewards import tolerance

from .domain import Reader, VectorizedDomain

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
    return tolerance(upright, bounds=(1.0, np.inf), margin=2.0, value_at_margin=0.0, sigmoid="linear")


def move_reward(upright: Any, speed: Any, target: float) -> Any:
    """
    Compute the reward of moving forward.

    :param upright: cosine of the angle between the torso and the vertical
    :param speed: forward speed, m/s
    :param target: speed at which the reward is 1, m/s
    :return: reward, from 0 to 1
    """
    moving = tolerance(speed, bounds=(target, np.inf), margin=target, value_at_margin=0.5, sigmoid="linear")
    return stand_reward(upright) * moving


def jump_reward(upright: Any, height: Any) -> Any:
    """
    Compute the reward of jumping.

    :param upright: cosine of the angle between the torso and the vertical
    :param height: height of the center of mass, m
    :return: reward, from 0 to 1
    """
    high = tolerance(height, bounds=(JUMP_HEIGHT, np.inf), margin=JUMP_HEIGHT, value_at_margin=0.5, sigmoid="linear")
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
    ends = np.cumsum([hinges.size, hinges.size, model.na, 3, 1, imu.size])
    qpos, qvel, act, xmat, com, sensors = data.qpos, data.qvel, data.act, data.xmat, data.subtree_com, data.sensordata

    def read(observation: np.ndarray, quantities: np.ndarray) -> None:
        upright = xmat[torso, 8]
        observation[: ends[0]] = qpos[angles]
        observation[ends[0] : ends[1]] = qvel[rates]
        observation[ends[1] : ends[2]] = act
        observation[ends[2] : ends[3]] = sensors[velocimeter]
        observation[ends[3]] = upright
        observation[ends[4] : ends[5]] = sensors[imu]
        observation[ends[5] :] = np.arcsinh(sensors[forces])
        quantities[:] = upright, sensors[velocimeter[0]], com[torso, 2]

    return read


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
    n_quantities=3,
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
