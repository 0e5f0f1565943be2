"""
Speed of the mazes, the wrappers under PPO, the reward in pre-training, acting and fine-tuning, and the robots. On one thread,
except the vectorized robots, which are also measured on several.

What is compared takes turns, so that other programs slow both alike. Everything takes about eight minutes.

Example: python examples/experiments/throughput.py --what mazes acting --repeats 5
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pandas as pd
import torch as th
import tyro
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from tqdm.auto import tqdm

from sb3_exdm import DiffusionFinetuneCallback, ScoreRewardWrapper, VecScoreRewardWrapper, pretrain
from sb3_exdm.benchmark.tables import markdown_table, write_text
from sb3_exdm.common.validation import check_integers
from sb3_exdm.envs import TASKS
from sb3_exdm.finetuning.operators import OPERATORS
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy

MAZE = "Maze2d-SquareLarge-v0"
ROBOTS = ("URLB/walker-walk-v0", "URLB/quadruped-walk-v0", "URLB/hopper-hop-v0")
N_ROBOTS = 8
"""Copies of a robot that are stepped."""
NET_ARCH, BATCH_SIZE = [256, 256], 256
N_TRANSITIONS = 1000
"""Random transitions that are learned from."""
N_PREDICTIONS, N_UPDATES = 5, 2
"""Calls that are timed together."""
TURN = 50
"""Steps of every copy of a robot before the next way of stepping takes its turn."""

Stepper = Callable[[np.ndarray], None]
"""Takes actions ``(n_steps, N_ROBOTS, n_actions)``, and resets episodes that end."""
What = Literal["mazes", "wrappers", "rewards", "acting", "control"]


def measure(
    what: tuple[What, ...] = ("mazes", "wrappers", "rewards", "acting", "control"),
    repeats: int = 3,
    steps: int = 20_000,
    out: Path | None = None,
) -> str:
    """
    Measure speeds.

    :param what: mazes: steps of the mazes; wrappers: PPO with the wrappers over PPO without; rewards: pre-training with the
        score over pre-training without a reward; acting: acting and fine-tuning with a diffusion policy over SAC; control:
        robots over dm_control's own step
    :param repeats: number of measurements, of which the fastest counts, or the median of the robots; ten times as many of
        acting
    :param steps: environment steps of each pre-training; PPO makes 2/5 of them
    :param out: folder for throughput.md; by default nothing is written
    :return: tables in Markdown
    :raises ValueError: if a number is not positive
    :raises ImportError: if the extra dmc is missing, for the robots
    """
    check_integers(repeats=(repeats, 1), steps=(steps, 1))
    parts: dict[str, Callable[[], tuple[str, pd.DataFrame]]] = {
        "mazes": lambda: (f"Steps of {MAZE} per second, best of {repeats}:", maze_table(repeats)),
        "wrappers": lambda: (f"Seconds with a reward over seconds without, best of {repeats}:", wrapper_table(repeats, steps)),
        "rewards": lambda: (f"Seconds with a reward over seconds without, best of {repeats}:", reward_table(repeats, steps)),
        "acting": lambda: (
            f"Acting and fine-tuning over SAC with networks of the same width, batch of {BATCH_SIZE}, processor time, best of "
            f"{10 * repeats}:",
            acting_table(10 * repeats),
        ),
        "control": lambda: (
            f"Robots over dm_control's own step, steps of all {N_ROBOTS} copies, elapsed time, median of {repeats}:",
            control_table(repeats),
        ),
    }
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    report = []
    try:
        for name in tqdm(what, unit="table", disable=None):
            title, table = parts[name]()
            report += [title, markdown_table(table)]
    finally:
        th.set_num_threads(n_threads)
    text = "\n\n".join(["One thread, unless stated.", *report])
    if out is not None:
        write_text(out / "throughput.md", text)
    return text


# Mazes, wrappers and rewards ----------------------------------------------------------------------------------------------


def maze_steps_per_second(n_envs: int, seconds: float = 1.0) -> float:
    """
    Environment steps per second with random actions, over all environments.

    :param n_envs: 1 for ``gym.make`` without the checker, more for ``gym.make_vec``
    :param seconds: approximate duration of the measurement
    """
    env: Any = gym.make(MAZE, disable_env_checker=True) if n_envs == 1 else gym.make_vec(MAZE, num_envs=n_envs)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(64)]  # sampling is not measured
    env.reset(seed=0)
    n_steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        # The clock is read rarely. A vectorized maze resets by itself.
        for action in actions:
            *_, terminated, truncated, _info = env.step(action)
            if n_envs == 1 and (terminated or truncated):
                env.reset()
        n_steps += len(actions)
    speed = n_envs * n_steps / (time.perf_counter() - start)
    env.close()
    return speed


def maze_table(repeats: int, seconds: float = 1.0) -> pd.DataFrame:
    """
    Steps per second of one and of many mazes.

    :param repeats: number of measurements
    :param seconds: approximate duration of each
    """
    speeds = {}
    for n_envs in (1, 16, 1024):
        maze_steps_per_second(n_envs, seconds / 10)  # warm up
        speed = max(maze_steps_per_second(n_envs, seconds) for _ in range(repeats))
        speeds["gym.make" if n_envs == 1 else f"gym.make_vec, {n_envs} envs"] = f"{speed:,.0f}"
    return pd.DataFrame({"steps/s": speeds}).rename_axis("environments")


def wrapper_table(repeats: int, steps: int) -> pd.DataFrame:
    """
    PPO with and without the wrappers.

    :param repeats: number of measurements
    :param steps: 5/2 of the environment steps of a training with one environment, 5/8 of those with 16
    """
    steps = max(2 * steps // 5, 1)

    def plain_vec() -> Any:
        return make_vec_env("Pendulum-v1", 16, seed=0)

    return _ratio_table(
        {
            "PPO on Pendulum-v1, ScoreRewardWrapper": (
                lambda: _train_ppo(gym.make("Pendulum-v1"), 1, steps),
                lambda: _train_ppo(ScoreRewardWrapper(gym.make("Pendulum-v1"), seed=0, device="cpu"), 1, steps),
            ),
            "PPO on 16 x Pendulum-v1, VecScoreRewardWrapper": (
                lambda: _train_ppo(plain_vec(), 16, 4 * steps),
                lambda: _train_ppo(VecScoreRewardWrapper(plain_vec(), seed=0, device="cpu"), 16, 4 * steps),
            ),
        },
        repeats,
    )


def reward_table(repeats: int, steps: int) -> pd.DataFrame:
    """
    Pre-training with the score and without a reward.

    :param repeats: number of measurements
    :param steps: environment steps of a run
    """
    pair = (lambda: _pretrain("zero", steps), lambda: _pretrain("score", steps))
    return _ratio_table({f"pretrain {MAZE}, {steps:,} steps, score": pair}, repeats)


def _ratio_table(pairs: Mapping[str, tuple[Callable[[], float], Callable[[], float]]], repeats: int) -> pd.DataFrame:
    """Seconds with a reward over seconds without."""
    cells = {}
    for label, (plain, rewarded) in pairs.items():
        seconds = np.array([[plain(), rewarded()] for _ in range(repeats)]).min(axis=0)
        cells[label] = {"ratio": f"{seconds[1] / seconds[0]:.2f} x", "seconds": f"{seconds[1]:.1f} / {seconds[0]:.1f}"}
    return pd.DataFrame(cells).T.rename_axis("measurement")


def _train_ppo(env: Any, n_envs: int, steps: int) -> float:
    """Seconds of PPO with its default settings, but rollouts of 2048 steps of all environments together."""
    model = PPO("MlpPolicy", env, n_steps=max(min(2048, steps) // n_envs, 2), seed=0, device="cpu")
    start = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - start
    env.close()
    return seconds


def _pretrain(reward: str, steps: int) -> float:
    """Seconds of a run, with its logs, without its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        run = pretrain(MAZE, steps, reward=reward, out=folder, device="cpu", policy_steps=0, progress_bar=False)
    return run.summary["seconds"]


