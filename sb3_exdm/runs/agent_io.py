"""Models of Stable-Baselines3 in safetensors files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_exdm.common.resources import resolve_device
from sb3_exdm.common.serialization import (
    ArtifactError,
    check_weights,
    load_optimizer,
    load_tree,
    read_from,
    save_tree,
    space_from_json,
    space_to_json,
)
from sb3_exdm.common.validation import check_value
from sb3_exdm.policies.diffusion_policy import saved_network_kwargs
from sb3_exdm.runs.hyperparams import build_algorithm, check_algo_kwargs, fitting_buffer_size

CONFIG = "config.json"
"""Name of the file with the constructor arguments."""


def save_agent(path: Path, model: BaseAlgorithm) -> None:
    """
    Save networks, optimizers and variables of a model to one file. The constructor arguments are in ``config.json``.

    :param path: file
    :param model: model
    """
    names, variables = model._get_torch_save_params()
    tree = {
        "observation_space": space_to_json(model.observation_space),
        "action_space": space_to_json(model.action_space),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "states": {name: recursive_getattr(model, name).state_dict() for name in names},
        "variables": {
            name: recursive_getattr(model, name) for name in variables if recursive_getattr(model, name) is not None
        },
        "normalization": _moments(model.get_vec_normalize_env()),
    }
    save_tree(path, tree, kind="agent")


def load_agent(
    path: Path, config: Mapping[str, Any], env: VecEnv | gym.Env | None = None, device: th.device | str = "auto"
) -> BaseAlgorithm:
    """
    Load what :func:`save_agent` wrote. Executes no pickle.

    :param path: file
    :param config: contents of ``config.json``
    :param env: environment to continue in, with the spaces of the training; None to predict only
    :param device: PyTorch device
    :return: model with an empty ordinary replay buffer, smaller than that of the run where memory is short; its environment
        is normalized as in training
    :raises ArtifactError: if the file cannot be used, or was written for other spaces
    """
    device = resolve_device(device)
    tree = load_tree(path, kind="agent")
    with read_from(path):
        observation_space, action_space = (space_from_json(tree[name]) for name in ("observation_space", "action_space"))
    if isinstance(env, gym.Env):
        single = env
        env = DummyVecEnv([lambda: single if isinstance(single, Monitor) else Monitor(single)])
    if env is not None and (env.observation_space != observation_space or env.action_space != action_space):
        raise ArtifactError(
            f"The agent in {path} was trained with {observation_space} and {action_space}, the environment has "
            f"{env.observation_space} and {env.action_space}."
        )
    with read_from(f"{path} (with {CONFIG} beside it)"):
        model = _build(tree, config, observation_space, action_space, env, device, path)
        names, variables = model._get_torch_save_params()
        if set(tree["states"]) != set(names) or not set(tree["variables"]) <= set(variables):
            raise ArtifactError(f"{path} holds {', '.join(tree['states'])}, expected {', '.join(names)}; it may be damaged.")
        for name, state in tree["states"].items():
            part = recursive_getattr(model, name)
            load_optimizer(part, state) if isinstance(part, th.optim.Optimizer) else part.load_state_dict(state)
        for name, value in tree["variables"].items():
            # In place, because the optimizer of the variable holds a reference to it.
            variable = recursive_getattr(model, name)
            if isinstance(variable, th.Tensor):
                variable.data.copy_(value)
            else:
                recursive_setattr(model, name, value)
        for name in ("num_timesteps", "n_updates"):
            check_value(name, tree[name], int)
        model.num_timesteps, model._n_updates = tree["num_timesteps"], tree["n_updates"]
        if env is not None:
            model.set_env(env if tree["normalization"] is None else _normalize(env, tree["normalization"]))
    return model


def _build(
    tree: dict[str, Any],
    config: Mapping[str, Any],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    env: VecEnv | None,
    device: th.device,
    path: Path,
) -> BaseAlgorithm:
    """The algorithm with new weights."""
    # The buffer of the run, with its reward and its transitions, is not part of the file.
    hyperparams = {key: value for key, value in config["algo_kwargs"].items() if not key.startswith("replay_buffer")}
    if hyperparams["policy"] == "DiffusionPolicy":  # must load where the pre-trained run is not
        hyperparams["policy_kwargs"] = saved_network_kwargs(tree["states"]["policy"])
    check_algo_kwargs(config["algo"], hyperparams, hyperparams["policy"])
    check_weights(tree["states"]["policy"], (hyperparams.get("policy_kwargs") or {}).get("net_arch"), path)
    n_envs = env.num_envs if env is not None else 1
    if "buffer_size" in hyperparams:
        hyperparams["buffer_size"] = fitting_buffer_size(hyperparams, observation_space, action_space, n_envs)
    model = build_algorithm(config["algo"], None, hyperparams, device=device, _init_setup_model=False)
    model.observation_space, model.action_space = observation_space, action_space
    model.n_envs = n_envs
    if isinstance(model, SAC) and model.target_entropy == "auto":  # would be read off an environment
        model.target_entropy = -float(np.prod(action_space.shape))  # type: ignore[arg-type]
    model._setup_model()
    return model


def observation_moments(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Read the moments that vector observations were standardized with.

    :param path: file that :func:`save_agent` wrote
    :return: mean and variance, ``(dim,)`` each; None if observations were not standardized
    """
    tree = load_tree(path, kind="agent")
    with read_from(path):
        moments = (tree["normalization"] or {}).get("")
        return None if moments is None else (moments["mean"].numpy(), moments["var"].numpy())


def _moments(env: VecNormalize | None) -> dict[str, Any] | None:
    """Running moments of the observations, by key; ``""`` where the space is not a Dict."""
    if env is None or not env.norm_obs:
        return None
    moments = env.obs_rms if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
    return {
        key: {"mean": th.as_tensor(value.mean), "var": th.as_tensor(value.var), "count": float(value.count)}
        for key, value in moments.items()
    }


def _normalize(env: VecEnv, moments: dict[str, Any]) -> VecNormalize:
    """Standardize as in training; the moments are updated unless the caller sets ``training = False``."""
    env = env if isinstance(env, VecNormalize) else VecNormalize(env, norm_reward=False)
    for key, value in moments.items():
        target = env.obs_rms[key] if isinstance(env.obs_rms, dict) else env.obs_rms
        check_value("normalization count", value["count"], float)
        for moment in (value["mean"], value["var"]):
            if moment.shape != target.mean.shape:
                raise ValueError(f"observations were normalized in the shape {tuple(moment.shape)}, not {target.mean.shape}")
        target.mean, target.var, target.count = value["mean"].numpy(), value["var"].numpy(), value["count"]
    return env
