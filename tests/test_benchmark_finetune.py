"""The benchmarks of fine-tuning, with budgets of seconds: that they measure what they say, not what comes out."""

import os
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sb3_exdm.benchmark import control
from sb3_exdm.benchmark.base import METHODS
from sb3_exdm.benchmark.control import ControlBenchmark
from sb3_exdm.benchmark.finetune import GOAL, FinetuneBenchmark, _reached
from sb3_exdm.finetuning import OPERATORS
from sb3_exdm.recipes import pretrain
from sb3_exdm.runs.folder import RunFolder

MAZE = "SquareA"


# Mazes --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """A folder with one pre-training, with other settings than the benchmark would choose."""
    folder = tmp_path_factory.mktemp("explored")
    algo_kwargs = {"policy_kwargs": {"net_arch": [16, 16]}, "learning_starts": 300}
    settings = {"reward": "zero", "seed": 10, "algo_kwargs": algo_kwargs, "policy_steps": 20, "progress_bar": False}
    pretrain(f"Maze2d-{MAZE}-v0", 600, out=folder / f"{MAZE}-sac-score-10", **settings)
    return folder


@pytest.mark.slow
def test_mazes(tmp_path, explored, in_process, monkeypatch):
    quick = {"offline_updates": 3, "distill_steps": 2, "n_eval_episodes": 4}
    monkeypatch.setattr(FinetuneBenchmark, "settings", {**FinetuneBenchmark.settings, **quick})
    benchmark = FinetuneBenchmark.make(
        out=tmp_path,
        mazes=[f"Maze2d-{MAZE}-v0"],
        methods=["select", "gaussian", "scratch"],
        seeds=[10],
        steps=160,
        pretrain_steps=600,
        pretrained=explored,
    )
    report = benchmark.run()
    names = ("select-fresh", "select-reuse", "gaussian-fresh", "gaussian-reuse", "scratch-fresh")
    assert in_process == [f"{MAZE}-{name}-10" for name in names]
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == report + "\n"
    for name in ("finetune.png", "finetune-reuse.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    rows = pd.read_csv(tmp_path / "runs.csv")
    assert list(rows["folder"]) == in_process
    for row in rows.itertuples():
        folder = RunFolder(tmp_path / row.folder)
        assert row.success_160 == pytest.approx(folder.summary["success_rate"], abs=1e-4)
        config = folder.config
        assert config["env_kwargs"] == GOAL and config["reuse_data"] == row.reuse_data
        assert (config["pretrained"] is None) == (row.method == "scratch")
        assert config["operator"] == (row.method if row.method in OPERATORS else None)
    tables = [part.splitlines() for part in report.split("\n\n") if part.startswith("|")]
    assert [[line.split("|")[1].strip() for line in table[2:]] for table in tables] == [
        ["select", "gaussian", "scratch"],
        ["gaussian − select", "scratch − select"],
        ["select", "gaussian", "scratch"],  # areas
        [f"{method}, {level}" for method in ("select", "gaussian", "scratch") for level in (0.5, 0.8)],
        ["select", "gaussian"],
        ["gaussian − select"],
        ["select", "gaussian"],
        [f"{method}, {level}" for method in ("select", "gaussian") for level in (0.5, 0.8)],
        [f"{policy}, {data}" for policy in ("fine-tuned", "distilled") for data in ("new data only", "reused data")],
        [MAZE],
    ]
    assert "5 of 5 runs are complete" in report

    # What is complete is not repeated, also if its folders are named by other paths.
    monkeypatch.chdir(tmp_path)
    same = benchmark.with_changes(out=Path(), pretrained=Path(os.path.relpath(explored)))
    assert same.run() == report and len(in_process) == 5
    # Runs with other settings are neither reported as these nor thrown away.
    with pytest.raises(ValueError, match=r"holds a run with other settings \(total_timesteps, algo_kwargs\)"):
        benchmark.with_changes(steps=320).run()
    # Nor is another pre-training taken for the one that was asked for.
    with pytest.raises(ValueError, match=rf"{MAZE}-sac-score-10 holds a run with other settings \(total_timesteps\)"):
        benchmark.with_changes(pretrain_steps=700).run()
    # A part of a sweep can be reported, and says so.
    (tmp_path / f"{MAZE}-gaussian-fresh-10" / "summary.json").unlink()
    part = benchmark.with_changes(seeds=(10, 11), report_only=True).run()
    assert "4 of 10 runs are complete" in part and len(in_process) == 5
    assert next(line for line in part.splitlines() if line.startswith("| select")).split("|")[2].strip().endswith(", n = 1")
    assert not any(line.startswith("| gaussian ") for line in part.split("reused data:")[0].splitlines())


def test_reached_goals_are_counted(explored, monkeypatch):
    folder = explored / f"{MAZE}-sac-score-10"
    positions = RunFolder(folder).transitions()["next_observations"]
    for cell in ((0, 0), (4, 0)):
        monkeypatch.setitem(GOAL, "goal_cell", cell)
        count = int((np.linalg.norm(positions - cell, axis=1) <= 0.5).sum())
        (row,) = _reached([folder]).itertuples(index=False)
        assert tuple(row) == (str(cell), f"{int(count > 0)} of 1", f"{count:,}")


def test_plan_of_the_mazes(tmp_path):
    benchmark = FinetuneBenchmark.make(out=tmp_path, mazes=("SquareA", "SquareB"), seeds=(0, 1))
    runs = benchmark.plan()
    finetuned = [run for run in runs if run.folder.parent == tmp_path]
    assert len(runs) - len(finetuned) == 2 * 2 and len(finetuned) == 2 * 2 * (2 * len(METHODS) - 1)
    assert [run.config.seed for run in runs] == sorted(run.config.seed for run in runs)
    for index, run in enumerate(runs):
        assert run.requires is None or run.requires in [earlier.folder for earlier in runs[:index]]
    assert {run.requires for run in finetuned} == {
        None,
        *(tmp_path / "pretrained" / f"{maze}-sac-score-{seed}" for maze, seed in product(("SquareA", "SquareB"), (0, 1))),
    }
    # From scratch there is nothing to explore.
    assert len(benchmark.with_changes(methods=("scratch",)).plan()) == 2 * 2


# Robots -------------------------------------------------------------------------------------------------------------------


def control_benchmark(out, **settings):
    return ControlBenchmark.make(out=out, **{"methods": ["gaussian", "scratch"], "seeds": [0], **settings})


def test_plan_of_a_robot(tmp_path):
    runs = control_benchmark(tmp_path, rewards=["score", "rnd"], seeds=[0, 1]).plan()
    explored = [run.folder.name for run in runs if run.requires is None and "scratch" not in run.folder.name]
    assert explored == ["walker-score-0", "walker-rnd-0", "walker-score-1", "walker-rnd-1"]
    names = [run.folder.name for run in runs]
    assert names[:5] == [
        *("walker-score-0", "walker-stand-gaussian-score-0", "walker-rnd-0"),
        *("walker-stand-gaussian-rnd-0", "walker-stand-scratch-0"),
    ]
    assert len(runs) == 4 + 4 * 3 * 2
    assert not [name for name in names if "reuse" in name]


def test_plan_with_reused_data(tmp_path):
    plans = {
        reuse_data: {run.folder.name for run in control_benchmark(tmp_path, rewards=["score"], reuse_data=reuse_data).plan()}
        for reuse_data in ("no", "yes", "both")
    }
    assert "walker-walk-gaussian-score-reuse-0" in plans["yes"] and "walker-walk-scratch-0" not in plans["yes"]
    assert plans["both"] == plans["no"] | plans["yes"] and plans["no"] & plans["yes"] == {"walker-score-0"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain": "hopper"}, "Unknown domain 'hopper'.*walker, quadruped, jaco"),  # no published returns of experts
        ({"methods": ["magic"]}, "Unknown method 'magic'"),
        ({"methods": ["exmd"]}, "did you mean 'exdm'"),
        ({"rewards": ["gold"]}, "Unknown reward 'gold'"),
        ({"rewards": []}, "rewards must name at least one"),
        ({"reuse_data": "maybe"}, "Unknown reuse_data 'maybe'"),
        ({"reuse_data": "yes", "methods": ["scratch"]}, "no data to reuse"),
        ({"steps": 0}, "steps must be"),
        ({"report_only": True}, "nothing to report"),
    ],
)
def test_bad_settings(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        control_benchmark(tmp_path, **settings).run()


@pytest.mark.slow
# Not imported: the first import decides whether dm_control can render without a screen.
@pytest.mark.skipif(not all(map(find_spec, ("shimmy", "dm_control"))), reason="needs the extra dmc")
def test_a_robot(tmp_path, in_process, monkeypatch):
    # Two of four tasks, because the simulation takes the time.
    tasks = {env_id: task for env_id, task in control.TASKS.items() if task.name in ("stand", "flip")}
    monkeypatch.setattr(control, "TASKS", tasks)
    monkeypatch.setattr(ControlBenchmark, "settings", {"n_eval_episodes": 1, "distill_steps": 0, "critic_updates": 2})
    quick = {"algo_kwargs": {"learning_starts": 40, "policy_kwargs": {"net_arch": [8]}}, "policy_steps": 0}
    make = control.PretrainConfig.make
    monkeypatch.setattr(control.PretrainConfig, "make", lambda **settings: make(**settings, **quick))
    benchmark = control_benchmark(tmp_path, rewards=["rnd"], steps=48, pretrain_steps=80)
    planned = benchmark.plan()
    monkeypatch.setattr(control.PretrainConfig, "make", make)
    monkeypatch.setattr(ControlBenchmark, "plan", lambda self: planned)
    text = benchmark.run()
    assert "4 of 4 runs are complete" in text
    assert {"report.md", "report.png", "runs.csv"} <= {path.name for path in (tmp_path / "report").iterdir()}
    assert (tmp_path / "report" / "report.md").read_text(encoding="utf-8") == text + "\n"
    for label in ("gaussian sac, after rnd", "gaussian sac, from scratch", "| gaussian after rnd |"):
        assert label in text
    summary = RunFolder(tmp_path / "walker-flip-gaussian-rnd-0").summary
    assert summary["pretrained_reward"] == "rnd" and summary["pretrained_timesteps"] == 80
    assert summary["normalized_score"] == pytest.approx(summary["mean_reward"] / 799)
    assert benchmark.run() == text and len(in_process) == 5
