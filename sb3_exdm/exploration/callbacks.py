"""Callbacks for exploration: intrinsic rewards in the logs, coverage, and the transitions themselves."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_wrapper

from sb3_exdm.common.progress import Progress
from sb3_exdm.common.stopwatch import Stopwatch
from sb3_exdm.exploration.replay_buffer import ScoreRewardReplayBuffer
from sb3_exdm.exploration.vec_wrapper import VecScoreRewardWrapper, reached_observations
from sb3_exdm.exploration.wrapper import ScoreRewardWrapper

MAX_TRANSITION_BYTES = 2**30
"""Largest size of recorded transitions in bytes."""


class RewardStatistics:
    """
    Mean rewards and fit metrics of the reward wrapper or replay buffer of an algorithm.

    :param model: the algorithm
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        buffer = model.replay_buffer if isinstance(model, OffPolicyAlgorithm) else None
        env = model.get_env()
        assert env is not None
        self._buffer = buffer if isinstance(buffer, ScoreRewardReplayBuffer) else None
        self._vec_wrapper = unwrap_vec_wrapper(env, VecScoreRewardWrapper)
        self._wrapped_env: VecEnv | None = env if any(env.env_is_wrapped(ScoreRewardWrapper)) else None
        self._probe = np.random.default_rng(0)
        self._intrinsic: list[float] = []
        self._extrinsic: list[float] = []

    @property
    def has_source(self) -> bool:
        """True if the algorithm has a reward wrapper or replay buffer."""
        return any(source is not None for source in (self._buffer, self._vec_wrapper, self._wrapped_env))

    def collect(self, infos: list[dict[str, Any]]) -> None:
        """Collect the rewards of one step from the infos of the environments."""
        if self._buffer is None and infos and "intrinsic_reward" in infos[0]:
            self._intrinsic.extend(info["intrinsic_reward"] for info in infos)
            self._extrinsic.extend(info["extrinsic_reward"] for info in infos)

    def rewards(self) -> dict[str, float]:
        """
        Return the mean rewards by their log keys: of the steps since the last call, or of 256 random transitions in the
        replay buffer, under the present model.
        """
        intrinsic, extrinsic = np.array(self._intrinsic), np.array(self._extrinsic)
        self._intrinsic, self._extrinsic = [], []
        if self._buffer is not None and self._buffer.size() > 0:
            steps = self._probe.integers(self._buffer.size(), size=256)
            envs = self._probe.integers(self._buffer.n_envs, size=256)
            intrinsic, extrinsic = self._buffer.intrinsic_rewards(steps, envs), self._buffer.rewards[steps, envs]
        if len(intrinsic) == 0:
            return {}
        return {
            "rollout/intrinsic_rew_mean": float(intrinsic.mean()),
            "rollout/extrinsic_rew_mean": float(extrinsic.mean()),
        }

    def fit_metrics(self) -> dict[str, float]:
        """Return the metrics of the last fit by their log keys; mean over environments with a model each."""
        if self._wrapped_env is not None:
            sources = self._wrapped_env.get_attr("fit_metrics")
        else:
            sources = [source.fit_metrics for source in (self._buffer, self._vec_wrapper) if source is not None]
        keys = dict.fromkeys(key for metrics in sources for key in metrics)
        return {f"train/{key}": float(np.mean([metrics[key] for metrics in sources if key in metrics])) for key in keys}


class IntrinsicRewardCallback(BaseCallback):
    """
    Log the intrinsic reward of a reward wrapper or replay buffer, under any algorithm and logger of Stable-Baselines3.

    ``rollout/intrinsic_rew_mean`` and ``rollout/extrinsic_rew_mean`` are means before weighting: with a wrapper of the steps
    since the last log, with a replay buffer of random transitions in it, under the present model. ``train/score_loss``,
    ``train/score_ranking`` and other metrics of the reward are those of its last fit.

    >>> import gymnasium as gym
    >>> from stable_baselines3 import PPO
    >>> from sb3_exdm import IntrinsicRewardCallback, ScoreRewardWrapper
    >>> env = ScoreRewardWrapper(gym.make("Pendulum-v1"), "rnd", learning_starts=100, seed=0)
    >>> model = PPO("MlpPolicy", env, n_steps=256).learn(256, callback=IntrinsicRewardCallback())
    """

    def _on_training_start(self) -> None:
        self._statistics = RewardStatistics(self.model)
        if not self._statistics.has_source:
            raise ValueError(
                "IntrinsicRewardCallback found no intrinsic reward: train in a ScoreRewardWrapper or VecScoreRewardWrapper, "
                "or with replay_buffer_class=ScoreRewardReplayBuffer."
            )

    def _on_step(self) -> bool:
        self._statistics.collect(self.locals.get("infos", []))
        # Off-policy algorithms write their logs when an episode ends, on-policy ones after each rollout.
        if isinstance(self.model, OffPolicyAlgorithm) and np.any(self.locals["dones"]):
            self._record()
        return True

    def _on_rollout_end(self) -> None:
        if not isinstance(self.model, OffPolicyAlgorithm):
            self._record()

    def _record(self) -> None:
        for key, value in self._statistics.rewards().items():
            self.logger.record_mean(key, value)
        for key, value in self._statistics.fit_metrics().items():
            self.logger.record(key, value)


class Coverage(Protocol):
    """Measure of what was visited, see :mod:`sb3_exdm.metrics`."""

    @property
    def value(self) -> float:
        """Coverage so far."""

    @property
    def of_ceiling(self) -> float | None:
        """``value`` divided by its largest possible value; None if there is none."""

    def update(self, positions: np.ndarray) -> None:
        """Count visited positions, or other observations that are vectors."""


