"""Nothing gets in: files execute no code and are checked before use; arguments out of range are refused at the door."""

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import MAZE, QUIET, in_seconds, refused, tiny_pretrain
from gymnasium import spaces
from safetensors import safe_open
from safetensors.torch import save_file

import sb3_exdm
from sb3_exdm.common import resources, serialization
from sb3_exdm.common.serialization import ArtifactError, load_tree, save_tree, space_from_json
from sb3_exdm.policies import DiffusionActor
from sb3_exdm.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("in_empty_folder")
POINTS, PUSHES = spaces.Box(0.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, (1,))


class Payload:
    """Pickle that leaves a file behind when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


# Files --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["buffer.pkl", "data.npz", "policy.safetensors", "buffer"])
def test_a_pickle_is_not_read_whatever_its_name(name, capsys):
    Path(name).write_bytes(pickle.dumps(Payload()))
    assert "add --allow-pickle" in refused(capsys, "clone", name, "--out", "p.safetensors")
    assert not Path("executed").exists()
    with pytest.raises(ArtifactError, match="holds NoneType"):  # the flag allows it
        sb3_exdm.clone(name, allow_pickle=True, **QUIET)
    assert Path("executed").exists()


@pytest.mark.parametrize("name", ["run.pkl", "policy"])
def test_other_formats_are_told_by_their_content_even_where_pickles_are_allowed(name):
    np.savez(Path("data.npz"), x=np.zeros(1))
    shutil.move("data.npz", name)
    with pytest.raises(ArtifactError, match="but a zip archive"):
        sb3_exdm.clone(name, allow_pickle=True, **QUIET)
    DiffusionActor(POINTS, PUSHES, net_arch=[8]).save("p.safetensors")
    with pytest.raises(ArtifactError, match="but a safetensors file"):
        sb3_exdm.clone("p.safetensors", allow_pickle=True, **QUIET)


def test_flipped_bits_are_found():
    save_tree("file", {"weights": th.zeros(100), "step": 3}, kind="test")
    data = Path("file").read_bytes()
    for place in (-1, -100, -399, data.index(b'[\\"step\\", 3]') + 11):
        changed = bytearray(data)
        changed[place] ^= 1
        Path("file").write_bytes(bytes(changed))
        with pytest.raises(ArtifactError, match="its checksum differs"):
            load_tree("file", "test")


def test_files_without_a_checksum_are_still_read():
    save_tree("file", {"weights": th.arange(3)}, kind="test")
    with safe_open("file", framework="pt") as file:
        header, tensors = file.metadata(), {"0": file.get_tensor("0").clone()}
    del header["checksum"]
    save_file(tensors, "old", metadata=header)
    assert load_tree("old", "test")["weights"].tolist() == [0, 1, 2]


def test_weights_that_are_not_finite_are_refused():
    save_tree("file", {"weights": th.tensor([1.0, float("nan")])}, kind="test")
    with pytest.raises(ArtifactError, match="NaN or infinity"):
        load_tree("file", "test")


@pytest.mark.parametrize("structure", ["3", '{"dict": 1}', '{"x": []}', '{"tensor": "9"}', '{"a": 1, "b": 2}', "[" * 100_000])
def test_structures_that_nothing_writes(structure):
    header = {"format_version": "2", "kind": "test", "structure": structure}
    save_file({"0": th.zeros(1)}, "file", metadata=header)
    with pytest.raises(ArtifactError, match="file"):
        load_tree("file", "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_sampling_steps": 10**9}, "n_sampling_steps"),
        ({"net_arch": [30_000, 30_000]}, "describes networks of 900,000,000 weights"),
        ({"net_arch": "wide"}, "net_arch"),
        ({"frequencies": [None]}, "frequencies"),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_policy_with_settings_out_of_range_is_not_built(changes, message):
    actor = DiffusionActor(POINTS, PUSHES, net_arch=[8])
    actor.config.update(changes)
    actor.save("p.safetensors")
    with in_seconds(10), pytest.raises(ArtifactError, match=message):
        DiffusionActor.load("p.safetensors")


@pytest.mark.parametrize(
    "description",
    [
        None,
        {},
        {"type": "Box", "shape": [10**9], "dtype": "float32", "low": "0", "high": "1"},
        {"type": "Box", "shape": [2], "dtype": "O", "low": "0", "high": "1"},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": "1", "high": "0"},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": ["0"], "high": "1"},
        {"type": "Box", "shape": [2], "dtype": "float32", "low": "nan", "high": "1"},
        {"type": "Discrete", "n": 10**30, "start": 0},
        {"type": "MultiBinary", "shape": [10**5, 10**5]},
        {"type": "Graph"},
    ],
)
def test_spaces_that_cannot_be(description):
    with pytest.raises(ArtifactError):
        space_from_json(description)


@pytest.fixture(scope="module")
def explored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("safety") / "run"
    tiny_pretrain(240, out=folder, policy_steps=2, checkpoint_freq=0)
    return folder


def edited(explored: Path, **changes: Any) -> Path:
    """Copy of a run with changes in its config.json; the value ``...`` removes a key."""
    folder = Path(shutil.copytree(explored, "edited"))
    content = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return folder


@pytest.mark.slow
def test_the_environment_of_a_run_folder_never_imports_a_module(explored, monkeypatch):
    Path("planted.py").write_text("import pathlib; pathlib.Path('executed').touch()\n")
    monkeypatch.syspath_prepend(".")
    folder = edited(explored, env_id="planted:Maze2d-SquareA-v0")
    for read in (
        lambda: sb3_exdm.evaluate(folder, n_episodes=1),
        lambda: sb3_exdm.finetune(pretrained=folder, total_timesteps=8, **QUIET),
        lambda: sb3_exdm.clone(folder, **QUIET),
        RunFolder(folder).record,
    ):
        with pytest.raises(ArtifactError, match="names no environment, but 'planted:"):
            read()
    assert not Path("executed").exists() and "planted" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": ...}, "lacks env_id"),
        ({"env_id": 3}, "env_id must be str"),
        ({"algo": "x"}, "Unknown algo 'x'"),
        ({"algo": [1]}, "algo must be str"),
        ({"algo_kwargs": 3}, "algo_kwargs must be"),
        ({"algo_kwargs": ...}, "lacks 'algo_kwargs'"),
        ({"algo_kwargs": {"policy": "MlpPolicy", "gamma": 5}}, "gamma"),
        ({"algo_kwargs": {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [9000, 9000]}}}, "describes networks"),
        ({"env_kwargs": [1]}, "env_kwargs must be"),
        ({"command": {}}, "names no command"),
    ],
)
def test_wrong_values_in_a_config(explored, changes, message):
    with pytest.raises(ArtifactError, match=message):
        sb3_exdm.evaluate(edited(explored, **changes), n_episodes=1, device="cpu")


@pytest.mark.slow
def test_deeply_nested_json_and_transitions_without_observations(explored):
    folder = edited(explored)
    np.savez(folder / "transitions.npz", actions=np.zeros((3, 2)))
    with pytest.raises(ArtifactError, match="lacks observations"):
        sb3_exdm.clone(folder, **QUIET)
    (folder / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ArtifactError, match="nested too deeply"):
        RunFolder(folder).record()


# Arguments ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--threads", "100000"], "threads must be an integer of at most 256"),
        (["--n-envs", "100000000"], "n_envs must be an integer of at most 10,000"),
        (["--seed", str(10**30)], "seed must be"),
        (["--bin-width", "nan"], "bin_width must be finite"),
        (["--out", ""], "The value of --out is empty"),
        (["--out="], "The value of --out is empty"),
        (["--out", "a" * 300], "longer than 200 bytes"),
        (["--out", "new/" + "a" * 300], "longer than 200 bytes"),
        (["--out", "/proc/run"], "No such file"),
        (["--seeds", "0-99999999999"], "at most 1000 seeds"),
        (["--algo-kwargs", '{"gamma": NaN}'], "NaN is not a number in JSON"),
        (["--algo-kwargs", '{"gamma": 1e999}'], "must be finite"),
        (["--algo-kwargs", '{"a":' * 100_000], "nested too deeply"),
        (["--env-kwargs", '{"layout": 1.5}'], "Cannot make the environment"),
    ],
)
def test_command_lines(capsys, argv, message):
    assert message in refused(capsys, "pretrain", "--env", MAZE, "--steps", "8", *argv)
    assert list(Path().iterdir()) == []


@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error():
    for make in (
        lambda: sb3_exdm.pretrain(MAZE, 8, device="cuda", progress_bar=False),
        lambda: sb3_exdm.ScoreModel(POINTS, device="cuda"),
        lambda: DiffusionActor(POINTS, PUSHES, device="cuda"),
    ):
        with pytest.raises(ValueError, match="The device 'cuda' is not there"):
            make()


HUGE = 10**30


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"algo_kwargs": {"gamma": 5}}, "gamma"),
        ({"algo_kwargs": {"batch_size": 0}}, "batch_size"),
        ({"algo_kwargs": {"ent_coef": -1}}, "ent_coef"),
        ({"algo_kwargs": {"ent_coef": "auto_-1"}}, "ent_coef"),
        ({"algo_kwargs": {"learning_rate": "x"}}, "learning_rate"),
        ({"algo_kwargs": {"train_freq": [0, "step"]}}, "train_freq"),
        ({"algo_kwargs": {"tau": HUGE}}, "tau"),
        ({"algo_kwargs": {"buffer_size": 10**9}}, "takes .* lower buffer_size"),
        ({"algo": "ppo", "n_envs": 10_000, "algo_kwargs": {"n_steps": 10**6}}, "takes .* lower n_steps"),
        ({"algo_kwargs": {"policy_kwargs": {"net_arch": [0]}}}, "net_arch"),
        ({"algo_kwargs": {"policy_kwargs": {"net_arch": {"pi": [-1], "qf": [8]}}}}, "net_arch"),
        ({"algo_kwargs": {"policy_kwargs": {"net_arch": [60_000, 60_000]}}}, "3,600,000,000 weights"),
        ({"algo_kwargs": {"policy_kwargs": {"features_extractor_kwargs": {"n_frequencies": 10**9}}}}, "n_frequencies"),
        ({"algo_kwargs": {"replay_buffer_kwargs": {"batch_size": -1}}}, "batch_size"),
        ({"reward_kwargs": {"n_levels": HUGE}}, "n_levels"),
        ({"reward_kwargs": {"ema_rate": 1.0}}, "ema_rate"),
        ({"env_kwargs": {"x": float("inf")}}, "env_kwargs.* must be finite"),
        ({"env_kwargs": {"x": 1}}, "Cannot make the environment"),
        ({"n_envs": 10_000, "vec_env": "subproc"}, "A process for each of 10,000 environments"),
        ({"total_timesteps": HUGE}, "total_timesteps"),
    ],
)
def test_arguments_in_python(settings, name, monkeypatch):
    monkeypatch.setattr(resources, "available_memory", lambda: 2**33)
    with pytest.raises(ValueError, match=name):
        sb3_exdm.pretrain(MAZE, out="run", **{"total_timesteps": 8, **QUIET, **settings})
    assert list(Path().iterdir()) == []


def test_arguments_that_fail_in_the_first_step_only():
    with pytest.raises(ValueError, match="Cannot step the environment 'Pendulum-v1'"):
        sb3_exdm.pretrain("Pendulum-v1", 8, env_kwargs={"g": "x"}, out="run", **QUIET)
    assert list(Path().iterdir()) == []


def test_optimizers_of_other_weights_are_refused():
    first, second = (th.optim.Adam([th.nn.Parameter(th.ones(n))]) for n in (2, 3))
    first.param_groups[0]["params"][0].sum().backward()
    first.step()
    with pytest.raises(ValueError, match=r"has the shape \(2,\), not \(3,\)"):
        serialization.load_optimizer(second, first.state_dict())


@pytest.mark.parametrize("steps", [0, -1, 10**15, 2.5, "x"])
def test_episodes_without_an_end_are_refused(steps):
    with pytest.raises(ValueError, match=r"env_kwargs\['max_episode_steps'\] must be"):
        sb3_exdm.pretrain("Maze2d-SquareA-v0", 64, env_kwargs={"max_episode_steps": steps}, **QUIET)
