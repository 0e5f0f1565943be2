"""Damaged and planted files in run folders: every reader works or raises an ArtifactError, in time, and executes nothing."""

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import MAZE, QUIET, tiny_finetune, tiny_pretrain

import sb3_exdm
from sb3_exdm.benchmark.report import report
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.plots import plot_runs
from sb3_exdm.runs.folder import RunFolder

EXPLORED = ("config.json", "summary.json", "progress.csv", "model.safetensors", "reward.safetensors", "policy.safetensors")
VALUES = [None, True, -1, 0, 0.5, 10**15, 10**30, "", "x", "planted:x", [], [0], [-1], [10**9], {}, {"x": 1}]
"""Values that replace others in JSON."""


class TooLong(BaseException):
    """A reader that takes too long."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A pre-training, a fine-tuning of it, and a reward wrapper."""
    folder = tmp_path_factory.mktemp("sources")
    tiny_pretrain(240, out=folder / "explored", policy_steps=2, checkpoint_freq=0)
    tiny_finetune(folder / "explored", steps=48, out=folder / "adapted")
    env = sb3_exdm.ScoreRewardWrapper(gym.make("Pendulum-v1"), learning_starts=8, train_freq=8, batch_size=8, seed=0)
    env.reset(seed=0)
    for _ in range(20):
        env.step(env.action_space.sample())
    env.save(folder / "wrapper.safetensors")
    return folder


def readers(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """All that reads a folder like that of ``sources``."""
    explored, adapted = RunFolder(folder / "explored"), RunFolder(folder / "adapted")
    for run in (explored, adapted):
        for name in ("record", "progress", "transitions", "checkpoints", "load_model", "load_policy", "observation_moments"):
            yield f"{run.path.name}.{name}", getattr(run, name)
        yield f"{run.path.name}.summary", lambda run=run: run.summary
        yield f"evaluate {run.path.name}", lambda run=run: sb3_exdm.evaluate(run.path, n_episodes=1, device="cpu")
        yield f"plot {run.path.name}", lambda run=run: plot_runs([run.path], folder / "plot.png")
        yield f"clone {run.path.name}", lambda run=run: sb3_exdm.clone(run.path, gradient_steps=1, **QUIET)
    yield "load_reward", explored.load_reward
    yield "report", lambda: report([adapted.path], folder / "report", score="mean_reward")
    for policy in ("diffusion", "gaussian"):
        yield f"finetune {policy}", lambda policy=policy: finetune(explored.path, policy)
    yield "wrapper", lambda: sb3_exdm.ScoreRewardWrapper.load(folder / "wrapper.safetensors", gym.make("Pendulum-v1"))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"clone {path.name}", lambda path=path: sb3_exdm.clone(path, gradient_steps=1, **QUIET)
            yield f"DiffusionActor {path.name}", lambda path=path: sb3_exdm.DiffusionActor.load(path)


def finetune(explored: Path, policy: str) -> None:
    tiny_finetune(explored, steps=16, policy=policy, reuse_data=policy == "diffusion", offline_updates=1, distill_steps=1)


READS = {
    "config.json": None,
    "summary.json": ("summary", "record", "plot", "report", "DiffusionActor summary", "clone summary"),
    "progress.csv": ("progress", "record", "plot", "DiffusionActor progress", "clone progress"),
    "transitions.npz": ("transitions", "clone", "finetune", "DiffusionActor trans"),
    "model.safetensors": ("load_model", "observation_moments", "evaluate", "clone", "finetune gaussian"),
    "reward.safetensors": ("load_reward", "clone reward", "DiffusionActor reward"),
    "policy.safetensors": ("load_policy", "finetune", "DiffusionActor policy", "clone policy"),
    "wrapper.safetensors": ("wrapper",),
}
"""Readers of each file by the beginnings of their names; None for all."""


def faults(folder: Path, changed: str) -> list[str]:
    """Readers that neither work nor raise an ArtifactError."""
    found = []

    def too_long(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, too_long)
    starts, run = READS[Path(changed).name], Path(changed).parent.name
    for name, read in readers(folder):
        if starts is not None and not any(start in name for start in starts):
            continue
        if run and {"explored", "adapted"} & set(re.split(r"[ .]", name)) - {run}:
            continue
        signal.alarm(20)
        try:
            read()
        except ArtifactError as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                found.append(f"{name}: says {str(error)[:300]!r}")
        except BaseException as error:
            if isinstance(error, ValueError) and changed.endswith("config.json"):
                continue  # settings that could be those of another environment or library
            found.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.alarm(0)
    return found


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in nested JSON."""
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node[:2]) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Copy of nested JSON with another value in a place; the value ``...`` removes it."""
    if not path:
        return {} if value is ... else value
    copy = dict(node) if isinstance(node, dict) else list(node)
    if len(path) == 1 and value is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy
