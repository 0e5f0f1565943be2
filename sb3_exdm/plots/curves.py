"""Curves over environment steps: the coverage of one run, and several runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_exdm.metrics import StateCoverage
from sb3_exdm.plots.records import RunRecord, default_metric, read_run
from sb3_exdm.plots.style import COLORS, as_vector, check_picture_path, draw_ceiling, new_figure, save_figure, style_curves
from sb3_exdm.runs.folder import CONFIG, PROGRESS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# For more lines than there are colors. Dashes of another kind mark runs that have not finished.
_LINE_STYLES: tuple[Any, ...] = ("solid", (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
_UNFINISHED: Any = (0, (4, 2))
_GROUP_BY = ("reward", "algo")
_YLABELS = {"coverage": "visited bins", "success_rate": "success rate", "mean_reward": "return"}
_FINETUNE_GROUP_BY = ("policy", "operator", "algo", "pretrained", "reuse_data")


def plot_coverage(
    timesteps: Sequence[float] | np.ndarray,
    coverage: Sequence[float] | np.ndarray,
    path: str | Path,
    *,
    label: str | None = None,
    ceiling: float | None = None,
    title: str | None = None,
    ylabel: str = "state coverage",
) -> Path:
    """
    Coverage over time.

    :param timesteps: environment steps, (n,)
    :param coverage: what was covered by then, (n,)
    :param path: the picture; its ending says the format
    :param label: what the line shows, for a legend
    :param ceiling: the most that can be covered, drawn as a dashed line
    :param title: title of the picture
    :param ylabel: what is counted
    :return: ``path``
    :raises ValueError: if the arrays are empty, of different lengths or not finite, or ``path`` is no picture's
    """
    path = check_picture_path(path)
    steps, values = as_vector(timesteps, "timesteps"), as_vector(coverage, "coverage")
    if len(steps) != len(values):
        raise ValueError(f"There are {len(steps)} timesteps but {len(values)} values of coverage.")
    figure = new_figure(6.0, 3.6)
    axes = figure.add_subplot()
    if ceiling is not None:
        draw_ceiling(axes, ceiling)
    # Nothing was covered at the start; a run that reports once would otherwise be a single point.
    steps, values = np.concatenate([[0.0], steps]), np.concatenate([[0.0], values])
    axes.plot(steps, values, color=COLORS[0], linewidth=2.2, label=label, clip_on=False)
    axes.fill_between(steps, values, color=COLORS[0], alpha=0.12, linewidth=0)
    style_curves(axes, ylabel, title)
    top = max(values.max(), ceiling or 0.0)
    is_low = values[-1] < 0.2 * top  # no room for the number below the line
    axes.annotate(
        f"{values[-1]:.3f}" if values[-1] <= 1 else f"{values[-1]:,.0f}",
        (steps[-1], values[-1]),
        xytext=(-3, 7 if is_low else -7),
        textcoords="offset points",
        horizontalalignment="right",
        verticalalignment="bottom" if is_low else "top",
        color=COLORS[0],
        fontweight="bold",
    )
    axes.set(xlim=(0, max(steps[-1], 1)), ylim=(0, 1.1 * top if top else 1.0))
    if label is not None:
        axes.legend(loc="center right", frameon=False)
    return save_figure(figure, path)


def plot_learning_curve(
    timesteps: Sequence[float] | np.ndarray,
    returns: np.ndarray,
    path: str | Path,
    *,
    success: Sequence[float] | None = None,
    title: str | None = None,
) -> Path:
    """
    Returns over time: the mean of the episodes of each evaluation, with a band of their quartiles; or the rate of successes.

    :param timesteps: environment steps, (n,)
    :param returns: of the episodes, (n, n_episodes)
    :param path: the picture; its ending says the format
    :param success: rate of successful episodes, (n,), to draw instead of the returns
    :param title: title of the picture
    :return: ``path``
    :raises ValueError: if the arrays are empty, of different lengths or not finite, or ``path`` is no picture's
    """
    path = check_picture_path(path)
    steps = as_vector(timesteps, "timesteps")
    values = as_vector(np.asarray(returns).mean(axis=1) if success is None else success, "values")
    if len(steps) != len(values):
        raise ValueError(f"There are {len(steps)} timesteps but {len(values)} values.")
    figure = new_figure(6.0, 3.6)
    axes = figure.add_subplot()
    axes.plot(steps, values, color=COLORS[0], linewidth=2.2, marker="o", markersize=4, clip_on=False)
    if success is None:
        low, high = np.quantile(returns, [0.25, 0.75], axis=1)
        axes.fill_between(steps, low, high, color=COLORS[0], alpha=0.18, linewidth=0)
    else:
        axes.set_ylim(0.0, 1.05)
    style_curves(axes, "return" if success is None else "success rate", title)
    axes.set_xlim(0, max(steps[-1], 1))
    return save_figure(figure, path)


def plot_runs(
    run_folders: Iterable[str | Path],
    path: str | Path,
    *,
    metric: str | None = None,
    group_by: Sequence[str] | None = None,
) -> Path:
    """
    Curves of several runs, one panel per environment.

    Runs that agree in ``group_by``, and so differ only in the seed, make one line, their mean, with a band from the lowest
    to the highest of them. A run that has not finished is drawn as a dashed line of its own, up to where it came, rather
    than cutting the mean of the others short.

    :param run_folders: what ``exdm pretrain`` wrote, or what ``exdm finetune`` did
    :param path: the picture; its ending says the format
    :param metric: column of ``progress.csv``; by default ``coverage``, or what :func:`default_metric` finds
    :param group_by: settings in ``config.json`` that set lines apart; ``"env_id"`` always does. By default reward and
        algorithm; of fine-tuning policy, operator, algorithm, whether it was pre-trained, and whether data are used again
    :return: ``path``
    :raises ArtifactError: if a folder cannot be used, see :func:`~sb3_exdm.plots.records.read_run`
    :raises ValueError: if there are no folders, there is no such metric or setting, or ``path`` is no picture's
    """
    path = check_picture_path(path)
    folders = {Path(folder).resolve(): folder for folder in run_folders}
    if not folders:
        raise ValueError("There is nothing to plot: name at least one run folder.")
    runs = [read_run(folder) for folder in folders.values()]
    if group_by is None:
        if len({run.is_finetuned for run in runs}) > 1:
            raise ValueError("Runs of exdm pretrain and of exdm finetune differ in what they measure; draw them apart.")
        group_by = _FINETUNE_GROUP_BY if runs[0].is_finetuned else _GROUP_BY
    metric = metric or default_metric(runs)
    panels = _panels(runs, metric, [field for field in group_by if field != "env_id"])
    n_columns = min(len(panels), 4 if len(panels) > 6 else 3)
    n_rows = math.ceil(len(panels) / n_columns)
    labels = list(dict.fromkeys(line.label for lines in panels.values() for line in lines))
    width = 6.0 if n_columns == 1 else 3.3 * n_columns
    # A letter takes about 0.085 inches, the line beside it and the gap to the next one as much as eight.
    n_legend_columns = max(1, min(len(labels), int(width / 0.085 / (max(map(len, labels)) + 8))))
    figure = new_figure(width, 2.8 * n_rows + 0.4 + 0.23 * math.ceil(len(labels) / n_legend_columns))
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, (env_id, lines) in zip(grid.flat, panels.items(), strict=False):
        for line in lines:
            handles[line.label] = _draw_line(axes, line, labels.index(line.label))
        _finish_panel(axes, env_id, metric, is_first=axes in grid[:, 0])
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    legend = figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=n_legend_columns,
        frameon=False,
        title=_legend_title([line for lines in panels.values() for line in lines]),
        title_fontsize=9,
    )
    legend.get_title().set_color("#555555")
    return save_figure(figure, path)


@dataclass
class _Line:
    """Runs that are drawn as one line: the steps and the metric of each."""

    label: str
    finished: bool
    curves: list[tuple[np.ndarray, np.ndarray]]

    def on_common_steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps (n,) that all runs went through, and the metric of each of them there, (n_runs, n)."""
        first = max(steps[0] for steps, _ in self.curves)
        last = min(steps[-1] for steps, _ in self.curves)
        steps = np.unique(np.concatenate([steps for steps, _ in self.curves]))
        steps = steps[(steps >= first) & (steps <= last)]
        if not len(steps):
            raise ValueError(f"The runs of {self.label!r} have no steps in common: one ends before another begins.")
        return steps, np.stack([np.interp(steps, *curve) for curve in self.curves])


