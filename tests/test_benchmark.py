"""The benchmarks, with budgets of seconds: that they measure what they say, not what comes out."""

import csv
import json
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from scipy.stats import spearmanr

from examples.experiments.estimator import evaluate_reward, maze_density, mixture_density, rank_correlation, run_estimator
from examples.experiments.throughput import maze_steps_per_second, run_throughput
from sb3_exdm.benchmark import control_speed, coverage, throughput
from sb3_exdm.benchmark.coverage import PAPER_COVERAGE, Run, run_sweep
from sb3_exdm.benchmark.execute import run_missing, run_one
from sb3_exdm.benchmark.tables import bootstrap_interval, markdown_table, mean_std
from sb3_exdm.envs import MAZE_NAMES, MazeLayout
from sb3_exdm.finetuning import OPERATORS
from sb3_exdm.plots import read_run

th.set_num_threads(1)


# Tables -------------------------------------------------------------------------------------------------------------------


def test_markdown_table():
    table = markdown_table(["maze", "score"], [["SquareA", "0.99"], ["D", "0.778"]])
    assert table.splitlines() == ["| maze    | score |", "| ------- | ----: |", "| SquareA |  0.99 |", "| D       | 0.778 |"]


def test_mean_std():
    assert mean_std([0.1, 0.2, 0.3]) == "0.200 ± 0.100"  # of a sample, n - 1
    assert mean_std([0.5]) == "0.500"
    assert mean_std([]) == "–"


def test_bootstrap_interval():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval([values])
    half_width = 1.96 * values.std() / np.sqrt(400)  # what the central limit theorem says
    assert (low, high) == pytest.approx((values.mean() - half_width, values.mean() + half_width), abs=0.02)
    assert bootstrap_interval([values]) == (low, high)
    assert bootstrap_interval([[0.4], [0.8, 0.8]]) == pytest.approx((0.6, 0.6))  # the mean of the groups, however large
    narrow, wide = bootstrap_interval([[0.0, 1.0]] * 4), bootstrap_interval([[0.0, 1.0]])
    assert wide == (0.0, 1.0) and narrow[0] > 0.0 and narrow[1] < 1.0  # each group is resampled on its own


# Sweeps -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errand:
    """A run without learning."""

    folder: Path
    requires: Path | None = None
    fails: str = ""

    def differences(self, config: dict[str, Any]) -> list[str]:
        return []

    def execute(self) -> None:
        if self.fails == "hard":
            os._exit(3)
        if self.fails:
            raise ValueError(self.fails)
        assert self.requires is None or (self.requires / "summary.json").is_file()
        self.folder.mkdir()
        for name in ("config.json", "summary.json"):
            (self.folder / name).write_text("{}")


def test_runs_wait_for_what_they_require_and_failures_do_not_end_a_sweep(tmp_path, monkeypatch):
    fork = multiprocessing.get_context("fork")  # nothing here needs PyTorch, whose import takes seconds
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    first, second, broken, killed = (tmp_path / name for name in ("first", "second", "broken", "killed"))
    runs = [
        Errand(second, requires=first),  # named before what it requires
        Errand(broken, fails="no luck"),
        Errand(killed, fails="hard"),
        Errand(tmp_path / "hopeless", requires=broken),
        Errand(first),
    ]
    with pytest.raises(ChildProcessError) as caught:
        run_missing(runs, tmp_path, jobs=3)
    message = str(caught.value)
    assert message.startswith("3 of 5 runs failed: ")
    for failure in ("broken: ValueError: no luck", "killed: the process ended with exit code 3", "hopeless: needs broken"):
        assert failure in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


# Estimator ----------------------------------------------------------------------------------------------------------------


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 20, 300)  # with ties
    second = first + rng.normal(size=300) * 10
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert rank_correlation(second, np.exp(second / 10)) == pytest.approx(1.0)
    assert rank_correlation(first, np.zeros(300)) == 0.0


@pytest.mark.parametrize("dim", [1, 2])
def test_mixture_density_is_the_density_of_its_samples(dim):
    states, log_density = mixture_density(dim, seed=1).sample(np.random.default_rng(0), 200_000)
    counts, edges = np.histogramdd(states, bins=200 if dim == 1 else 60)
    bins = tuple(
        np.clip(np.searchsorted(edge, column, side="right") - 1, 0, len(edge) - 2)
        for edge, column in zip(edges, states.T, strict=True)
    )
    mean_density = np.zeros_like(counts)
    np.add.at(mean_density, bins, np.exp(log_density))
    often = counts > 300
    ratio = (mean_density[often] / counts[often]) / counts[often]
    # Up to a constant, the density in a bin is the number of samples in it.
    assert often.sum() > 30
    assert np.abs(np.log(ratio / np.median(ratio))).mean() < 0.1


def test_maze_density_is_the_density_of_its_samples():
    layout = MazeLayout.load("SquareC")
    states, log_density = maze_density("SquareC", decay=0.2).sample(np.random.default_rng(0), 50_000)
    inside = layout.contains(states)
    assert inside.mean() > 0.999  # all but those on a wall
    cells, inverse, counts = np.unique(np.round(states), axis=0, return_inverse=True, return_counts=True)
    distances = layout.distances(layout.start_cells[0])
    expected = np.array([-0.2 * distances[(int(i), int(j))] for i, j in cells])
    assert np.array_equal(log_density, expected[inverse.ravel()])
    assert np.log(counts / counts.sum()) == pytest.approx(expected - np.log(np.exp(expected).sum()), abs=0.2)


