"""Learning curves as numbers: how fast a run learned, beside how well it ended."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.runs.folder import RunFolder

LEVELS = (0.5, 0.8)
"""Scores whose first step is reported, as shares of the best."""
AREA_CAPTION = "Area under the learning curve, which is the mean {} while learning"
"""Caption of tables of :func:`area`, with the name of the score to be filled in."""
STEPS_CAPTION = (
    f"of {' and '.join(f'{level:g}' for level in LEVELS)} at an evaluation, median over seeds, with the number of seeds that "
    "reached it where some did not"
)
"""Caption of :func:`steps_table`."""


def learning_curve(folder: str | Path, score: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Read the evaluations of a fine-tuning run.

    :param folder: run folder
    :param score: column of ``progress.csv``
    :return: environment steps and scores, each ``(n,)``; empty if there are none
    """
    try:
        progress = RunFolder(folder).progress()
    except ArtifactError:
        return np.zeros(0), np.zeros(0)
    values = progress.get(score, np.full(len(progress["timesteps"]), math.nan))
    known = np.isfinite(values)
    return progress["timesteps"][known], values[known]


def area(timesteps: np.ndarray, values: np.ndarray) -> float:
    """
    Area under a learning curve, divided by its length: the mean score while learning, by the trapezoidal rule.

    :param timesteps: environment steps, increasing, ``(n,)``
    :param values: scores, ``(n,)``
    :return: mean score, NaN for fewer than two points
    """
    if len(values) < 2:
        return math.nan
    return float(trapezoid(values, timesteps) / (timesteps[-1] - timesteps[0]))


def steps_to(level: float, timesteps: np.ndarray, values: np.ndarray) -> float:
    """
    Find the first evaluation with a score of at least ``level``.

    :param level: score
    :param timesteps: environment steps, increasing, ``(n,)``
    :param values: scores, ``(n,)``
    :return: its environment steps, infinity if there is none, NaN without a curve
    """
    if len(values) == 0:
        return math.nan
    reached = values >= level
    return float(timesteps[reached.argmax()]) if reached.any() else math.inf


def curve_figures(timesteps: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """
    Describe a learning curve by its area and the steps to :data:`LEVELS`.

    :param timesteps: environment steps, increasing, ``(n,)``
    :param values: scores, ``(n,)``
    :return: ``area``, ``steps_to_0.5`` and ``steps_to_0.8``
    """
    return {"area": area(timesteps, values), **{_column(level): steps_to(level, timesteps, values) for level in LEVELS}}


def steps_table(figures: pd.DataFrame) -> pd.DataFrame:
    """
    Median steps to :data:`LEVELS`, a row for each method and level, and a column for each task.

    :param figures: a row for each run, with columns ``method``, ``task``, ``seed`` and those of :func:`curve_figures`
    """

    def cell(steps: pd.Series) -> str:
        n_reached = int(np.isfinite(steps).sum())
        median = float(np.median(steps))
        text = f"{median:,.0f}" if math.isfinite(median) else "not reached"
        return text if n_reached == len(steps) else f"{text} ({n_reached} of {len(steps)})"

    rows = {
        f"{method}, {level:g}": mine.groupby("task", sort=False)[_column(level)].agg(cell)
        for method, mine in figures.groupby("method", sort=False)
        for level in LEVELS
    }
    return pd.DataFrame(rows).T.reindex(columns=figures["task"].unique()).rename_axis("method")


def _column(level: float) -> str:
    return f"steps_to_{level:g}"
