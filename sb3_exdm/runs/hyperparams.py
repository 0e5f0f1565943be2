"""Hyper-parameters: named profiles, defaults of each algorithm, and merging of a user's changes."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_exdm.algorithms import FusedSAC
from sb3_exdm.common.resources import available_memory, check_memory
from sb3_exdm.common.spaces import check_action_start, is_low_dim
from sb3_exdm.common.validation import (
    BatchSize,
    Between,
    Fraction,
    LearningRate,
    NFrequencies,
    NonNegative,
    Positive,
    Widths,
    check_kwargs,
    check_value,
    shown,
)
from sb3_exdm.policies.diffusion_policy import DiffusionPolicy
from sb3_exdm.policies.features import FourierExtractor

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"sac": FusedSAC, "td3": TD3, "ddpg": DDPG, "ppo": PPO}
"""Algorithms by name."""


MAX_BUFFER_SIZE = 1_000_000
"""Transitions of the replay buffer at most; shorter runs have one for all of their steps."""


@dataclass(frozen=True)
class Profile:
    """
    Hyper-parameters that depend on the kind of observation.

    :param net_arch: widths of the hidden layers of actor and critic
    :param features_extractor_class: name of the features extractor in :data:`CLASSES`; None for SB3's default
    :param gamma: discount
    :param pretrain_learning_rate: learning rate of SAC, TD3 and DDPG while exploring
    :param pretrain_batch_size: transitions of a minibatch while exploring
    :param pretrain_gradient_steps: updates of SAC, TD3 and DDPG per step of all environments while exploring. Exploration is
        short of updates: six with 64 transitions cover more of SquareLarge, in less time, than four with 192
    :param ppo_learning_rate: learning rate of PPO
    :param finetune_learning_rate: learning rate while fine-tuning
    :param finetune_tau: Polyak coefficient of the target networks while fine-tuning
    :param finetune_batch_size: transitions of a minibatch while fine-tuning
    :param finetune_learning_starts: transitions of the pre-trained policy before the first update
    :param critic_updates: updates of the critic alone when fine-tuning begins to learn. On the walker, a pre-trained policy
        lost most of its return within 250 updates without them
    :param checkpoint_freq: steps between two checkpoints, few enough that little time is lost with those since the last one
    :param kl_steps: steps over which the KL regularization of a pre-trained Gaussian is annealed. On the walker, it lost half
        of its return and more without, even with a critic that had learned first
    :param reward_transform: transform of every intrinsic reward while exploring; None for that of the reward
    """

    net_arch: tuple[int, ...]
    features_extractor_class: str | None
    gamma: float
    pretrain_learning_rate: float
    pretrain_batch_size: int
    pretrain_gradient_steps: int
    ppo_learning_rate: float
    finetune_learning_rate: float
    finetune_tau: float
    finetune_batch_size: int
    finetune_learning_starts: int
    critic_updates: int
    kl_steps: int
    checkpoint_freq: int = 10_000
    reward_transform: str | None = None


_LARGE = Profile(
    net_arch=(256, 256),
    features_extractor_class=None,
    gamma=0.99,
    pretrain_learning_rate=5e-4,
    pretrain_batch_size=256,
    pretrain_gradient_steps=1,
    ppo_learning_rate=3e-4,
    finetune_learning_rate=5e-4,
    finetune_tau=0.01,
    finetune_batch_size=256,
    finetune_learning_starts=2000,
    critic_updates=2000,
    kl_steps=16_000,
)

PROFILES: dict[str, Profile] = {
    # Measured in the mazes, where fine-tuning has nothing to lose before the goal is found.
    "low_dim": Profile(
        net_arch=(128, 128),
        features_extractor_class="FourierExtractor",
        gamma=0.98,
        pretrain_learning_rate=1.5e-3,
        pretrain_batch_size=64,
        pretrain_gradient_steps=6,
        ppo_learning_rate=1e-3,
        finetune_learning_rate=1e-3,
        finetune_tau=0.02,
        finetune_batch_size=128,
        finetune_learning_starts=1000,
        critic_updates=0,
        kl_steps=0,
        # Skewed rewards let fewer states attract the agent, and it explores more slowly.
        reward_transform="identity",
    ),
    # Measured on the walker.
    "proprioceptive": _LARGE,
    # Not tuned: the values of proprioceptive observations.
    "pixels": replace(_LARGE, checkpoint_freq=2000),
}
"""Profiles by name: bounded vectors of few dimensions, all other vectors, and images."""


def default_profile(observation_space: spaces.Space) -> str:
    """
    Choose a profile from an observation space.

    :param observation_space: observations of the environment
    :return: a key of :data:`PROFILES`
    """
    if is_low_dim(observation_space):
        return "low_dim"
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    return "pixels" if any(is_image_space(part) for part in parts) else "proprioceptive"


def pretrain_hyperparams(
    algo: str, profile: str, observation_space: spaces.Space, action_space: spaces.Space
) -> dict[str, Any]:
    """
    Constructor arguments of an algorithm that explores, as plain data under SB3's names.

    Two values of SAC matter most. The target entropy is far above the usual ``-dim``: a policy that becomes deterministic
    stops exploring. There is one critic instead of two: the minimum of two undervalues uncertain actions, which exploration
    needs.

    :param algo: name of an algorithm
    :param profile: a key of :data:`PROFILES`
    :param observation_space: observations of the environment
    :param action_space: actions of the environment
    """
    values = PROFILES[profile]
    hyperparams: dict[str, Any] = {
        "policy": policy_name(observation_space),
        "learning_rate": values.pretrain_learning_rate,
        "gamma": values.gamma,
        "batch_size": values.pretrain_batch_size,
        "policy_kwargs": _policy_kwargs(values),
    }
    if algo == "ppo":
        own = {"learning_rate": values.ppo_learning_rate, "batch_size": 256, "n_steps": 256, "ent_coef": 0.01}
        return {**hyperparams, **own}
    hyperparams.update(tau=0.01, learning_starts=2000, train_freq=1, gradient_steps=values.pretrain_gradient_steps)
    if algo != "ddpg":  # which has one critic by definition
        hyperparams["policy_kwargs"]["n_critics"] = 1
    if algo == "sac":
        hyperparams.update(ent_coef="auto", target_entropy=0.25 * spaces.flatdim(action_space))
    return hyperparams


def finetune_hyperparams(
    algo: str,
    profile: str,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    n_envs: int,
    explored_with: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Constructor arguments of an algorithm that fine-tunes a Gaussian policy, as plain data under SB3's names: fast learning
    from few transitions, one update per four environment steps.

    :param algo: name of an algorithm
    :param profile: a key of :data:`PROFILES`
    :param observation_space: observations of the environment
    :param action_space: actions of the environment
    :param n_envs: number of environments stepped together
    :param explored_with: arguments that the pre-trained algorithm was built with, whose networks are kept
    """
    known = dict(explored_with or pretrain_hyperparams(algo, profile, observation_space, action_space))
    if algo == "ppo":
        return known
    own = _finetune_learning(PROFILES[profile], n_envs)
    own["policy_kwargs"] = {"net_arch": list(PROFILES[profile].net_arch)} if explored_with is None else {}
    if algo != "ddpg":
        own["policy_kwargs"]["n_critics"] = 2
    if algo == "sac":
        own.update(ent_coef="auto_0.01", target_entropy="auto")
    return merge(known, own)


