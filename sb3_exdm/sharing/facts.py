"""The facts of a run that its page and its model card show."""

import math
from collections.abc import Mapping
from typing import Any

from sb3_exdm.runs.folder import RunRecord

LABELS = {
    "coverage": "state coverage",
    "coverage_of_ceiling": "share of the reachable bins",
    "success_rate": "success rate",
    "mean_reward": "mean return",
    "normalized_score": "share of an expert's return",
    "intrinsic_reward_mean": "intrinsic reward",
    "score_loss": "loss of the score model",
    "timesteps": "environment steps",
    "seconds": "seconds",
    "steps_per_second": "steps per second",
}
"""Names of figures for readers, by their key in ``summary.json`` and ``progress.csv``."""

_RATES = ("coverage_of_ceiling", "success_rate", "normalized_score")


def label(key: str, in_maze: bool = True) -> str:
    """
    Name a figure.

    :param key: key in ``summary.json``, or column of ``progress.csv``
    :param in_maze: whether the coverage is that of a maze, or a number of visited bins
    """
    if key == "coverage" and not in_maze:
        return "visited bins"
    return LABELS.get(key, key)


def number(value: Any) -> str:
    """
    Format a figure for readers.

    :param value: number, or other plain data
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def headline(summary: Mapping[str, Any] | None, last: Mapping[str, float]) -> dict[str, str]:
    """
    Choose the main figures of a run: at its end, or so far if it is unfinished.

    :param summary: contents of ``summary.json``; None if the run is unfinished
    :param last: last row of ``progress.csv``; empty if there is none
    :return: formatted figures by their name
    """
    known = {**last, **(summary or {})}
    in_maze = known.get("coverage_of_ceiling") is not None  # visited bins have no ceiling
    found = {}
    for key in ("coverage", "coverage_of_ceiling", "success_rate", "mean_reward", "normalized_score", "timesteps", "seconds"):
        value = known.get(key)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            continue
        if key == "coverage_of_ceiling" and in_maze:
            continue  # the same figure twice
        if key == "seconds":
            text = duration(value)
        elif key in _RATES:
            text = f"{value:.1%}"
        else:
            text = number(int(value) if key == "timesteps" else value)
        found["time" if key == "seconds" else label(key, in_maze)] = text
    return found


def last_row(record: RunRecord | None) -> dict[str, float]:
    """
    Read the last row of the progress.

    :param record: record of a run; None if it has no progress
    """
    return {} if record is None else {key: float(column[-1]) for key, column in record.progress.items()}


def duration(seconds: float) -> str:
    """
    Format a time.

    :param seconds: seconds
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    Flatten nested settings.

    :param content: plain data
    :param prefix: start of the keys
    :return: values by their path, as in ``"algo_kwargs.batch_size"``; empty mappings are left out
    """
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat
