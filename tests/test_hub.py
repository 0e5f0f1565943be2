"""Sharing runs on the Hub: round trip, model card, and what is refused. A local server stands in for the Hub."""

import io
import json
import pickle
import shutil
import sys
import zipfile

import numpy as np
import pytest

import sb3_exdm
from sb3_exdm.cli import main
from sb3_exdm.common.serialization import ArtifactError, read_json
from sb3_exdm.runs.lock import FolderLocked
from sb3_exdm.sharing import card, hub
from tests.conftest import QUIET, tiny_finetune, tiny_pretrain
from tests.hub_stand_in import logged_in

pytest.importorskip("huggingface_hub")
REPO = "someone/square-a"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "run"
    tiny_pretrain(300, out=path)
    return path


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run, to be changed, with what is never shared."""
    path = shutil.copytree(trained, tmp_path / "run")
    (path / "notes.txt").write_text("private")
    (path / "video.mp4").write_bytes(b"\x00\x00\x00\x18ftypisom")
    return path


@pytest.fixture
def server(monkeypatch):
    with logged_in(monkeypatch) as stand_in:
        yield stand_in


def names(path):
    return {file.name for file in path.iterdir()}


def test_a_run_comes_back_as_it_went(run, server, tmp_path):
    assert sb3_exdm.push_to_hub(run, REPO) == f"{server.url}/{REPO}"
    shared = server.repos[REPO]
    assert set(shared) == names(run) - {"tensorboard", "checkpoints", "notes.txt"} | {"README.md", ".gitattributes"}
    pulled = sb3_exdm.load_from_hub(REPO, tmp_path / "pulled")
    assert names(pulled.path) == set(shared) - {"README.md", ".gitattributes"}
    for name in names(pulled.path):
        assert (pulled.path / name).read_bytes() == (run / name).read_bytes(), name
    assert not list(tmp_path.glob(".pull-*")), "nothing else is left"
    states = pulled.transitions()["observations"][:5]
    own = sb3_exdm.RunFolder(run)
    np.testing.assert_array_equal(
        pulled.load_model().predict(states, deterministic=True)[0], own.load_model().predict(states, deterministic=True)[0]
    )
    np.testing.assert_array_equal(pulled.load_reward().score(states), own.load_reward().score(states))


@pytest.mark.slow
def test_a_pulled_run_is_as_good_as_a_new_one(run, server, tmp_path):
    sb3_exdm.push_to_hub(run, REPO)
    pulled = sb3_exdm.load_from_hub(REPO, tmp_path / "pulled")
    evaluation = sb3_exdm.evaluate(pulled.path, n_episodes=2, device="cpu", env_kwargs={"max_episode_steps": 10})
    assert len(evaluation.returns) == 2
    adapted = tiny_finetune(pulled.path, steps=80, reuse_data=True, offline_updates=5, out=tmp_path / "adapted")
    assert sb3_exdm.clone(pulled.path, gradient_steps=2, **QUIET) is not None
    sb3_exdm.push_to_hub(adapted.path, "someone/adapted")
    again = sb3_exdm.load_from_hub("someone/adapted", tmp_path / "adapted-pulled")
    shutil.rmtree(pulled.path)  # the pre-training is not needed to act
    assert sb3_exdm.evaluate(again.path, n_episodes=2, device="cpu").lengths.max() <= 10


def test_the_commands(run, server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["push", str(run), REPO, "--no-transitions", "--private"])
    assert capsys.readouterr().out.strip() == f"{server.url}/{REPO}"
    assert REPO in server.private and "transitions.npz" not in server.repos[REPO]
    main(["pull", REPO])
    assert capsys.readouterr().out.strip() == "runs/square-a"
    with pytest.raises(SystemExit):
        main(["pull", REPO])
    assert "already holds a run" in capsys.readouterr().err
    (tmp_path / "runs/square-a/visits.png").unlink()
    main(["pull", REPO, "--overwrite"])
    assert "visits.png" in names(tmp_path / "runs/square-a")


def test_a_second_push_replaces_the_first(run, server):
    sb3_exdm.push_to_hub(run, REPO)
    server.repos[REPO]["LICENSE"] = b"MIT"
    sb3_exdm.push_to_hub(run, REPO, transitions=False)
    assert "transitions.npz" not in server.repos[REPO] and "LICENSE" in server.repos[REPO]


def test_transitions_are_optional_on_pull(run, server, tmp_path):
    sb3_exdm.push_to_hub(run, REPO)
    pulled = sb3_exdm.load_from_hub(REPO, tmp_path / "pulled", transitions=False)
    assert "transitions.npz" not in names(pulled.path) and "transitions.npz" not in server.downloads


# Model card ---------------------------------------------------------------------------------------------------------------


def test_the_model_card(run, server):
    yaml = pytest.importorskip("yaml")
    sb3_exdm.push_to_hub(run, REPO)
    _, metadata, text = server.repos[REPO]["README.md"].decode().split("---\n", 2)
    content = yaml.safe_load(metadata)
    assert content["library_name"] == "sb3-exdm" and "reinforcement-learning" in content["tags"]
    (result,) = content["model-index"][0]["results"]
    assert result["dataset"]["name"] == "Maze2d-SquareA-v0"
    coverage = read_json(run / "summary.json")["coverage"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]}["coverage"] == coverage
    assert "![coverage](coverage.png)" in text and f'src="{server.url}/{REPO}/resolve/main/video.mp4"' in text
    assert f'sb3_exdm.load_from_hub("{REPO}")' in text and f"| state coverage | {coverage:.4g} |" in text


def test_the_model_card_of_hostile_settings_is_text(run, monkeypatch):
    yaml = pytest.importorskip("yaml")
    attack = "a\nb: [`<script>\n```\n---"
    config = {**read_json(run / "config.json"), "env_id": attack, "reward": attack}
    monkeypatch.setattr(sb3_exdm.RunFolder, "config", config)  # which refuses such a file
    text = card.model_card(sb3_exdm.RunFolder(run), REPO, [])
    metadata, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(metadata)["tags"][-1] == attack
    assert "<script>" not in body.split("## Settings")[0]
    assert body.count("```") == 6


# Refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "policy.pkl",
        "model.zip",
        "model.pt",
        "run.py",
        "config.json/../../../escape.json",
        "../escape.png",
        "/etc/escape.png",
        "checkpoints/1000/model.safetensors",
        ".hidden.png",
        "a b.png",
        "page.html",
    ],
)
def test_a_repository_with_anything_but_data_is_refused(run, server, tmp_path, name):
    sb3_exdm.push_to_hub(run, REPO)
    server.repos[REPO][name] = b"content"
    with pytest.raises(ArtifactError, match=r"is not part of a run and may execute code\. Nothing was downloaded"):
        sb3_exdm.load_from_hub(REPO, tmp_path / "pulled")
    assert not server.downloads and not (tmp_path / "pulled").exists()


def archive(array):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, observations=array)
    return buffer.getvalue()


def pickled_archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("observations.npy", pickle.dumps([1]))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("model.safetensors", pickle.dumps({"weights": 1}), "model.safetensors is damaged, or is not what its name says"),
        ("policy.safetensors", b"", "policy.safetensors is damaged"),
        ("transitions.npz", archive(np.array([{}], dtype=object)), "holds objects, which would be unpickled"),
        ("transitions.npz", pickled_archive(), "transitions.npz is damaged"),
        ("transitions.npz", archive(np.zeros(2**23)), "unpacked it has more than 32 MiB"),
        ("visits.png", b"#!/bin/sh", "it is no .png file"),
        ("video.mp4", b"<html>", "it is no .mp4 file"),
        ("progress.csv", b"\xff\xfe\x00", "progress.csv is damaged"),
        ("config.json", b"[]", "expected a JSON object"),
        ("config.json", b'{"command": "rm"}', "names no command"),
        ("summary.json", b"{", "not valid JSON"),
    ],
    ids=lambda value: "content" if isinstance(value, bytes) else None,
)
def test_files_that_are_not_what_their_names_say_are_refused(run, server, tmp_path, name, content, reason):
    sb3_exdm.push_to_hub(run, REPO)
    server.repos[REPO][name] = content
    with pytest.raises(ArtifactError, match=reason):
        sb3_exdm.load_from_hub(REPO, tmp_path / "pulled", max_bytes=2**25)
    assert names(tmp_path) == {"run"}, "nothing is left"


def test_a_run_that_is_replaced_stays_if_the_new_one_is_refused(run, server, tmp_path):
    sb3_exdm.push_to_hub(run, REPO)
    pulled = sb3_exdm.load_from_hub(REPO, tmp_path / "pulled")
    server.repos[REPO]["model.safetensors"] = b"damaged"
    with pytest.raises(ArtifactError):
        sb3_exdm.load_from_hub(REPO, tmp_path / "pulled", overwrite=True)
    pulled.load_model()


def test_a_run_that_is_being_written_is_not_replaced(run, server, tmp_path):
    sb3_exdm.push_to_hub(run, REPO)
    pulled = sb3_exdm.load_from_hub(REPO, tmp_path / "pulled")
    before = names(pulled.path)
    with pulled.lock(), pytest.raises(FolderLocked, match="is being written by"):
        sb3_exdm.load_from_hub(REPO, tmp_path / "pulled", overwrite=True)
    assert names(pulled.path) == before


def test_an_environment_that_imports_a_module_is_refused(run, server, tmp_path):
    sb3_exdm.push_to_hub(run, REPO)
    config = json.loads(server.repos[REPO]["config.json"])
    server.repos[REPO]["config.json"] = json.dumps({**config, "env_id": "antigravity:Env-v0"}).encode()
    with pytest.raises(ArtifactError, match="names no environment"):
        sb3_exdm.load_from_hub(REPO, tmp_path / "pulled")
    assert "antigravity" not in sys.modules and not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("honest", [True, False])
def test_a_run_that_is_too_large_is_refused(run, server, tmp_path, honest):
    sb3_exdm.push_to_hub(run, REPO)
    if not honest:
        server.reported_sizes = dict.fromkeys(server.repos[REPO], 1)
    with pytest.raises(ArtifactError, match="MiB"):
        sb3_exdm.load_from_hub(REPO, tmp_path / "pulled", max_bytes=50_000)
    assert not (tmp_path / "pulled").exists() and (honest or server.downloads)


def test_links_are_not_shared(run, server, tmp_path):
    secret = tmp_path / "secret.png"
    shutil.move(run / "visits.png", secret)
    (run / "visits.png").symlink_to(secret)
    with pytest.raises(ArtifactError, match="is a link or a folder"):
        sb3_exdm.push_to_hub(run, REPO)
    assert not server.repos


def test_only_finished_runs_are_shared(run, server):
    (run / "summary.json").unlink()
    with pytest.raises(ArtifactError, match="was interrupted"):
        sb3_exdm.push_to_hub(run, REPO)
    assert not server.repos


def test_errors_of_the_hub_are_one_sentence(run, server, tmp_path, monkeypatch):
    with pytest.raises(ArtifactError, match="could not be used for 'someone/nothing'"):
        sb3_exdm.load_from_hub("someone/nothing", tmp_path / "pulled")
    with pytest.raises(ArtifactError, match=r"could not be used for 'no name/\.\./x'"):
        sb3_exdm.load_from_hub("no name/../x", tmp_path / "pulled")
    with pytest.raises(ArtifactError, match="could not be used"):
        sb3_exdm.push_to_hub(run, REPO, token="hf_wrong")
    sb3_exdm.push_to_hub(run, REPO)
    server.repos[REPO].pop("config.json")
    with pytest.raises(ArtifactError, match="holds no run of sb3-exdm"):
        sb3_exdm.load_from_hub(REPO, tmp_path / "pulled")
    with pytest.raises(FileExistsError, match="is a file"):
        sb3_exdm.load_from_hub(REPO, run / "config.json")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-exdm\[hub\]"'):
        sb3_exdm.push_to_hub(run, REPO)


def test_nothing_that_is_shared_could_execute_code():
    assert {name.rsplit(".", 1)[1] for name in hub._DATA} == {"json", "csv", "safetensors", "npz", "mp4"}
