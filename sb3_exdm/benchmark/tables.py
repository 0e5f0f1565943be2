"""Tables of figures, for people and for spreadsheets."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_exdm.common.serialization import atomic_path


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    A Markdown table, its columns aligned so that it can be read as it is.

    :param header: names of the columns
    :param rows: cells; the first column is aligned to the left, the others to the right
    """
    table = [list(header), *map(list, rows)]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (table[0], rule, *table[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_std(values: Sequence[float]) -> str:
    """
    ``mean ± standard deviation``; the mean alone of a single value, a dash of none.

    :param values: one per seed
    """
    if not len(values):
        return "–"
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def bootstrap_interval(groups: Sequence[Sequence[float]], n_resamples: int = 10_000) -> tuple[float, float]:
    """
    95 % percentile bootstrap interval of a mean of means: each group is resampled on its own, as in rliable's stratified
    bootstrap. The resamples are always the same. With few values such an interval is too narrow rather than too wide.

    :param groups: values of each group, at least one; a group may be the seeds of a maze
    :param n_resamples: number of resamples
    """
    rng = np.random.default_rng(0)
    means = np.zeros(n_resamples)
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        means += values[rng.integers(len(values), size=(n_resamples, len(values)))].mean(axis=1)
    low, high = np.quantile(means / len(groups), [0.025, 0.975])
    return float(low), float(high)


def value_at(steps: int, timesteps: np.ndarray, values: np.ndarray) -> float | None:
    """
    A curve after some steps, interpolated between two points; None if it ends before.

    :param steps: environment steps
    :param timesteps: environment steps of the points, increasing, ``(n,)``
    :param values: ``(n,)``
    """
    return None if timesteps[-1] < steps else round(float(np.interp(steps, timesteps, values)), 4)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """
    :param path: the file, written whole or not at all
    :param rows: at least one; all have the keys of the first
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_text(path: Path, text: str) -> None:
    """
    :param path: the file, written whole or not at all
    :param text: what to write
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """:raises ValueError: if there are none"""
    if not len(seeds):
        raise ValueError("A benchmark needs at least one seed.")
    return list(seeds)
