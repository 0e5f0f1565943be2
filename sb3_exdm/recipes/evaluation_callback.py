"""Evaluation during training."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from sb3_exdm.common.progress import Progress
from sb3_exdm.common.stopwatch import Stopwatch
from sb3_exdm.recipes.evaluation import EVALUATION_SEED, play
from sb3_exdm.runs.folder import ProgressLog


class EvaluationCallback(BaseCallback):
    """
    Evaluate at fixed intervals and show progress.

    :param total_timesteps: length of the progress bar
    :param evaluation_env: environments of the evaluation
    :param eval_freq: steps between two evaluations
    :param n_eval_episodes: episodes of an evaluation
    :param expert: published return of an expert, None if there is none
    :param seed: seed of the run; every evaluation starts with the same episodes, as does :func:`~sb3_exdm.evaluate`
    :param log: progress log, or None
    :param progress_bar: show a progress bar on a terminal
    """

    def __init__(
        self,
        total_timesteps: int,
        evaluation_env: VecEnv,
        eval_freq: int,
        n_eval_episodes: int,
        expert: float | None,
        seed: int,
        log: ProgressLog | None,
        progress_bar: bool,
    ) -> None:
        super().__init__()
        self.total_timesteps = total_timesteps
        self.evaluation_env = evaluation_env
        self.eval_freq = eval_freq
        self.n_eval_episodes = n_eval_episodes
        self.expert = expert
        self.seed = seed
        self.log = log
        self.progress_bar = progress_bar
        self.reports: list[dict[str, float]] = []
        self.returns: list[np.ndarray] = []
        """Returns of the episodes of every evaluation, ``(n_eval_episodes,)`` each."""
        self.figures: dict[str, Any] = {}
        """Summary of the last evaluation."""
        self.seconds = 0.0
        self._evaluating = 0.0
        self._stopwatch = Stopwatch()  # from before the updates on reused data

    def _on_training_start(self) -> None:
        self._progress = Progress(self.total_timesteps, self.progress_bar)
        if isinstance(self.training_env, VecNormalize):
            self.evaluation_env = VecNormalize(self.evaluation_env, training=False, norm_reward=False)

    def _on_step(self) -> bool:
        self._progress.update(self.num_timesteps - self._progress.n)
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps // self.eval_freq >= len(self.reports) and self.num_timesteps < self.model._total_timesteps:
            self.evaluate()

    def _on_training_end(self) -> None:
        self.evaluate()
        self._progress.close()

    def evaluate(self) -> None:
        """Evaluate and report."""
        stopwatch = Stopwatch()
        env = self.evaluation_env
        if isinstance(self.training_env, VecNormalize):
            sync_envs_normalization(self.training_env, env)
        env.seed(EVALUATION_SEED + self.seed)
        evaluation = play(self.model, env, self.n_eval_episodes, expert=self.expert)
        self._evaluating += stopwatch.seconds
        self.seconds = self._stopwatch.seconds - self._evaluating  # of learning alone
        figures = self.figures = evaluation.summary()
        report = {"timesteps": self.num_timesteps, "seconds": self.seconds, "mean_reward": figures["mean_reward"]}
        self.logger.record("eval/mean_reward", figures["mean_reward"])
        if figures["success_rate"] is not None:
            report["success_rate"] = figures["success_rate"]
            self.logger.record("eval/success_rate", figures["success_rate"])
        if figures["normalized_score"] is not None:
            report["normalized_score"] = figures["normalized_score"]
            self.logger.record("eval/normalized_score", figures["normalized_score"])
        shown = "success_rate" if figures["success_rate"] is not None else "mean_reward"
        self._progress.describe("success rate" if shown == "success_rate" else "return", figures[shown])
        self.reports.append(report)
        self.returns.append(evaluation.returns)
        if self.log is not None:
            self.log.write(report)
