"""State, rows, locks and files when something goes wrong."""

import json
import os
import random
import resource
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from resuming import in_process

import sb3_exdm
from sb3_exdm.cli import main
from sb3_exdm.common.serialization import ArtifactError, load_tree, save_tree
from sb3_exdm.common.state import Derived, GlobalGenerators, StateError, capture, has_same_objects, restore
from sb3_exdm.runs.folder import RunFolder
from sb3_exdm.runs.lock import FolderLock
from sb3_exdm.runs.row_file import RowFile
from tests.conftest import refused


class Cache(Derived):
    """Computed from the weights."""


class Learner:
    """An object as users write them."""

    def __init__(self) -> None:
        self.network = th.nn.Linear(2, 1)
        self.optimizer = th.optim.Adam(self.network.parameters())
        self.weights = list(self.network.parameters())
        self.generators = {"torch": th.Generator().manual_seed(0), "numpy": np.random.default_rng(0), "py": random.Random(0)}
        self.legacy = np.random.RandomState(0)
        self.space = spaces.Box(-1, 1, (2,), seed=0)
        self.recent: deque[float] = deque(maxlen=3)
        self.visited: set[bytes] = set()
        self.table: dict = {}
        self.pair = (np.float64(0.5), None)
        self.cache: Cache | None = None
        self.memory = np.zeros((4, 2))
        self.me = self

    def learn(self) -> list:
        noise = th.randn(2, generator=self.generators["torch"])
        self.optimizer.zero_grad()
        self.network(noise).sum().backward()
        self.optimizer.step()
        draws = [self.generators["numpy"].random(), self.generators["py"].random(), self.legacy.rand(), self.space.sample()]
        self.recent.append(float(noise[0]))
        self.visited.add(draws[3].tobytes())
        self.table[(len(self.table), "x")] = [np.int64(len(self.table)), {"nested": float("nan")}]
        self.pair = (np.float64(self.pair[0] + 1), self.network)
        self.cache = Cache()
        self.memory[len(self.table) % 4] = noise.numpy()
        return [
            *draws[:3],
            draws[3].tolist(),
            self.network.weight.tolist(),
            list(self.recent),
            self.memory.tolist(),
            th.rand(1),
        ]


def through_a_file(tree, tmp_path: Path):
    save_tree(tmp_path / "state.safetensors", {"tree": tree}, "state")
    return load_tree(tmp_path / "state.safetensors", "state")["tree"]


def test_objects_go_on_from_their_state(tmp_path):
    learner, generators = Learner(), GlobalGenerators()
    for _ in range(5):
        learner.learn()
    tree = through_a_file(capture([generators, learner]), tmp_path)
    expected = [learner.learn() for _ in range(3)]
    other = Learner()
    for _ in range(2):  # restoring twice is restoring once
        restore([generators, other], tree)
    assert other.me is other and other.pair[1] is other.network and other.weights[0] is other.network.weight
    assert other.cache is None and isinstance(other.pair[0], np.float64) and isinstance(other.recent, deque)
    assert str([other.learn() for _ in range(3)]) == str(expected)
    assert other.visited == learner.visited and other.table.keys() == learner.table.keys()


def test_states_that_cannot_be_known():
    with pytest.raises(StateError, match=r"The state of \['a'\]\.stream is not known: it is a builtins.list_iterator"):
        learner = Learner()
        learner.stream = iter([1])  # type: ignore[attr-defined]
        capture({"a": learner})
    with pytest.raises(StateError, match="array of objects"):
        capture(np.array([None]))
    with pytest.raises(StateError, match="function with data of its own"):
        capture([(lambda number: lambda: number)(1)], is_env=True)
    late = Learner()
    late.part = Learner()  # type: ignore[attr-defined]
    tree = capture(late)
    with pytest.raises(StateError, match=r"part was built during training.*implement build_missing"):
        restore(Learner(), tree)
    assert has_same_objects(capture(Learner()), tree) and not has_same_objects(tree, capture(Learner()))


def test_rows_are_appended_and_cut(tmp_path):
    memory = {"a": np.zeros((4, 2)), "b": np.zeros(4, dtype=bool)}
    rows = RowFile(tmp_path / "x.rows", memory)
    written = []
    for i in range(7):
        memory["a"][i % 4], memory["b"][i % 4] = i, i % 2 == 0
        if i in (1, 4):
            rows.append(i + 1)
            written.append((tmp_path / "x.rows").stat().st_size // rows.row_bytes)
    assert written == [2, 5]
    memory["a"][0] = -4.0  # row 4 has changed since it was written
    rows.append(7, n_changed=3)
    again = {key: np.ones_like(array) for key, array in memory.items()}
    RowFile(tmp_path / "x.rows", again).load(7)
    np.testing.assert_array_equal(again["a"], memory["a"])
    RowFile(tmp_path / "x.rows", again).load(5)
    assert again["a"][:, 0].tolist() == [-4, 1, 2, 3] and (tmp_path / "x.rows").stat().st_size == 5 * rows.row_bytes
    with pytest.raises(ArtifactError, match="holds 5 rows, expected 6"):
        RowFile(tmp_path / "x.rows", again).load(6)


def test_lock(tmp_path):
    path = tmp_path / "run" / "run.lock"
    with FolderLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(OSError, match=f"process {os.getpid()} on .*Wait for it to end"):
            FolderLock(path)
    assert not path.exists()
    path.write_text('{"pid": 1, "host": "elsewhere"}')
    with pytest.warns(UserWarning, match="was left by process 1 on elsewhere"), FolderLock(path):
        pass


PRETRAIN = ["pretrain", "--env", "Maze2d-SquareA-v0", "--steps", "64", "--reward", "zero", "--policy-steps", "0", "--quiet"]
PRETRAIN += ["--algo-kwargs", '{"policy_kwargs": {"net_arch": [8]}, "learning_starts": 8}']


def test_folders_that_cannot_be_written(capsys, tmp_path):
    assert "/proc/run" in refused(capsys, *PRETRAIN, "--out", "/proc/run")
    assert "longer than 200 bytes" in refused(capsys, *PRETRAIN, "--out", str(tmp_path / ("x" * 300)))
    assert "--out is empty" in refused(capsys, *PRETRAIN, "--out", "")


@pytest.mark.slow
def test_full_disk(tmp_path, capfd):
    """A limit on the size of files fails as a full disk does; the files of an earlier checkpoint stay whole."""
    out = tmp_path / "run"
    argv = [*PRETRAIN, "--out", str(out)]
    main([*argv, "--checkpoint-freq", "32"])
    size = (out / "checkpoints" / "64" / "state.safetensors").stat().st_size
    for limit in (size - 1000, 30_000, 500):
        arm = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))  # noqa: B023, E731
        capfd.readouterr()
        assert in_process(lambda: main([*argv, "--checkpoint-freq", "32", "--overwrite"]), arm) == 2
        errors = capfd.readouterr().err
        assert "File too large" in errors and "Traceback" not in errors
        for path in out.rglob("*.safetensors"):
            kind = {"model": "agent", "reward": "intrinsic reward", "state": "training state"}[path.stem]
            load_tree(path, kind)
        assert not RunFolder(out).is_complete()
    main([*argv, "--checkpoint-freq", "32", "--resume"])
    assert RunFolder(out).is_complete()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), MemoryError("Unable to allocate"), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")],
)
def test_out_of_memory(error, capsys, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(sb3_exdm.FusedSAC, "train", fail)
    message = refused(capsys, *PRETRAIN, "--out", str(tmp_path / "run"))
    assert message.startswith("exdm: Out of memory: ") and "can be resumed" in message
