"""Algorithms by name, with settings that explore well without tuning, and the environments they train in."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_exdm.envs import MAZE_ENV_IDS, Maze2dSB3VecEnv, SB3VecEnv
from sb3_exdm.envs.urlb import TASKS, VECTORIZED_DOMAINS
from sb3_exdm.common.spaces import is_bounded_vector, is_low_dim
from sb3_exdm.policies.features import FourierExtractor

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"sac": SAC, "td3": TD3, "ddpg": DDPG, "ppo": PPO}
"""The algorithms of :func:`sb3_exdm.pretrain`, by name."""


def check_algorithm(algo: str, action_space: spaces.Space, env_id: str) -> None:
    """
    :param algo: name of an algorithm
    :param action_space: actions of the environment
    :param env_id: for the error message
    :raises ValueError: if the name is unknown or the algorithm cannot act in the space
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"Unknown algorithm {algo!r}; choose one of {', '.join(ALGORITHMS)}.")
    if algo != "ppo" and not isinstance(action_space, spaces.Box):
        raise ValueError(f"{algo} needs continuous actions, but {env_id} has {action_space}; use ppo.")


def default_settings(algo: str, observation_space: spaces.Space, action_space: spaces.Space) -> dict[str, Any]:
    """
    Constructor arguments of an algorithm as plain data; :func:`build_algorithm` turns them into a model.

    The values for small bounded observations were measured in the mazes. Two of them matter most: the target entropy of
    SAC, far above the usual ``-dim``, because a policy that settles stops exploring; and the single critic, because the
    smaller of two critics shuns what is uncertain, which is what exploration is looking for.

    :param algo: name of an algorithm
    :param observation_space: observations of the environment
    :param action_space: actions of the environment
    """
    small = is_low_dim(observation_space)
    policy_kwargs: dict[str, Any] = {"net_arch": [128, 128] if small else [256, 256]}
    if small:
        policy_kwargs["features_extractor"] = "fourier"
    settings: dict[str, Any] = {
        "policy": policy_name(observation_space),
        "learning_rate": 1.5e-3 if small else 5e-4,
        "gamma": 0.98 if small else 0.99,
        "batch_size": 256,
        "policy_kwargs": policy_kwargs,
    }
    if algo == "ppo":
        return {**settings, "learning_rate": 1e-3 if small else 3e-4, "n_steps": 256, "ent_coef": 0.01}
    settings.update(tau=0.01, learning_starts=2000, train_freq=1, gradient_steps=1)
    if algo == "sac":
        policy_kwargs["n_critics"] = 1
        settings.update(ent_coef="auto", target_entropy=0.25 * spaces.flatdim(action_space))
    elif algo == "td3":
        policy_kwargs["n_critics"] = 1
        settings["action_noise_std"] = 0.5
    elif algo == "ddpg":
        settings["action_noise_std"] = 0.5
    return settings


def policy_name(observation_space: spaces.Space) -> str:
    """Stable-Baselines3's name of the policy for an observation space."""
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(observation_space) else "MlpPolicy"


