"""Statistics, tables, and the execution of sweeps, with budgets of seconds."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch as th
from scipy import stats

from sb3_exdm.benchmark.coverage import PAPER_COVERAGE, CoverageBenchmark
from sb3_exdm.benchmark.execute import is_complete, run_missing
from sb3_exdm.benchmark.plan import PlannedRun, short_name, sweep
from sb3_exdm.benchmark.statistics import mean_interval, rate_interval, success_interval
from sb3_exdm.benchmark.tables import interval_table, markdown_table, value_at
from sb3_exdm.envs import MAZE_NAMES
from sb3_exdm.rewards.registry import REWARDS
from sb3_exdm.runs.config import FinetuneConfig, PretrainConfig, parse_seeds
from sb3_exdm.runs.folder import RunFolder, RunInterrupted

MAZE = "Maze2d-SquareA-v0"

# Statistics ---------------------------------------------------------------------------------------------------------------


def test_t_interval_of_two_values():
    """Student's t with one degree of freedom is Cauchy's distribution, whose 0.975 quantile is tan(0.475 π)."""
    mean, low, high = mean_interval([1.0, 3.0])
    assert mean == 2.0
    assert (high - mean, mean - low) == pytest.approx([np.tan(0.475 * np.pi)] * 2)


@pytest.mark.slow
def test_t_interval_covers_the_mean():
    samples = np.random.default_rng(0).normal(loc=3.0, size=(2000, 5))
    covered = [low <= 3.0 <= high for _, low, high in map(mean_interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_no_interval_without_spread():
    for values in ([0.5], [0.5, 0.5, 0.5]):
        mean, low, high = mean_interval(values)
        assert mean == 0.5 and np.isnan(low) and np.isnan(high)


def test_success_interval():
    """Clopper–Pearson in closed form at the ends, and by its definition between them."""
    assert success_interval(5, 5) == pytest.approx((1.0, 0.025 ** (1 / 5), 1.0))
    assert success_interval(0, 5) == pytest.approx((0.0, 0.0, 1.0 - 0.025 ** (1 / 5)))
    rate, low, high = success_interval(3, 10)
    assert rate == 0.3
    assert stats.binom.sf(2, 10, low) == pytest.approx(0.025) and stats.binom.cdf(3, 10, high) == pytest.approx(0.025)


def test_rate_interval():
    assert rate_interval([1.0, 1.0, 1.0, 1.0, 1.0]) == success_interval(5, 5)
    assert rate_interval([0.0, 1.0]) == success_interval(1, 2)
    values = [0.9, 1.0, 0.98]
    assert rate_interval(values) == pytest.approx((np.mean(values), mean_interval(values).low, 1.0))


# Tables -------------------------------------------------------------------------------------------------------------------


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_markdown_table():
    frame = pd.DataFrame({"score": ["0.99", np.nan]}, index=pd.Index(["SquareA", "D"], name="maze"))
    table = markdown_table(frame)
    assert table.splitlines() == ["| maze    | score |", "| ------- | ----: |", "| SquareA |  0.99 |", "| D       |     – |"]


def make_figures(values: dict[str, np.ndarray]) -> pd.DataFrame:
    """A row for each run, of values (n_seeds, n_tasks) by method; NaN for no run."""
    rows = [
        {"method": method, "seed": seed, "task": f"task {task}", "value": value}
        for method, matrix in values.items()
        for (seed, task), value in np.ndenumerate(matrix)
        if not np.isnan(value)
    ]
    return pd.DataFrame(rows)


def test_interval_table_counts_a_seed_once():
    values = np.array([[0.2, 0.6], [0.4, 0.8], [0.3, np.nan]])
    header, _, row = cells(markdown_table(interval_table(make_figures({"one": values}), "value", 3)))
    assert header == ["method", "task 0", "task 1", "all"]
    mean, low, high = mean_interval([0.4, 0.6])  # the third seed lacks a task
    assert row[3] == f"{mean:.3f} [{max(low, 0):.3f}, {min(high, 1):.3f}], n = 2"
    assert row[1].startswith("0.300 [") and "n =" not in row[1] and row[2].endswith("], n = 2")


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    seeds = rng.normal(size=(6, 1)) * 10  # what seeds have in common hides the difference unless they are paired
    first, second = seeds + rng.normal(size=(6, 2)), seeds + 2 + rng.normal(size=(6, 2))
    second[5, 1] = np.nan
    figures = make_figures({"first": first, "second": second})
    _, _, row = cells(markdown_table(interval_table(figures, "value", 6, differences=True)))
    test = stats.ttest_rel(second[:, 0], first[:, 0]).confidence_interval()
    assert row[0] == "second − first"
    assert row[1] == f"{np.mean(second[:, 0] - first[:, 0]):+.3f} [{test.low:+.3f}, {test.high:+.3f}]"
    assert row[2].endswith("n = 5")
    test = stats.ttest_rel(second[:5].mean(axis=1), first[:5].mean(axis=1)).confidence_interval()
    assert f"[{test.low:+.3f}, {test.high:+.3f}], n = 5" in row[3]


def test_value_between_two_points():
    steps, values = np.array([0.0, 16_000.0, 17_000.0]), np.array([0.0, 0.3, 0.4])
    assert value_at(16_600, steps, values) == pytest.approx(0.36)
    assert value_at(8000, steps, values) == pytest.approx(0.15)
    assert np.isnan(value_at(50_000, steps, values))


# Plans --------------------------------------------------------------------------------------------------------------------


def test_sweep_is_the_product_of_all_values():
    config = PretrainConfig(env_id=MAZE, total_timesteps=10)
    configs = sweep(config, {"reward": ["rnd", "zero"], "seed": range(2)})
    assert [(run.reward, run.seed) for run in configs] == [("rnd", 0), ("rnd", 1), ("zero", 0), ("zero", 1)]
    assert {(run.env_id, run.total_timesteps) for run in configs} == {(MAZE, 10)}
    for axes, message in (({"sead": [1]}, "no setting 'sead'.*'seed'"), ({"reward": ["rdn"]}, "did you mean 'rnd'")):
        with pytest.raises(ValueError, match=message):
            sweep(config, axes)


def test_short_names():
    assert short_name("Maze2d-SquareC-v0") == "SquareC" and short_name("URLB/hopper-hop_backward-v0") == "hopper-hop_backward"


def test_seeds_on_the_command_line():
    assert parse_seeds(["3"]) == (0, 1, 2)
    assert parse_seeds(["10-12"]) == (10, 11, 12)
    assert parse_seeds(["7-7"]) == (7,)
    for text in ("-3", "1,2", "many"):
        with pytest.raises(ValueError, match="a range such as 10-14"):
            parse_seeds([text])


# Execution ----------------------------------------------------------------------------------------------------------------

USER_MODULE = """
import os
import numpy as np
import signal
from sb3_exdm.rewards.registry import REWARDS
from sb3_exdm.rewards.zero import ZeroReward

