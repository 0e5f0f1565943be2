"""The scripts in examples/experiments: exact references of the bandit and the estimator, and their reports."""

import csv
import importlib
import math

import numpy as np
import pandas as pd
import pytest
import torch as th
from conftest import tiny_pretrain

from examples.experiments import bandit, throughput
from examples.experiments.estimator import (
    evaluate_reward,
    maze_density,
    mixture_density,
    rank_correlation,
    run_estimator,
)
from examples.experiments.tracking import run_tracking
from sb3_exdm.envs import MazeLayout
from sb3_exdm.finetuning import OPERATORS


def seeded(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


# Bandit -------------------------------------------------------------------------------------------------------------------


def test_energy_distance_equals_a_plain_computation():
    x, y = th.tensor([[0.0], [1.0]]), th.tensor([[3.0], [5.0], [4.0]])
    assert bandit.mean_distance(x, y) == pytest.approx((3 + 5 + 4 + 2 + 4 + 3) / 6)
    assert bandit.mean_distance(x) == pytest.approx(1.0) and bandit.mean_distance(y) == pytest.approx((2 + 1 + 1) / 3)
    assert bandit.energy_distance(x, y) == pytest.approx(2 * 3.5 - 1.0 - 4 / 3)
    gaussian = th.randn(4000, 2, generator=seeded())
    assert abs(bandit.energy_distance(gaussian[:2000], gaussian[2000:])) < 0.005
    assert bandit.energy_distance(gaussian[:2000], gaussian[2000:] + 0.5) > 0.1


@pytest.mark.parametrize("beta", bandit.TARGETS)
def test_exact_samples_are_those_of_the_weighted_behavior(beta):
    """Rejection against importance weights, and the bound that makes the rejection exact."""
    actions = bandit.behavior_samples(400_000, seeded(1))
    values = bandit.action_value(actions)
    assert values.max() < 0.95
    weights = (values / beta).softmax(0)
    exact = bandit.exact_samples(beta, 4000, seeded(2))
    for moment in (lambda a: a, lambda a: a.square(), lambda a: a[:, :1] * a[:, 1:]):
        expected = (weights.unsqueeze(1) * moment(actions)).sum(0)
        assert th.allclose(moment(exact).mean(0), expected, atol=0.04)


def test_log_density_is_that_of_the_samples():
    """Its expected value under two temperatures differs as Q does: the ratio of both densities is e^(Q/b1 - Q/b2)."""
    actions = bandit.behavior_samples(100, seeded())
    difference = bandit.exact_log_density(0.1, actions) - bandit.exact_log_density(1.0, actions)
    assert th.allclose(difference, 9.0 * bandit.action_value(actions), atol=1e-4)
    ticks = th.linspace(-1.5, 1.5, 301)
    grid = th.stack(th.meshgrid(ticks, ticks, indexing="xy"), dim=2).reshape(-1, 2)
    weights = bandit.exact_log_density(math.inf, grid).softmax(0)
    mean = (weights.unsqueeze(1) * grid).sum(0)
    assert th.allclose(mean, bandit.behavior_samples(200_000, seeded()).mean(0), atol=0.01)


@pytest.mark.slow
def test_weighting_improves_the_behavior_of_the_bandit():
    """A short run on samples of the behavior itself: far from the figures of the benchmark, but on the way."""
    candidates = bandit.behavior_samples(20_000, seeded())
    exact = bandit.exact_samples(1 / 3, 4000, seeded(1))
    behavior = bandit.fit_behavior(candidates, seed=0, gradient_steps=500)
    weighted = bandit.draw(bandit.improve(behavior, "weighted", candidates, 1 / 3, seed=0, gradient_steps=500).policy, 2000)
    before = bandit.energy_distance(candidates[:2000], exact)
    assert bandit.energy_distance(weighted, exact) < 0.2 * before


@pytest.mark.slow
def test_report_and_picture_of_the_bandit(tmp_path, monkeypatch):
    for name, n in (("_N_DATA", 2000), ("_N_CANDIDATES", 1000), ("_N_SAMPLES", 200), ("_N_REFERENCE", 500)):
        monkeypatch.setattr(bandit, name, n)
    report = bandit.run_bandit((0, 1), tmp_path, effort=0.002)
    for word in (*bandit.METHODS.values(), "β = 1/3", "target", "0.0200", "2 seeds"):
        assert word in report
    assert {path.name for path in tmp_path.iterdir()} == {"bandit.csv", "bandit.md", "bandit.png"}
    assert len((tmp_path / "bandit.csv").read_text().splitlines()) == 1 + 2 * (1 + 3 * 5)


def test_bandit_refuses_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        bandit.run_bandit(())
    with pytest.raises(ValueError, match="betas must be positive"):
        bandit.run_bandit((0,), betas=(1.0, 0.0))
    with pytest.raises(ValueError, match="effort must be positive"):
        bandit.run_bandit((0,), effort=0.0)
    with pytest.raises(ValueError, match="no samples"):
        bandit.plot_bandit(tmp_path / "x.png", {})


# Estimator ----------------------------------------------------------------------------------------------------------------


def test_rank_correlation():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 20, 300)  # with ties
    second = first + rng.normal(size=300) * 10
    ranks = [pd.Series(values).rank() for values in (first, second)]
    assert rank_correlation(first, second) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)
    assert rank_correlation(second, np.exp(second / 10)) == pytest.approx(1.0)
    assert rank_correlation(first, np.zeros(300)) == 0.0


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_score_ranks_states_by_rarity():
    figures = evaluate_reward("score", mixture_density(4, seed=0), seed=0, fit_steps=200)
    assert figures["correlation"] > 0.7
    assert figures["evaluations"] <= 16
    assert evaluate_reward("zero", mixture_density(4, seed=0), seed=0, fit_steps=1)["correlation"] == 0.0