def _panels(runs: list[RunRecord], metric: str, fields: list[str]) -> dict[str, list[_Line]]:
    """The lines of each panel, by env id."""
    for run in runs:
        for field in fields:
            if field not in run.config:
                raise ValueError(f"{run.folder / CONFIG} has no {field!r}; it has {', '.join(run.config)}.")
        if metric not in run.progress:
            raise ValueError(f"{run.folder / PROGRESS} has no {metric!r}; it has {', '.join(run.progress)}.")
        if not np.isfinite(run.progress[metric]).any():
            raise ValueError(f"{run.folder / PROGRESS} has no values of {metric!r}.")
    # Only what differs is worth a place in the legend.
    telling = [field for field in fields if len({_setting(run, field) for run in runs}) > 1] or fields
    panels: dict[str, dict[Any, _Line]] = {}
    for run in runs:
        key: Any = tuple(_setting(run, field) for field in fields)
        label = ", ".join(filter(None, (_setting(run, field) for field in telling)))
        if not run.finished:
            key = run.folder
            label = f"{label}, seed {run.config['seed']} (unfinished)"
        line = panels.setdefault(run.config["env_id"], {}).setdefault(key, _Line(label, run.finished, []))
        known = np.isfinite(run.progress[metric])
        line.curves.append((run.progress["timesteps"][known], run.progress[metric][known]))
    # Unfinished ones last and so on top: until they end, they may be equal to a finished one with the same seed.
    return {env_id: sorted(lines.values(), key=lambda line: not line.finished) for env_id, lines in panels.items()}


