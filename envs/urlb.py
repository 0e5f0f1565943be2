"""What there is to control: the tasks of URLB by name, and what an expert reaches in them. Knows no physics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ControlTask:
    """
    One task of the unsupervised reinforcement learning benchmark (URLB, Laskin et al. 2021, arXiv 2110.15191).

    :param domain: The body
    :param name: What it is rewarded for
    :param max_episode_steps: Every episode is truncated after this many steps
    :param expert_return: Undiscounted return of an episode by DDPG after 2M steps of training, None where none is published
    :param coverage_dims: Dimensions of the observation that tell what the body does, for counting visited bins
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
"""Bodies that :class:`~sb3_exdm.envs.control.ControlVectorEnv` steps."""


def expert_return(env_id: str) -> float | None:
    """
    What an expert reaches; ``return / expert_return`` is the normalized score of URLB.

    :param env_id: Any env id
    :return: The return of an episode, None where none is published
    """
    task = TASKS.get(env_id)
    return None if task is None else task.expert_return
