"""
How well rewards rank states by rarity, where the density of the states is known.

A reward is fitted to samples of a density, then compared with minus the log-density at fresh ones by Spearman's rank
correlation: 1 if it orders states exactly by rarity, 0 if it knows nothing, negative if it pays for what is common.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch as th
from gymnasium import spaces
from tqdm.auto import tqdm

from sb3_exdm.benchmark.tables import check_seeds, markdown_table, mean_std, write_csv, write_text
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
    :param sample: draws ``n`` states ``(n, dim)`` and their log-densities ``(n,)``, up to a constant
    """

    dim: int
    sample: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def maze_density(maze: str = "SquareTree", decay: float = 0.35) -> Density:
    """
    Uniform in every cell of a maze, less dense by the factor ``exp(-decay)`` with every cell further from the start: what
    an agent leaves behind that has only begun to explore.

    :param maze: name of the maze
    :param decay: per cell
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
    A random mixture of Gaussians with correlated axes of different lengths, its dimensions then scaled by
    ``10 ** U(-5, 1)`` each, as badly as the observations of simulated robots are.

    :param dim: dimension
    :param seed: which mixture
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
    Spearman's rank correlation; equal values share their mean rank.

    :param first: (n,)
    :param second: (n,)
    :return: From -1 to 1; 0 if one of the two is constant
    """
    ranks = np.stack([_ranks(first), _ranks(second)])
    if not ranks.std(axis=1).all():
        return 0.0
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]


def evaluate_reward(name: str, density: Density, seed: int, fit_steps: int = 2000) -> dict[str, float | int | None]:
    """
    Fit a reward to samples of a density and see how it ranks others.

    :param name: name of the reward
    :param density: the density
    :param seed: seed of the samples and of the reward
    :param fit_steps: gradient steps, each on 256 samples
    :return: ``correlation``, network ``evaluations`` per state (None if there is no network), and what a gradient step and
        the score of 1000 states cost, in milliseconds
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
    """Network evaluations that the score of a state takes."""
    if isinstance(reward, ScoreModel):
        return reward.n_evaluations
    if isinstance(reward, PaperScoreReward):
        return reward.n_draws
    return 2 if isinstance(reward, RNDReward) else None  # predictor and target


def run_estimator(
    rewards: Sequence[str] = ("score", "exdm-paper", "rnd"),
    seeds: Sequence[int] = range(3),
    fit_steps: int = 2000,
    out: str | Path | None = None,
    dims: Sequence[int] = MIXTURE_DIMS,
) -> str:
    """
    Compare rewards on a maze and on mixtures of several dimensions.

    :param rewards: names of rewards that score states
    :param seeds: each is another mixture, another sample and another initialization
    :param fit_steps: gradient steps, each on 256 samples
    :param out: folder for ``estimator.csv`` and ``estimator.md``; None writes nothing
    :param dims: dimensions of the mixtures
    :return: the tables in Markdown
    :raises ValueError: for an unknown reward, one that scores actions, or numbers out of range
    """
    seeds = check_seeds(seeds)
    if not rewards:
        raise ValueError("There is nothing to compare: name at least one reward.")
    if fit_steps < 1:
        raise ValueError(f"fit_steps must be at least 1, got {fit_steps}.")
    for name in rewards:
        if name not in REWARDS:
            raise ValueError(f"Unknown reward {name!r}; choose among {', '.join(REWARDS)}.")
        if name == "edp":
            raise ValueError("The reward 'edp' scores actions, not states: it has no rank correlation with their density.")
    densities: dict[str, Callable[[int], Density]] = {"maze, 2-d": lambda _: maze_density()}
    for dim in dims:
        densities[f"mixture, {dim}-d"] = partial(mixture_density, dim)
    tasks = [(seed, label, name) for seed in seeds for label in densities for name in rewards]
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    rows: list[dict[str, str | float | int | None]] = []
    try:
        for seed, label, name in tqdm(tasks, unit="fit", disable=None):
            figures = evaluate_reward(name, densities[label](seed), seed, fit_steps)
            rows.append({"density": label, "reward": name, "seed": seed, **figures})
    finally:
        th.set_num_threads(n_threads)
    report = _report(rows, list(dict.fromkeys(rewards)), len(seeds), fit_steps)
    if out is not None:
        write_csv(Path(out) / "estimator.csv", rows)
        write_text(Path(out) / "estimator.md", report)
    return report


def _report(rows: list[dict[str, str | float | int | None]], rewards: list[str], n_seeds: int, fit_steps: int) -> str:
    def values(key: str, **match: str) -> list[float]:
        return [row[key] for row in rows if all(row[name] == value for name, value in match.items())]  # type: ignore[misc]

    table = [
        [density, *(mean_std(values("correlation", density=density, reward=name)) for name in rewards)]
        for density in dict.fromkeys(str(row["density"]) for row in rows)
    ]
    # The bank of the score grows with the dimension: say the range rather than the first.
    evaluations = [dict.fromkeys(values("evaluations", reward=name)) for name in rewards]
    table.append(["network evaluations per state", *(" to ".join(str(n or "–") for n in counts) for counts in evaluations)])
    for key, label in (("ms_per_fit_step", "ms per fit step"), ("ms_per_1000_scores", "ms per 1,000 scores")):
        table.append([label, *(f"{np.mean(values(key, reward=name)):.2f}" for name in rewards)])
    return (
        f"Spearman rank correlation of the score with -log density after {fit_steps:,} fit steps, "
        f"{'mean ± standard deviation of ' if n_seeds > 1 else ''}{n_seeds} seed{'s' if n_seeds > 1 else ''}, one thread:\n\n"
        + markdown_table(["density", *rewards], table)
    )