def diffusion_hyperparams(profile: str, n_envs: int) -> dict[str, Any]:
    """
    Constructor arguments of an algorithm that fine-tunes a diffusion policy, as plain data under SB3's names.

    :param profile: a key of :data:`PROFILES`
    :param n_envs: number of environments stepped together
    """
    values = PROFILES[profile]
    policy_kwargs = {"net_arch": list(values.net_arch), "n_critics": 2}
    return {"policy": "DiffusionPolicy", **_finetune_learning(values, n_envs), "policy_kwargs": policy_kwargs}


def _finetune_learning(values: Profile, n_envs: int) -> dict[str, Any]:
    return {
        "learning_rate": values.finetune_learning_rate,
        "gamma": values.gamma,
        "tau": values.finetune_tau,
        "batch_size": values.finetune_batch_size,
        "learning_starts": values.finetune_learning_starts,
        "train_freq": 1,
        "gradient_steps": max(1, n_envs // 4),
    }


def _policy_kwargs(values: Profile) -> dict[str, Any]:
    policy_kwargs: dict[str, Any] = {"net_arch": list(values.net_arch)}
    if values.features_extractor_class is not None:
        policy_kwargs["features_extractor_class"] = values.features_extractor_class
    return policy_kwargs


def policy_name(observation_space: spaces.Space) -> str:
    """
    Name SB3's policy for an observation space.

    :param observation_space: observations of the environment
    """
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(observation_space) else "MlpPolicy"


def without_size_of_run(content: Mapping[str, Any]) -> dict[str, Any]:
    """
    Leave out the size of the replay buffer that follows from the number of steps, so that the latter can be raised.

    :param content: contents of ``config.json``
    """
    algo_kwargs = dict(content["algo_kwargs"])
    if algo_kwargs.get("buffer_size") == min(content["total_timesteps"], MAX_BUFFER_SIZE):
        del algo_kwargs["buffer_size"]
    return {**content, "algo_kwargs": algo_kwargs}


# Plain data -----------------------------------------------------------------------------------------------------------

CLASSES: dict[str, type] = {
    entry.__name__: entry
    for entry in (
        *(FourierExtractor, FlattenExtractor, NatureCNN, CombinedExtractor),
        *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.GELU, nn.Tanh),
        *(th.optim.Adam, th.optim.AdamW, th.optim.RMSprop, th.optim.SGD),
    )
}
"""Classes that hyper-parameters may name, since JSON cannot hold a class."""


