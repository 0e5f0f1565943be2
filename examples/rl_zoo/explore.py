"""
Exploration under rl-zoo3: SAC with the replay buffer whose rewards are intrinsic, and the library's hyper-parameters.

python -m rl_zoo3.train --algo sac --env Maze2d-SquareA-v0 --gym-packages sb3_exdm --conf-file examples/rl_zoo/explore.py
"""

import gymnasium as gym

import sb3_exdm
from sb3_exdm.runs.hyperparams import CLASSES, default_profile, pretrain_hyperparams


def settings(env_id: str) -> dict:
    """Hyper-parameters of ``exdm pretrain`` in an environment, as rl-zoo3 reads them."""
    env = gym.make(env_id)
    profile = default_profile(env.observation_space)
    found = pretrain_hyperparams("sac", profile, env.observation_space, env.action_space)
    env.close()
    policy_kwargs = found["policy_kwargs"]
    if "features_extractor_class" in policy_kwargs:
        policy_kwargs["features_extractor_class"] = CLASSES[policy_kwargs["features_extractor_class"]]
    return {
        "n_timesteps": 100_000,
        "n_envs": 8,
        "buffer_size": 100_000,
        "replay_buffer_class": sb3_exdm.ScoreRewardReplayBuffer,
        "callback": ["sb3_exdm.IntrinsicRewardCallback"],
        **found,
    }


MAZES = ("SquareA", "SquareB", "SquareC", "SquareD", "SquareTree", "SquareBottleneck", "SquareLarge")
hyperparams = {env_id: settings(env_id) for env_id in (*(f"Maze2d-{maze}-v0" for maze in MAZES), "MountainCarContinuous-v0")}
