"""Toy environments and factories that several test files share."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

import sb3_exdm
from sb3_exdm.benchmark import base, execute
from sb3_exdm.benchmark.execute import is_complete
from sb3_exdm.cli import main

th.set_num_threads(1)  # the networks are small, and the workers share the cores

MAZE = "Maze2d-SquareA-v0"
QUIET: dict[str, Any] = {"progress_bar": False, "device": "cpu"}


class Unbounded(gym.ObservationWrapper):
    """Observations without finite bounds, which the recipes normalize."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation


if "UnboundedPendulum-v0" not in gym.registry:
    gym.register("UnboundedPendulum-v0", lambda: Unbounded(gym.make("Pendulum-v1").unwrapped), max_episode_steps=50)


def tiny_pretrain(steps: int = 600, env: Any = MAZE, **settings: Any) -> sb3_exdm.PretrainedRun:
    """Pre-training with a small network and few steps."""
    tiny = {"policy_steps": 20, "algo_kwargs": {"learning_starts": 100, "policy_kwargs": {"net_arch": [8]}}}
    return sb3_exdm.pretrain(env, steps, **{**QUIET, **tiny, **settings})


def tiny_finetune(pretrained: Any = None, *, steps: int = 160, **settings: Any) -> sb3_exdm.FinetunedRun:
    """Fine-tuning with a small network and few steps."""
    tiny = {
        "n_eval_episodes": 3,
        "eval_freq": 80,
        "distill_steps": 20,
        "env_kwargs": {"reward_type": "dense", "max_episode_steps": 10},
        "algo_kwargs": {"learning_starts": 40, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}},
    }
    return sb3_exdm.finetune(None if pretrained else MAZE, steps, pretrained=pretrained, **{**QUIET, **tiny, **settings})


class TooLong(BaseException):
    """A block that took too long; no ``except Exception`` in it hides that."""


@contextmanager
def in_seconds(seconds: int) -> Iterator[None]:
    """Raise :class:`TooLong` if the block hangs."""

    def stop(*_: Any) -> None:
        raise TooLong(f"longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    remaining = signal.alarm(seconds)  # pytest-timeout has an alarm of its own
    try:
        yield
    finally:
        signal.alarm(remaining)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def in_process(monkeypatch):
    """Runs in the process of the test, which takes seconds less each; returns the list of those made."""
    made = []

    def run_here(runs, jobs):
        for run in runs:
            if not is_complete(run):
                made.append(run.folder.name)
                execute._work(run, None)

    monkeypatch.setattr(base, "run_missing", run_here)
    return made


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def refused(capsys, *argv: str) -> str:
    """Error message of a refused command: one line on stderr, exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("exdm: ") and printed.err.count("\n") == 1, printed.err
    return printed.err
