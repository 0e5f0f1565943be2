"""Speed: of the mazes, the bodies, the wrappers, the reward in pre-training, acting and fine-tuning. All on one thread."""

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from tqdm.auto import tqdm

from examples.experiments.adapting_speed import adapting_speed
from examples.experiments.control_speed import control_speed
from sb3_exdm.benchmark.tables import markdown_table, write_text
from sb3_exdm.exploration.vec_wrapper import VecScoreRewardWrapper
from sb3_exdm.exploration.wrapper import ScoreRewardWrapper
from sb3_exdm.recipes import pretrain

MAZE = "Maze2d-SquareLarge-v0"


def run_throughput(
    repeats: int = 3,
    pretrain_steps: int = 20_000,
    out: str | Path | None = None,
    ppo_steps: int = 8192,
    seconds: float = 1.0,
    rounds: int | None = None,
    control_steps: int = 1000,
) -> str:
    """
    Measure everything.

    :param repeats: how often; the fastest counts, since what slows the others down is not this library
    :param pretrain_steps: environment steps of each pre-training
    :param out: folder for ``throughput.md``; None writes nothing
    :param ppo_steps: environment steps of each training with PPO, four times as many with 16 environments
    :param seconds: duration of each measurement of a maze
    :param rounds: how often acting and fine-tuning are measured, see
        :func:`~examples.experiments.adapting_speed.adapting_speed`; by default ten times ``repeats``
    :param control_steps: steps of each body in each of ``repeats`` rounds, see
        :func:`~examples.experiments.control_speed.control_speed`
    :return: the tables in Markdown
    :raises ValueError: if a number is not positive
    """
    for name, value in (
        ("repeats", repeats),
        ("pretrain_steps", pretrain_steps),
        ("ppo_steps", ppo_steps),
        ("seconds", seconds),
        ("control_steps", control_steps),
    ):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        with tqdm(total=3 + 3 * 2 * repeats, unit="measurement", disable=None) as bar:
            rows = [
                *_maze_rows(seconds, repeats, bar),
                _ratio_row(
                    "PPO on Pendulum-v1: ScoreRewardWrapper / plain",
                    lambda: _train_ppo(gym.make("Pendulum-v1"), ppo_steps),
                    lambda: _train_ppo(ScoreRewardWrapper(gym.make("Pendulum-v1"), seed=0, device="cpu"), ppo_steps),
                    repeats,
                    bar,
                ),
                _ratio_row(
                    "PPO on 16 x Pendulum-v1: VecScoreRewardWrapper / plain",
                    lambda: _train_ppo(make_vec_env("Pendulum-v1", 16, seed=0), 4 * ppo_steps),
                    lambda: _train_ppo(
                        VecScoreRewardWrapper(make_vec_env("Pendulum-v1", 16, seed=0), seed=0, device="cpu"), 4 * ppo_steps
                    ),
                    repeats,
                    bar,
                ),
                _ratio_row(
                    f"pretrain {MAZE}, {pretrain_steps:,} steps: score / zero",
                    lambda: _pretrain("zero", pretrain_steps),
                    lambda: _pretrain("score", pretrain_steps),
                    repeats,
                    bar,
                ),
            ]
    finally:
        th.set_num_threads(n_threads)
    rounds = rounds or 10 * repeats
    report = "\n\n".join(
        [
            f"One thread, best of {repeats}:",
            markdown_table(["measurement", "value", "seconds, with / without"], rows),
            f"Acting and fine-tuning over SAC with networks of the same width, 256 x 256, batch of 256, best of {rounds}:",
            adapting_speed(rounds),
            *_control_part(repeats, control_steps),
        ]
    )
    if out is not None:
        write_text(Path(out) / "throughput.md", report)
    return report


def _control_part(rounds: int, steps: int) -> list[str]:
    """The table of the bodies, or why there is none."""
    try:
        table = control_speed(rounds, steps)
    except ImportError as error:
        return [f"The bodies are left out. {error}"]
    return [f"Bodies over dm_control's own step, steps of all copies counted, median of {rounds}:", table]


def maze_steps_per_second(n_envs: int, seconds: float = 1.0) -> float:
    """
    Environment steps per second with random actions, all environments counted.

    :param n_envs: 1 for ``gym.make`` without the checker, more for ``gym.make_vec``
    :param seconds: how long to measure, roughly
    """
    env: Any = gym.make(MAZE, disable_env_checker=True) if n_envs == 1 else gym.make_vec(MAZE, num_envs=n_envs)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(64)]  # sampling is not what is measured
    env.reset(seed=0)
    n_steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        # The clock is read once in a while only. A vectorized maze resets by itself.
        for action in actions:
            *_, terminated, truncated, _info = env.step(action)
            if n_envs == 1 and (terminated or truncated):
                env.reset()
        n_steps += len(actions)
    speed = n_envs * n_steps / (time.perf_counter() - start)
    env.close()
    return speed


def _maze_rows(seconds: float, repeats: int, bar: Any) -> list[list[str]]:
    rows = []
    for n_envs in (1, 16, 1024):
        maze_steps_per_second(n_envs, seconds / 10)  # warm up
        speed = max(maze_steps_per_second(n_envs, seconds) for _ in range(repeats))
        maker = "gym.make" if n_envs == 1 else f"gym.make_vec, {n_envs} envs"
        rows.append([f"{MAZE}, {maker}", f"{speed:,.0f} steps/s", ""])
        bar.update()
    return rows


def _ratio_row(label: str, plain: Callable[[], float], paid: Callable[[], float], repeats: int, bar: Any) -> list[str]:
    """Seconds with a reward over seconds without, taking turns so that whatever else the machine does slows both alike."""
    with_reward, without = math.inf, math.inf
    for _ in range(repeats):
        without = min(without, plain())
        bar.update()
        with_reward = min(with_reward, paid())
        bar.update()
    return [label, f"{with_reward / without:.2f} x", f"{with_reward:.1f} / {without:.1f}"]


def _train_ppo(env: Any, steps: int) -> float:
    """Seconds that PPO takes with its default settings, but rollouts of 2048 steps of all environments together."""
    n_envs = getattr(env, "num_envs", 1)
    model = PPO("MlpPolicy", env, n_steps=min(2048, steps) // n_envs, seed=0, device="cpu")
    start = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - start
    env.close()
    return seconds


def _pretrain(reward: str, steps: int) -> float:
    """Seconds of a run, its logs included, its pictures not."""
    with tempfile.TemporaryDirectory() as folder:
        run = pretrain(MAZE, steps, reward=reward, out=folder, device="cpu", policy_steps=0, progress_bar=False)
    return run.summary["seconds"]
