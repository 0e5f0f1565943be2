"""Damaged and planted files in run folders: every reader works or raises an ArtifactError, in time, and executes nothing."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import QUIET, in_seconds, tiny_finetune, tiny_pretrain
from safetensors import safe_open
from safetensors.torch import save_file

import sb3_exdm
from sb3_exdm.benchmark import report as reports
from sb3_exdm.benchmark.report import report
from sb3_exdm.common import serialization
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.plots import curves, plot_runs
from sb3_exdm.recipes import finetuning_run
from sb3_exdm.runs.folder import RunFolder

VALUES = [None, True, -1, 0, 0.5, 10**15, 10**30, "", "x", "planted:x", [], [0], [-1], [10**9], {}, {"x": 1}]
"""Values that replace others in JSON."""


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

    starts, run = READS[Path(changed).name], Path(changed).parent.name
    for name, read in readers(folder):
        if starts is not None and not any(start in name for start in starts):
            continue
        if run and {"explored", "adapted"} & set(re.split(r"[ .]", name)) - {run}:
            continue
        try:
            with in_seconds(30):
                read()
        except ArtifactError as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                found.append(f"{name}: says {str(error)[:300]!r}")
        except BaseException as error:
            if isinstance(error, ValueError) and changed.endswith("config.json"):
                continue  # settings that could be those of another environment or library
            found.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
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


def rewritten(path: Path, change: Callable[[Any, dict[str, th.Tensor]], Any]) -> None:
    """Change the structure and the tensors of a file, and make its checksum fit again, as an attacker would."""
    with safe_open(str(path), framework="pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key).clone() for key in file.keys()}
    header["structure"] = json.dumps(change(json.loads(header["structure"]), tensors))
    header["checksum"] = serialization._checksum(header, tensors)
    path.unlink()
    save_file(tensors, str(path), metadata=header)


def damage(path: Path, rng: np.random.Generator, others: list[Path]) -> str:
    """Cut a file, change or insert bytes, flip a bit, or take the content of another one."""
    data = bytearray(path.read_bytes())
    kind = ("cut", "bytes", "bit", "insert", "swap", "empty")[rng.integers(6)]
    i = int(rng.integers(len(data)))
    if kind == "cut":
        data = data[:i]
    elif kind == "bytes":
        for place in rng.integers(len(data), size=8):
            data[place] = rng.integers(256)
    elif kind == "bit":
        data[i % 2000 % len(data)] ^= 1 << int(rng.integers(8))
    elif kind == "insert":
        data[i:i] = rng.bytes(20)
    else:
        data = bytearray(others[rng.integers(len(others))].read_bytes() if kind == "swap" else b"")
    path.write_bytes(bytes(data))
    return kind


def edit(path: Path, rng: np.random.Generator) -> str:
    """Replace or remove a value of JSON, or in the header of a safetensors file."""
    value = [..., *VALUES][rng.integers(len(VALUES) + 1)]
    chosen: list[Any] = []

    def change(content: Any, _: Any = None) -> Any:
        known = [place for place in places(content) if place[:1] != ("versions",)]
        chosen.append(known[rng.integers(len(known))])
        return replaced(content, chosen[0], value)

    if path.suffix == ".json":
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    else:
        rewritten(path, change)
    return f"{chosen[0]} = {value!r}"


def retype(path: Path, rng: np.random.Generator) -> str:
    """Give a tensor NaN, or another shape or type."""
    kind = int(rng.integers(6))

    def change(content: Any, tensors: dict[str, th.Tensor]) -> Any:
        key = list(tensors)[rng.integers(len(tensors))]
        tensor = tensors[key]
        others = [tensor.float() * float("nan"), tensor.reshape(-1)[:1].clone(), th.zeros(3, 5, 7), tensor.to(th.int16)]
        tensors[key] = [*others, tensor.double() * 0 - 5, th.zeros(0)][kind]
        return content

    rewritten(path, change)
    return f"tensor {kind}"


@pytest.fixture
def fuzz(sources, tmp_path, monkeypatch):
    """Function that lists the faults of readers after changes of random files; training and figures are left out."""
    monkeypatch.setattr(finetuning_run._Adaptation, "train", lambda _: None)
    monkeypatch.setattr(finetuning_run._Adaptation, "finish", lambda *_: None)
    monkeypatch.setattr(curves, "save_figure", lambda *_: None)
    monkeypatch.setattr(reports, "_draw", lambda *_: None)
    monkeypatch.chdir(tmp_path)

    def found(n_cases: int, seed: int) -> list[str]:
        rng, failures = np.random.default_rng(seed), []
        names = [str(path.relative_to(sources)) for path in sorted(sources.rglob("*")) if path.name in READS]
        for _ in range(n_cases):
            shutil.rmtree("runs", ignore_errors=True)
            folder = Path(shutil.copytree(sources, "runs"))
            name = names[rng.integers(len(names))]
            path = folder / name
            ways = {".json": [edit], ".safetensors": [edit, retype]}.get(path.suffix, [])
            way = int(rng.integers(len(ways) + 1))
            what = ways[way](path, rng) if way < len(ways) else damage(path, rng, [folder / other for other in names])
            failures += [f"{name}, {what}: {fault}" for fault in faults(folder, name)]
        return failures

    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_some_damaged_files(fuzz):
    assert fuzz(6, seed=0) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_damaged_files(fuzz, seed):
    assert fuzz(250, seed) == []
