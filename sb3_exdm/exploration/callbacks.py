"""Watches an exploring agent: coverage, progress, logs, checkpoints, and the transitions themselves."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from tqdm.auto import tqdm

from sb3_exdm.exploration.replay_buffer import IntrinsicRewardReplayBuffer
from sb3_exdm.exploration.vec_wrapper import reached_observations

MAX_TRANSITION_BYTES = 2**30
"""Transitions are recorded only if they fit into this much memory."""


class Coverage(Protocol):
    """How much was visited, see :mod:`sb3_exdm.metrics`."""

    @property
    def value(self) -> float:
        """The coverage so far."""

    def update(self, positions: np.ndarray) -> None:
        """Count visited positions."""


class TransitionRecorder:
    """
    Keeps every transition of a run, in the order of time.

    :param observation_space: Box, Discrete, MultiDiscrete or MultiBinary
    :param action_space: the same
    :param capacity: number of transitions
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, capacity: int) -> None:
        self.size = 0
        observation_dtype = np.float32 if observation_space.dtype == np.float64 else observation_space.dtype
        observations = np.zeros((capacity, *(observation_space.shape or ())), dtype=observation_dtype)
        self._arrays: dict[str, np.ndarray] = {
            "observations": observations,
            "next_observations": np.zeros_like(observations),
            "actions": np.zeros((capacity, *(action_space.shape or ())), dtype=action_space.dtype),
            "rewards": np.zeros(capacity, dtype=np.float32),
            "terminated": np.zeros(capacity, dtype=bool),
            "truncated": np.zeros(capacity, dtype=bool),
            "env_indices": np.zeros(capacity, dtype=np.int16),
        }

    @staticmethod
    def fits(observation_space: spaces.Space, action_space: spaces.Space, capacity: int) -> bool:
        """Whether the transitions of a run can be kept: single arrays, of a reasonable size."""
        if isinstance(observation_space, spaces.Dict):
            return False
        size = 2 * spaces.flatdim(observation_space) + spaces.flatdim(action_space)
        return 4 * size * capacity <= MAX_TRANSITION_BYTES

    def add(self, **rows: np.ndarray) -> None:
        """:param rows: one row per environment, for each of the arrays"""
        n_envs = len(rows["rewards"])
        stop = min(self.size + n_envs, len(self._arrays["rewards"]))
        for key, values in rows.items():
            self._arrays[key][self.size : stop] = values[: stop - self.size]
        self.size = stop

    def arrays(self) -> dict[str, np.ndarray]:
        """The transitions so far, each array ``(n, ...)``."""
        return {key: values[: self.size] for key, values in self._arrays.items()}


class ExplorationCallback(BaseCallback):
    """
    Reports every ``report_freq`` timesteps what an exploring agent has reached.

    :param total_timesteps: length of the run
    :param coverage: measures visited positions; None for none
    :param positions: picks the positions that are measured out of raw observations ``(n, ...)``
    :param recorder: keeps the transitions; None to keep none
    :param report_freq: timesteps between two reports
    :param on_report: called with each report, a mapping of numbers
    :param checkpoint_freq: timesteps between two checkpoints, 0 for none
    :param on_checkpoint: called with the number of timesteps
    :param progress_bar: show a progress bar with the live coverage, if the output is a terminal
    """

    def __init__(
        self,
        total_timesteps: int,
        *,
        coverage: Coverage | None = None,
        positions: Callable[[Any], np.ndarray] = np.asarray,
        recorder: TransitionRecorder | None = None,
        report_freq: int = 1000,
        on_report: Callable[[dict[str, float]], None] | None = None,
        checkpoint_freq: int = 0,
        on_checkpoint: Callable[[int], None] | None = None,
        progress_bar: bool = True,
    ) -> None:
        super().__init__()
        self.total_timesteps = total_timesteps
        self.coverage = coverage
        self.positions = positions
        self.recorder = recorder
        self.report_freq = report_freq
        self.on_report = on_report
        self.checkpoint_freq = checkpoint_freq
        self.on_checkpoint = on_checkpoint
        self.progress_bar = progress_bar
        self.seconds = 0.0
        self._reached: list[np.ndarray] = []
        self._intrinsic: list[float] = []
        self._n_reports = 0
        self._n_checkpoints = 0
        self._probe = np.random.default_rng(0)

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()
        self._bar = tqdm(total=self.total_timesteps, unit="step", disable=None if self.progress_bar else True)
        self._last_obs = self._raw(self.model._last_obs)

    def _raw(self, observations: Any) -> Any:
        """Observations as the environment gave them."""
        env = self.training_env
        observations = env.get_original_obs() if isinstance(env, VecNormalize) else observations
        return (
            {key: value.copy() for key, value in observations.items()}
            if isinstance(observations, dict)
            else observations.copy()
        )

    def _raw_ends(self, infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Infos whose last observations of episodes are as the environment gave them; ``VecNormalize`` scales those too."""
        env = self.training_env
        if not isinstance(env, VecNormalize):
            return infos
        return [
            {"terminal_observation": env.unnormalize_obs(info["terminal_observation"])}
            if "terminal_observation" in info
            else {}
            for info in infos
        ]

    def _on_step(self) -> bool:
        observations = self._raw(self.locals["new_obs"])
        infos, dones = self.locals["infos"], self.locals["dones"]
        reached = reached_observations(observations, dones, self._raw_ends(infos))
        if self.coverage is not None:
            self._reached.append(self.positions(reached))
        if self.recorder is not None:
            timeouts = np.array([info.get("TimeLimit.truncated", False) for info in infos]) & dones
            rewards = [info.get("extrinsic_reward", reward) for info, reward in zip(infos, self._task_rewards(), strict=True)]
            self.recorder.add(
                observations=self._last_obs,
                next_observations=reached,
                actions=self.locals.get("clipped_actions", self.locals["actions"]),
                rewards=np.array(rewards),
                terminated=dones & ~timeouts,
                truncated=timeouts,
                env_indices=np.arange(len(dones)),
            )
        if "intrinsic_reward" in infos[0]:
            self._intrinsic.extend(info["intrinsic_reward"] for info in infos)
        self._last_obs = observations
        self._bar.update(len(dones))
        if self.num_timesteps // self.report_freq > self._n_reports:
            self._report()
        if self.checkpoint_freq and self.num_timesteps // self.checkpoint_freq > self._n_checkpoints:
            self._n_checkpoints = self.num_timesteps // self.checkpoint_freq
            if self.on_checkpoint is not None and self.num_timesteps < self.total_timesteps:
                self.on_checkpoint(self.num_timesteps)
        return True

    def _task_rewards(self) -> np.ndarray:
        env = self.training_env
        return env.get_original_reward() if isinstance(env, VecNormalize) else self.locals["rewards"]

    def _report(self) -> None:
        self._n_reports = self.num_timesteps // self.report_freq
        self.seconds = time.perf_counter() - self._start
        report: dict[str, float] = {"timesteps": self.num_timesteps, "seconds": self.seconds}
        if self.coverage is not None:
            if self._reached:
                self.coverage.update(np.concatenate(self._reached))
                self._reached.clear()
            report["coverage"] = float(self.coverage.value)
            of_ceiling = getattr(self.coverage, "of_ceiling", None)
            if of_ceiling is not None:
                report["coverage_of_ceiling"] = float(of_ceiling)
            self.logger.record("rollout/coverage", report["coverage"])
            self._bar.set_postfix(coverage=f"{report['coverage']:.3g}", refresh=False)
        report.update(self._reward_report())
        if self.on_report is not None:
            self.on_report(report)

    def _reward_report(self) -> dict[str, float]:
        """Mean intrinsic reward, and what the last fit had to say."""
        buffer = self.model.replay_buffer if isinstance(self.model, OffPolicyAlgorithm) else None
        metrics: dict[str, float] = {"intrinsic_reward_mean": 0.0, "score_loss": 0.0}
        if isinstance(buffer, IntrinsicRewardReplayBuffer) and buffer.size() > 0:
            steps = self._probe.integers(buffer.size(), size=256)
            envs = self._probe.integers(buffer.n_envs, size=256)
            metrics["intrinsic_reward_mean"] = float(buffer.intrinsic_rewards(steps, envs).mean())
            metrics["score_loss"] = next(iter(buffer.fit_metrics.values()), 0.0)
            for key, value in buffer.fit_metrics.items():
                self.logger.record(f"train/{key}", value)
        elif self._intrinsic:
            metrics["intrinsic_reward_mean"] = float(np.mean(self._intrinsic))
            self._intrinsic.clear()
        self.logger.record("rollout/intrinsic_rew_mean", metrics["intrinsic_reward_mean"])
        return metrics

    def finish(self) -> None:
        """Close the progress bar and report what is left; also after an interruption."""
        if hasattr(self, "_start"):
            if self._reached:
                self._report()
            self.seconds = time.perf_counter() - self._start
            self._bar.close()

    def _on_training_end(self) -> None:
        self.finish()
