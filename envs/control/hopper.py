"""The planar hopper: dm_control's hop, and URLB's hop_backward, flip and flip_backward."""

from __future__ import annotations

from typing import Any

import numpy as np
from dm_control.mujoco import Physics
from dm_control.rl.control import Environment
from dm_control.suite import hopper
from dm_control.utils.rewards import tolerance

from .domain import Reader, VectorizedDomain, quantities_of_states

STAND_HEIGHTS = (0.6, 2.0)
"""Heights of the torso over the foot that count as standing, m."""
HOP_SPEED = 2.0
"""Speed that is worth a full reward, m/s."""
FLIP_MOMENTUM = 5.0
"""Angular momentum that is worth a full reward, kg m²/s."""
CONTROL_TIMESTEP = 0.02


def hop_reward(height: Any, speed: Any) -> Any:
    """
    :param height: Of the torso over the foot, m, a number or ``(n,)`` as all that follow
    :param speed: Forward, m/s
    :return: From 0 to 1
    """
    hopping = tolerance(speed, bounds=(HOP_SPEED, np.inf), margin=HOP_SPEED / 2, value_at_margin=0.5, sigmoid="linear")
    return tolerance(height, STAND_HEIGHTS) * hopping


def hop_backward_reward(height: Any, speed: Any) -> Any:
    """
    :param height: Of the torso over the foot, m
    :param speed: Forward, m/s
    :return: From 0 to 1
    """
    return tolerance(height, STAND_HEIGHTS) * np.clip(-speed / HOP_SPEED, 0.0, 1.0)


def flip_reward(height: Any, angular_momentum: Any) -> Any:
    """
    :param height: Of the torso over the foot, m
    :param angular_momentum: Of the body about the axis that it can turn about, kg m²/s; negative for flips backward
    :return: From 0 to 1
    """
    return tolerance(height, STAND_HEIGHTS) * np.clip(angular_momentum / FLIP_MOMENTUM, 0.0, 1.0)


class HopBackward(hopper.Hopper):
    """Hop backward."""

    def __init__(self) -> None:
        super().__init__(hopping=True)

    def get_reward(self, physics: hopper.Physics) -> float:
        return float(hop_backward_reward(physics.height(), physics.speed()))


class Flip(hopper.Hopper):
    """
    Turn somersaults.

    :param direction: 1 forward, -1 backward
    """

    def __init__(self, direction: int) -> None:
        super().__init__(hopping=False)
        self.direction = direction

    def get_reward(self, physics: hopper.Physics) -> float:
        momentum = physics.named.data.subtree_angmom["torso"][1]
        return float(flip_reward(physics.height(), self.direction * momentum))


def make(task: str) -> Environment:
    """:param task: ``"hop"``, ``"hop_backward"``, ``"flip"`` or ``"flip_backward"``"""
    if task == "hop":
        return hopper.SUITE[task](time_limit=np.inf)
    tasks = {"hop_backward": HopBackward, "flip": lambda: Flip(1), "flip_backward": lambda: Flip(-1)}
    physics = hopper.Physics.from_xml_string(*hopper.get_model_and_assets())
    return Environment(physics, tasks[task](), control_timestep=CONTROL_TIMESTEP)


def reader(physics: Physics) -> Reader:
    """Quantities: height, speed, angular momentum."""
    model, data = physics.model, physics.data
    torso, foot = model.name2id("torso", "body"), model.name2id("foot", "body")
    speed = model.sensor_adr[model.name2id("torso_subtreelinvel", "sensor")]
    touch = model.sensor_adr[[model.name2id(name, "sensor") for name in ("touch_toe", "touch_heel")]]
    n_positions, n_moving = model.nq - 1, model.nq - 1 + model.nv
    qpos, qvel, centers, sensors, momenta = data.qpos, data.qvel, data.xipos, data.sensordata, data.subtree_angmom

    def read(observation: np.ndarray, quantities: np.ndarray) -> None:
        observation[:n_positions] = qpos[1:]
        observation[n_positions:n_moving] = qvel
        observation[n_moving:] = np.log1p(sensors[touch])
        quantities[:] = centers[torso, 2] - centers[foot, 2], sensors[speed], momenta[torso, 1]

    return read


def recall(physics: Physics, observations: np.ndarray) -> np.ndarray:
    """The observation holds the state, all but where the body is on the ground, which no task pays for."""
    n_positions, n_moving = physics.model.nq - 1, physics.model.nq - 1 + physics.model.nv
    qpos = np.zeros((len(observations), physics.model.nq))
    qpos[:, 1:] = observations[:, :n_positions]
    return quantities_of_states(BODY, physics, qpos, observations[:, n_positions:n_moving], observations.shape[1])


BODY = VectorizedDomain(
    make,
    reader,
    n_quantities=3,
    recall=recall,
    rewards={
        "hop": lambda height, speed, momentum: hop_reward(height, speed),
        "hop_backward": lambda height, speed, momentum: hop_backward_reward(height, speed),
        "flip": lambda height, speed, momentum: flip_reward(height, momentum),
        "flip_backward": lambda height, speed, momentum: flip_reward(height, -momentum),
    },
)
"""The hopper."""
