"""
Compare SAC with and without an intrinsic reward on MountainCarContinuous: learning curves of several seeds.

Writes ``mountain_car.csv`` and ``mountain_car.png``. A run takes about four minutes on one core.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_exdm

ENV_ID = "MountainCarContinuous-v0"
SOLVED = 90
"""Gymnasium's reward threshold of the task."""
METHODS = {
    "SAC + intrinsic reward": dict(
        replay_buffer_class=sb3_exdm.ScoreRewardReplayBuffer,
        replay_buffer_kwargs=dict(extrinsic_coef=1, intrinsic_coef=0.1),
    ),
    "SAC": {},
}


class EvaluationCallback(BaseCallback):
    """
    Evaluate the deterministic policy on environments of its own.

    :param seed: seed of the evaluation environments
    :param eval_freq: environment steps between two evaluations, a multiple of the number of training environments
    """

    def __init__(self, seed: int, eval_freq: int) -> None:
        super().__init__()
        self.eval_env = make_vec_env(ENV_ID, n_envs=10, seed=seed)
        self.eval_freq = eval_freq
        self.evaluations: list[dict[str, float]] = []

    def _on_training_start(self) -> None:
        self._seconds, self._start = 0.0, time.process_time()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.eval_freq == 0:
            self._seconds += time.process_time() - self._start
            mean_return, _ = evaluate_policy(self.model, self.eval_env, n_eval_episodes=10)
            self.evaluations.append(dict(timesteps=self.num_timesteps, mean_return=mean_return, seconds=self._seconds))
            self._start = time.process_time()
        return True


def run(method: str, seed: int, steps: int, eval_freq: int = 2000) -> pd.DataFrame:
    """
    Train once.

    :param method: key of :data:`METHODS`
    :param seed: seed of the training; the evaluation environments use ``1000 + seed``
    :param steps: environment steps
    :param eval_freq: environment steps between two evaluations
    :return: an evaluation per line; ``seconds`` is the CPU time of the training, without the evaluations
    """
    env = make_vec_env(ENV_ID, n_envs=4)
    model = SAC("MlpPolicy", env, gradient_steps=2, policy_kwargs=dict(net_arch=[64, 64]), seed=seed, **METHODS[method])
    callback = EvaluationCallback(1000 + seed, eval_freq)
    model.learn(steps, callback=callback)
    curve = pd.DataFrame(callback.evaluations)
    curve.insert(0, "method", method)
    curve.insert(1, "seed", seed)
    return curve


def solved_after(curves: pd.DataFrame) -> pd.Series:
    """
    Summarize learning curves.

    :param curves: evaluations of runs
    :return: environment steps of the first evaluation above :data:`SOLVED` of each method and seed, NaN if there is none
    """
    solved = curves.timesteps.where(curves.mean_return > SOLVED)
    return solved.groupby([curves.method, curves.seed]).min()


def plot(curves: pd.DataFrame, path: Path) -> None:
    """
    Draw the mean over the seeds, and every seed as a thin line.

    :param curves: evaluations of all runs
    :param path: picture
    """
    figure, axes = plt.subplots(figsize=(7, 3.5), constrained_layout=True)
    for method, color in zip(METHODS, ("tab:blue", "tab:orange"), strict=True):
        returns = curves[curves.method == method].pivot(index="timesteps", columns="seed", values="mean_return")
        axes.plot(returns.index, returns, color=color, linewidth=0.8, alpha=0.5)
        axes.plot(returns.index, returns.mean(axis=1), color=color, linewidth=2.5, label=method)
    axes.axhline(SOLVED, color="gray", linestyle=":", linewidth=1)
    axes.annotate(f"solved ({SOLVED})", (0, SOLVED), (4, 3), textcoords="offset points", color="gray")
    axes.set(
        xlabel="Environment steps", ylabel="Mean return", title=f"{ENV_ID}: mean and single seeds ({curves.seed.nunique()})"
    )
    axes.set(xlim=(0, curves.timesteps.max()), ylim=(None, 105))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """:return: evaluations of all runs"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--eval-freq", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args(argv)

    th.set_num_threads(1)
    curves = pd.DataFrame()
    for seed in arguments.seeds:
        for method in METHODS:
            curves = pd.concat([curves, run(method, seed, arguments.steps, arguments.eval_freq)])
            curves.to_csv(arguments.out / "mountain_car.csv", index=False, float_format="%.2f")
            print(f"{method}, seed {seed}: solved after {solved_after(curves)[method, seed]:,.0f} steps.", flush=True)
    plot(curves, arguments.out / "mountain_car.png")
    return curves


if __name__ == "__main__":
    main()