def merge(defaults: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    Merge nested settings; neither argument is changed.

    :param defaults: settings
    :param changes: values that replace those of the same key; mappings are merged key by key
    """
    merged = deepcopy(dict(defaults))
    for key, value in changes.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, dict) and isinstance(value, Mapping) else deepcopy(value)
    return merged


def to_plain(settings: Any) -> Any:
    """
    Replace known classes by their names.

    :param settings: nested settings
    """
    if isinstance(settings, Mapping):
        return {key: to_plain(value) for key, value in settings.items()}
    if isinstance(settings, type) and CLASSES.get(settings.__name__) is settings:
        return settings.__name__
    return settings


def _from_plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`to_plain` for arguments that take a class."""
    return {
        key: _from_plain(value)
        if isinstance(value, Mapping)
        else CLASSES.get(value, value)
        if isinstance(value, str) and (key.endswith("_class") or key == "activation_fn")
        else value
        for key, value in settings.items()
    }


# Checks and models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EntropyCoefficient:
    """Constraint on SAC's ``ent_coef``: a number, ``"auto"``, or ``"auto_X"`` with the initial value X."""

    def check(self, name: str, value: Any) -> None:
        """
        Refuse anything else.

        :param name: how the error message calls the value
        :param value: number or text
        :raises ValueError: with what is allowed
        """
        if not isinstance(value, str):
            check_value(name, value, NonNegative)
        elif value != "auto":
            try:
                check_value(name, float(value.removeprefix("auto_")), Positive)
            except ValueError:
                raise ValueError(f'{name} must be a number, "auto", or "auto_X" with X > 0, got {shown(value)}.') from None


@dataclass(frozen=True)
class TrainFrequency:
    """Constraint on ``train_freq``: a number of steps, or a pair such as ``(1, "episode")``."""

    def check(self, name: str, value: Any) -> None:
        """
        Refuse anything else.

        :param name: how the error message calls the value
        :param value: number or pair
        :raises ValueError: with what is allowed
        """
        number, unit = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, "step")
        check_value(name, number, Annotated[int, Between(1, 10**6)])
        check_value(name, unit, Literal["step", "episode"])