@pytest.mark.slow
def test_estimator_report(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.experiments.estimator._N_TEST", 200)
    report = run_estimator(("rnd", "exdm-paper"), (0, 1), fit_steps=5, out=tmp_path, dims=(3,))
    assert (tmp_path / "estimator.md").read_text(encoding="utf-8") == report + "\n"
    lines = [line for line in report.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "maze, 2-d",
        "mixture, 3-d",
        "network evaluations per state",
        "ms per gradient step",
        "ms per 1,000 scores",
    ]
    assert [cell.strip() for cell in lines[4].split("|")[2:4]] == ["2", "20"]
    with (tmp_path / "estimator.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    assert all(-1 <= float(row["correlation"]) <= 1 for row in rows)


@pytest.mark.slow
def test_tracking(tmp_path):
    tiny_pretrain(4800, out=tmp_path / "run", algo_kwargs={"learning_starts": 4800})  # acts at random
    report = run_tracking((tmp_path / "run",), ("apt",), steps=4800, out=tmp_path)
    figures = pd.read_csv(tmp_path / "tracking.csv")
    assert figures["steps"].tolist() == [3200, 4800] and figures["last"].min() > 0.3
    assert report == (tmp_path / "tracking.md").read_text(encoding="utf-8").rstrip("\n") and "apt" in report
    with pytest.raises(ValueError, match="depends on actions"):
        run_tracking((tmp_path / "run",), ("edp",))
    with pytest.raises(ValueError, match="steps must be"):
        run_tracking((tmp_path / "run",), steps=100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": ()}, "at least one"),
        ({"fit_steps": 0}, "fit_steps must be"),
        ({"rewards": ("edp",)}, "scores actions"),
        ({"rewards": ("fame",)}, "Unknown reward 'fame'"),
        ({"rewards": ()}, "at least one"),
    ],
)
def test_estimator_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        run_estimator(**settings)


# Throughput ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_envs", [1, 16])
def test_maze_steps_are_counted_over_all_environments(n_envs):
    assert throughput.maze_steps_per_second(n_envs, seconds=0.05) > 1000


@pytest.mark.slow
def test_throughput_report(tmp_path, monkeypatch):
    n_threads = th.get_num_threads()
    monkeypatch.setattr(throughput, "maze_table", lambda repeats: pd.DataFrame({"steps/s": {"a": "1"}}))
    report = throughput.measure(("mazes", "wrappers", "rewards"), repeats=1, steps=320, out=tmp_path)
    assert (tmp_path / "throughput.md").read_text(encoding="utf-8") == report + "\n"
    lines = [line for line in report.splitlines() if line.startswith("|")]
    assert len(lines) == 3 * 2 + 1 + 2 + 1
    assert sum(" x |" in line for line in lines) == 3
    assert th.get_num_threads() == n_threads
    with pytest.raises(ValueError, match="repeats must be"):
        throughput.measure(repeats=0)


@pytest.mark.slow
def test_acting_table(monkeypatch):
    monkeypatch.setattr(throughput, "BATCH_SIZE", 16)
    monkeypatch.setattr(throughput, "ENVS", {"2-d maze": throughput.ENVS["2-d maze"]})
    table = throughput.acting_table(1)
    assert len(table) == 4 + len(OPERATORS)
    for cell in table["2-d maze"]:
        ratio, ours, sac = (float(part) for part in cell.replace("x (", "").replace(" ms)", "").replace("/ ", "").split())
        assert ours > 0 and sac > 0 and ratio == pytest.approx(ours / sac, rel=0.1, abs=0.1)


def test_updates_are_made(monkeypatch):
    """The measured function makes updates of the operator."""
    monkeypatch.setattr(throughput, "BATCH_SIZE", 8)
    monkeypatch.setattr(throughput, "N_TRANSITIONS", 120)
    update = throughput._updates("idql", throughput.ENVS["2-d maze"])
    callback = update.__self__
    before = callback.n_updates
    update()
    assert before > 0 and callback.n_updates == before + throughput.N_UPDATES


@pytest.mark.slow
def test_control_table(monkeypatch):
    pytest.importorskip("dm_control")
    monkeypatch.setattr(throughput, "ROBOTS", ["URLB/hopper-hop-v0"])
    monkeypatch.setattr(throughput, "N_ROBOTS", 4)
    monkeypatch.setattr("sb3_exdm.envs.control.vector_env.choose_num_threads", lambda num_envs: 2)
    table = throughput.control_table(rounds=2, steps=60)
    vectorized = ["gym.make_vec, 4 envs, 1 thread", "gym.make_vec, 4 envs, 2 threads"]
    assert list(table.columns) == ["dm_control, steps/s", "gym.make", *vectorized]
    speed, *ratios = table.loc["URLB/hopper-hop-v0"]
    assert float(speed.replace(",", "")) > 100
    assert all(0.1 < float(ratio.removesuffix(" x")) < 10 for ratio in ratios)
    with pytest.raises(ValueError, match="steps must be"):
        throughput.control_table(1, 0)


@pytest.mark.slow
def test_score_cost_report(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend("examples/experiments")
    score_cost = importlib.import_module("score_cost")
    monkeypatch.setattr(score_cost, "_N_TEST", 100)
    monkeypatch.setattr(score_cost, "N_TIMINGS", 1)
    report = score_cost.run(seeds=(0, 1), fit_steps=(2, 4), out=tmp_path)
    assert (tmp_path / "score_cost.md").read_text(encoding="utf-8") == report + "\n"
    n_variants = sum(map(len, score_cost.VARIANTS.values()))
    assert len([line for line in report.splitlines() if line.startswith("|")]) == 2 + n_variants
    assert (tmp_path / "score_cost.png").stat().st_size > 10_000