def check_device(device: str) -> None:
    """:raises ValueError: if PyTorch does not know the device, or it is not there"""
    try:
        th.empty(0, device=get_device(device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Unknown device {device!r}, or one that is not there: {str(error).splitlines()[0]}") from None


def finetune_settings(observation_space: spaces.Space, n_envs: int) -> dict[str, Any]:
    """
    Settings of fine-tuning that the diffusion policy and the Gaussian share, measured in the mazes: fast learning from few
    transitions, one update per four environment steps.

    :param observation_space: observations of the environment
    :param n_envs: environments that are stepped together
    """
    small = is_low_dim(observation_space)
    return {
        "learning_rate": 1e-3 if small else 5e-4,
        "gamma": 0.98 if small else 0.99,
        "tau": 0.02 if small else 0.01,
        "batch_size": 128 if small else 256,
        "learning_starts": 1000 if small else 2000,
        "train_freq": 1,
        "gradient_steps": max(1, n_envs // 4),
        "policy_kwargs": {"net_arch": [128, 128] if small else [256, 256], "n_critics": 2},
    }


def default_critic_updates(observation_space: spaces.Space) -> int:
    """
    Updates of the critic alone, when fine-tuning begins to learn. On the walker, a pre-trained policy lost most of its return
    within 250 updates without them. In the mazes there is nothing to lose before the goal is found.

    :param observation_space: observations of the environment
    """
    return 0 if is_low_dim(observation_space) else 2000


def default_kl_steps(observation_space: spaces.Space) -> int:
    """
    Steps over which a pre-trained Gaussian is held near what it was and let go. On the walker, it lost half of its return and
    more without, even led by a critic that had learned first.

    :param observation_space: observations of the environment
    """
    return 0 if is_low_dim(observation_space) else 16_000


def build_algorithm(algo: str, env: VecEnv | None, settings: dict[str, Any], **kwargs: Any) -> BaseAlgorithm:
    """
    :param algo: name of an algorithm
    :param env: environment to train in; None for a model whose spaces are set later
    :param settings: from :func:`default_settings`, possibly changed
    :param kwargs: further constructor arguments
    """
    settings = deepcopy(settings)
    policy_kwargs = settings["policy_kwargs"]
    if policy_kwargs.pop("features_extractor", None) == "fourier":
        policy_kwargs["features_extractor_class"] = FourierExtractor
    noise = settings.pop("action_noise_std", None)
    if noise is not None and env is not None:
        # Off-policy algorithms add the noise to actions scaled to [-1, 1].
        sigma = np.full(env.action_space.shape or (), noise, dtype=np.float32)
        kwargs["action_noise"] = NormalActionNoise(mean=np.zeros_like(sigma), sigma=sigma)
    policy = settings.pop("policy")
    return ALGORITHMS[algo](policy, env, **settings, **kwargs)


VEC_ENVS: dict[str, type[DummyVecEnv] | type[SubprocVecEnv] | None] = {
    "auto": None,
    "dummy": DummyVecEnv,
    "subproc": SubprocVecEnv,
}
"""Ways to step several environments: the fastest in one process, one after another, or each in a process of its own."""


def make_training_env(
    env_id: str, n_envs: int, seed: int, env_kwargs: dict[str, Any] | None = None, vec_env: str = "auto"
) -> VecEnv:
    """
    A VecEnv for training: mazes and bodies in their fast vectorized form, everything else through ``make_vec_env``.
    Environments of dm_control that shimmy registers get flat observations and actions in [-1, 1].

    :param env_id: id of a registered environment; ``"module:id"`` imports the module first
    :param n_envs: number of environments
    :param seed: seed of the environments
    :param env_kwargs: arguments of the environment
    :param vec_env: a key of :data:`VEC_ENVS`
    :raises ValueError: if the id is unknown or the environment cannot be made
    """
    if vec_env not in VEC_ENVS:
        raise ValueError(f"Unknown vec_env {vec_env!r}; choose one of {', '.join(VEC_ENVS)}.")
    env_kwargs = env_kwargs or {}
    if vec_env == "auto" and env_id in MAZE_ENV_IDS:
        return Maze2dSB3VecEnv(env_id, n_envs, seed=seed, **env_kwargs)
    try:
        # Before Gymnasium lets shimmy register its environments, as it chooses how to render.
        wrapper = _control_wrapper() if env_id.startswith("dm_control/") else None
        gym.spec(env_id)  # fails early and briefly
        if vec_env == "auto" and env_id in TASKS and TASKS[env_id].domain in VECTORIZED_DOMAINS:
            settings = {"autoreset_mode": AutoresetMode.SAME_STEP, **env_kwargs}
            return SB3VecEnv(gym.make_vec(env_id, n_envs, vectorization_mode="vector_entry_point", **settings), seed)
        is_ours = env_id in TASKS or env_id in MAZE_ENV_IDS
        return make_vec_env(
            f"sb3_exdm.envs:{env_id}" if is_ours else env_id,  # other processes may not have imported this package
            n_envs=n_envs,
            seed=seed,
            env_kwargs=env_kwargs,
            wrapper_class=wrapper,
            vec_env_cls=VEC_ENVS[vec_env],
        )
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"Cannot make the environment {env_id!r}: {error}") from error


def _control_wrapper() -> type[gym.Wrapper]:
    """Imported only where it is used, as it needs the extra ``dmc``."""
    from sb3_exdm.envs.control import ControlWrapper

    return ControlWrapper


def needs_normalization(observation_space: spaces.Space) -> bool:
    """Whether observations should be standardized for the policy: vectors without finite bounds."""
    if isinstance(observation_space, spaces.Dict):
        return any(needs_normalization(part) for part in observation_space.spaces.values())
    return (
        isinstance(observation_space, spaces.Box)
        and not is_image_space(observation_space)
        and not is_bounded_vector(observation_space)
    )
