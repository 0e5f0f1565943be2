"""Reward-free pre-training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_exdm.algorithms.stacked import RandomState
from sb3_exdm.common.resources import resolve_device
from sb3_exdm.common.spaces import SpaceEncoder
from sb3_exdm.common.stopwatch import Stopwatch
from sb3_exdm.common.validation import check_kwargs
from sb3_exdm.exploration.callbacks import ExplorationCallback, TransitionRecorder
from sb3_exdm.exploration.replay_buffer import ScoreRewardDictReplayBuffer, ScoreRewardReplayBuffer
from sb3_exdm.exploration.vec_wrapper import VecScoreRewardWrapper
from sb3_exdm.metrics import BinCoverage, StateCoverage
from sb3_exdm.plots import plot_coverage, plot_reward, plot_visits
from sb3_exdm.policies.diffusion_actor import POLICY, DiffusionActor, PretrainedPolicies
from sb3_exdm.recipes.behavior_cloning import can_clone, clone_agent
from sb3_exdm.recipes.checkpointing import Checkpointing
from sb3_exdm.recipes.training import (
    as_list,
    begin,
    check_arguments,
    close_env,
    draw_or_warn,
    train,
    train_together,
)
from sb3_exdm.rewards.base import IntrinsicReward, transformed_reward
from sb3_exdm.rewards.registry import REWARDS
from sb3_exdm.runs.config import PretrainConfig
from sb3_exdm.runs.envs import EnvLike, EnvSource, needs_normalization, normalized
from sb3_exdm.runs.folder import RunFolder
from sb3_exdm.runs.hyperparams import (
    MAX_BUFFER_SIZE,
    PROFILES,
    build_algorithm,
    check_action_space,
    check_algo_kwargs,
    default_profile,
    merge,
    pretrain_hyperparams,
)
from sb3_exdm.runs.lock import FolderLock


@dataclass(repr=False)
class PretrainedRun:
    """
    Result of :func:`pretrain`.

    :param path: run folder, None if nothing was written
    :param summary: figures of the run, the contents of ``summary.json``
    :param model: agent
    :param reward_model: fitted model of the intrinsic reward
    :param policy: diffusion policy fitted to the explored transitions; None where spaces or memory do not allow one
    """

    path: Path | None
    summary: dict[str, Any]
    model: BaseAlgorithm
    reward_model: IntrinsicReward
    policy: DiffusionActor | None = None

    def __repr__(self) -> str:
        coverage = self.summary["coverage"]
        shown = "" if coverage is None else f", coverage={coverage:.4g}"
        return f"PretrainedRun({self.summary['env_id']}, {self.summary['timesteps']} steps{shown}, path={str(self.path)!r})"


def pretrain(
    env: EnvLike,
    total_timesteps: int = 100_000,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    callback: MaybeCallback = None,
    device: str = "auto",
    progress_bar: bool = True,
    **settings: Any,
) -> PretrainedRun:
    """
    Explore an environment without its reward (ExDM, arXiv 2502.07279, algorithm 1).

    An off-policy algorithm computes its intrinsic rewards anew for every batch it samples, PPO when it collects them.
    Afterwards a diffusion policy is fitted to the explored transitions, where observations and actions are vectors.

    :param env: id, spec, environment class, or function that returns an environment
    :param total_timesteps: number of steps, over all environments together
    :param out: run folder to write; None writes nothing
    :param overwrite: replace the run in ``out``
    :param resume: go on with the run in ``out`` from its last checkpoint, with the same settings but for ``total_timesteps``,
        which may be larger; start it if there is none. The results are those of a run that was never interrupted
    :param callback: callback, or list of callbacks, of Stable-Baselines3
    :param device: PyTorch device
    :param progress_bar: show a progress bar on a terminal
    :param settings: further fields of :class:`~sb3_exdm.runs.config.PretrainConfig`: ``algo``, ``reward``, ``seed``,
        ``n_envs``, ``vec_env``, ``env_kwargs``, ``profile``, ``algo_kwargs``, ``action_noise``, ``reward_kwargs``,
        ``reward_transform``, ``coverage_dims``, ``bin_width``, ``policy_steps``, ``checkpoint_freq``, ``keep_checkpoints``
    :raises ValueError: for an unknown setting or name, a value of the wrong type or out of range, an environment that
        cannot be used, or a run that was made with other settings; nothing is written then
    :raises FileExistsError: if ``out`` holds a run already, or is a file
    :raises FolderLocked: if another process writes to ``out``
    :raises RunInterrupted: if stopped from the keyboard; a checkpoint is in ``out``
    :raises RunTerminated: if stopped by SIGTERM; a checkpoint is in ``out``
    """
    check_arguments(out, overwrite, resume)
    source = EnvSource.of(env)
    config = PretrainConfig.make(env_id=source.id, total_timesteps=total_timesteps, **settings)
    folder = None if out is None else RunFolder(out)
    run = _Exploration(source, config, device, folder, progress_bar, as_list(callback))
    try:
        if run.begin(overwrite, resume):
            train(
                run.model,
                total_timesteps,
                run.checkpointing,
                folder=folder,
                log=run.log,
                log_interval=run.log_interval,
                on_interrupt=run.on_interrupt,
            )
            return run.finish()
    finally:
        run.close()
    assert folder is not None
    return _load(folder, device)


def pretrain_seeds(
    env: EnvLike,
    seeds: Sequence[int],
    total_timesteps: int = 100_000,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress_bar: bool = True,
    **settings: Any,
) -> list[PretrainedRun]:
    """
    Explore with several seeds in one process, with one update for all agents.

    Every run draws the random numbers that it would draw alone, and ends with the same results up to the growth of rounding
    errors. With small networks, most of the time of an update is overhead that the runs share.

    :param env: see :func:`pretrain`
    :param seeds: seeds, all different
    :param total_timesteps: number of steps of each run
    :param out: folder with a run folder ``seed-N`` for each seed; None writes nothing
    :param overwrite: replace the runs in ``out``
    :param device: PyTorch device
    :param progress_bar: show a progress bar on a terminal
    :param settings: further fields of :class:`~sb3_exdm.runs.config.PretrainConfig` but ``seed``; only ``algo="sac"``
    :return: runs in the order of the seeds
    :raises ValueError: see :func:`pretrain`, and for an algorithm or hyper-parameters whose update cannot be fused
    :raises FileExistsError: see :func:`pretrain`
    :raises RunInterrupted: if stopped from the keyboard; a checkpoint of every run is in ``out``
    """
    check_arguments(out, overwrite, resume=False)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must name at least one seed, and each only once, got {list(seeds)}.")
    if settings.get("algo", "sac") != "sac":
        raise ValueError(f'Several seeds learn together only with algo="sac", got {settings["algo"]!r}.')
    source = EnvSource.of(env)
    runs: list[_Exploration] = []
    random_states = [RandomState(seed) for seed in seeds]
    try:
        for i, (seed, random_state) in enumerate(zip(seeds, random_states, strict=True)):
            config = PretrainConfig.make(env_id=source.id, total_timesteps=total_timesteps, seed=seed, **settings)
            folder = None if out is None else RunFolder(Path(out) / f"seed-{seed}")
            with random_state.active():
                runs.append(_Exploration(source, config, device, folder, progress_bar and i == 0))
                runs[-1].begin(overwrite, resume=False)
        train_together(runs, total_timesteps, random_states)
        results = []
        for run, random_state in zip(runs, random_states, strict=True):
            with random_state.active():
                results.append(run.finish())
        return results
    finally:
        for run in runs:
            run.close()


def resolve_pretrain(config: PretrainConfig) -> PretrainConfig:
    """
    Fill in all defaults, as ``config.json`` holds them.

    :param config: configuration with a registered environment
    """
    source = EnvSource.of(config.env_id)
    env = source.make_vec(1, config.seed, config.env_kwargs)
    try:
        return _resolve(config, source, env)
    finally:
        env.close()


def _resolve(config: PretrainConfig, source: EnvSource, env: VecEnv) -> PretrainConfig:
    observation_space, action_space = env.observation_space, env.action_space
    check_action_space(config.algo, action_space, source.id)
    SpaceEncoder(observation_space)  # refuses unsupported spaces
    profile = config.profile or default_profile(observation_space)
    defaults = pretrain_hyperparams(config.algo, profile, observation_space, action_space)
    action_noise = config.action_noise
    if config.algo != "ppo":
        defaults["buffer_size"] = min(config.total_timesteps, MAX_BUFFER_SIZE)
    if config.algo in ("td3", "ddpg") and action_noise is None:
        action_noise = 0.5
    coverage = _make_coverage(config, source, observation_space)
    dims = coverage.dims if isinstance(coverage, BinCoverage) else None
    return config.with_changes(
        profile=profile,
        algo_kwargs=merge(defaults, config.algo_kwargs),
        action_noise=action_noise,
        reward_transform=config.reward_transform or PROFILES[profile].reward_transform,
        coverage_dims=None if dims is None else tuple(dims),
        checkpoint_freq=PROFILES[profile].checkpoint_freq if config.checkpoint_freq is None else config.checkpoint_freq,
    )


def _make_coverage(
    config: PretrainConfig, source: EnvSource, observation_space: spaces.Space
) -> StateCoverage | BinCoverage | None:
    """State coverage where there is a map of the environment, else visited bins; None where observations are not vectors."""
    coverage = source.factory.coverage(source.id, config.env_kwargs)
    if coverage is not None:
        if config.coverage_dims is not None or config.bin_width is not None:
            raise ValueError(
                "coverage_dims and bin_width are for environments without a map; the state coverage of a maze is measured."
            )
        return coverage
    dims = config.coverage_dims
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        if dims is not None:
            raise ValueError(f"coverage_dims needs observations that are vectors, got {observation_space}.")
        return None
    n_dims = observation_space.shape[0]
    if dims is None:
        dims = tuple(source.factory.coverage_dims(source.id) or range(min(n_dims, 2)))
    if not dims or not all(0 <= dim < n_dims for dim in dims):
        raise ValueError(f"coverage_dims must name dimensions from 0 to {n_dims - 1}, got {list(dims)}.")
    return BinCoverage(dims, config.bin_width)


def _check_kwargs(config: PretrainConfig) -> None:
    """Check nested keyword arguments before anything is built."""
    check_algo_kwargs(config.algo, config.algo_kwargs, "MlpPolicy")
    ignore = ("observation_space", "action_space", "device")
    check_kwargs(REWARDS[config.reward], config.reward_kwargs, "reward_kwargs", ignore=ignore)
    buffer_kwargs = config.algo_kwargs.get("replay_buffer_kwargs") or {}
    check_kwargs(ScoreRewardReplayBuffer, buffer_kwargs, "algo_kwargs['replay_buffer_kwargs']", ignore=("reward", *ignore))


def _build(config: PretrainConfig, env: VecEnv, device: str) -> tuple[BaseAlgorithm, IntrinsicReward]:
    """The algorithm with the intrinsic reward, and the model of that reward."""
    hyperparams = config.algo_kwargs
    if config.algo == "ppo":
        wrapped = VecScoreRewardWrapper(
            env,
            config.reward,
            reward_kwargs=config.reward_kwargs,
            reward_transform=config.reward_transform,
            device=device,
            seed=config.seed,
        )
        normalize = needs_normalization(env.observation_space)
        train_env = VecNormalize(wrapped, norm_obs=normalize, gamma=hyperparams["gamma"])
        return build_algorithm("ppo", train_env, hyperparams, seed=config.seed, device=device), wrapped.reward_model
    is_dict = isinstance(env.observation_space, spaces.Dict)
    reward_settings = {"reward": config.reward, "reward_kwargs": {"seed": config.seed, **config.reward_kwargs}}
    if config.reward_transform is not None:
        reward_settings["reward_transform"] = config.reward_transform
    model: Any = build_algorithm(
        config.algo,
        normalized(env),
        merge(hyperparams, {"replay_buffer_kwargs": reward_settings}),
        action_noise=config.action_noise,
        seed=config.seed,
        device=device,
        replay_buffer_class=ScoreRewardDictReplayBuffer if is_dict else ScoreRewardReplayBuffer,
    )
    return model, model.replay_buffer.reward_model


class _Exploration:
    """
    A run from its construction to its files.

    :param source: environment
    :param config: settings
    :param device: PyTorch device
    :param folder: run folder; None writes nothing
    :param progress_bar: show a progress bar on a terminal
    :param user_callbacks: callbacks of the user
    """

    def __init__(
        self,
        source: EnvSource,
        config: PretrainConfig,
        device: str,
        folder: RunFolder | None,
        progress_bar: bool,
        user_callbacks: Sequence[BaseCallback] = (),
    ) -> None:
        resolve_device(device)
        _check_kwargs(config)
        self.stopwatch = Stopwatch()
        self._source = source
        self.folder = folder
        self.progress_bar = progress_bar
        source.check_kwargs(config.env_kwargs)
        self._given = config
        self._lock: FolderLock | None = None
        self.env = source.make_vec(config.n_envs, config.seed, config.env_kwargs, config.vec_env)
        try:
            self.config = _resolve(config, source, self.env)
            self.coverage = _make_coverage(self.config, source, self.env.observation_space)
            self.model, self.reward_model = _build(self.config, self.env, device)
        except BaseException:
            self.env.close()
            raise
        self.recorder = None
        observation_space, action_space = self.model.observation_space, self.model.action_space
        if TransitionRecorder.fits(observation_space, action_space, config.total_timesteps):
            self.recorder = TransitionRecorder(observation_space, action_space, config.total_timesteps)
        self.log = None if folder is None else folder.progress_log()
        self.log_interval = 1 if config.algo == "ppo" else 5 * config.n_envs
        self.reports: list[dict[str, float]] = []
        self.callback = ExplorationCallback(
            config.total_timesteps,
            coverage=self.coverage,
            recorder=self.recorder,
            on_report=self._report,
            progress_bar=progress_bar,
        )
        self.checkpointing = Checkpointing(
            [self.callback],
            user_callbacks,
            model=self.model,
            config=self.config,
            folder=folder,
            log=self.log,
            reports=self.reports,
            parts={"coverage": self.coverage, "recorder": self.recorder, "stopwatch": self.stopwatch},
            recorder=self.recorder,
            reward_model=self.reward_model,
        )

    def begin(self, overwrite: bool, resume: bool) -> bool:
        """
        Open the run folder.

        :param overwrite: replace the run in it
        :param resume: go on with the run in it
        :return: False if the run is complete already
        """

        def resolve(total_timesteps: int) -> PretrainConfig:
            return _resolve(self._given.with_changes(total_timesteps=total_timesteps), self._source, self.env)

        if self.folder is not None:
            self._lock = self.folder.lock()
        return begin(self.folder, self.checkpointing, self.config, resolve, overwrite=overwrite, resume=resume)

    def _report(self, report: dict[str, float]) -> None:
        self.reports.append(report)
        if self.log is not None:
            self.log.write(report)

    def on_interrupt(self) -> None:
        """Report the last steps of a training that was stopped."""
        self.callback.finish()

    def finish(self) -> PretrainedRun:
        """Fit the policy, and write."""
        config, model, folder, recorder = self.config, self.model, self.folder, self.recorder
        if folder is not None:
            folder.save_models(model, self.reward_model)
            if recorder is not None:
                folder.save_transitions(recorder.arrays())
        policies: PretrainedPolicies | None = None
        if config.policy_steps and recorder is not None and can_clone(model.observation_space, model.action_space):
            policies = clone_agent(
                model, recorder.arrays(), config.policy_steps, seed=config.seed, progress_bar=self.progress_bar
            )
        summary = _summarize(config, model, self.coverage, self.callback.seconds, self.stopwatch.seconds)
        if folder is not None:
            if policies is not None:
                policies.actor.save(folder.path / POLICY, policies.gaussian, policies.cloned)
            draw_or_warn(
                lambda: _draw(folder, config, self.reports, recorder, self.reward_model, self.coverage),
                "Coverage, visits and reward",
            )
            folder.write_summary(summary)
        return PretrainedRun(
            None if folder is None else folder.path,
            summary,
            model,
            self.reward_model,
            None if policies is None else policies.actor,
        )

    def close(self) -> None:
        """Close the environments and the log, and leave the run folder to others."""
        close_env(self.env)
        if self.log is not None:
            self.log.close()
        if self._lock is not None:
            self._lock.release()


def _load(folder: RunFolder, device: str) -> PretrainedRun:
    """A complete run, from its files."""
    policy = folder.load_policy(device) if (folder.path / POLICY).is_file() else None
    return PretrainedRun(folder.path, folder.summary, folder.load_model(device=device), folder.load_reward(device), policy)


def _summarize(
    config: PretrainConfig,
    model: BaseAlgorithm,
    coverage: StateCoverage | BinCoverage | None,
    seconds: float,
    total_seconds: float,
) -> dict[str, Any]:
    keys = ("env_id", "algo", "reward", "seed", "n_envs")
    return {
        "command": "pretrain",
        **{key: getattr(config, key) for key in keys},
        "timesteps": model.num_timesteps,
        "seconds": round(seconds, 2),
        "total_seconds": round(total_seconds, 2),
        "steps_per_second": round(model.num_timesteps / max(seconds, 1e-9), 1),
        "n_updates": model._n_updates,
        "coverage": None if coverage is None else float(coverage.value),
        "coverage_of_ceiling": None if coverage is None else coverage.of_ceiling,
        "bin_width": coverage.bin_width if isinstance(coverage, BinCoverage) else None,
        "torch_threads": th.get_num_threads(),
        "peak_memory_mb": peak_memory_mb(),
    }


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process in MiB, None where the system does not report it."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would start with the memory of the process that started this one
        (kilobytes,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(kilobytes) / 2**10, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)  # macOS


def _draw(
    folder: RunFolder,
    config: PretrainConfig,
    reports: list[dict[str, float]],
    recorder: TransitionRecorder | None,
    reward_model: IntrinsicReward,
    coverage: StateCoverage | BinCoverage | None,
) -> None:
    """Coverage over time, visits, and the intrinsic reward."""
    if coverage is None:
        return
    title = f"{config.env_id}, {config.algo}, reward {config.reward}"
    layout = coverage.layout if isinstance(coverage, StateCoverage) else None
    plot_coverage(
        [report["timesteps"] for report in reports],
        [report["coverage"] for report in reports],
        folder.path / "coverage.png",
        ceiling=coverage.ceiling,
        title=title,
        ylabel="state coverage" if layout is not None else "visited bins",
    )
    dims = [0, 1] if layout is not None else list(config.coverage_dims or ())[:2]
    if recorder is None or len(dims) < 2:
        return
    visited = recorder.arrays()
    labels = ("x", "y") if layout is not None else (f"observation {dims[0]}", f"observation {dims[1]}")
    positions = visited["next_observations"][:, dims]
    plot_visits(positions, folder.path / "visits.png", layout=layout, labels=labels, title=title)
    picture = folder.path / "reward.png"
    if layout is not None and not reward_model.needs_actions:
        plot_reward(lambda grid: transformed_reward(reward_model, grid), picture, layout=layout, title=title)
        return
    # A reward that depends on actions belongs to the state in which they were taken.
    shown = _spread(visited["observations" if reward_model.needs_actions else "next_observations"])
    values = transformed_reward(reward_model, shown, _spread(visited["actions"]) if reward_model.needs_actions else None)
    plot_reward(lambda _: values, picture, positions=shown[:, dims], labels=labels, title=title)


def _spread(rows: np.ndarray, n_rows: int = 5000) -> np.ndarray:
    """Rows evenly spread over time."""
    return rows[:: max(len(rows) // n_rows, 1)]
