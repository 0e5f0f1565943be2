"""The benchmark of fine-tuning, with budgets of seconds: that it measures what it says, not what comes out."""

import csv
import inspect
import multiprocessing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch as th

from examples.experiments.adapting_speed import adapting_speed
from sb3_exdm.benchmark import finetune as benchmark
from sb3_exdm.benchmark import runs as runs_module
from sb3_exdm.benchmark.execute import run_one
from sb3_exdm.benchmark.finetune import ENV_KWARGS, _runs, run_finetune_sweep
from sb3_exdm.benchmark.finetune_report import _cell, _reached_table, _table
from sb3_exdm.benchmark.plan import METHODS, Adaptation, Exploration, in_order
from sb3_exdm.finetuning import OPERATORS
from sb3_exdm.recipes import finetune, pretrain
from sb3_exdm.recipes.evaluation import default_n_episodes
from sb3_exdm.runs.folder import RunFolder

th.set_num_threads(1)

MAZE = "SquareA"
SWEEP = dict(mazes=[f"Maze2d-{MAZE}-v0"], methods=["select", "gaussian", "scratch"], seeds=[0], steps=160, pretrain_steps=600)


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """A folder with one run of pre-training."""
    folder = tmp_path_factory.mktemp("explored")
    policy_kwargs = {"net_arch": [16, 16], "n_critics": 1, "features_extractor": "fourier"}
    pretrain(
        f"Maze2d-{MAZE}-v0",
        600,
        reward="zero",
        algo_kwargs={"policy_kwargs": policy_kwargs, "learning_starts": 300},
        out=folder / f"{MAZE}-0",
        checkpoint_freq=0,
        policy_steps=20,
        progress_bar=False,
    )
    return folder


def test_the_settings_are_those_of_the_library():
    known = {name: parameter.default for name, parameter in inspect.signature(finetune).parameters.items()}
    for name in ("n_envs", "offline_updates", "eval_freq"):
        assert getattr(runs_module, name.upper()) == known[name], name
    assert default_n_episodes("Maze2d-SquareC-v0") == benchmark.N_EVAL_EPISODES


def no_processes(method: str) -> None:
    raise AssertionError("a run was repeated")


def test_sweep(tmp_path, explored, monkeypatch):
    monkeypatch.setattr(runs_module, "OFFLINE_UPDATES", 3)
    _, runs = _runs(tmp_path, explored, SWEEP["mazes"], SWEEP["methods"], [0], "both", 160, 600)
    assert [run.folder.name for run in runs] == [
        f"{MAZE}-{name}-0" for name in ("select-fresh", "select-reuse", "gaussian-fresh", "gaussian-reuse", "scratch-fresh")
    ]
    assert [run_one(run) for run in runs] == [None] * 5
    monkeypatch.setattr(multiprocessing, "get_context", no_processes)
    report = run_finetune_sweep(tmp_path, pretrained=explored, **SWEEP)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == report + "\n"
    assert (tmp_path / "finetune.png").stat().st_size > 10_000
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    for row in rows:
        summary = RunFolder(tmp_path / row["folder"]).summary
        assert float(row["success_160"]) == pytest.approx(summary["success_rate"], abs=1e-4)
        assert summary["n_episodes"] == 50 and summary["torch_threads"] == 1
        config = RunFolder(tmp_path / row["folder"]).config
        assert config["env_kwargs"] == ENV_KWARGS
        assert config["reuse_data"] == (row["reuse_data"] == "True")
        assert (config["pretrained"] is None) == (row["method"] == "scratch")
        assert config["operator"] == (row["method"] if row["method"] in OPERATORS else None)
    tables = [part.splitlines() for part in report.split("\n\n") if part.startswith("|")]
    assert [[line.split("|")[1].strip() for line in table[2:]] for table in tables] == [
        ["select", "gaussian", "scratch"],
        ["select", "gaussian"],
        [f"{policy}, {data} data" for data in ("fresh", "reused") for policy in ("as fine-tuned", "distilled")],
        [MAZE],
    ]
    assert "5 of 5 runs are complete" in report

    # Runs with other settings are neither reported as these nor thrown away.
    with pytest.raises(ValueError, match=r"holds a run with other settings \(total_timesteps\)"):
        run_finetune_sweep(tmp_path, pretrained=explored, **{**SWEEP, "steps": 320})
    # Nor is another pre-training taken for the one that was asked for.
    with pytest.raises(ValueError, match=rf"{MAZE}-0 holds a run with other settings \(total_timesteps\)"):
        run_finetune_sweep(tmp_path, pretrained=explored, **{**SWEEP, "pretrain_steps": 700})

    # A part of a sweep can be reported, but does not pass for the whole.
    (tmp_path / f"{MAZE}-gaussian-fresh-0" / "summary.json").unlink()
    with pytest.raises(AssertionError, match="a run was repeated"):
        run_finetune_sweep(tmp_path, pretrained=explored, **SWEEP)
    part = run_finetune_sweep(tmp_path, pretrained=explored, **{**SWEEP, "seeds": [0, 1]}, report_only=True)
    assert "4 of 10 runs are complete" in part
    lines = [line.split("|") for line in part.splitlines() if line.startswith(("| select", "| gaussian"))]
    assert lines[0][2].strip().endswith(", n = 1") and lines[1][2].strip() == "–"


