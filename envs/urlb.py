"""Tasks of the unsupervised reinforcement learning benchmark (URLB), with the scores of experts. Does not import MuJoCo."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ControlTask:
    """
    Task of URLB (Laskin et al. 2021, arXiv 2110.15191).

    :param domain: name of the robot
    :param name: name of the task
    :param max_episode_steps: number of steps after which an episode is truncated
    :param expert_return: undiscounted return of an episode by DDPG after 2M training steps, None if none is published
    :param coverage_dims: dimensions of the observation in which visited bins are counted
    """

    domain: str
    name: str
    max_episode_steps: int
    expert_return: float | None
    coverage_dims: tuple[int, ...]

    @property
    def env_id(self) -> str:
        """Id for ``gym.make``."""
        return f"URLB/{self.domain}-{self.name}-v0"


# Height, tilt and forward speed of the torso; speed (forward, sideways) and uprightness; position of the hand.
_COVERAGE_DIMS = {"walker": (14, 1, 16), "quadruped": (44, 45, 47), "hopper": (0, 1, 6), "jaco": (30, 31, 32)}
_EXPERT_RETURNS: dict[str, dict[str, float | None]] = {
    "walker": {"stand": 984.0, "walk": 971.0, "run": 796.0, "flip": 799.0},
    "quadruped": {"walk": 866.0, "run": 888.0, "stand": 920.0, "jump": 888.0},
    "hopper": {"hop": None, "hop_backward": None, "flip": None, "flip_backward": None},
    "jaco": {
        "reach_top_left": 191.0,
        "reach_top_right": 223.0,
        "reach_bottom_left": 193.0,
        "reach_bottom_right": 203.0,
    },
}

TASKS: dict[str, ControlTask] = {
    task.env_id: task
    for domain, returns in _EXPERT_RETURNS.items()
    for name, expert_return in returns.items()
    for task in [ControlTask(domain, name, 250 if domain == "jaco" else 1000, expert_return, _COVERAGE_DIMS[domain])]
}
"""All tasks, by env id."""

VECTORIZED_DOMAINS = ("walker", "quadruped", "hopper")
"""Domains that :class:`~sb3_exdm.envs.control.vector_env.ControlVectorEnv` supports."""


def expert_return(env_id: str) -> float | None:
    """
    Return of an expert, for the normalized score of URLB, ``return / expert_return``.

    :param env_id: any env id
    :return: undiscounted return of an episode, None if none is published
    """
    task = TASKS.get(env_id)
    return None if task is None else task.expert_return
