"""Planar walker: dm_control's stand, walk and run, and URLB's flip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np
from dm_control.mujoco import Physics
from dm_control.mujoco.wrapper.mjbindings import enums
from dm_control.rl.control import Environment
from dm_control.suite import walker

from .domain import Reader, VectorizedDomain, linear_tolerance, quantities_of_states

STAND_HEIGHT = 1.2
"""Height of the torso from which the walker stands, m."""
SPEEDS = {"walk": 1.0, "run": 8.0}
"""Forward speed at which the reward of a task is 1, m/s."""
FLIP_MOMENTUM = 5.0
"""Angular momentum at which the reward is 1, kg m²/s."""
CONTROL_TIMESTEP = 0.025


def standing(height: Any) -> Any:
    """
    Compute dm_control's ``tolerance`` of the height. dm_control squares numbers with C's power function, numpy squares arrays
    by multiplication, and the results may differ in the last bit. The power function is used for both here.

    :param height: height of the torso, m, a number or ``(n,)``
    :return: tolerance, from 0 to 1
    """
    missing = np.maximum((STAND_HEIGHT - height) / (STAND_HEIGHT / 2), 0.0) * np.sqrt(-2 * np.log(0.1))
    squares = np.reshape([value**2 for value in np.ravel(missing).tolist()], np.shape(missing))
    return np.exp(-0.5 * squares)


def stand_reward(height: Any, upright: Any) -> Any:
    """
    Compute the reward of standing. All arguments are numbers or arrays of shape ``(n,)``.

    :param height: height of the torso, m
    :param upright: cosine of the angle between the torso and the vertical
    :return: reward, from 0 to 1
    """
    return (3 * standing(height) + (1 + upright) / 2) / 4


def move_reward(height: Any, upright: Any, speed: Any, target: float) -> Any:
    """
    Compute the reward of moving forward.

    :param height: height of the torso, m
    :param upright: cosine of the angle between the torso and the vertical
    :param speed: forward speed, m/s
    :param target: speed at which the reward is 1, m/s
    :return: reward, from 0 to 1
    """
    moving = linear_tolerance(speed, target, margin=target / 2, value_at_margin=0.5)
    return stand_reward(height, upright) * (5 * moving + 1) / 6


def flip_reward(height: Any, upright: Any, angular_momentum: Any) -> Any:
    """
    Compute the reward of forward somersaults.

    :param height: height of the torso, m
    :param upright: cosine of the angle between the torso and the vertical
    :param angular_momentum: angular momentum of the robot about the y axis, kg m²/s
    :return: reward, from 0 to 1
    """
    turning = np.clip(angular_momentum / FLIP_MOMENTUM, 0.0, 1.0)
    return stand_reward(height, upright) * (5 * turning + 1) / 6


class Flip(walker.PlanarWalker):
    """Task of turning somersaults forward."""

    def __init__(self) -> None:
        super().__init__(move_speed=0)

    def get_reward(self, physics: walker.Physics) -> float:
        momentum = physics.named.data.subtree_angmom["torso"][1]
        return float(flip_reward(physics.torso_height(), physics.torso_upright(), momentum))


def make(task: str) -> Environment:
    """Make the environment of a task: ``"stand"``, ``"walk"``, ``"run"`` or ``"flip"``."""
    if task != "flip":
        return walker.SUITE[task](time_limit=np.inf)
    physics = walker.Physics.from_xml_string(*walker.get_model_and_assets())
    return Environment(physics, Flip(), control_timestep=CONTROL_TIMESTEP)


def reader(physics: Physics) -> Reader:
    """Make the reader of the quantities height, uprightness, speed and angular momentum."""
    model, data = physics.model, physics.data
    torso = model.name2id("torso", "body")
    speed = model.sensor_adr[model.name2id("torso_subtreelinvel", "sensor")]
    n_links = model.nbody - 1
    views = {
        "orientations": data.xmat[1:],  # (n_links, 9)
        "height": data.xpos[torso, 2, ...],
        "velocities": data.qvel,
        "speed": data.sensordata[speed, ...],
        "momentum": data.subtree_angmom[torso, 1, ...],
    }

    def compute(values: Mapping[str, np.ndarray], observations: np.ndarray) -> Sequence[np.ndarray]:
        orientations, height = values["orientations"], values["height"]
        observations[:, 0 : 2 * n_links : 2] = orientations[:, :, 0]  # xx
        observations[:, 1 : 2 * n_links : 2] = orientations[:, :, 2]  # xz
        observations[:, 2 * n_links] = height
        observations[:, 2 * n_links + 1 :] = values["velocities"]
        return height, orientations[:, torso - 1, 8], values["speed"], values["momentum"]

    return Reader(views, compute)


def infer_quantities(physics: Physics, observations: np.ndarray) -> np.ndarray:
    """
    Compute the quantities from observations. They determine the state except the horizontal position, which no reward needs:
    the joint angles follow from the orientations of the links.
    """
    model, data = physics.model, physics.data
    data.qpos[:] = 0.0
    mujoco.mj_kinematics(model.ptr, data.ptr)
    hinges = {int(model.jnt_bodyid[i]): i for i in range(model.njnt) if model.jnt_type[i] == enums.mjtJoint.mjJNT_HINGE}
    n_links = model.nbody - 1
    torso, rootz = model.name2id("torso", "body"), model.name2id("rootz", "joint")
    at_rest = np.arctan2(data.xmat[:, 2], data.xmat[:, 0])  # the angle about y
    pitch = np.zeros((len(observations), model.nbody))
    pitch[:, 1:] = np.arctan2(observations[:, 1 : 2 * n_links : 2], observations[:, 0 : 2 * n_links : 2])
    qpos = np.zeros((len(observations), model.nq))
    for link, joint in hinges.items():
        parent = model.body_parentid[link]
        turned = (pitch[:, link] - pitch[:, parent]) - (at_rest[link] - at_rest[parent])
        wrapped = (turned + np.pi) % (2 * np.pi) - np.pi
        qpos[:, model.jnt_qposadr[joint]] = model.jnt_axis[joint, 1] * wrapped
    qpos[:, model.jnt_qposadr[rootz]] = observations[:, 2 * n_links] - data.xpos[torso, 2]
    return quantities_of_states(DOMAIN, physics, qpos, observations[:, 2 * n_links + 1 :], observations.shape[1])


DOMAIN = VectorizedDomain(
    make,
    reader,
    infer_quantities=infer_quantities,
    rewards={
        "stand": lambda height, upright, speed, momentum: stand_reward(height, upright),
        "walk": lambda height, upright, speed, momentum: move_reward(height, upright, speed, SPEEDS["walk"]),
        "run": lambda height, upright, speed, momentum: move_reward(height, upright, speed, SPEEDS["run"]),
        "flip": lambda height, upright, speed, momentum: flip_reward(height, upright, momentum),
    },
)
"""Walker and its tasks."""
