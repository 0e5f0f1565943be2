"""Explored transitions as data sets of Minari, and back."""

import json
import sys

import gymnasium as gym
import numpy as np
import pytest

import sb3_exdm
from sb3_exdm.cli import main
from sb3_exdm.common.serialization import ArtifactError, read_json, write_json
from sb3_exdm.runs.config import PretrainConfig
from tests.conftest import QUIET

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@pytest.fixture
def run(tmp_path):
    """
    A run with the transitions of two environments, a step of each after the other: the first ends after 3 steps by its own
    and after 5 by its time limit, the second never.
    """
    folder = sb3_exdm.RunFolder(tmp_path / "run")
    config = PretrainConfig(env_id="Maze2d-SquareA-v0", total_timesteps=12, env_kwargs={"reward_type": "dense"})
    folder.create({"command": "pretrain", **config.to_dict()})
    n, envs = 12, np.tile([0, 1], 6).astype(np.int16)
    ends = {"terminated": np.zeros(n, dtype=bool), "truncated": np.zeros(n, dtype=bool)}
    ends["terminated"][4] = ends["truncated"][8] = True
    folder.save_transitions(
        {
            "observations": np.arange(2 * n, dtype=np.float32).reshape(n, 2) / 100,
            "next_observations": np.arange(2 * n, dtype=np.float32).reshape(n, 2) / 100 + 0.005,
            "actions": np.linspace(-0.9, 0.9, 2 * n, dtype=np.float32).reshape(n, 2),
            "rewards": -np.arange(n, dtype=np.float32),
            **ends,
            "env_indices": envs,
        }
    )
    return folder


def test_episodes_are_those_of_the_environments(run):
    sb3_exdm.export_minari(run.path, "maze2d/square-a-v0")
    episodes = list(minari.load_dataset("maze2d/square-a-v0").iterate_episodes())
    transitions = run.transitions()
    rows = [[0, 2, 4], [6, 8], [10], [1, 3, 5, 7, 9, 11]]
    assert len(episodes) == len(rows)
    for episode, expected in zip(episodes, rows, strict=True):
        np.testing.assert_array_equal(episode.observations[:-1], transitions["observations"][expected])
        np.testing.assert_array_equal(episode.observations[-1], transitions["next_observations"][expected[-1]])
        for name in ("actions", "rewards"):
            np.testing.assert_array_equal(getattr(episode, name), transitions[name][expected])
        assert not (episode.terminations | episode.truncations)[:-1].any()
    assert [(episode.terminations[-1], episode.truncations[-1]) for episode in episodes] == [
        (True, False),
        (False, True),
        (False, True),
        (False, True),
    ]


def test_metadata(run, datasets):
    path = sb3_exdm.export_minari(run.path, "square-a-v0", author="A. Person", author_email="a@example.org")
    assert path == datasets / "square-a-v0"
    dataset = minari.load_dataset("square-a-v0")
    metadata = dataset.storage.metadata
    assert metadata["author"] == {"A. Person"} or "A. Person" in str(metadata["author"])
    assert metadata["algorithm_name"] == "sb3-exdm sac with the intrinsic reward score"
    description = metadata["description"]
    assert json.loads(description.split("Settings: ")[1]) == run.config
    env = dataset.recover_environment()
    assert env.spec.id == "Maze2d-SquareA-v0" and env.spec.kwargs["reward_type"] == "dense"
    assert "reward_type" not in gym.spec("Maze2d-SquareA-v0").kwargs, "the registered specification stays as it was"
    assert dataset.observation_space == env.observation_space


@pytest.mark.slow
def test_there_and_back(run, tmp_path, capsys):
    main(["export", str(run.path), "maze2d/a-v0"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "datasets/maze2d/a-v0")
    main(["clone", "maze2d/a-v0", "--out", str(tmp_path / "policy.safetensors"), "--steps", "2", "--quiet", "--device", "cpu"])
    actor = sb3_exdm.DiffusionActor.load(tmp_path / "policy.safetensors", "cpu")
    cloned = sb3_exdm.clone("maze2d/a-v0", gradient_steps=2, **QUIET)
    state = np.zeros((1, 2), dtype=np.float32)
    np.testing.assert_array_equal(actor.predict(state, True), cloned.predict(state, True))


def test_refusals(run, tmp_path, monkeypatch):
    sb3_exdm.export_minari(run.path, "a-v0")
    with pytest.raises(ValueError, match="There is a local data set 'a-v0' already"):
        sb3_exdm.export_minari(run.path, "a-v0")
    with pytest.raises(ValueError, match=r"[Mm]alformed|not a valid"):
        sb3_exdm.export_minari(run.path, "no id")
    write_json(run.path / "config.json", {**read_json(run.path / "config.json"), "env_id": "Nowhere-v0"})
    with pytest.raises(ArtifactError, match="which is not known: Cannot make the environment 'Nowhere-v0'"):
        sb3_exdm.export_minari(run.path, "b-v0")
    (run.path / "transitions.npz").unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        sb3_exdm.export_minari(run.path, "b-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-exdm\[minari\]"'):
        sb3_exdm.export_minari(run.path, "b-v0")


def test_a_data_set_is_written_whole_or_not_at_all(run, datasets, monkeypatch):
    def fail(*_, **__):
        (datasets / "a-v0" / "data").mkdir(parents=True)
        raise OSError("no space left")

    monkeypatch.setattr(minari, "create_dataset_from_buffers", fail)
    with pytest.raises(OSError, match="no space left"):
        sb3_exdm.export_minari(run.path, "a-v0")
    assert not (datasets / "a-v0").exists()