class TransitionRecorder:
    """
    Memory of all transitions of a run, in the order of time.

    :param observation_space: Box, Discrete, MultiDiscrete or MultiBinary
    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
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
        """
        Tell whether the transitions of a run can be recorded: single arrays, at most :data:`MAX_TRANSITION_BYTES`.

        :param observation_space: observation space
        :param action_space: action space
        :param capacity: number of transitions
        """
        if isinstance(observation_space, spaces.Dict):
            return False
        size = 2 * spaces.flatdim(observation_space) + spaces.flatdim(action_space)
        return 4 * size * capacity <= MAX_TRANSITION_BYTES

    def add(self, **transitions: np.ndarray) -> None:
        """
        Add one step of all environments.

        :param transitions: ``(n_envs, ...)``, for each of the arrays
        """
        n_envs = len(transitions["rewards"])
        stop = min(self.size + n_envs, len(self._arrays["rewards"]))
        for key, values in transitions.items():
            self._arrays[key][self.size : stop] = values[: stop - self.size]
        self.size = stop

    def truncate(self, n_envs: int) -> None:
        """
        Mark the last transitions as truncated, where their episodes were cut.

        :param n_envs: number of transitions
        """
        last = slice(max(self.size - n_envs, 0), self.size)
        self._arrays["truncated"][last] = ~self._arrays["terminated"][last]

    @property
    def memory(self) -> dict[str, np.ndarray]:
        """Arrays of the whole memory, each ``(capacity, ...)``; the first ``size`` rows are filled."""
        return self._arrays

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the transitions so far, each array ``(n, ...)``."""
        return {key: values[: self.size] for key, values in self._arrays.items()}


class ExplorationCallback(BaseCallback):
    """
    Report the progress of exploration every ``report_freq`` timesteps.

    :param total_timesteps: number of timesteps of the run
    :param coverage: measure of the visited observations, before normalization
    :param recorder: memory of the transitions
    :param report_freq: timesteps between two reports
    :param on_report: function of a report: ``timesteps``, ``seconds``, ``coverage``, ``coverage_of_ceiling``,
        ``intrinsic_reward_mean`` and ``score_loss``, the first metric of the last fit
    :param progress_bar: show the progress with the coverage, see :class:`~sb3_exdm.common.progress.Progress`
    """

    def __init__(
        self,
        total_timesteps: int,
        *,
        coverage: Coverage | None = None,
        recorder: TransitionRecorder | None = None,
        report_freq: int = 1000,
        on_report: Callable[[dict[str, float]], None] | None = None,
        progress_bar: bool = True,
    ) -> None:
        super().__init__()
        self.total_timesteps = total_timesteps
        self.coverage = coverage
        self.recorder = recorder
        self.report_freq = report_freq
        self.on_report = on_report
        self.progress_bar = progress_bar
        self.seconds = 0.0
        self._reached: list[np.ndarray] = []
        self._stopwatch: Stopwatch | None = None
        self._n_reports = 0

    def _on_training_start(self) -> None:
        self._stopwatch = Stopwatch()
        self._statistics = RewardStatistics(self.model)
        self._progress = Progress(self.total_timesteps, self.progress_bar)

    def _on_rollout_start(self) -> None:
        self._last_obs = self._raw(self.model._last_obs)

    def _raw(self, observations: Any) -> Any:
        """Copy of observations before normalization."""
        env = self.training_env
        return deepcopy(env.get_original_obs() if isinstance(env, VecNormalize) else observations)

    def _raw_ends(self, infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Infos with the last observations of episodes before normalization."""
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
            self._reached.append(np.asarray(reached))
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
        self._statistics.collect(infos)
        self._last_obs = observations
        self._progress.update(self.num_timesteps - self._progress.n)
        if self.num_timesteps // self.report_freq > self._n_reports:
            self._report()
        return True

    def _task_rewards(self) -> np.ndarray:
        env = self.training_env
        return env.get_original_reward() if isinstance(env, VecNormalize) else self.locals["rewards"]

    def _report(self) -> None:
        assert self._stopwatch is not None
        self._n_reports = self.num_timesteps // self.report_freq
        self.seconds = self._stopwatch.seconds
        report: dict[str, float] = {"timesteps": self.num_timesteps, "seconds": self.seconds}
        if self.coverage is not None:
            if self._reached:
                self.coverage.update(np.concatenate(self._reached))
                self._reached.clear()
            report["coverage"] = float(self.coverage.value)
            if self.coverage.of_ceiling is not None:
                report["coverage_of_ceiling"] = float(self.coverage.of_ceiling)
            self.logger.record("rollout/coverage", report["coverage"])
            self._progress.describe("coverage", report["coverage"])
        rewards, fit_metrics = self._statistics.rewards(), self._statistics.fit_metrics()
        for key, value in {**rewards, **fit_metrics}.items():
            self.logger.record(key, value)
        report["intrinsic_reward_mean"] = rewards.get("rollout/intrinsic_rew_mean", 0.0)
        report["score_loss"] = next(iter(fit_metrics.values()), 0.0)
        if self.on_report is not None:
            self.on_report(report)

    def finish(self) -> None:
        """Report the remaining steps and close the progress bar; to be called after an interruption, too."""
        if self._stopwatch is not None:
            if self._reached:
                self._report()
            self.seconds = self._stopwatch.seconds
            self._progress.close()

    def _on_training_end(self) -> None:
        self.finish()
