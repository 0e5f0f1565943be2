"""
Rank correlation of intrinsic rewards with rarity, where the density of the states is known.

A reward is fitted to samples of a density, then compared with minus the log-density of new samples by Spearman's rank
correlation: 1 if it orders states exactly by rarity, 0 if it is unrelated, negative if it rewards frequent states. The
densities are one over a maze, and Gaussian mixtures in 4 to 80 dimensions with scales that differ by up to six orders of
magnitude. Takes about three minutes.

Example: python examples/experiments/estimator.py --rewards score rnd --seeds 0 1 2 3 4
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch as th
import tyro
from gymnasium import spaces
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from sb3_exdm.benchmark.statistics import mean_interval
from sb3_exdm.benchmark.tables import count, interval_cell, markdown_table, write_text
from sb3_exdm.common.validation import check_choice
from sb3_exdm.envs import MazeLayout
from sb3_exdm.rewards.base import IntrinsicReward
from sb3_exdm.rewards.exdm_paper import PaperScoreReward
from sb3_exdm.rewards.registry import REWARDS, make_reward
from sb3_exdm.rewards.rnd import RNDReward
from sb3_exdm.rewards.score import ScoreModel

MIXTURE_DIMS = (4, 10, 24, 80)
_N_TRAIN, _N_TEST, _BATCH_SIZE = 20_000, 5_000, 256


@dataclass(frozen=True)
class Density:
    """
    A density that can be sampled and evaluated.

    :param dim: dimension of the states
    :param sample: function that draws ``n`` states ``(n, dim)`` and computes their log-densities ``(n,)``, up to a constant
    """

    dim: int
    sample: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def maze_density(maze: str = "SquareTree", decay: float = 0.35) -> Density:
    """
    Density that is uniform in every cell of a maze and falls by the factor ``exp(-decay)`` from cell to cell away from the
    start, as early in exploration.

    :param maze: name of the maze
    :param decay: decay per cell
    """
    layout = MazeLayout.load(maze)
    distances = layout.distances(layout.start_cells[0])
    cells = np.array(list(distances), dtype=np.float64)  # (n_cells, 2)
    log_weights = -decay * np.array(list(distances.values()))  # (n_cells,)
    weights = np.exp(log_weights) / np.exp(log_weights).sum()

    def sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.choice(len(cells), n, p=weights)
        return cells[chosen] + rng.uniform(-0.5, 0.5, (n, 2)), log_weights[chosen]

    return Density(2, sample)


def mixture_density(dim: int, seed: int, n_components: int = 5) -> Density:
    """
    Random mixture of Gaussians with rotated axes of different lengths, whose dimensions are then scaled by
    ``10 ** U(-5, 1)`` each, as different as those of simulated robots.

    :param dim: number of dimensions
    :param seed: seed of the mixture
    :param n_components: number of Gaussians
    """
    rng = np.random.default_rng(seed)
    means = 2.0 * rng.normal(size=(n_components, dim))
    weights = rng.dirichlet(np.full(n_components, 2.0))
    axes = np.stack([np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(n_components)])  # (k, dim, dim)
    lengths = np.exp(0.7 * rng.normal(size=(n_components, dim)))  # (k, dim)
    scales = 10.0 ** rng.uniform(-5, 1, dim)

    def sample(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.choice(n_components, n, p=weights)
        noise = rng.normal(size=(n, dim)) * lengths[chosen]
        states = means[chosen] + np.einsum("nij,nj->ni", axes[chosen], noise)  # (n, dim)
        # Coordinates of every state along the axes of every Gaussian, in units of their lengths: (n, k, dim).
        units = np.einsum("nki,kij->nkj", states[:, None] - means, axes) / lengths
        log_parts = np.log(weights) - 0.5 * (units**2).sum(axis=2) - np.log(lengths).sum(axis=1)  # (n, k)
        return states * scales, np.logaddexp.reduce(log_parts, axis=1)

    return Density(dim, sample)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """
    Spearman's rank correlation; 0 if one of the two is constant.

    :param first: ``(n,)``
    :param second: ``(n,)``
    """
    if not np.ptp(first) or not np.ptp(second):
        return 0.0
    return float(spearmanr(first, second).statistic)


def evaluate_reward(name: str, density: Density, seed: int, fit_steps: int = 2000) -> dict[str, float | int | None]:
    """
    Fit a reward to samples of a density, and rank new samples.

    :param name: name of the reward
    :param density: density of the states
    :param seed: seed of the samples and of the reward
    :param fit_steps: number of gradient steps, each on 256 samples
    :return: ``correlation``, network ``evaluations`` per state (None if there is no network), and milliseconds of a gradient
        step and of 1000 scores
    :raises ValueError: for an unknown reward, or one that scores actions
    """
    rng = np.random.default_rng(seed)
    train, _ = density.sample(rng, _N_TRAIN)
    test, log_density = density.sample(rng, _N_TEST)
    reward = make_reward(name, spaces.Box(-np.inf, np.inf, (density.dim,), np.float64), seed=seed, device="cpu")
    start = time.perf_counter()
    for _ in range(fit_steps):
        reward.fit(train[rng.integers(len(train), size=_BATCH_SIZE)])
    fitted = time.perf_counter()
    scores = reward.score(test)
    scored = time.perf_counter()
    return {
        "correlation": rank_correlation(scores, -log_density),
        "evaluations": _n_evaluations(reward),
        "ms_per_fit_step": 1e3 * (fitted - start) / max(fit_steps, 1),
        "ms_per_1000_scores": 1e6 * (scored - fitted) / len(test),
    }


def _n_evaluations(reward: IntrinsicReward) -> int | None:
    """Number of network evaluations per score."""
    if isinstance(reward, ScoreModel):
        return reward.n_evaluations
    if isinstance(reward, PaperScoreReward):
        return reward.n_draws
    return 2 if isinstance(reward, RNDReward) else None  # predictor and target


def run_estimator(
    rewards: tuple[str, ...] = ("score", "exdm-paper", "rnd"),
    seeds: tuple[int, ...] = (0, 1, 2),
    fit_steps: int = 2000,
    out: Path | None = None,
    dims: tuple[int, ...] = MIXTURE_DIMS,
) -> str:
    """
    Compare rewards on a maze and on mixtures of several dimensions.

    :param rewards: names of rewards that score states
    :param seeds: seeds of the mixtures, the samples and the rewards
    :param fit_steps: number of gradient steps, each on 256 samples
    :param out: folder for estimator.csv and estimator.md; by default nothing is written
    :param dims: numbers of dimensions of the mixtures
    :return: table in Markdown
    :raises ValueError: for an unknown reward, one that scores actions, or numbers out of range
    """
    if not rewards or not seeds:
        raise ValueError("rewards and seeds must name at least one each.")
    if fit_steps < 1:
        raise ValueError(f"fit_steps must be at least 1, got {fit_steps}.")
    for name in rewards:
        check_choice("reward", name, REWARDS)
        if name == "edp":
            raise ValueError("The reward 'edp' scores actions, not states: it has no rank correlation with their density.")
    densities: dict[str, Callable[[int], Density]] = {"maze, 2-d": lambda _: maze_density()}
    for dim in dims:
        densities[f"mixture, {dim}-d"] = partial(mixture_density, dim)
    tasks = [(seed, label, name) for seed in seeds for label in densities for name in dict.fromkeys(rewards)]
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    rows = []
    try:
        for seed, label, name in tqdm(tasks, unit="fit", disable=None):
            figures = evaluate_reward(name, densities[label](seed), seed, fit_steps)
            rows.append({"density": label, "reward": name, "seed": seed, **figures})
    finally:
        th.set_num_threads(n_threads)
    table = pd.DataFrame(rows)
    report = (
        f"Spearman rank correlation of the score with -log density after {fit_steps:,} gradient steps, mean over "
        f"{count(len(seeds), 'seed')} with a 95 % interval of Student's t, one thread:\n\n{markdown_table(_cells(table))}"
    )
    if out is not None:
        write_text(out / "estimator.csv", table.to_csv(index=False))
        write_text(out / "estimator.md", report)
    return report


def _cells(figures: pd.DataFrame) -> pd.DataFrame:
    columns = {}
    for reward, mine in figures.groupby("reward", sort=False):
        cells = {
            str(density): interval_cell(mean_interval(values.to_numpy()))
            for density, values in mine.groupby("density", sort=False)["correlation"]
        }
        # The score takes more evaluations in more dimensions.
        counts = mine["evaluations"].dropna().astype(int).unique()
        cells["network evaluations per state"] = " to ".join(map(str, counts)) or "–"
        cells["ms per gradient step"] = f"{mine['ms_per_fit_step'].mean():.2f}"
        cells["ms per 1,000 scores"] = f"{mine['ms_per_1000_scores'].mean():.2f}"
        columns[reward] = cells
    return pd.DataFrame(columns).rename_axis("density")


if __name__ == "__main__":
    print(tyro.cli(run_estimator, description=__doc__))
