"""Aggregates over fine-tuning runs: which runs enter, under which name, and whether the numbers are right."""

import csv
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from sb3_exdm.benchmark.curves import area, curve_figures, learning_curve, steps_to
from sb3_exdm.benchmark.report import SCORES, report
from sb3_exdm.benchmark.statistics import mean_interval, rate_interval, success_interval
from sb3_exdm.cli import main
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.plots import plot_aggregates
from sb3_exdm.runs.folder import RunFolder

A, B = "Maze2d-SquareA-v0", "Maze2d-SquareB-v0"
FILES = ["aggregates.csv", "report.md", "report.png", "runs.csv"]


def make_run(folder: Path, score: float | None = 0.5, finished: bool = True, summary=None, **config) -> Path:
    """A run folder as far as a report looks into it."""
    config = {
        "command": "finetune",
        "env_id": A,
        "algo": "sac",
        "policy": "diffusion",
        "operator": "select",
        "pretrained": f"runs/explored-{config.get('seed', 0)}",
        "reuse_data": False,
        "reward": "score",  # that an exploration must name
        "seed": 0,
        "n_envs": 8,
        "env_kwargs": {},
        "operator_kwargs": {},
        "offline_updates": 5000,
        **config,
    }
    config.setdefault("algo_kwargs", {"gamma": 0.98, "policy_kwargs": {"pretrained": config["pretrained"]}})
    RunFolder(folder).create(config)
    if finished:
        keys = ("command", "env_id", "algo", "policy", "operator", "pretrained", "reuse_data", "seed", "n_envs")
        results = {"timesteps": 20_000, "mean_reward": -7.0, "success_rate": score, **(summary or {})}
        RunFolder(folder).write_summary({**{key: config[key] for key in keys}, **results})
    return folder


def make_sweep(folder: Path, scores: np.ndarray, name: str = "run", normalized: bool = False, **config) -> Path:
    """Runs with scores (n_seeds, n_tasks)."""
    for (seed, task), score in np.ndenumerate(scores):
        summary = {"normalized_score": float(score)} if normalized else None
        make_run(folder / f"{name}-{task}-{seed}", float(score), summary=summary, seed=seed, env_id=f"Task{task}-v0", **config)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def methods_of(folder: Path) -> list[str]:
    """What the methods are called."""
    return list(dict.fromkeys(row["method"] for row in rows_of(folder / "runs.csv")))


