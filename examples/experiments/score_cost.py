"""
Rank correlation of the score against its price: what fewer noise levels, fewer noises, narrower networks and fewer sines and
cosines cost and save.

Every variant is fitted to samples of known densities, in 2 dimensions (a maze, three times) and in 24 (Gaussian mixtures),
then compared with minus the log-density of new samples by Spearman's rank correlation. Writes score_cost.csv, score_cost.md
and score_cost.png. Takes about half an hour on one core.

Example: python examples/experiments/score_cost.py --seeds 10 11 12 13 14 --out runs/score-cost
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch as th
import tyro
from estimator import Density, maze_density, mixture_density, rank_correlation
from gymnasium import spaces
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from sb3_exdm.benchmark.statistics import mean_interval
from sb3_exdm.benchmark.tables import count, interval_cell, markdown_table, write_text
from sb3_exdm.rewards.score import ScoreModel

_N_TRAIN, _N_TEST, BATCH_SIZE = 20_000, 5_000, 256
N_TIMINGS = 50

DENSITIES: dict[str, tuple[Callable[[int], Density], ...]] = {
    "2-d mazes": (
        lambda _: maze_density("SquareTree"),
        lambda _: maze_density("SquareLarge", decay=0.15),
        lambda _: maze_density("SquareBottleneck"),
    ),
    "24-d mixtures": (partial(mixture_density, 24),),
}
"""Densities by the name of their row in the table; each takes a seed."""

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "2-d mazes": [
        *({"n_levels": 3, "n_noises": 4, "net_arch": [width, width]} for width in (16, 32, 48, 64)),
        {"n_levels": 2, "n_noises": 4, "net_arch": [32, 32]},
        {"n_levels": 3, "n_noises": 2, "net_arch": [32, 32]},
        {"n_levels": 3, "n_noises": 2, "net_arch": [64, 64]},
        {"n_levels": 3, "n_noises": 4, "net_arch": [64]},
    ],
    "24-d mixtures": [
        {"n_levels": 4, "n_noises": 4, "net_arch": [128, 128], "n_frequencies": 3, "learning_rate": 2e-3},
        {"n_levels": 4, "n_noises": 4, "net_arch": [128, 128], "n_frequencies": 0, "learning_rate": 2e-3},
        *({"n_levels": 4, "n_noises": 2, "net_arch": [width], "n_frequencies": 0} for width in (128, 256, 512)),
        {"n_levels": 4, "n_noises": 4, "net_arch": [256], "n_frequencies": 0},
    ],
}
"""Variants by density: arguments of :class:`~sb3_exdm.rewards.score.ScoreModel`."""


def evaluate_variant(density: Density, seed: int, settings: dict[str, Any], fit_steps: tuple[int, ...]) -> dict[str, float]:
    """
    Fit a variant of the score, and rank new samples.

    :param density: density of the states
    :param seed: seed of the samples and of the score
    :param settings: arguments of the score
    :param fit_steps: numbers of gradient steps after which the samples are ranked, in increasing order
    :return: rank correlations by the number of gradient steps, and milliseconds of the processor for the scores of a batch of
        256 and for a gradient step
    """
    rng = np.random.default_rng(seed)
    train, _ = density.sample(rng, _N_TRAIN)
    test, log_density = density.sample(rng, _N_TEST)
    model = ScoreModel(spaces.Box(-np.inf, np.inf, (density.dim,), np.float64), seed=seed, device="cpu", **settings)
    figures: dict[str, float] = {}
    for step in range(1, fit_steps[-1] + 1):
        model.fit(train[rng.integers(len(train), size=BATCH_SIZE)])
        if step in fit_steps:
            figures[f"correlation_{step}"] = rank_correlation(model.score(test), -log_density)
    batch = test[:BATCH_SIZE]
    figures["ms_per_batch"] = _milliseconds(lambda: model.score(batch))
    figures["ms_per_fit"] = _milliseconds(lambda: model.fit(batch))
    return figures


def _milliseconds(call: Callable[[], Any]) -> float:
    """Median processor time."""
    times = []
    for _ in range(N_TIMINGS):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return 1e3 * float(np.median(times))


def run(
    seeds: tuple[int, ...] = (10, 11, 12, 13, 14), fit_steps: tuple[int, ...] = (300, 2000), out: Path | None = None
) -> str:
    """
    Measure all variants.

    :param seeds: seeds of mixtures, samples and scores
    :param fit_steps: numbers of gradient steps after which samples are ranked
    :param out: folder for the files; by default nothing is written
    :return: table in Markdown
    """
    tasks = [
        (dimension, settings, seed, make)
        for dimension, variants in VARIANTS.items()
        for settings in variants
        for seed in seeds
        for make in DENSITIES[dimension]
    ]
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    rows = []
    try:
        for dimension, settings, seed, make in tqdm(tasks, unit="fit", disable=None):
            figures = evaluate_variant(make(seed), seed, settings, fit_steps)
            rows.append({"density": dimension, "variant": _name(settings), "seed": seed, **figures})
    finally:
        th.set_num_threads(n_threads)
    table = pd.DataFrame(rows)
    cells = _cells(table, fit_steps)
    report = (
        f"Spearman rank correlation of the score with -log density, mean over {count(len(seeds), 'seed')} with a 95 % "
        f"interval of Student's t, and processor time of one thread:\n\n{markdown_table(cells)}"
    )
    if out is not None:
        write_text(out / "score_cost.csv", table.to_csv(index=False))
        write_text(out / "score_cost.md", report)
        plot(table, fit_steps[-1], out / "score_cost.png")
    return report


def _name(settings: dict[str, Any]) -> str:
    """Levels x noises, widths, and octaves of sines and cosines if not the default."""
    name = f"{settings['n_levels']} × {settings['n_noises']}, {'-'.join(map(str, settings['net_arch']))}"
    return f"{name}, {settings['n_frequencies']} oct." if "n_frequencies" in settings else name


def _cells(figures: pd.DataFrame, fit_steps: tuple[int, ...]) -> pd.DataFrame:
    rows = {}
    for (density, variant), mine in figures.groupby(["density", "variant"], sort=False):
        by_seed = mine.groupby("seed").mean(numeric_only=True)  # several mazes per seed
        rows[density, variant] = {
            **{
                f"after {steps} fits": interval_cell(mean_interval(by_seed[f"correlation_{steps}"].to_numpy()))
                for steps in fit_steps
            },
            "ms, 256 scores": f"{mine['ms_per_batch'].mean():.2f}",
            "ms, fit": f"{mine['ms_per_fit'].mean():.2f}",
        }
    table = pd.DataFrame(rows).T
    return table.rename_axis(index=["density", "levels × noises, network"]).reset_index().set_index("density")


def plot(figures: pd.DataFrame, fit_steps: int, path: Path) -> None:
    """
    Draw rank correlation against milliseconds.

    :param figures: one row per variant, density and seed
    :param fit_steps: number of gradient steps of the drawn correlation
    :param path: picture
    """
    densities = list(figures["density"].unique())
    figure = Figure(figsize=(5.2 * len(densities), 4.2), layout="constrained")
    for ax, density in zip(np.atleast_1d(figure.subplots(1, len(densities))), densities, strict=True):
        mine = figures[figures["density"] == density]
        means = mine.groupby("variant", sort=False)[["ms_per_batch", f"correlation_{fit_steps}"]].mean()
        x, y = means.to_numpy().T
        ax.plot(x, y, "o", color="#2a6f97")
        for name, left, height in zip(means.index, x, y, strict=True):
            ax.annotate(name, (left, height), xytext=(5, -3), textcoords="offset points", fontsize=8)
        ax.set_xlim(0, 1.35 * x.max())
        ax.set_title(f"{density}, {fit_steps:,} gradient steps", fontsize=10)
        ax.set_xlabel("milliseconds for 256 scores")
        ax.set_ylabel("rank correlation with −log density")
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    print(tyro.cli(run, description=__doc__))