# Acting and fine-tuning ---------------------------------------------------------------------------------------------------


class RandomEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Random observations and rewards, for learners whose speed is measured.

    :param observation_space: observations
    :param action_dim: size of an action
    """

    def __init__(self, observation_space: spaces.Box, action_dim: int) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        ended = self.np_random.random() < 0.01
        return self._observe(), float(ended), bool(ended), False, {}

    def _observe(self) -> np.ndarray:
        space = self.observation_space
        assert isinstance(space, spaces.Box)
        return self.np_random.uniform(-1.0, 1.0, space.shape).astype(space.dtype)


ENVS: dict[str, Callable[[], gym.Env]] = {
    "2-d maze": lambda: gym.make(MAZE),
    "24-d Box": lambda: RandomEnv(spaces.Box(-np.inf, np.inf, (24,), np.float32), 6),
}


def acting_table(rounds: int) -> pd.DataFrame:
    """
    Acting and updates of a diffusion policy over those of SAC.

    :param rounds: number of measurements, of which the fastest counts
    """
    columns = {name: _acting_ratios(make_env, rounds) for name, make_env in ENVS.items()}
    return pd.DataFrame(columns).rename_axis("over SAC")


def _acting_ratios(make_env: Callable[[], gym.Env], rounds: int) -> dict[str, str]:
    plain = _filled("MlpPolicy", make_env)
    policy = _filled("DiffusionPolicy", make_env).policy
    assert isinstance(policy, DiffusionPolicy)
    default = next(iter(OPERATORS))
    selection = OPERATORS[default].action_selection
    selections = {
        f"predict, 1 sample of {policy.n_sampling_steps} steps": ActionSelection(),
        f"predict, {default}: {selection.n_candidates} candidates": selection,
    }
    rng = np.random.default_rng(0)
    activities: dict[str, Callable[[], Any]] = {}
    compared: dict[str, str] = {}
    for batch in (1, BATCH_SIZE):
        observations = rng.uniform(-1.0, 1.0, (batch, *(plain.observation_space.shape or ()))).astype(np.float32)
        activities[f"SAC, {batch}"] = partial(_predict, plain.policy, observations)
        for label, selection in selections.items():
            activities[f"{label}, batch {batch}"] = partial(_predict, policy, observations, selection)
            compared[f"{label}, batch {batch}"] = f"SAC, {batch}"
    activities["SAC, update"] = partial(plain.train, N_UPDATES, BATCH_SIZE)
    for operator in OPERATORS:
        activities[f"update, {operator}"] = _updates(operator, make_env)
        compared[f"update, {operator}"] = "SAC, update"
    best = dict.fromkeys(activities, math.inf)
    for _ in range(rounds):
        for label, act in activities.items():
            start = time.process_time()
            act()
            best[label] = min(best[label], time.process_time() - start)
    cells = {}
    for label, other in compared.items():
        ms = 1e3 / (N_UPDATES if "update" in label else N_PREDICTIONS)
        cells[label] = f"{best[label] / best[other]:.2f} x ({ms * best[label]:.2f} / {ms * best[other]:.2f} ms)"
    return cells


def _predict(policy: Any, observations: np.ndarray, selection: ActionSelection | None = None) -> None:
    if selection is not None:
        policy.action_selection = selection
    for _ in range(N_PREDICTIONS):
        policy.predict(observations)


def _updates(operator: str, make_env: Callable[[], gym.Env]) -> Callable[[], None]:
    """Function that makes updates, as after a rollout. The cache of actions is full."""
    model = _filled("DiffusionPolicy", make_env)
    callback = DiffusionFinetuneCallback(operator)
    callback.init_callback(model)
    callback.on_training_start({}, {})
    callback.on_rollout_start()
    callback.num_timesteps = N_TRANSITIONS + 1
    callback.on_rollout_end()
    return callback.on_rollout_end


def _filled(policy: str, make_env: Callable[[], gym.Env]) -> SAC:
    """SAC with random transitions."""
    model = SAC(
        policy,
        make_env(),
        learning_starts=N_TRANSITIONS,
        buffer_size=2 * N_TRANSITIONS,
        gradient_steps=N_UPDATES,
        policy_kwargs={"net_arch": NET_ARCH},
        batch_size=BATCH_SIZE,
        seed=0,
        device="cpu",
    )
    model.set_logger(configure(None, []))
    env = model.get_env()
    assert env is not None and model.replay_buffer is not None
    rng = np.random.default_rng(0)
    observations: Any = env.reset()
    for i in range(N_TRANSITIONS):
        actions = rng.uniform(-1.0, 1.0, (1, *(env.action_space.shape or ()))).astype(np.float32)
        reached, _, dones, infos = env.step(actions)
        # Without two different rewards there would be no updates.
        model.replay_buffer.add(observations, reached, actions, np.array([float(i % 100 == 0)]), dones, infos)  # type: ignore[arg-type]
        observations = reached
    return model


# Robots -------------------------------------------------------------------------------------------------------------------


def control_table(rounds: int, steps: int = 1000) -> pd.DataFrame:
    """
    Robots behind Gymnasium's interface, one by one and vectorized, with one thread and with the number of threads chosen by
    default, over dm_control's own ``step``. All take the same actions from the same starts, so that MuJoCo computes the same.
    Threads need CPUs that are idle: other programs falsify the comparison.

    :param rounds: number of measurements, of which the median counts
    :param steps: steps of each copy in a round, an episode by default; the next episode starts within the steps
    :raises ValueError: if a number is not positive
    :raises ImportError: if the extra dmc is missing
    """
    check_integers(rounds=(rounds, 1), steps=(steps, 1))
    cells = {}
    for env_id in ROBOTS:
        seconds = _control_seconds(env_id, rounds, steps)
        speed = np.median(N_ROBOTS * steps / seconds["dm_control"])
        ratios = {name: np.median(seconds["dm_control"] / own) for name, own in seconds.items() if name != "dm_control"}
        cells[env_id] = {
            "dm_control, steps/s": f"{speed:,.0f}",
            **{name: f"{ratio:.2f} x" for name, ratio in ratios.items()},
        }
    return pd.DataFrame(cells).T.rename_axis("robot")


def _control_seconds(env_id: str, rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Elapsed time of each way of stepping in each round, ``(rounds,)``."""
    n_actions = gym.make(env_id).action_space.shape or ()  # first, as it checks the installation and chooses the renderer
    steppers = {"dm_control": _dm_control(env_id, steps), "gym.make": _single(env_id, steps)}
    for wanted in (1, None):
        stepper, n_threads = _vectorized(env_id, steps, wanted)
        threads = "1 thread" if n_threads == 1 else f"{n_threads} threads"
        steppers[f"gym.make_vec, {N_ROBOTS} envs, {threads}"] = stepper
    rng = np.random.default_rng(0)
    seconds = {name: np.zeros(rounds) for name in steppers}
    for i in range(rounds):
        actions = rng.uniform(-1.0, 1.0, (steps, N_ROBOTS, *n_actions)).astype(np.float32)
        for first in range(0, steps, TURN):
            for name, stepper in steppers.items():
                start = time.perf_counter()
                stepper(actions[first : first + TURN])
                seconds[name][i] += time.perf_counter() - start
    return seconds