def cells(text: str, method: str) -> list[str]:
    """The line of a method in the first table."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {method} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


# Numbers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds, n_tasks", [(3, 4), (5, 3), (2, 1), (10, 3)])
def test_numbers(tmp_path, n_seeds, n_tasks):
    has_bootstrap = n_seeds >= 10
    if has_bootstrap:
        pytest.importorskip("rliable")
    scores = np.random.default_rng(n_seeds).uniform(0, 1.4, size=(n_seeds, n_tasks))
    sweep = make_sweep(tmp_path / "sweep", scores, normalized=True)
    report([sweep], tmp_path / "out", reps=200)
    rows = {row["aggregate"]: row for row in rows_of(tmp_path / "out" / "aggregates.csv")}
    # A quarter of all scores is cut off at each end, rounded down.
    n_cut = int(0.25 * scores.size)
    expected = {
        "mean": scores.mean(),
        "IQM": np.sort(scores.ravel())[n_cut : scores.size - n_cut].mean(),
        "median": np.median(scores.mean(axis=0)),
        "optimality gap": np.maximum(1 - scores, 0).mean(),
    }
    assert list(rows) == list(expected)
    for name, row in rows.items():
        assert float(row["value"]) == pytest.approx(expected[name], abs=2e-6), name
        assert (row["score"], row["seeds"], row["tasks"]) == ("normalized_score", f"{n_seeds}", f"{n_tasks}")
        if name == "mean" or has_bootstrap:
            assert float(row["low"]) < float(row["value"]) < float(row["high"]), name
        else:
            assert row["low"] == row["high"] == "", name
    # The unit is the seed: tasks of one pre-training are not independent.
    interval = mean_interval(scores.mean(axis=1))
    assert [float(rows["mean"][end]) for end in ("low", "high")] == pytest.approx([interval.low, interval.high], abs=1e-6)


@pytest.mark.slow
def test_intervals_are_those_of_a_stratified_bootstrap(tmp_path):
    pytest.importorskip("rliable")
    rng = np.random.default_rng(0)
    # The tasks are far apart and their seeds close together: resampling across tasks would give far wider intervals.
    scores = np.array([0.1, 0.9]) + 0.02 * rng.standard_normal((10, 2))
    report([make_sweep(tmp_path / "sweep", scores)], tmp_path / "out", reps=2000)
    row = next(row for row in rows_of(tmp_path / "out" / "aggregates.csv") if row["aggregate"] == "optimality gap")
    resamples = 1 - scores[rng.integers(10, size=(20_000, 10, 2)), np.arange(2)].mean(axis=(1, 2))
    assert [float(row["low"]), float(row["high"])] == pytest.approx(list(np.quantile(resamples, [0.025, 0.975])), abs=1e-3)


@pytest.mark.slow
def test_the_same_runs_give_the_same_files(tmp_path):
    pytest.importorskip("rliable")
    sweep = make_sweep(tmp_path / "sweep", np.random.default_rng(0).random((10, 2)))
    np.random.seed(1)
    expected_draw = np.random.RandomState(1).random()
    first = report([sweep], tmp_path / "first", reps=300)
    assert np.random.random() == expected_draw, "the generator of numpy was left in another state"
    assert report([sweep], tmp_path / "second", reps=300) == first
    for name in ("aggregates.csv", "runs.csv", "report.md"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    report([sweep], tmp_path / "third", reps=300, seed=1)
    assert (tmp_path / "first" / "aggregates.csv").read_bytes() != (tmp_path / "third" / "aggregates.csv").read_bytes()
    # Nor do they depend on which other methods are there.
    make_sweep(sweep, np.full((10, 2), 0.5), name="another", operator="idql")
    both = report([sweep], tmp_path / "both", reps=300)
    method = "diffusion select, pre-trained"
    assert cells(both, method) == cells(first, method)


def test_a_single_seed_has_no_interval(tmp_path):
    text = report([make_sweep(tmp_path / "sweep", np.array([[0.25, 0.75]]))], tmp_path / "out")
    assert cells(text, "diffusion select, pre-trained") == [
        "diffusion select, pre-trained",
        "1",
        "2",
        *("0.500", "0.500", "0.500", "0.500"),
    ]
    assert "- diffusion select, pre-trained: a single seed, so there are no intervals." in text
    assert [row["low"] for row in rows_of(tmp_path / "out" / "aggregates.csv")] == [""] * 4


def test_tables_of_tasks_and_differences(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", np.array([[0.0, 0.4], [1.0, 0.6]]))
    for seed, score in enumerate((0.1, 0.2)):
        make_run(sweep / f"scratch-{seed}", score, seed=seed, env_id="Task1-v0", pretrained=None)
    text = report([sweep], tmp_path / "out", reps=50)
    tasks, differences = ([line.split("|")[1:-1] for line in text.split("\n\n")[i].splitlines()] for i in (-3, -1))
    tasks, differences = ([[cell.strip() for cell in row] for row in table] for table in (tasks, differences))
    both, one = success_interval(1, 2), rate_interval([0.4, 0.6])
    assert tasks[0] == ["method", "Task0-v0", "Task1-v0", "all"]
    assert tasks[2][:3] == [
        "diffusion select, pre-trained",
        f"0.500 [{both.low:.3f}, {both.high:.3f}]",
        f"0.500 [{one.low:.3f}, {one.high:.3f}]",
    ]
    assert tasks[3][0] == "diffusion select, from scratch" and tasks[3][1] == tasks[3][3] == "–"
    assert differences[2][0] == "diffusion select, from scratch − diffusion select, pre-trained"
    paired = mean_interval([0.1 - 0.4, 0.2 - 0.6])
    assert differences[2][1:] == ["–", f"-0.350 [{paired.low:+.3f}, {paired.high:+.3f}]", "–"]


# Curves -------------------------------------------------------------------------------------------------------------------


def write_curve(folder: Path, rates: list[float]) -> None:
    rows = [f"{1000 * i},{1.5 * i},{rate - 7.0},{rate}" for i, rate in enumerate(rates)]
    (folder / "progress.csv").write_text("\n".join(["timesteps,seconds,mean_reward,success_rate", *rows, ""]))


def test_area_and_steps_of_a_curve():
    timesteps, values = np.array([0.0, 1000.0, 3000.0]), np.array([0.0, 1.0, 0.6])
    assert area(timesteps, values) == pytest.approx((500.0 + 1600.0) / 3000.0)
    assert steps_to(0.5, timesteps, values) == 1000.0 and steps_to(0.0, timesteps, values) == 0.0
    assert steps_to(1.1, timesteps, values) == np.inf
    assert np.isnan(area(timesteps[:1], values[:1])) and np.isnan(steps_to(0.5, np.zeros(0), np.zeros(0)))
    assert list(curve_figures(timesteps, values)) == ["area", "steps_to_0.5", "steps_to_0.8"]


def test_curves_in_the_report(tmp_path):
    for seed, rates in enumerate(([0.0, 0.5, 1.0], [0.0, 0.0, 0.7], [0.0, 0.9, 0.9])):
        write_curve(make_run(tmp_path / f"a-{seed}", rates[-1], seed=seed), rates)
        write_curve(make_run(tmp_path / f"b-{seed}", 0.0, seed=seed, pretrained=None), [0.0, 0.0, 0.0])
    text = report(sorted(tmp_path.glob("?-?")), tmp_path / "out", reps=50)
    lines = {line.split("|")[1].strip(): line for line in text.split("Steps to a success rate")[1].splitlines() if "|" in line}
    assert lines["diffusion select, pre-trained, 0.5"].split("|")[2].strip() == "1,000"
    assert lines["diffusion select, pre-trained, 0.8"].split("|")[2].strip() == "2,000 (2 of 3)"
    assert lines["diffusion select, from scratch, 0.8"].split("|")[2].strip() == "not reached (0 of 3)"
    areas = [float(row["area"]) for row in rows_of(tmp_path / "out" / "runs.csv")]
    assert areas == pytest.approx([0.5, 0.175, 0.675, 0.0, 0.0, 0.0])
    assert "which is the mean success rate while learning" in text


def test_a_run_without_a_curve_has_no_area(tmp_path):
    timesteps, values = learning_curve(make_run(tmp_path / "run"), "success_rate")
    assert len(timesteps) == len(values) == 0
    assert "Area under" not in report([tmp_path / "run"], tmp_path / "out", reps=50)


# Scores -------------------------------------------------------------------------------------------------------------------


def test_the_first_score_that_all_runs_have(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", 0.5, seed=seed, summary={"normalized_score": 0.9}) for seed in (0, 1)]
    text = report(runs, tmp_path / "out", reps=20)
    assert text.startswith("Normalized score at the end of fine-tuning: 2 runs, 1 method, 1 task.")
    assert cells(text, "diffusion select, pre-trained")[3] == "0.900"
    runs.append(make_run(tmp_path / "2", 0.5, seed=2, summary={"normalized_score": None}))
    assert report(runs, tmp_path / "out", reps=20).startswith("Success rate")
    with pytest.raises(ValueError, match=r"1 run of 3 without normalized_score, such as .*2\."):
        report(runs, tmp_path / "out", score="normalized_score")


def test_returns_are_for_one_environment(tmp_path):
    runs = [
        make_run(tmp_path / f"{seed}", None, seed=seed, summary={"mean_reward": value})
        for seed, value in enumerate((-1234, 0))
    ]
    with pytest.raises(ValueError, match="--score mean_reward, for one environment only: those of different tasks are not"):
        report(runs, tmp_path / "out")
    text = report(runs, tmp_path / "out", score="mean_reward", reps=50)
    assert text.startswith("Return at the end") and "gap" not in text
    assert cells(text, "diffusion select, pre-trained")[3:] == ["-617.0 [-8,456.7, 7,222.7]", "-617.0", "-617.0"]
    runs.append(make_run(tmp_path / "another", None, env_id=B))
    with pytest.raises(ValueError, match=rf"not comparable, .* these runs are of {A}, {B}"):
        report(runs, tmp_path / "out", score="mean_reward")
    with pytest.raises(
        ValueError, match="Unknown score 'fame'; choose one of auto, normalized_score, success_rate, mean_reward"
    ):
        report(runs, tmp_path / "out", score="fame")


# Names --------------------------------------------------------------------------------------------------------------------


def test_names_of_methods(tmp_path):
    gaussian = {"policy": "gaussian", "operator": None}
    make_run(tmp_path / "s" / "a", summary={"pretrained_reward": "score", "pretrained_timesteps": 100_000})
    make_run(tmp_path / "s" / "b", summary={"pretrained_reward": "score"}, reuse_data=True)
    make_run(tmp_path / "s" / "c", summary={"pretrained_reward": "rnd"}, **gaussian)
    make_run(tmp_path / "s" / "d", summary={"pretrained_reward": None}, pretrained=None, **gaussian)
    make_run(tmp_path / "s" / "e", **gaussian, algo="ppo")
    report([tmp_path / "s"], tmp_path / "out")
    assert methods_of(tmp_path / "out") == [
        "diffusion select, after score",
        "diffusion select, after score, reused data",
        "gaussian sac, after rnd",
        "gaussian sac, from scratch",
        "gaussian ppo, pre-trained",
    ]


def test_runs_of_other_lengths_are_not_pooled(tmp_path):
    for i, (env_id, steps) in enumerate([(A, 20_000), (B, 20_000), (A, 40_000), (B, 40_000)]):
        make_run(tmp_path / "s" / f"{i}", env_id=env_id, seed=i // 2, summary={"timesteps": steps})
        summary = {"pretrained_reward": "rnd", "pretrained_timesteps": 10 * steps}
        make_run(tmp_path / "s" / f"{i}-idql", env_id=env_id, seed=i // 2, operator="idql", summary=summary)
    make_run(tmp_path / "s" / "scratch", pretrained=None)
    text = report([tmp_path / "s"], tmp_path / "out")
    assert methods_of(tmp_path / "out") == [
        "diffusion select, pre-trained, 20,000 steps",
        "diffusion idql, after rnd, 200,000 steps of pre-training",
        "diffusion select, pre-trained, 40,000 steps",
        "diffusion idql, after rnd, 400,000 steps of pre-training",
        "diffusion select, from scratch",
    ]
    assert "- The methods do not cover the same tasks, so their aggregates are not comparable: diffusion select, from scratch "
    assert f"are not comparable: diffusion select, from scratch lacks {B}." in text
    assert [cells(text, method)[2] for method in methods_of(tmp_path / "out")] == ["2"] * 4 + ["1 of 2"]


def test_runs_with_other_settings_are_not_pooled(tmp_path):
    # Settings that depend on the task do not set methods apart, nor does the folder of the pre-training.
    for (i, env_id), seed in product(enumerate((A, B)), (0, 1)):
        settings = {"batch_size": 128 * (i + 1), "policy_kwargs": {"net_arch": [8], "pretrained": f"{seed}"}}
        make_run(tmp_path / "s" / f"{i}-{seed}", env_id=env_id, seed=seed, algo_kwargs=settings)
    report([tmp_path / "s"], tmp_path / "out", reps=20)
    assert methods_of(tmp_path / "out") == ["diffusion select, pre-trained"]
    settings = {"batch_size": 128, "policy_kwargs": {"net_arch": [16]}}
    make_run(tmp_path / "s" / "other", seed=2, algo_kwargs=settings, operator_kwargs={"n_candidates": 4})
    report([tmp_path / "s"], tmp_path / "out", reps=20)
    assert methods_of(tmp_path / "out") == [
        "diffusion select, pre-trained, algo_kwargs.policy_kwargs.net_arch=[8]",
        "diffusion select, pre-trained, algo_kwargs.policy_kwargs.net_arch=[16], operator_kwargs.n_candidates=4",
    ]


def test_settings_that_did_not_exist_yet_are_none(tmp_path):
    make_run(tmp_path / "s" / "before", seed=0)
    make_run(tmp_path / "s" / "since", seed=1, kl_steps=0)
    report([tmp_path / "s"], tmp_path / "out", reps=20)
    assert methods_of(tmp_path / "out") == ["diffusion select, pre-trained"]
    make_run(tmp_path / "s" / "other", seed=2, kl_steps=100)
    report([tmp_path / "s"], tmp_path / "out", reps=20)
    assert methods_of(tmp_path / "out") == [
        "diffusion select, pre-trained",
        "diffusion select, pre-trained, kl_steps=100",
    ]


def test_arguments_of_the_environment_make_another_task(tmp_path):
    kwargs = [{"terminate_on_success": True}, {"terminate_on_success": True, "goal_cell": "farthest"}]
    runs = [make_run(tmp_path / f"{i}", env_kwargs=kwargs[i]) for i in (0, 1)]
    runs.append(make_run(tmp_path / "b", env_id=B, env_kwargs=kwargs[1]))
    report(runs, tmp_path / "out")
    tasks = [row["task"] for row in rows_of(tmp_path / "out" / "runs.csv")]
    assert tasks == [A, f'{A} (goal_cell="farthest")', B]


# Which runs ---------------------------------------------------------------------------------------------------------------


def test_interrupted_runs_and_those_of_pretraining_in_a_folder_are_left_out(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", np.array([[0.2], [0.4]]))
    for seed in (2, 3):
        make_run(sweep / f"interrupted-{seed}", finished=False, seed=seed, env_id="Task0-v0")
    make_run(sweep / "explored", command="pretrain")
    make_run(sweep / "explored-too", command="pretrain", finished=False)
    (sweep / "empty").mkdir()
    text = report([sweep, sweep / "empty" / ".." / "run-0-1", sweep / "empty" / ".."], tmp_path / "out", reps=20)
    assert f"- Left out: 2 interrupted runs in {sweep}." in text
    assert [float(row["value"]) for row in rows_of(tmp_path / "out" / "runs.csv")] == [0.2, 0.4], "a run counts twice"


def test_only_complete_seeds_are_aggregated(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", np.array([[0.0, 1.0], [0.2, 0.8], [0.9, 0.9]]))
    (sweep / "run-1-2" / "summary.json").unlink()
    make_run(sweep / "lone-0", operator="idql", env_id="Task0-v0")
    make_run(sweep / "lone-1", operator="idql", env_id="Task1-v0", seed=1)
    text = report([sweep], tmp_path / "out", reps=20)
    assert "- diffusion select, pre-trained: the aggregates leave out the seeds that lack a task: 2 (no Task1-v0)." in text
    assert (
        "- diffusion idql, pre-trained: not in the aggregates, as no seed has a run in every task. Runs: Task0-v0 1, " in text
    )
    aggregates = rows_of(tmp_path / "out" / "aggregates.csv")
    assert {(row["method"], row["seeds"], row["tasks"]) for row in aggregates} == {("diffusion select, pre-trained", "2", "2")}
    assert float(next(row["value"] for row in aggregates if row["aggregate"] == "mean")) == 0.5
    assert "| 0.367 [" in text, "a run that is not aggregated is missing in the table of its task"
    with pytest.raises(ValueError, match=r"nothing to aggregate\. diffusion idql, .* Task0-v0 1, Task1-v0 1\."):
        report([sweep / "lone-0", sweep / "lone-1"], tmp_path / "out")


def test_refused_runs(tmp_path):
    interrupted = make_run(tmp_path / "sweep" / "interrupted", finished=False)
    explored = make_run(tmp_path / "explored", command="pretrain")
    damaged = make_run(tmp_path / "damaged")
    (damaged / "summary.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for runs, message in (
        ([], "name at least one run folder"),
        ([tmp_path / "nowhere"], "nowhere does not exist"),
        ([tmp_path / "file"], "file is not a folder"),
        ([tmp_path / "empty"], r"empty is not a run folder: it has no config\.json"),
        ([interrupted], r"interrupted was interrupted: it has no summary\.json"),
        ([tmp_path / "sweep"], r"sweep holds no complete run of exdm finetune \(1 interrupted run\)"),
        ([explored], "explored holds a run of exdm pretrain; name runs of exdm finetune"),
        ([damaged], "damaged has no timesteps, mean_reward"),
        ([make_run(tmp_path / "a"), make_run(tmp_path / "b")], f"a and .*b are both of 'diffusion select, .*{A} with seed 0"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            report(runs, tmp_path / "out")
        assert isinstance(caught.value, ArtifactError) or not runs or len(runs) > 1
    for numbers in ({"reps": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="must be an integer of at least"):
            report([tmp_path / "a"], tmp_path / "out", **numbers)
    assert not (tmp_path / "out").exists()


def test_settings_in_a_planted_summary_are_not_read(tmp_path):
    make_run(tmp_path / "run", summary={"env_id": [0], "policy": {}, "seed": None})
    assert "diffusion select, pre-trained" in report([tmp_path / "run"], tmp_path / "out", reps=50)


def test_without_rliable_the_error_says_what_to_install(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path / "sweep", np.random.default_rng(0).random((10, 1)))
    monkeypatch.setitem(sys.modules, "rliable", None)
    with pytest.raises(ImportError, match=r'pip install "sb3-exdm\[benchmark\]"'):
        report([sweep], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Picture and command ------------------------------------------------------------------------------------------------------


def test_picture(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    low = np.array([[0.5, 0.4, 0.6], [0.2, np.nan, np.nan]])
    for n_panels in (1, 4):
        path = plot_aggregates(["one, " * 12, "two"], {f"panel {i}": low for i in range(n_panels)}, tmp_path / "new" / "p.png")
        picture = image.imread(path)[..., :3]
        assert picture.std() > 0.02, "the picture is blank"
        edges = np.concatenate([picture[:, :2].ravel(), picture[:, -2:].ravel(), picture[:2].ravel(), picture[-2:].ravel()])
        assert (edges == 1).all(), "something is cut off"
    for methods, table, message in (([], low, "nothing to plot"), (["one"], low, "shape"), (["1", "2"], low.T[::-1], "shape")):
        with pytest.raises(ValueError, match=message):
            plot_aggregates(methods, {"panel": table}, tmp_path / "new" / "other.png")
    with pytest.raises(ValueError, match="must be finite"):
        plot_aggregates(["1", "2"], {"panel": low[:, ::-1]}, tmp_path / "new" / "other.png")
    assert [other.name for other in (tmp_path / "new").iterdir()] == ["p.png"]


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_sweep(Path("sweep"), np.random.default_rng(0).random((2, 2)))
    main(["report", "sweep", "--reps", "50"])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (tmp_path / "runs" / "report" / "report.md").read_text(encoding="utf-8")
    assert "50 resamples" in printed.out and "![Aggregates and their intervals](report.png)" in printed.out
    assert sorted(path.name for path in Path("runs/report").iterdir()) == FILES
    main(["report", "sweep/run-0-0", "sweep/run-0-1", "--score", "mean_reward", "--reps", "20", "--out", "again"])
    assert capsys.readouterr().out.startswith("Return at the end of fine-tuning: 2 runs")
    assert json.loads(json.dumps(rows_of(Path("again/runs.csv"))[1]))["folder"] == str(Path("sweep/run-0-1"))
    for argv, message in (
        (["report"], "exdm: There is nothing to report: name at least one run folder.\n"),
        (["report", "sweep", "--reps", "0"], "exdm: reps must be an integer of at least 1, got 0.\n"),
        (["report", "nowhere"], "exdm: The run folder nowhere does not exist.\n"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
        assert capsys.readouterr().err == message


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["report", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    words = ["RUN [RUN ...]", "--out", "--reps", "Example:", "2000", *SCORES]
    assert [word for word in words if word not in text] == []
