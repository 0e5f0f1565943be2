"""Planar hopper: dm_control's hop, and URLB's hop_backward, flip and flip_backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dm_control.mujoco import Physics
from dm_control.rl.control import Environment
from dm_control.suite import hopper
from dm_control.utils.rewards import tolerance

from .domain import Reader, VectorizedDomain, linear_tolerance, quantities_of_states

STAND_HEIGHTS = (0.6, 2.0)
"""Range of the height of the torso above the foot in which the hopper stands, m."""
HOP_SPEED = 2.0
"""Speed at which the reward is 1, m/s."""
FLIP_MOMENTUM = 5.0
"""Angular momentum at which the reward is 1, kg m²/s."""
CONTROL_TIMESTEP = 0.02


def hop_reward(height: Any, speed: Any) -> Any:
    """
    Compute the reward of hopping forward. All arguments are numbers or arrays of shape ``(n,)``.

    :param height: height of the torso above the foot, m
    :param speed: forward speed, m/s
    :return: reward, from 0 to 1
    """
    hopping = linear_tolerance(speed, HOP_SPEED, margin=HOP_SPEED / 2, value_at_margin=0.5)
    return tolerance(height, STAND_HEIGHTS) * hopping


def hop_backward_reward(height: Any, speed: Any) -> Any:
    """
    Compute the reward of hopping backward.

    :param height: height of the torso above the foot, m
    :param speed: forward speed, m/s
    :return: reward, from 0 to 1
    """
    return tolerance(height, STAND_HEIGHTS) * np.clip(-speed / HOP_SPEED, 0.0, 1.0)


def flip_reward(height: Any, angular_momentum: Any) -> Any:
    """
    Compute the reward of somersaults.

    :param height: height of the torso above the foot, m
    :param angular_momentum: angular momentum of the robot about the y axis, kg m²/s; negative for backward somersaults
    :return: reward, from 0 to 1
    """
    return tolerance(height, STAND_HEIGHTS) * np.clip(angular_momentum / FLIP_MOMENTUM, 0.0, 1.0)


class HopBackward(hopper.Hopper):
    """Task of hopping backward."""

    def __init__(self) -> None:
        super().__init__(hopping=True)

    def get_reward(self, physics: hopper.Physics) -> float:
        return float(hop_backward_reward(physics.height(), physics.speed()))


class Flip(hopper.Hopper):
    """
    Task of turning somersaults.

    :param direction: 1 for forward, -1 for backward
    """

    def __init__(self, direction: int) -> None:
        super().__init__(hopping=False)
        self.direction = direction

    def get_reward(self, physics: hopper.Physics) -> float:
        momentum = physics.named.data.subtree_angmom["torso"][1]
        return float(flip_reward(physics.height(), self.direction * momentum))


def make(task: str) -> Environment:
    """Make the environment of a task: ``"hop"``, ``"hop_backward"``, ``"flip"`` or ``"flip_backward"``."""
    if task == "hop":
        return hopper.SUITE[task](time_limit=np.inf)
    tasks = {"hop_backward": HopBackward, "flip": lambda: Flip(1), "flip_backward": lambda: Flip(-1)}
    physics = hopper.Physics.from_xml_string(*hopper.get_model_and_assets())
    return Environment(physics, tasks[task](), control_timestep=CONTROL_TIMESTEP)


def reader(physics: Physics) -> Reader:
    """Make the reader of the quantities height, speed and angular momentum."""
    model, data = physics.model, physics.data
    torso, foot = model.name2id("torso", "body"), model.name2id("foot", "body")
    speed = model.sensor_adr[model.name2id("torso_subtreelinvel", "sensor")]
    touch = model.sensor_adr[[model.name2id(name, "sensor") for name in ("touch_toe", "touch_heel")]]
    n_positions, n_moving = model.nq - 1, model.nq - 1 + model.nv
    views = {
        "positions": data.qpos[1:],
        "velocities": data.qvel,
        "sensors": data.sensordata,
        "torso": data.xipos[torso, 2, ...],
        "foot": data.xipos[foot, 2, ...],
        "momentum": data.subtree_angmom[torso, 1, ...],
    }

    def compute(values: Mapping[str, np.ndarray], observations: np.ndarray) -> Sequence[np.ndarray]:
        sensors = values["sensors"]
        observations[:, :n_positions] = values["positions"]
        observations[:, n_positions:n_moving] = values["velocities"]
        observations[:, n_moving:] = np.log1p(sensors.take(touch, axis=1))
        return values["torso"] - values["foot"], sensors[:, speed], values["momentum"]

    return Reader(views, compute)


def infer_quantities(physics: Physics, observations: np.ndarray) -> np.ndarray:
    """Compute the quantities from observations. They hold the state except the horizontal position, which no reward needs."""
    n_positions, n_moving = physics.model.nq - 1, physics.model.nq - 1 + physics.model.nv
    qpos = np.zeros((len(observations), physics.model.nq))
    qpos[:, 1:] = observations[:, :n_positions]
    return quantities_of_states(DOMAIN, physics, qpos, observations[:, n_positions:n_moving], observations.shape[1])


DOMAIN = VectorizedDomain(
    make,
    reader,
    infer_quantities=infer_quantities,
    rewards={
        "hop": lambda height, speed, momentum: hop_reward(height, speed),
        "hop_backward": lambda height, speed, momentum: hop_backward_reward(height, speed),
        "flip": lambda height, speed, momentum: flip_reward(height, momentum),
        "flip_backward": lambda height, speed, momentum: flip_reward(height, -momentum),
    },
)
"""Hopper and its tasks."""
