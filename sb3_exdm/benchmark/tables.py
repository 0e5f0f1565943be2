"""Tables of figures, for readers and for spreadsheets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_exdm.benchmark.statistics import Interval, mean_interval, rate_interval
from sb3_exdm.common.serialization import atomic_path

NOTHING = "–"
"""Cell without a value."""


def markdown_table(cells: pd.DataFrame) -> str:
    """
    Markdown table with aligned columns.

    :param cells: strings, NaN for none; the name of the index heads the first column
    """
    cells = cells.fillna(NOTHING)
    table = [[str(cells.index.name or ""), *cells.columns], *([name, *row] for name, *row in cells.itertuples())]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(table[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (table[0], rule, *table[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval_cell(interval: Interval, sign: str = "") -> str:
    """
    Format as ``value [low, high]``, or the value alone where there is no interval.

    :param interval: estimate with its interval
    :param sign: ``"+"`` to write the sign of positive numbers too
    """
    digits = f"{sign}.3f" if abs(interval.value) < 10 else f"{sign},.1f"
    ends = "" if np.isnan(interval.low) else f" [{interval.low:{digits}}, {interval.high:{digits}}]"
    return f"{interval.value:{digits}}{ends}"


def score_matrix(figures: pd.DataFrame, method: str, value: str) -> pd.DataFrame:
    """
    Values of a method, a row for each seed and a column for each task that any method has; NaN where there is no run.

    :param figures: a row for each run, with columns ``method``, ``task`` and ``seed``
    :param method: name of the method
    :param value: name of the column
    """
    mine = figures[figures["method"] == method]
    return mine.pivot(index="seed", columns="task", values=value).reindex(columns=figures["task"].unique()).astype(float)


def interval_table(
    figures: pd.DataFrame,
    value: str,
    n_seeds: int,
    interval: Callable[[np.ndarray], Interval] = rate_interval,
    *,
    differences: bool = False,
) -> pd.DataFrame:
    """
    Means over seeds with their intervals, a row for each method and a column for each task. The last column is over all
    tasks, where a seed counts once: with its mean, if it has all tasks. The number of seeds is in a cell that lacks some.

    :param figures: a row for each run, with columns ``method``, ``task`` and ``seed``
    :param value: name of the column to average
    :param n_seeds: number of seeds of a full cell
    :param interval: function that computes mean and interval of the seeds
    :param differences: compare with the first method, paired over seeds, with intervals of the paired t test
    """
    methods = list(figures["method"].unique())
    scores = {method: score_matrix(figures, method, value) for method in methods}
    if differences:
        interval = mean_interval
        scores = {f"{method} − {methods[0]}": scores[method] - scores[methods[0]] for method in methods[1:]}

    def cell(values: pd.Series) -> str:
        if values.empty:
            return NOTHING
        text = interval_cell(interval(values.to_numpy()), "+" if differences else "")
        return text if len(values) == n_seeds else f"{text}, n = {len(values)}"

    rows = {}
    for label, matrix in scores.items():
        rows[label] = {task: cell(column.dropna()) for task, column in matrix.items()}
        if matrix.shape[1] > 1:
            rows[label]["all"] = cell(matrix.dropna().mean(axis=1))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("difference" if differences else "method")


def value_at(steps: int, timesteps: np.ndarray, values: np.ndarray) -> float:
    """
    Interpolate a curve; NaN beyond its end.

    :param steps: environment steps
    :param timesteps: environment steps of the points, increasing, ``(n,)``
    :param values: ``(n,)``
    """
    return round(float(np.interp(steps, timesteps, values, right=np.nan)), 4)


def write_text(path: Path, text: str) -> None:
    """
    Write a text file, whole or not at all.

    :param path: file
    :param text: contents
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")


def count(number: int, what: str) -> str:
    """
    Count in words: ``1 run``, ``2 runs``.

    :param number: number of things
    :param what: noun in the singular
    """
    return f"{number} {what}{'' if number == 1 else 's'}"