HYPERPARAMETERS: dict[str, Any] = {
    "learning_rate": LearningRate,
    "buffer_size": Annotated[int, Between(1, 10**9)],
    "learning_starts": Annotated[int, Between(0, 10**12)],
    "batch_size": BatchSize,
    "tau": Fraction,
    "gamma": Fraction,
    "train_freq": Annotated[int | tuple[int, str], TrainFrequency()],
    "gradient_steps": Annotated[int, Between(-1, 10**6)],
    "n_steps": Annotated[int, Between(1, 10**6)],
    "ent_coef": Annotated[str | float, EntropyCoefficient()],
    "target_update_interval": Annotated[int, Between(1, 10**9)],
    "target_entropy": Annotated[float, Between(-1e6, 1e6)] | Literal["auto"],
    "sde_sample_freq": Annotated[int, Between(-1, 10**9)],
    "stats_window_size": Annotated[int, Between(1, 10**6)],
    "policy_delay": Annotated[int, Between(1, 10**6)],
    "target_policy_noise": NonNegative,
    "target_noise_clip": NonNegative,
    "n_epochs": Annotated[int, Between(1, 10**5)],
    "gae_lambda": Fraction,
    "clip_range": Positive,
    "clip_range_vf": Positive | None,
    "vf_coef": NonNegative,
    "max_grad_norm": Positive,
    "target_kl": Positive | None,
    "net_arch": Annotated[list[int] | dict[str, list[int]] | None, Widths()],
    "n_critics": Annotated[int, Between(1, 64)],
    "n_frequencies": NFrequencies,
    "features_dim": Annotated[int, Between(1, 65_536)],
    "log_std_init": Annotated[float, Between(-20.0, 20.0)],
    "clip_mean": NonNegative,
}
"""Types and ranges of the arguments of algorithms and policies, which Stable-Baselines3 does not check, by name."""


_SET_BY_RECIPES = ("env", "seed", "device", "verbose", "action_noise", "replay_buffer_class", "_init_setup_model")


def check_algo_kwargs(algo: str, algo_kwargs: Mapping[str, Any], policy: str) -> None:
    """
    Check a user's changes against the signatures of algorithm and policy.

    :param algo: name of an algorithm
    :param algo_kwargs: changes to its hyper-parameters
    :param policy: name of its policy
    :raises ValueError: for an unknown argument, with the nearest one, or a value of the wrong type
    """
    settings = _from_plain(algo_kwargs)
    check_kwargs(ALGORITHMS[algo], settings, "algo_kwargs", ignore=_SET_BY_RECIPES, hints=HYPERPARAMETERS)
    policy_kwargs = settings.get("policy_kwargs") or {}
    ignore = ("observation_space", "action_space", "lr_schedule")
    policy_class = ALGORITHMS[algo].policy_aliases[policy]
    hints = {} if issubclass(policy_class, DiffusionPolicy) else HYPERPARAMETERS
    check_kwargs(policy_class, policy_kwargs, "algo_kwargs['policy_kwargs']", ignore=ignore, hints=hints)
    where, extractor_kwargs = "features_extractor_kwargs", policy_kwargs.get("features_extractor_kwargs") or {}
    if "features_extractor_class" in policy_kwargs:
        extractor_class = policy_kwargs["features_extractor_class"]
        check_kwargs(extractor_class, extractor_kwargs, where, ignore=("observation_space",))
    for key, value in extractor_kwargs.items():
        check_value(f"{where}[{key!r}]", value, HYPERPARAMETERS.get(key, Any))


