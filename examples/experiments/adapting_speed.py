"""
What acting and learning with a diffusion policy cost, over SAC with networks of the same width. On one thread.

Every figure is a ratio of shortest times, of the processor and taken in turns, so that whatever else the machine does matters
little.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from tqdm.auto import tqdm

from sb3_exdm.benchmark.tables import markdown_table
from sb3_exdm.finetuning import OPERATORS, DiffusionFinetuneCallback
from sb3_exdm.policies import DiffusionPolicy

_NET_ARCH = [256, 256]
_BATCH_SIZE = 256
_N_TRANSITIONS = 1000
_N_PREDICTIONS, _N_UPDATES = 5, 2
"""How many are timed together."""


class RandomEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Observations and rewards that mean nothing, for a learner whose speed is measured.

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


_ENVS: dict[str, Callable[[], gym.Env]] = {
    "2-d maze": lambda: gym.make("Maze2d-SquareLarge-v0"),
    "24-d Box": lambda: RandomEnv(spaces.Box(-np.inf, np.inf, (24,), np.float32), 6),
}


def adapting_speed(rounds: int = 30, progress_bar: bool = True) -> str:
    """
    Measure acting and learning.

    :param rounds: how often everything is measured; the fastest counts
    :param progress_bar: show a progress bar on a terminal
    :return: a table in Markdown
    :raises ValueError: if ``rounds`` is not positive
    """
    if rounds < 1:
        raise ValueError(f"rounds must be positive, got {rounds}.")
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        columns = {}
        with tqdm(total=2 * rounds, unit="round", disable=None if progress_bar else True) as bar:
            for name, make_env in _ENVS.items():
                columns[name] = _ratios(make_env, rounds, bar)
    finally:
        th.set_num_threads(n_threads)
    labels = list(next(iter(columns.values())))
    table = [[label, *(_shown(column[label]) for column in columns.values())] for label in labels]
    return markdown_table(["over SAC", *columns], table)


def _shown(figure: tuple[float, float]) -> str:
    seconds, plain = figure
    return f"{seconds / plain:.2f} x ({1e3 * seconds:.2f} / {1e3 * plain:.2f} ms)"


def _ratios(make_env: Callable[[], gym.Env], rounds: int, bar: Any) -> dict[str, tuple[float, float]]:
    """Seconds of each activity, and of the one of SAC that it is compared with."""
    plain = _filled("MlpPolicy", make_env)
    policy = _filled("DiffusionPolicy", make_env).policy
    assert isinstance(policy, DiffusionPolicy)
    default = next(iter(OPERATORS))
    rules = {
        f"predict, 1 sample of {policy.n_sampling_steps} steps": policy.acting,
        f"predict, {default}: {OPERATORS[default].acting.n_candidates} candidates": OPERATORS[default].acting,
    }
    rng = np.random.default_rng(0)
    activities: dict[str, Callable[[], Any]] = {}
    compared: dict[str, str] = {}
    for batch in (1, _BATCH_SIZE):
        observations = rng.uniform(-1.0, 1.0, (batch, *(plain.observation_space.shape or ()))).astype(np.float32)
        activities[f"SAC, {batch}"] = _times(_N_PREDICTIONS, partial(plain.predict, observations))
        for label, rule in rules.items():
            label = f"{label}, batch {batch}"
            activities[label] = _times(_N_PREDICTIONS, partial(_predict, policy, rule, observations))
            compared[label] = f"SAC, {batch}"
    activities["SAC, update"] = partial(plain.train, _N_UPDATES, _BATCH_SIZE)
    for operator in OPERATORS:
        callback = _callback(operator, make_env)
        label = f"update, {operator}"
        activities[label] = partial(callback._update, _N_UPDATES, callback.operator.learn)
        compared[label] = "SAC, update"
    best = dict.fromkeys(activities, math.inf)
    for _ in range(rounds):
        for label, act in activities.items():
            start = time.process_time()
            act()
            best[label] = min(best[label], time.process_time() - start)
        bar.update()
    counts = {label: _N_UPDATES if "update" in label else _N_PREDICTIONS for label in activities}
    return {label: (best[label] / counts[label], best[other] / counts[other]) for label, other in compared.items()}


def _times(n: int, act: Callable[[], Any]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(n):
            act()

    return repeated


def _predict(policy: DiffusionPolicy, rule: Any, observations: np.ndarray) -> None:
    policy.acting = rule
    policy.predict(observations)


def _filled(policy: str, make_env: Callable[[], gym.Env]) -> SAC:
    """SAC with random transitions."""
    model = SAC(
        policy,
        make_env(),
        learning_starts=_N_TRANSITIONS,
        buffer_size=2 * _N_TRANSITIONS,
        policy_kwargs={"net_arch": _NET_ARCH},
        batch_size=_BATCH_SIZE,
        seed=0,
        device="cpu",
    )
    model.set_logger(configure(None, []))
    env = model.get_env()
    assert env is not None and model.replay_buffer is not None
    rng = np.random.default_rng(0)
    observations: Any = env.reset()
    for _ in range(_N_TRANSITIONS):
        actions = rng.uniform(-1.0, 1.0, (1, *(env.action_space.shape or ()))).astype(np.float32)
        reached, rewards, dones, infos = env.step(actions)
        model.replay_buffer.add(observations, reached, actions, rewards, dones, infos)  # type: ignore[arg-type]
        observations = reached
    return model


def _callback(operator: str, make_env: Callable[[], gym.Env]) -> DiffusionFinetuneCallback:
    """A callback that is ready to update, the actions it keeps of the pre-trained policy included."""
    callback = DiffusionFinetuneCallback(operator)
    model = _filled("DiffusionPolicy", make_env)
    callback.init_callback(model)
    callback._cache_candidates()
    return callback