@REWARDS.register("mine")
class Mine(ZeroReward):
    name = "mine"

@REWARDS.register("broken")
class Broken(ZeroReward):
    name = "broken"

    def __init__(self, *args, **kwargs):
        memory = np.ones(2**29, dtype=np.uint8)
        raise ValueError("no luck")

@REWARDS.register("killed")
class Killed(ZeroReward):
    name = "killed"

    def __init__(self, *args, **kwargs):
        os._exit(3)
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module that only the process of the test has on its path by itself."""
    (tmp_path / "their_rewards.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "their_rewards"
    for name in ("mine", "broken", "killed"):
        REWARDS.unregister(name)


@pytest.mark.slow
def test_failures_do_not_end_a_sweep(tmp_path, user_module):
    """Runs of rewards that a user registered: one that works, one that raises, one whose process dies, and one in vain."""
    benchmark = CoverageBenchmark.make(
        out=tmp_path / "sweep",
        mazes=("SquareA",),
        rewards=[f"{user_module}:{name}" for name in ("broken", "mine")],
        steps=64,
        policy_steps=0,
    )
    benchmark = benchmark.with_changes(seeds=(0,))
    broken, mine = benchmark.plan()
    killed = PlannedRun(tmp_path / "killed", broken.config.with_changes(reward="killed"))
    in_vain = PlannedRun(tmp_path / "vain", FinetuneConfig.make(env_id=MAZE, pretrained=broken.folder), broken.folder)
    with pytest.raises(ChildProcessError) as caught:
        run_missing([in_vain, broken, killed, mine], jobs=1)
    message = str(caught.value)
    assert message.startswith("3 of 4 runs failed: ")
    assert "SquareA-sac-broken-0: ValueError: no luck" in message and f"vain: requires the run {broken.folder}" in message
    assert "killed: " in message and "EXIT(3)" in message
    assert is_complete(mine) and not any(map(is_complete, (broken, killed, in_vain)))
    summary = RunFolder(mine.folder).summary
    assert summary["reward"] == "mine" and summary["torch_threads"] == 1
    assert summary["peak_memory_mb"] is None or summary["peak_memory_mb"] < 512, "the memory of another run counts"


def children() -> set[str]:
    return {pid for path in Path(f"/proc/{os.getpid()}/task").glob("*/children") for pid in path.read_text().split()}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/task").is_dir(), reason="looks for processes in /proc")
def test_interruption_ends_the_processes(tmp_path, jobs):
    run = PlannedRun(tmp_path / "run", PretrainConfig.make(env_id=MAZE, total_timesteps=10**7, reward="zero"))
    before, during = children(), set()

    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "config.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        during.update(children())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(RunInterrupted, match="complete runs are kept"):
        run_missing([run] if jobs > 1 else [run, PlannedRun(tmp_path / "next", run.config)], jobs)
    assert not (tmp_path / "next").exists()
    started = during - before
    deadline = time.monotonic() + 20
    commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in started}
    while any(path.exists() and b"popen_loky" in path.read_bytes() for path in commands.values()):
        assert time.monotonic() < deadline, "the process still runs"
        time.sleep(0.1)
    assert started


# Coverage -----------------------------------------------------------------------------------------------------------------


def test_every_maze_has_a_figure_of_the_paper():
    assert tuple(PAPER_COVERAGE) == MAZE_NAMES == CoverageBenchmark().mazes


@pytest.mark.slow
def test_coverage(tmp_path, in_process):
    settings = dict(
        out=tmp_path, mazes=["SquareA", "Maze2d-SquareD-v0"], rewards=["zero", "count"], seeds=[3], steps=400, policy_steps=0
    )
    benchmark = CoverageBenchmark.make(**settings)
    report = benchmark.run()
    assert in_process == [f"{maze}-sac-{reward}-3" for maze in ("SquareA", "SquareD") for reward in ("zero", "count")]
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == report + "\n"
    assert (tmp_path / "coverage.png").stat().st_size > 10_000
    rows = pd.read_csv(tmp_path / "runs.csv")
    assert list(rows["folder"]) == in_process
    for row in rows.itertuples():
        summary = json.loads((tmp_path / row.folder / "summary.json").read_text())
        assert row.coverage == pytest.approx(summary["coverage"])
        assert f"{summary['coverage']:.3f}" in report
    assert "0.78 ± 0.01" in report and "0.786" in report and "4 of 4 runs are complete" in report
    assert "| count − zero |" in report

    # The second time there is nothing to do.
    assert benchmark.run() == report and len(in_process) == 4

    # Runs with other settings are neither reported as these nor thrown away.
    with pytest.raises(ValueError, match=r"holds a run with other settings \(total_timesteps, algo_kwargs\)"):
        benchmark.with_changes(steps=500).run()

    # One that was interrupted is run again, or left out.
    (tmp_path / in_process[0] / "summary.json").unlink()
    assert "3 of 4 runs are complete" in benchmark.with_changes(report_only=True).run() and len(in_process) == 4
    assert benchmark.run() and in_process[4:] == in_process[:1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": ()}, "seeds must name at least one"),
        ({"mazes": ()}, "mazes must name at least one"),
        ({"mazes": ("SquareZ",)}, "SquareZ"),
        ({"rewards": ("gold",)}, "Unknown reward 'gold'"),
        ({"algo": "sarsa"}, "Unknown algo 'sarsa'"),
        ({"steps": 0}, "steps must be"),
        ({"jobs": 0}, "jobs must be"),
        ({"report_only": True}, "nothing to report"),
        ({"sead": 1}, "no setting 'sead'"),
    ],
)
def test_bad_settings(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CoverageBenchmark.make(out=tmp_path, **settings).run()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; name a folder"):
        CoverageBenchmark.make(out=tmp_path / "file")
    th.set_num_threads(1)
