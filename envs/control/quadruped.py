"""The quadruped: dm_control's walk and run, and URLB's stand and jump."""

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
"""Forward speeds that are worth a full reward, m/s."""
JUMP_HEIGHT = 1.0
"""Height of the center of mass that is worth a full reward, m."""
CONTROL_TIMESTEP = 0.02
FLOOR_SIZE = 20.0 * SPEEDS["walk"]
"""As far as one gets in the 20 s of an episode, m."""


def stand_reward(upright: Any) -> Any:
    """
    :param upright: Cosine of the angle between the torso and the vertical, a number or ``(n,)`` as all that follow
    :return: From 0 to 1
    """
    return tolerance(upright, bounds=(1.0, np.inf), margin=2.0, value_at_margin=0.0, sigmoid="linear")


def move_reward(upright: Any, speed: Any, target: float) -> Any:
    """
    :param upright: Cosine of the angle between the torso and the vertical
    :param speed: Forward, m/s
    :param target: Speed that is worth a full reward
    :return: From 0 to 1
    """
    moving = tolerance(speed, bounds=(target, np.inf), margin=target, value_at_margin=0.5, sigmoid="linear")
    return stand_reward(upright) * moving


def jump_reward(upright: Any, height: Any) -> Any:
    """
    :param upright: Cosine of the angle between the torso and the vertical
    :param height: Of the center of mass, m
    :return: From 0 to 1
    """
    high = tolerance(height, bounds=(JUMP_HEIGHT, np.inf), margin=JUMP_HEIGHT, value_at_margin=0.5, sigmoid="linear")
    return stand_reward(upright) * high


class Stand(quadruped.Move):
    """Keep upright."""

    def __init__(self) -> None:
        super().__init__(desired_speed=0)

    def get_reward(self, physics: quadruped.Physics) -> float:
        return float(stand_reward(physics.torso_upright()))


class Jump(quadruped.Move):
    """Get the center of mass up, upright."""

    def __init__(self) -> None:
        super().__init__(desired_speed=0)

    def get_reward(self, physics: quadruped.Physics) -> float:
        return float(jump_reward(physics.torso_upright(), physics.named.data.subtree_com["torso"][2]))


def make(task: str) -> Environment:
    """:param task: ``"stand"``, ``"walk"``, ``"run"`` or ``"jump"``"""
    if task in SPEEDS:
        return quadruped.SUITE[task](time_limit=np.inf)
    physics = quadruped.Physics.from_xml_string(quadruped.make_model(floor_size=FLOOR_SIZE), common.ASSETS)
    return Environment(physics, {"stand": Stand, "jump": Jump}[task](), control_timestep=CONTROL_TIMESTEP)


def reader(physics: Physics) -> Reader:
    """Quantities: upright, speed, height of the center of mass."""
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
    """Where in ``sensordata`` the sensors of some types are, in the order of the model."""
    model = physics.model
    found = np.flatnonzero(np.isin(model.sensor_type, types))
    return np.concatenate([model.sensor_adr[i] + np.arange(model.sensor_dim[i]) for i in found])


def recall(physics: Physics, observations: np.ndarray) -> np.ndarray:
    """The observation holds speed and uprightness, but does not say how high the body is."""
    hinges = np.count_nonzero(physics.model.jnt_type == enums.mjtJoint.mjJNT_HINGE)
    speed = 2 * hinges + physics.model.na
    upright = speed + 3
    return np.stack([observations[:, upright], observations[:, speed], np.full(len(observations), np.nan)], axis=1)


BODY = VectorizedDomain(
    make,
    reader,
    n_quantities=3,
    recall=recall,
    rewards={
        "stand": lambda upright, speed, height: stand_reward(upright),
        "walk": lambda upright, speed, height: move_reward(upright, speed, SPEEDS["walk"]),
        "run": lambda upright, speed, height: move_reward(upright, speed, SPEEDS["run"]),
        "jump": lambda upright, speed, height: jump_reward(upright, height),
    },
    unrecorded=frozenset({"jump"}),
)
"""The quadruped."""
