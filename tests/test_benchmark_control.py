"""The benchmark of one body and many tasks, on a budget that says nothing about learning."""

from functools import partial
from importlib.util import find_spec

import pytest

from sb3_exdm.benchmark import control
from sb3_exdm.benchmark import runs as runs_module
from sb3_exdm.benchmark.control import _runs, run_control_sweep
from sb3_exdm.benchmark.execute import run_one
from sb3_exdm.benchmark.plan import short_name
from sb3_exdm.recipes import finetune, pretrain
from sb3_exdm.runs.folder import RunFolder

# Not imported: whoever imports them first, without a screen, cannot render.
if not all(find_spec(name) for name in ("shimmy", "dm_control", "rliable")):
    pytest.skip("needs the extras dmc and plots", allow_module_level=True)


def test_names():
    assert short_name("Maze2d-SquareC-v0") == "SquareC" and short_name("URLB/hopper-hop_backward-v0") == "hopper-hop_backward"


def test_runs(tmp_path):
    explorations, runs = _runs(tmp_path, "walker", ["score", "rnd"], ["gaussian", "scratch"], [0, 1], "no", 10, 20)
    assert [run.folder.name for run in explorations] == ["walker-score-0", "walker-rnd-0", "walker-score-1", "walker-rnd-1"]
    assert [run.folder.name for run in runs[:3]] == [
        "walker-stand-gaussian-score-0",
        "walker-stand-gaussian-rnd-0",
        "walker-stand-scratch-0",
    ]
    assert len(runs) == 4 * 3 * 2
    assert {run.requires for run in runs} == {None, *(run.folder for run in explorations)}
    assert not _runs(tmp_path, "walker", ["score"], ["scratch"], [0], "no", 10, 20)[0], "from scratch nothing is explored"


def test_runs_that_reuse_data(tmp_path):
    runs = {
        reuse_data: _runs(tmp_path, "walker", ["score"], ["gaussian", "scratch"], [0], reuse_data, 10, 20)[1]
        for reuse_data in ("no", "yes", "both")
    }
    assert [run.folder.name for run in runs["yes"][:2]] == [
        "walker-stand-gaussian-score-reuse-0",
        "walker-walk-gaussian-score-reuse-0",
    ]
    assert all(run.reuse for run in runs["yes"]) and not any(run.reuse for run in runs["no"])
    assert len(runs["yes"]) == 4 and {run.folder for run in runs["both"]} == {run.folder for run in runs["no"] + runs["yes"]}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"domain": "hopper"}, "no published expert returns for 'hopper'"),
        ({"domain": "centipede"}, "centipede"),
        ({"methods": ["magic"]}, "Unknown method 'magic'"),
        ({"rewards": ["gold"]}, "Unknown reward 'gold'"),
        ({"rewards": []}, "at least one reward"),
        ({"reuse_data": "maybe"}, "reuse_data must be one of"),
        ({"reuse_data": "yes", "methods": ["scratch"]}, "nothing to use again"),
        ({"steps": 0}, "steps"),
        ({"report_only": True}, "nothing to report"),
    ],
)
def test_bad_arguments(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_control_sweep(tmp_path, **kwargs)


def test_sweep_and_report(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "run_missing", lambda runs, out, jobs: [run_one(run) for run in runs])
    quick = {"algo_kwargs": {"learning_starts": 40, "policy_kwargs": {"net_arch": [8]}}}
    monkeypatch.setattr(runs_module, "pretrain", partial(pretrain, policy_steps=0, **quick))
    monkeypatch.setattr(runs_module, "finetune", partial(finetune, critic_updates=2))
    # Two of four tasks: the body takes the time, and learns nothing here.
    tasks = {env_id: task for env_id, task in control.TASKS.items() if task.name in ("stand", "flip")}
    monkeypatch.setattr(control, "TASKS", tasks)
    monkeypatch.setattr(control, "N_EVAL_EPISODES", 1)
    sweep = dict(rewards=["rnd"], methods=["gaussian", "scratch"], seeds=[0], steps=48, pretrain_steps=80)
    text = run_control_sweep(tmp_path, **sweep)
    assert "4 of 4 runs are complete" in text
    assert {"report.md", "report.png", "runs.csv"} <= {path.name for path in (tmp_path / "report").iterdir()}
    assert (tmp_path / "report" / "report.md").read_text(encoding="utf-8") == text + "\n"
    for label in ("gaussian sac, after rnd", "gaussian sac, from scratch", "| gaussian after rnd |"):
        assert label in text
    summary = RunFolder(tmp_path / "walker-flip-gaussian-rnd-0").summary
    assert summary["pretrained_reward"] == "rnd" and summary["pretrained_timesteps"] == 80
    assert summary["normalized_score"] == pytest.approx(summary["mean_reward"] / 799)
    # What is complete is neither repeated nor taken for something else.
    monkeypatch.setattr(runs_module, "run_missing", lambda runs, out, jobs: None)
    assert run_control_sweep(tmp_path, **sweep) == text
    with pytest.raises(ValueError, match=r"other settings \(total_timesteps\)"):
        run_control_sweep(tmp_path, **{**sweep, "steps": 64})