def test_the_score_ranks_states_by_rarity():
    figures = evaluate_reward("score", mixture_density(4, seed=0), seed=0, fit_steps=200)
    assert figures["correlation"] > 0.7
    assert figures["evaluations"] <= 16
    assert evaluate_reward("zero", mixture_density(4, seed=0), seed=0, fit_steps=1)["correlation"] == 0.0


def test_estimator_report(tmp_path):
    report = run_estimator(["rnd", "exdm-paper"], [0, 1], fit_steps=5, out=tmp_path, dims=(3,))
    assert (tmp_path / "estimator.md").read_text(encoding="utf-8") == report + "\n"
    lines = [line for line in report.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "maze, 2-d",
        "mixture, 3-d",
        "network evaluations per state",
        "ms per fit step",
        "ms per 1,000 scores",
    ]
    assert [cell.strip() for cell in lines[4].split("|")[2:4]] == ["2", "20"]
    with (tmp_path / "estimator.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    assert all(-1 <= float(row["correlation"]) <= 1 for row in rows)


# Coverage -----------------------------------------------------------------------------------------------------------------


def test_every_maze_has_a_figure_of_the_paper():
    assert tuple(PAPER_COVERAGE) == MAZE_NAMES


def test_sweep(tmp_path, monkeypatch):
    sweep = dict(mazes=["SquareA", "Maze2d-SquareD-v0"], rewards=["zero"], seeds=[0], steps=400)
    report = run_sweep(tmp_path, **sweep, jobs=2)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == report + "\n"
    assert (tmp_path / "coverage.png").is_file()
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["maze"] for row in rows] == ["SquareA", "SquareD"]
    for row in rows:
        summary = json.loads((tmp_path / row["folder"] / "summary.json").read_text())
        assert float(row["coverage"]) == pytest.approx(summary["coverage"], abs=1e-4)
        assert summary["torch_threads"] == 1
        assert f"{summary['coverage']:.3f}" in report
    assert "0.78 ± 0.01" in report and "0.786" in report

    # The second time there is nothing to do.
    def no_processes(method: str) -> None:
        raise AssertionError("a run was repeated")

    monkeypatch.setattr(multiprocessing, "get_context", no_processes)
    assert run_sweep(tmp_path, **sweep) == report

    # Runs with other settings are neither reported as these nor thrown away.
    with pytest.raises(ValueError, match="holds a run with other settings \\(total_timesteps\\)"):
        run_sweep(tmp_path, **{**sweep, "steps": 500})

    # One that was interrupted is run again.
    (tmp_path / rows[0]["folder"] / "summary.json").unlink()
    with pytest.raises(AssertionError, match="a run was repeated"):
        run_sweep(tmp_path, **sweep)


def test_a_run_that_fails_says_why(tmp_path):
    (tmp_path / "run").touch()
    failure = run_one(Run("SquareA", "zero", 0, "sac", 10, tmp_path / "run"))
    assert failure is not None and failure.startswith("run: FileExistsError: ")


def test_coverage_between_two_rows(tmp_path):
    (tmp_path / "config.json").write_text('{"env_id": "x", "algo": "sac", "reward": "zero", "seed": 0}')
    (tmp_path / "progress.csv").write_text("timesteps,coverage\n16000,0.3\n17000,0.4\n")
    record = read_run(tmp_path)
    assert coverage._coverage_at(record, 16_600) == pytest.approx(0.36)
    assert coverage._coverage_at(record, 50_000) is None


# Throughput ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 16])
def test_maze_steps_are_counted_over_all_environments(n_envs):
    assert maze_steps_per_second(n_envs, seconds=0.05) > 1000


def test_throughput_report(tmp_path, monkeypatch):
    n_threads = th.get_num_threads()
    monkeypatch.setattr(throughput, "control_speed", lambda rounds, steps: f"{rounds} x {steps}")
    report = run_throughput(
        repeats=1, pretrain_steps=200, out=tmp_path, ppo_steps=128, seconds=0.02, rounds=1, control_steps=7
    )
    assert (tmp_path / "throughput.md").read_text(encoding="utf-8") == report + "\n"
    lines = [line for line in report.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6 + 2 + 4 + len(OPERATORS)
    assert sum(" x |" in line for line in lines) == 3 and sum("steps/s |" in line for line in lines) == 3
    assert sum(line.count(" ms)") for line in lines) == 2 * (4 + len(OPERATORS))
    assert th.get_num_threads() == n_threads
    assert report.endswith("steps of all copies counted, median of 1:\n\n1 x 7")


def test_bodies_are_left_out_without_their_packages(monkeypatch):
    def check_versions(*args: Any) -> None:
        raise ImportError("Something is not installed.")

    monkeypatch.setattr(throughput, "control_speed", check_versions)
    assert throughput._control_part(1, 1) == ["The bodies are left out. Something is not installed."]


def test_control_speed_table(monkeypatch):
    pytest.importorskip("dm_control")
    monkeypatch.setattr(control_speed, "ENV_IDS", ["URLB/hopper-hop-v0"])
    monkeypatch.setattr(control_speed, "N_ENVS", 2)
    table = control_speed.control_speed(rounds=2, steps=60, progress_bar=False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["steps per second", "dm_control", "gym.make", "gym.make_vec, 2 envs"]
    ((env_id, speed, *ratios),) = rows[2:]
    assert env_id == "URLB/hopper-hop-v0"
    assert float(speed.replace(",", "")) > 100
    assert all(0.1 < float(ratio.removesuffix(" x")) < 10 for ratio in ratios)
    with pytest.raises(ValueError, match="steps must be positive"):
        control_speed.control_speed(1, 0)
