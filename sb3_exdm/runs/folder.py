"""The folder that a run leaves behind: what is in it, how it is written, how it is read."""

import csv
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_exdm.common.serialization import (
    FORMAT_VERSION,
    ArtifactError,
    atomic_path,
    load_tree,
    read_json,
    save_tree,
    space_from_json,
    space_to_json,
    write_json,
)
from sb3_exdm.rewards.registry import load_reward
from sb3_exdm.rewards.base import FittedReward, IntrinsicReward
from sb3_exdm.policies.diffusion_actor import POLICY
from sb3_exdm.runs.hyperparams import build_algorithm

CONFIG = "config.json"
SUMMARY = "summary.json"
PROGRESS = "progress.csv"
MODEL = "model.safetensors"
REWARD = "reward.safetensors"
TRANSITIONS = "transitions.npz"
VIDEO = "video.mp4"
PICTURES = ("coverage.png", "visits.png", "reward.png", "learning_curve.png")


class RunInterrupted(RuntimeError):
    """Training was stopped from the keyboard; the message says what was kept."""


class RunFolder:
    """
    A folder with the files of one run. Creating the object touches nothing.

    :param path: the folder
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def create(self, config: dict[str, Any], overwrite: bool = False) -> None:
        """
        Make the folder and write the configuration, so that even an interrupted run says what it was.

        :param config: JSON-able
        :param overwrite: remove the files of an earlier run; other files in the folder stay
        :raises FileExistsError: if the folder holds a run, or is a file
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"The output folder {self.path} is a file; name a folder.")
        if (self.path / CONFIG).exists():
            if not overwrite:
                raise FileExistsError(f"{self.path} already holds a run; choose another folder or allow overwriting it.")
            for name in (SUMMARY, CONFIG, PROGRESS, MODEL, REWARD, POLICY, TRANSITIONS, VIDEO, *PICTURES):
                (self.path / name).unlink(missing_ok=True)
            for old in (*self.path.glob("tensorboard/events.*"), *self.path.glob("checkpoints/*/*.safetensors")):
                old.unlink()
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG, {"format_version": FORMAT_VERSION, **config, "versions": versions()})

    def write_summary(self, summary: dict[str, Any]) -> None:
        """:param summary: JSON-able; its presence marks the run as complete"""
        write_json(self.path / SUMMARY, {"format_version": FORMAT_VERSION, **summary, "versions": versions()})

    def save_transitions(self, transitions: dict[str, np.ndarray]) -> None:
        """:param transitions: arrays with one row per transition"""
        with atomic_path(self.path / TRANSITIONS) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **transitions)  # type: ignore[arg-type]

    def save_models(self, model: BaseAlgorithm, reward_model: IntrinsicReward | None, subfolder: str = "") -> None:
        """
        :param model: the agent
        :param reward_model: the model of novelty, if there is one
        :param subfolder: where inside of the folder
        """
        save_algorithm(self.path / subfolder / MODEL, model)
        if reward_model is not None:
            reward_model.save(self.path / subfolder / REWARD)

    @property
    def config(self) -> dict[str, Any]:
        """:raises ArtifactError: if the folder holds no run, or one from a newer version"""
        if not (self.path / CONFIG).is_file():
            raise ArtifactError(f"{self.path} is no run folder: it has no {CONFIG}.")
        return read_json(self.path / CONFIG)

    @property
    def summary(self) -> dict[str, Any]:
        """:raises ArtifactError: if the run was interrupted, or is from a newer version"""
        _ = self.config
        if not (self.path / SUMMARY).is_file():
            raise ArtifactError(f"The run in {self.path} was interrupted: it has no {SUMMARY}. Run it again.")
        return read_json(self.path / SUMMARY)

    def transitions(self) -> dict[str, np.ndarray]:
        """
        The explored transitions, one row each, in the order of time.

        :raises ArtifactError: if the file is missing or damaged
        """
        path = self.path / TRANSITIONS
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist.") from None
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged archive
            raise ArtifactError(f"{path} cannot be read ({error}); it may be damaged.") from None

    def load_model(self, env: VecEnv | None = None, device: th.device | str = "auto") -> BaseAlgorithm:
        """
        The trained agent, optimizers included, with an empty ordinary replay buffer. Executes no pickle.

        :param env: environment to go on in; not needed to predict
        :param device: PyTorch device
        """
        return load_algorithm(self.path / MODEL, self.config, env, device)

    def observation_moments(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and variance that the agent's vector observations were standardized with, None if they were not."""
        moments = (load_tree(self.path / MODEL, kind="agent")["normalization"] or {}).get("")
        return None if moments is None else (moments["mean"].numpy(), moments["var"].numpy())

    def load_reward(self, device: th.device | str = "auto") -> FittedReward:
        """The fitted model of novelty. Executes no pickle."""
        return load_reward(self.path / REWARD, device)


class ProgressLog:
    """
    Writes ``progress.csv``: a header, then one row per report, each complete on disk as soon as it is written.

    :param path: the file
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter | None = None

    def write(self, row: dict[str, float]) -> None:
        """:param row: the same keys every time"""
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, fieldnames=list(row))
            self._writer.writeheader()
        self._writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def save_algorithm(path: Path, model: BaseAlgorithm) -> None:
    """
    Save an agent's networks, optimizers and variables to one safetensors file. The settings to rebuild it with are in the
    run's configuration.

    :param path: the file
    :param model: the agent
    """
    names, variables = model._get_torch_save_params()
    env = model.get_env()
    tree = {
        "observation_space": space_to_json(model.observation_space),
        "action_space": space_to_json(model.action_space),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "states": {name: recursive_getattr(model, name).state_dict() for name in names},
        "variables": {
            name: recursive_getattr(model, name) for name in variables if recursive_getattr(model, name) is not None
        },
        "normalization": _normalization(env) if isinstance(env, VecNormalize) and env.norm_obs else None,
    }
    save_tree(path, tree, kind="agent")


def load_algorithm(path: Path, config: dict[str, Any], env: VecEnv | None, device: th.device | str) -> BaseAlgorithm:
    """
    Inverse of :func:`save_algorithm`.

    :param path: the file
    :param config: configuration of the run
    :param env: environment to go on in, with the spaces that the agent was trained with; or None
    :param device: PyTorch device
    :raises ArtifactError: if the file cannot be used
    """
    tree = load_tree(path, kind="agent")
    observation_space = space_from_json(tree["observation_space"])
    action_space = space_from_json(tree["action_space"])
    if env is not None and (env.observation_space != observation_space or env.action_space != action_space):
        raise ArtifactError(
            f"The agent in {path} was trained with {observation_space} and {action_space}, the environment has "
            f"{env.observation_space} and {env.action_space}."
        )
    settings = config["algo_kwargs"]
    # The weights are in the file: it must load where the run that it began with is not.
    settings = {**settings, "policy_kwargs": {**settings["policy_kwargs"]}}
    settings["policy_kwargs"].pop("pretrained", None)
    model = build_algorithm(config["algo"], None, settings, device=device, _init_setup_model=False)
    model.observation_space, model.action_space = observation_space, action_space
    model.n_envs = env.num_envs if env is not None else 1
    if isinstance(model, SAC) and model.target_entropy == "auto":  # would be read off an environment
        model.target_entropy = -float(np.prod(action_space.shape))  # type: ignore[arg-type]
    model._setup_model()
    for name, state in tree["states"].items():
        recursive_getattr(model, name).load_state_dict(state)
    for name, value in tree["variables"].items():
        # In place, because the optimizer of the variable holds a reference to it.
        variable = recursive_getattr(model, name)
        if isinstance(variable, th.Tensor):
            variable.data.copy_(value)
        else:
            recursive_setattr(model, name, value)
    model.num_timesteps = tree["num_timesteps"]
    model._n_updates = tree["n_updates"]
    if env is not None:
        if tree["normalization"] is not None:
            env = _normalized(env, tree["normalization"])
        model.set_env(env)
    return model


def _normalization(env: VecNormalize) -> dict[str, Any]:
    """Running moments of the observations."""
    moments = env.obs_rms if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
    return {
        key: {"mean": th.as_tensor(value.mean), "var": th.as_tensor(value.var), "count": float(value.count)}
        for key, value in moments.items()
    }


def _normalized(env: VecEnv, moments: dict[str, Any]) -> VecNormalize:
    """``env`` normalized as in training; the moments stay as they are only if the caller sets ``training = False``."""
    env = env if isinstance(env, VecNormalize) else VecNormalize(env, norm_reward=False)
    for key, value in moments.items():
        target = env.obs_rms[key] if isinstance(env.obs_rms, dict) else env.obs_rms
        target.mean, target.var, target.count = value["mean"].numpy(), value["var"].numpy(), value["count"]
    return env


def versions() -> dict[str, str]:
    """Versions of everything that the numbers of a run may depend on."""
    packages = ("sb3-exdm", "stable-baselines3", "gymnasium", "torch", "numpy")
    found = {"python": platform.python_version(), "platform": f"{sys.platform}-{platform.machine()}"}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