def _setting(run: RunRecord, field: str) -> str:
    """A setting as the legend shows it; empty if there is nothing to say."""
    value = run.config[field]
    if field == "pretrained":  # by another seed, most often: which one it was sets nothing apart
        return "from scratch" if value is None else "pre-trained"
    if field == "reuse_data":
        return "data used again" if value else "fresh data"
    return "" if value is None else str(value)


def _draw_line(axes: Axes, line: _Line, index: int) -> Any:
    steps, values = line.on_common_steps()
    color = COLORS[index % len(COLORS)]
    style = _LINE_STYLES[index // len(COLORS) % len(_LINE_STYLES)] if line.finished else _UNFINISHED
    # A single row would not show as a line.
    marker = "o" if len(steps) == 1 else ""
    (handle,) = axes.plot(steps, values.mean(axis=0), color=color, linestyle=style, linewidth=2.0, marker=marker)
    if len(values) > 1:
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.18, linewidth=0)
    return handle


def _finish_panel(axes: Axes, env_id: str, metric: str, is_first: bool) -> None:
    ceiling = _ceiling(env_id) if metric == "coverage" else None
    ylabel = _YLABELS.get(metric, metric)
    if ceiling is not None:
        draw_ceiling(axes, ceiling)
        ylabel = "state coverage" if is_first else ""  # the same in all mazes
        axes.set_ylim(0, 1.1)
    elif metric == "success_rate":
        axes.set_ylim(0, 1.05)
    elif axes.get_ylim()[0] > 0:
        axes.set_ylim(bottom=0)
    style_curves(axes, ylabel, env_id)
    axes.set_xlim(left=0)


def _legend_title(lines: list[_Line]) -> str | None:
    counts = sorted({len(line.curves) for line in lines if line.finished})
    if not counts or counts[-1] == 1:
        return None
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"line: mean of {number} runs, band: lowest to highest"


def _ceiling(env_id: str) -> float | None:
    try:
        return StateCoverage(env_id).ceiling
    except ValueError:  # none of the mazes
        return None