def test_reached_goals_are_counted(tmp_path, explored):
    run = Exploration(f"Maze2d-{MAZE}-v0", 0, 600, explored / f"{MAZE}-0")
    positions = RunFolder(run.folder).transitions()["next_observations"]
    for cell in ((0, 0), (4, 0)):
        count = int((np.linalg.norm(positions - cell, axis=1) <= 0.5).sum())
        last = _reached_table([run], {**ENV_KWARGS, "goal_cell": cell}).splitlines()[-1]
        assert [part.strip() for part in last.split("|")[3:5]] == [f"{int(count > 0)} of 1", f"{count:,}"]


def test_intervals_and_all_mazes():
    assert _cell([[0.5]], 1) == "0.50"
    assert _cell([[0.5]], 2) == "0.50, n = 1"
    assert _cell([[]], 2) == _cell([[0.5], []], 2) == "–"
    assert _cell([[0.0, 1.0]], 2) == "0.50 [0.00, 1.00]"
    run = Adaptation("Maze2d-SquareA-v0", "select", 0, 10, None, None)
    planned = [replace(run, env_id=f"Maze2d-{maze}-v0", seed=seed) for maze in ("SquareA", "SquareB") for seed in (0, 1)]
    rates = [0.2, 0.2, 0.6, 0.6]
    rows = [
        {"maze": run.task, "method": run.method, "success_10": rate, "seconds": 30.4}
        for run, rate in zip(planned, rates, strict=True)
    ]
    last = _table(rows, planned, "success_10", with_seconds=True).splitlines()[-1]
    cells = [cell.strip() for cell in last.split("|")[1:-1]]
    assert cells == ["select", "0.20 [0.20, 0.20]", "0.60 [0.60, 0.60]", "0.40 [0.40, 0.40]", "30"]


def test_order_of_work(tmp_path):
    explorations, runs = _runs(tmp_path, tmp_path / "p", ["SquareA", "SquareB"], METHODS, [0, 1], "both", 10, 10)
    assert len(explorations) == 2 * 2 and len(runs) == 2 * 2 * (2 * len(METHODS) - 1)
    ordered = in_order(explorations, runs, [0, 1])
    assert [run.seed for run in ordered] == sorted(run.seed for run in ordered), "a low seed comes after a high one"
    for index, run in enumerate(ordered):
        assert run.requires is None or run.requires in [earlier.folder for earlier in ordered[:index]]
    # What learns from scratch needs no pre-training.
    assert _runs(tmp_path, tmp_path, ["SquareA"], ["scratch"], [0], "both", 10, 10)[0] == []


def test_pretraining_is_made_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "run_missing", lambda runs, out, jobs: [run_one(run) for run in runs])
    monkeypatch.setattr(runs_module, "pretrain", partial(pretrain, policy_steps=5))
    sweep = dict(mazes=[MAZE], methods=["idql"], seeds=[0], reuse_data="no", steps=80, pretrain_steps=240)
    report = run_finetune_sweep(tmp_path, **sweep)
    assert RunFolder(tmp_path / "pretrained" / f"{MAZE}-0").summary["timesteps"] == 240
    config = RunFolder(tmp_path / f"{MAZE}-idql-fresh-0").config
    assert config["pretrained"] == str(tmp_path / "pretrained" / f"{MAZE}-0")
    assert "used again" not in report and "of 1" in report


def test_speed_refuses():
    with pytest.raises(ValueError, match="rounds must be positive"):
        adapting_speed(0)