def check_action_space(algo: str, action_space: spaces.Space, env_id: str) -> None:
    """
    Refuse an algorithm that cannot act in a space.

    :param algo: name of an algorithm
    :param action_space: actions of the environment
    :param env_id: name of the environment in the error message
    :raises ValueError: if the algorithm needs continuous actions, or the actions are not counted from zero
    """
    if algo != "ppo" and not isinstance(action_space, spaces.Box):
        raise ValueError(f"{algo} needs continuous actions, but {env_id} has {action_space}; use ppo.")
    check_action_start(action_space)


def buffer_bytes(
    hyperparams: Mapping[str, Any], observation_space: spaces.Space, action_space: spaces.Space, n_envs: int
) -> int:
    """
    Estimate the memory of the replay buffer, or of the rollout buffer, in bytes.

    :param hyperparams: constructor arguments of an algorithm
    :param observation_space: observations of the environment
    :param action_space: actions of the environment
    :param n_envs: number of environments stepped together
    """
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    observation = sum(math.prod(part.shape or (1,)) * (part.dtype or np.dtype(np.int64)).itemsize for part in parts)
    action = math.prod(action_space.shape or (1,)) * 4
    if "buffer_size" in hyperparams:
        copies = 1 if hyperparams.get("optimize_memory_usage") else 2
        return hyperparams["buffer_size"] * (copies * observation + action + 12)
    return hyperparams.get("n_steps", 2048) * n_envs * (observation + action + 24)


def check_buffer(
    hyperparams: Mapping[str, Any], observation_space: spaces.Space, action_space: spaces.Space, n_envs: int
) -> None:
    """
    Refuse a buffer that cannot fit in memory; the parameters are those of :func:`buffer_bytes`.

    :raises ValueError: with the memory that it takes
    """
    name = "buffer_size" if "buffer_size" in hyperparams else "n_steps"
    n_bytes = buffer_bytes(hyperparams, observation_space, action_space, n_envs)
    check_memory(n_bytes, "The buffer of transitions", f"lower {name} in algo_kwargs, {hyperparams.get(name)}")


def fitting_buffer_size(
    hyperparams: Mapping[str, Any], observation_space: spaces.Space, action_space: spaces.Space, n_envs: int
) -> int:
    """
    Return the largest size of a replay buffer that fits in memory; the parameters are those of :func:`buffer_bytes`.

    :return: at most ``hyperparams["buffer_size"]``
    """
    size = hyperparams["buffer_size"]
    available = available_memory()
    n_bytes = buffer_bytes(hyperparams, observation_space, action_space, n_envs)
    return size if available is None or n_bytes <= available else max(size * available // (2 * n_bytes), n_envs)


def build_algorithm(
    algo: str | type[BaseAlgorithm],
    env: VecEnv | None,
    hyperparams: Mapping[str, Any],
    *,
    action_noise: float | None = None,
    **kwargs: Any,
) -> BaseAlgorithm:
    """
    Build a model.

    :param algo: name of an algorithm, or its class
    :param env: environment to train in; None for a model whose spaces are set later
    :param hyperparams: constructor arguments as plain data
    :param action_noise: standard deviation of Gaussian noise on actions in [-1, 1]
    :param kwargs: further constructor arguments
    :raises ValueError: for arguments that the algorithm refuses, or a buffer that does not fit in memory
    """
    arguments = _from_plain(deepcopy(dict(hyperparams)))
    if env is not None:
        check_buffer(arguments, env.observation_space, env.action_space, env.num_envs)
    if action_noise and env is not None:
        sigma = np.full(env.action_space.shape or (), action_noise, dtype=np.float32)
        kwargs["action_noise"] = NormalActionNoise(mean=np.zeros_like(sigma), sigma=sigma)
    algo_class = ALGORITHMS[algo] if isinstance(algo, str) else algo
    try:
        return algo_class(arguments.pop("policy"), env, **arguments, **kwargs)
    except AssertionError as error:  # the way in which Stable-Baselines3 refuses arguments
        raise ValueError(f"{algo_class.__name__} refuses its arguments: {error}") from error
