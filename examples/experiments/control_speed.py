"""
What the bodies cost over dm_control's own ``step``: one of them behind Gymnasium's interface, and eight in one process.

All take the same actions from the same beginnings, so that MuJoCo has the same to compute. They take turns every few steps, so
that whatever else the machine does slows all of them alike. Needs the extra ``dmc``.
"""

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from tqdm.auto import tqdm

from sb3_exdm.benchmark.tables import markdown_table
from sb3_exdm.envs import TASKS

ENV_IDS = ("URLB/walker-walk-v0", "URLB/quadruped-walk-v0", "URLB/hopper-hop-v0")
N_ENVS = 8
_TURN = 50
"""Steps of every copy before it is another's turn."""
_Stepper = Callable[[np.ndarray], None]
"""Takes actions ``(n_steps, N_ENVS, n_actions)``, and resets what ended."""


def control_speed(rounds: int = 3, steps: int = 1000, progress_bar: bool = True) -> str:
    """
    Measure the bodies.

    :param rounds: how often; the median counts
    :param steps: steps of each copy in a round, an episode by default: whoever steps begins the next one as part of it
    :param progress_bar: show a progress bar on a terminal
    :return: a table in Markdown
    :raises ValueError: if a number is not positive
    :raises ImportError: if the extra is not installed
    """
    for name, value in {"rounds": rounds, "steps": steps}.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}.")
    rows = []
    with tqdm(total=len(ENV_IDS) * rounds, unit="round", disable=None if progress_bar else True) as bar:
        for env_id in ENV_IDS:
            seconds = _seconds(env_id, rounds, steps, bar)
            plain = seconds[:, 0]
            speed = np.median(N_ENVS * steps / plain)
            ratios = np.median(plain[:, None] / seconds[:, 1:], axis=0)
            rows.append([env_id, f"{speed:,.0f}", *(f"{ratio:.2f} x" for ratio in ratios)])
    return markdown_table(["steps per second", "dm_control", "gym.make", f"gym.make_vec, {N_ENVS} envs"], rows)


def _seconds(env_id: str, rounds: int, steps: int, bar: Any) -> np.ndarray:
    """Seconds of the processor that dm_control, ``gym.make`` and ``gym.make_vec`` take for each round, ``(rounds, 3)``."""
    n_actions = gym.make(env_id).action_space.shape or ()  # first, as it checks what is installed and how to render
    steppers = [_dm_control(env_id, steps), _single(env_id, steps), _vectorized(env_id, steps)]
    rng = np.random.default_rng(0)
    seconds = np.zeros((rounds, len(steppers)))
    for spent in seconds:
        actions = rng.uniform(-1.0, 1.0, (steps, N_ENVS, *n_actions)).astype(np.float32)
        for first in range(0, steps, _TURN):
            for i, stepper in enumerate(steppers):
                start = time.process_time()
                stepper(actions[first : first + _TURN])
                spent[i] += time.process_time() - start
        bar.update()
    return seconds


def _dm_control(env_id: str, steps: int) -> _Stepper:
    from dm_control import suite

    task = TASKS[env_id]
    envs = [suite.load(task.domain, task.name, task_kwargs={"random": seed, "time_limit": np.inf}) for seed in range(N_ENVS)]
    spec = envs[0].action_spec()
    center, half_range = (spec.minimum + spec.maximum) / 2, (spec.maximum - spec.minimum) / 2
    elapsed = np.zeros(N_ENVS, dtype=int)
    for env in envs:
        env.reset()

    def step(actions: np.ndarray) -> None:
        # One copy after the other, which is what the caches of the processor like best.
        for i, env in enumerate(envs):
            for action in center + half_range * actions[:, i]:
                env.step(action)
            elapsed[i] += len(actions)
            if elapsed[i] % steps == 0:
                env.reset()

    return step


def _single(env_id: str, steps: int) -> _Stepper:
    envs = [gym.make(env_id, max_episode_steps=steps) for _ in range(N_ENVS)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)

    def step(actions: np.ndarray) -> None:
        for i, env in enumerate(envs):
            for action in actions[:, i]:
                if env.step(action)[3]:
                    env.reset()

    return step


def _vectorized(env_id: str, steps: int) -> _Stepper:
    envs = gym.make_vec(env_id, num_envs=N_ENVS, max_episode_steps=steps, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=0)

    def step(actions: np.ndarray) -> None:
        for together in actions:
            envs.step(together)

    return step