def _dm_control(env_id: str, steps: int) -> Stepper:
    from dm_control import suite

    task = TASKS[env_id]
    envs = [suite.load(task.domain, task.name, task_kwargs={"random": seed, "time_limit": np.inf}) for seed in range(N_ROBOTS)]
    spec = envs[0].action_spec()
    center, half_range = (spec.minimum + spec.maximum) / 2, (spec.maximum - spec.minimum) / 2
    elapsed = np.zeros(N_ROBOTS, dtype=int)
    for env in envs:
        env.reset()

    def step(actions: np.ndarray) -> None:
        # One copy after the other, which suits the caches of the processor best.
        for i, env in enumerate(envs):
            for action in center + half_range * actions[:, i]:
                env.step(action)
            elapsed[i] += len(actions)
            if elapsed[i] % steps == 0:
                env.reset()

    return step


def _single(env_id: str, steps: int) -> Stepper:
    envs = [gym.make(env_id, max_episode_steps=steps) for _ in range(N_ROBOTS)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)

    def step(actions: np.ndarray) -> None:
        for i, env in enumerate(envs):
            for action in actions[:, i]:
                if env.step(action)[3]:
                    env.reset()

    return step


def _vectorized(env_id: str, steps: int, num_threads: int | None) -> tuple[Stepper, int]:
    """Way of stepping, and its number of threads."""
    envs: Any = gym.make_vec(
        env_id,
        num_envs=N_ROBOTS,
        max_episode_steps=steps,
        autoreset_mode=AutoresetMode.SAME_STEP,
        num_threads=num_threads,
    )
    envs.reset(seed=0)

    def step(actions: np.ndarray) -> None:
        for together in actions:
            envs.step(together)

    return step, envs.num_threads


if __name__ == "__main__":
    print(tyro.cli(measure, description=__doc__))
