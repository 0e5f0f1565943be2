"""Exploring without a reward, and keeping what was explored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_exdm.common.spaces import SpaceEncoder
from sb3_exdm.common.validation import check_integers
from sb3_exdm.envs.urlb import TASKS
from sb3_exdm.exploration.callbacks import ExplorationCallback, TransitionRecorder
from sb3_exdm.exploration.replay_buffer import ScoreRewardDictReplayBuffer, ScoreRewardReplayBuffer
from sb3_exdm.exploration.vec_wrapper import VecScoreRewardWrapper
from sb3_exdm.metrics import BinCoverage, StateCoverage
from sb3_exdm.plots import plot_coverage, plot_reward, plot_visits
from sb3_exdm.policies.diffusion_actor import POLICY, DiffusionActor
from sb3_exdm.recipes.behavior_cloning import can_clone, clone_agent
from sb3_exdm.recipes.training import check_plain, train
from sb3_exdm.rewards.base import REWARD_TRANSFORMS, IntrinsicReward
from sb3_exdm.rewards.registry import REWARDS
from sb3_exdm.runs.folder import PROGRESS, ProgressLog, RunFolder
from sb3_exdm.runs.hyperparams import (
    build_algorithm,
    check_algorithm,
    check_device,
    default_settings,
    make_training_env,
    needs_normalization,
)


@dataclass
class PretrainedRun:
    """
    What :func:`pretrain` returns.

    :param path: the run folder, None if nothing was written
    :param summary: figures of the run, the content of ``summary.json``
    :param model: the agent
    :param reward_model: the fitted model of novelty
    :param policy: the diffusion policy fitted to what was explored; None where spaces or memory do not allow one
    """

    path: Path | None
    summary: dict[str, Any]
    model: BaseAlgorithm
    reward_model: IntrinsicReward
    policy: DiffusionActor | None = None


def pretrain(
    env_id: str,
    total_timesteps: int = 100_000,
    *,
    algo: str = "sac",
    reward: str = "score",
    seed: int = 0,
    n_envs: int = 8,
    vec_env: str = "auto",
    out: str | Path | None = None,
    coverage_dims: Sequence[int] | None = None,
    overwrite: bool = False,
    env_kwargs: dict[str, Any] | None = None,
    algo_kwargs: dict[str, Any] | None = None,
    reward_kwargs: dict[str, Any] | None = None,
    device: str = "auto",
    checkpoint_freq: int = 25_000,
    policy_steps: int = 3000,
    progress_bar: bool = True,
) -> PretrainedRun:
    """
    Explore an environment without its reward (ExDM, arXiv 2502.07279, algorithm 1).

    An off-policy algorithm gets its intrinsic rewards anew with every batch it samples, PPO when it collects them. Afterwards
    a diffusion policy is fitted to the explored state-action pairs, where observations and actions are vectors.

    :param env_id: id of a registered environment
    :param total_timesteps: number of steps, over all environments together
    :param algo: ``"sac"``, ``"td3"``, ``"ddpg"`` or ``"ppo"``
    :param reward: name of an intrinsic reward, see :data:`~sb3_exdm.rewards.registry.REWARDS`
    :param seed: seed of everything
    :param n_envs: number of environments that are stepped together
    :param vec_env: how: ``"auto"`` (the fastest in one process), ``"dummy"`` or ``"subproc"`` (each in a process of its own)
    :param out: run folder to write; None writes nothing
    :param coverage_dims: dimensions of the observation whose coverage is counted in bins, where the environment has no
        layout; by default those that tell what a body of URLB does, or the first two of an observation that is a vector
    :param overwrite: replace the run that ``out`` holds
    :param env_kwargs: arguments of the environment
    :param algo_kwargs: changes to :func:`~sb3_exdm.runs.hyperparams.default_settings`, plain data
    :param reward_kwargs: arguments of the reward, plain data
    :param device: PyTorch device
    :param checkpoint_freq: steps between two checkpoints in ``out``, 0 for none
    :param policy_steps: gradient steps that fit the diffusion policy to what was explored, 0 for no such policy
    :param progress_bar: show a progress bar on a terminal
    :raises ValueError: for arguments out of range, an unknown name, or an environment that cannot be used
    :raises FileExistsError: if ``out`` holds a run already, or is a file
    :raises RunInterrupted: if stopped from the keyboard; what was learned is kept in ``out``
    """
    _check_arguments(total_timesteps, n_envs, reward, seed, checkpoint_freq, policy_steps, device)
    env = make_training_env(env_id, n_envs, seed, env_kwargs, vec_env)
    try:
        check_algorithm(algo, env.action_space, env_id)
        SpaceEncoder(env.observation_space)  # refuses unsupported spaces
        coverage, dims = _make_coverage(env_id, env, coverage_dims)
        settings = {**default_settings(algo, env.observation_space, env.action_space), **(algo_kwargs or {})}
        config = {
            "command": "pretrain",
            "env_id": env_id,
            "total_timesteps": total_timesteps,
            "algo": algo,
            "reward": reward,
            "seed": seed,
            "n_envs": n_envs,
            "vec_env": vec_env,
            "coverage_dims": dims,
            "env_kwargs": env_kwargs or {},
            "algo_kwargs": settings,
            "reward_kwargs": reward_kwargs or {},
            "policy_steps": policy_steps,
        }
        check_plain(config)
        try:
            model, reward_model = _build(algo, env, reward, seed, total_timesteps, settings, reward_kwargs or {}, device)
        except TypeError as error:
            raise ValueError(f"algo_kwargs or reward_kwargs hold an argument that does not exist: {error}.") from error
        folder = None
        if out is not None:
            folder = RunFolder(out)
            folder.create(config, overwrite)
        return _explore(config, model, reward_model, coverage, folder, checkpoint_freq, progress_bar)
    finally:
        env.close()


def _check_arguments(
    total_timesteps: int, n_envs: int, reward: str, seed: int, checkpoint_freq: int, policy_steps: int, device: str
) -> None:
    check_integers(
        total_timesteps=(total_timesteps, 1),
        n_envs=(n_envs, 1),
        seed=(seed, 0),
        checkpoint_freq=(checkpoint_freq, 0),
        policy_steps=(policy_steps, 0),
    )
    if reward not in REWARDS:
        raise ValueError(f"Unknown reward {reward!r}; choose one of {', '.join(REWARDS)}.")
    check_device(device)


def _make_coverage(
    env_id: str, env: VecEnv, coverage_dims: Sequence[int] | None
) -> tuple[StateCoverage | BinCoverage | None, list[int] | None]:
    """The coverage that suits an environment, and the dimensions it looks at (None for a layout)."""
    layout = getattr(env, "layout", None)
    if layout is not None:
        if coverage_dims is not None:
            raise ValueError("coverage_dims is for environments without a layout; here the coverage of the maze is counted.")
        return StateCoverage(layout), None
    space = env.observation_space
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        if coverage_dims is None:
            coverage_dims = TASKS[env_id].coverage_dims if env_id in TASKS else range(min(space.shape[0], 2))
        dims = [int(dim) for dim in coverage_dims]
        if not dims or not all(0 <= dim < space.shape[0] for dim in dims):
            raise ValueError(f"coverage_dims must name dimensions from 0 to {space.shape[0] - 1}, got {dims}.")
        return BinCoverage(dims), dims
    if coverage_dims is not None:
        raise ValueError(f"coverage_dims needs observations that are vectors, got {space}.")
    return None, None


def _build(
    algo: str,
    env: VecEnv,
    reward: str,
    seed: int,
    total_timesteps: int,
    settings: dict[str, Any],
    reward_kwargs: dict[str, Any],
    device: str,
) -> tuple[BaseAlgorithm, IntrinsicReward]:
    """An algorithm that is paid by an intrinsic reward, and that reward."""
    is_dict = isinstance(env.observation_space, spaces.Dict)
    normalize = needs_normalization(env.observation_space)
    if algo == "ppo":
        paid = VecScoreRewardWrapper(env, reward, reward_kwargs=reward_kwargs, device=device, seed=seed)
        wrapped: VecEnv = VecNormalize(paid, norm_obs=normalize, gamma=settings["gamma"])
        return build_algorithm(algo, wrapped, settings, seed=seed, device=device), paid.reward_model
    model = build_algorithm(
        algo,
        VecNormalize(env, norm_reward=False) if normalize else env,
        settings,
        seed=seed,
        device=device,
        buffer_size=min(total_timesteps, 1_000_000),
        replay_buffer_class=ScoreRewardDictReplayBuffer if is_dict else ScoreRewardReplayBuffer,
        replay_buffer_kwargs={"reward": reward, "reward_kwargs": {"seed": seed, **reward_kwargs}},
    )
    return model, model.replay_buffer.reward_model  # type: ignore[attr-defined]


def _explore(
    config: dict[str, Any],
    model: BaseAlgorithm,
    reward_model: IntrinsicReward,
    coverage: StateCoverage | BinCoverage | None,
    folder: RunFolder | None,
    checkpoint_freq: int,
    progress_bar: bool,
) -> PretrainedRun:
    """Train, then write and draw what came out."""
    total_timesteps = config["total_timesteps"]
    observation_space, action_space = model.observation_space, model.action_space
    recorder = None
    if TransitionRecorder.fits(observation_space, action_space, total_timesteps):
        recorder = TransitionRecorder(observation_space, action_space, total_timesteps)
    log = None if folder is None else ProgressLog(folder.path / PROGRESS)
    reports: list[dict[str, float]] = []

    def on_report(report: dict[str, float]) -> None:
        reports.append(report)
        if log is not None:
            log.write(report)

    def on_checkpoint(timesteps: int) -> None:
        if folder is not None:
            folder.save_models(model, reward_model, f"checkpoints/{timesteps}")

    callback = ExplorationCallback(
        total_timesteps,
        coverage=coverage,
        recorder=recorder,
        on_report=on_report,
        checkpoint_freq=checkpoint_freq,
        on_checkpoint=on_checkpoint,
        progress_bar=progress_bar,
    )
    train(
        model,
        total_timesteps,
        callback,
        folder=folder,
        log=log,
        log_interval=1 if config["algo"] == "ppo" else 5 * config["n_envs"],
        reward_model=reward_model,
        on_interrupt=callback.finish,
    )
    summary = _summarize(config, model, callback, coverage)
    policy, gaussian = None, None
    if config["policy_steps"] and recorder is not None and can_clone(observation_space, action_space):
        policy, gaussian = clone_agent(
            model, recorder.arrays(), config["policy_steps"], seed=config["seed"], progress_bar=progress_bar
        )
    if folder is not None:
        folder.save_models(model, reward_model)
        if policy is not None:
            policy.save(folder.path / POLICY, gaussian)
        if recorder is not None:
            folder.save_transitions(recorder.arrays())
        _draw(folder, config, reports, recorder, reward_model, coverage)
        folder.write_summary(summary)
    return PretrainedRun(None if folder is None else folder.path, summary, model, reward_model, policy)


def _summarize(
    config: dict[str, Any], model: BaseAlgorithm, callback: ExplorationCallback, coverage: StateCoverage | BinCoverage | None
) -> dict[str, Any]:
    keys = ("command", "env_id", "algo", "reward", "seed", "n_envs")
    return {
        **{key: config[key] for key in keys},
        "timesteps": model.num_timesteps,
        "seconds": round(callback.seconds, 2),
        "steps_per_second": round(model.num_timesteps / max(callback.seconds, 1e-9), 1),
        "coverage": None if coverage is None else float(coverage.value),
        "coverage_of_ceiling": float(coverage.of_ceiling) if isinstance(coverage, StateCoverage) else None,
        "torch_threads": th.get_num_threads(),
        "peak_memory_mb": peak_memory_mb(),
    }


def peak_memory_mb() -> float | None:
    """Largest resident size of this process so far, None where the system does not say."""
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _draw(
    folder: RunFolder,
    config: dict[str, Any],
    reports: list[dict[str, float]],
    recorder: TransitionRecorder | None,
    reward_model: IntrinsicReward,
    coverage: StateCoverage | BinCoverage | None,
) -> None:
    """The pictures of a run: coverage over time, where it went, what it holds to be novel."""
    title = f"{config['env_id']}, {config['algo']}, reward {config['reward']}"
    layout = coverage.layout if isinstance(coverage, StateCoverage) else None
    if coverage is not None:
        plot_coverage(
            [report["timesteps"] for report in reports],
            [report["coverage"] for report in reports],
            folder.path / "coverage.png",
            ceiling=coverage.ceiling if isinstance(coverage, StateCoverage) else None,
            title=title,
            ylabel="state coverage" if layout is not None else "visited bins",
        )
    if coverage is None or recorder is None:
        return
    visited = recorder.arrays()
    dims = [0, 1] if layout is not None else config["coverage_dims"]
    if len(dims) < 2:
        return
    dims = dims[:2]
    labels = ("x", "y") if layout is not None else (f"observation {dims[0]}", f"observation {dims[1]}")
    positions = visited["next_observations"][:, dims]
    plot_visits(positions, folder.path / "visits.png", layout=layout, labels=labels, title=title)
    if reward_model.needs_actions:
        shown = _spread(visited["observations"])
        values = reward_model.reward(shown, _spread(visited["actions"]))
        plot_reward(lambda _: values, folder.path / "reward.png", positions=shown[:, dims], labels=labels, title=title)
    elif layout is not None:
        plot_reward(lambda grid: _shaped(reward_model, grid), folder.path / "reward.png", layout=layout, title=title)
    else:
        shown = _spread(visited["next_observations"])
        values = _shaped(reward_model, shown)
        plot_reward(lambda _: values, folder.path / "reward.png", positions=shown[:, dims], labels=labels, title=title)


def _spread(rows: np.ndarray, n_rows: int = 5000) -> np.ndarray:
    """Transitions evenly spread over time."""
    return rows[:: max(len(rows) // n_rows, 1)]


def _shaped(reward_model: IntrinsicReward, observations: np.ndarray) -> np.ndarray:
    """What the agent is paid."""
    return REWARD_TRANSFORMS[getattr(reward_model, "reward_transform", "exp")](reward_model.reward(observations))
