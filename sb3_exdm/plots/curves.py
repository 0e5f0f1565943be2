"""Curves over environment steps: of one run, and of several runs for comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_exdm.common.validation import check_choice
from sb3_exdm.metrics import StateCoverage
from sb3_exdm.plots.style import COLORS, as_vector, check_picture_path, draw_ceiling, new_figure, save_figure, style_curves
from sb3_exdm.runs.folder import CONFIG, PROGRESS, RunFolder, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# For more lines than colors. Unfinished runs are dashed differently.
_LINE_STYLES: tuple[Any, ...] = ("solid", (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
_UNFINISHED: Any = (0, (4, 2))
_METRICS = ("coverage", "success_rate", "mean_reward")
_GROUP_BY = ("reward", "algo")
_FINETUNE_GROUP_BY = ("policy", "start", "operator", "algo", "pretrained", "reuse_data")
_MAX_BANDS = 4
"""More bands than this in a panel hide each other; the ranges at the end are drawn beside the curves instead."""
X_LABELS = {"timesteps": "environment steps", "seconds": "seconds"}
"""Columns of the x axis."""
_YLABELS = {"coverage": "visited bins", "success_rate": "success rate", "mean_reward": "return"}


def plot_coverage(
    timesteps: Sequence[float] | np.ndarray,
    coverage: Sequence[float] | np.ndarray,
    path: str | Path,
    *,
    ceiling: float | None = None,
    title: str | None = None,
    ylabel: str = "state coverage",
) -> Path:
    """
    Plot the coverage of a run over environment steps.

    :param timesteps: environment steps, (n,)
    :param coverage: coverage after these steps, (n,)
    :param path: image file; the ending sets the format
    :param ceiling: largest possible coverage, drawn as a dashed line
    :param title: title of the figure
    :param ylabel: label of the y axis
    :return: ``path``
    :raises ValueError: if the arrays are empty, of different lengths or not finite, or ``path`` is not an image file
    """
    path, steps, values = check_picture_path(path), as_vector(timesteps, "timesteps"), as_vector(coverage, "coverage")
    _check_lengths(steps, values)
    figure = new_figure(6.0, 3.6)
    axes = figure.add_subplot()
    if ceiling is not None:
        draw_ceiling(axes, ceiling)
    # The coverage at the start is 0; a run with a single report would otherwise be a single point.
    steps, values = np.concatenate([[0.0], steps]), np.concatenate([[0.0], values])
    axes.plot(steps, values, color=COLORS[0], linewidth=2.2, clip_on=False)
    axes.fill_between(steps, values, color=COLORS[0], alpha=0.12, linewidth=0)
    style_curves(axes, ylabel, title)
    axes.annotate(
        f"{values[-1]:.3f}" if values[-1] <= 1 else f"{values[-1]:,.0f}",
        (steps[-1], values[-1]),
        xytext=(5, 0),  # right of the axes, where no curve is
        textcoords="offset points",
        verticalalignment="center",
        color=COLORS[0],
        fontweight="bold",
    )
    top = max(values.max(), ceiling or 0.0)
    axes.set(xlim=(0, max(steps[-1], 1)), ylim=(0, 1.1 * top if top else 1.0))
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
    Plot the evaluations of a run: the mean return with a band from the lower to the upper quartile, or the success rate.

    :param timesteps: environment steps, (n,)
    :param returns: returns of the evaluation episodes, (n, n_episodes)
    :param path: image file; the ending sets the format
    :param success: success rates, (n,), plotted instead of the returns
    :param title: title of the figure
    :return: ``path``
    :raises ValueError: if the arrays are empty, of different lengths or not finite, or ``path`` is not an image file
    """
    path, steps = check_picture_path(path), as_vector(timesteps, "timesteps")
    values = as_vector(np.asarray(returns).mean(axis=1) if success is None else success, "values")
    _check_lengths(steps, values)
    figure = new_figure(6.0, 3.6)
    axes = figure.add_subplot()
    axes.plot(steps, values, color=COLORS[0], linewidth=2.2, marker="o", markersize=4, clip_on=False)
    if success is None:
        low, high = np.quantile(returns, [0.25, 0.75], axis=1)
        axes.fill_between(steps, low, high, color=COLORS[0], alpha=0.18, linewidth=0)
    else:
        axes.set_ylim(0.0, 1.05)
    style_curves(axes, "return (band: quartiles)" if success is None else "success rate", title)
    axes.set_xlim(0, max(steps[-1], 1))
    return save_figure(figure, path)


def _check_lengths(steps: np.ndarray, values: np.ndarray) -> None:
    if len(steps) != len(values):
        raise ValueError(f"There are {len(steps)} timesteps but {len(values)} values.")


def plot_runs(
    run_folders: Iterable[str | Path],
    path: str | Path,
    *,
    metric: str | None = None,
    group_by: Sequence[str] | None = None,
    x: str = "timesteps",
) -> Path:
    """
    Plot the curves of several runs, one panel per environment.

    Runs with equal settings ``group_by``, which differ only in the seed, are plotted as their mean, with a band from the
    minimum to the maximum, or with a bar at the end where bands of many curves would hide each other. Unfinished runs are
    plotted one by one, dashed, and do not shorten the mean.

    :param run_folders: folders of ``exdm pretrain``, or of ``exdm finetune``
    :param path: image file; the ending sets the format
    :param metric: column of ``progress.csv``; see :func:`default_metric`
    :param group_by: settings in ``config.json`` with a curve for each value, besides ``"env_id"``. Default: reward and
        algorithm; for fine-tuning policy, operator, algorithm, pre-trained or not, and reused data or not
    :param x: column of the x axis, ``"timesteps"`` or ``"seconds"``
    :return: ``path``
    :raises ArtifactError: if a folder cannot be used, see :meth:`~sb3_exdm.runs.folder.RunFolder.record`
    :raises ValueError: if there are no folders, the metric or a setting is unknown, the runs count visited bins of different
        widths, or ``path`` is not an image file
    """
    path = check_picture_path(path)
    check_choice("x", x, X_LABELS)
    folders = {Path(folder).resolve(): folder for folder in run_folders}
    if not folders:
        raise ValueError("There is nothing to plot: name at least one run folder.")
    runs = [RunFolder(folder).record() for folder in folders.values()]
    if group_by is None:
        if len({run.is_finetuned for run in runs}) > 1:
            raise ValueError("Runs of exdm pretrain and of exdm finetune have different metrics; plot them separately.")
        group_by = _FINETUNE_GROUP_BY if runs[0].is_finetuned else _GROUP_BY
    metric = metric or default_metric(runs)
    panels = _panels(runs, x, metric, [field for field in group_by if field != "env_id"])
    unknown_bins = _check_bins(runs) if metric == "coverage" else set()
    n_columns = 2 if len(panels) == 4 else min(len(panels), 4 if len(panels) > 6 else 3)
    n_rows = math.ceil(len(panels) / n_columns)
    labels = list(dict.fromkeys(line.label for lines in panels.values() for line in lines))
    width = 6.0 if n_columns == 1 else 3.3 * n_columns
    # A letter is about 0.085 inches wide; the handle and the gap are as wide as eight letters.
    n_legend_columns = max(1, min(len(labels), int(width / 0.085 / (max(map(len, labels)) + 8))))
    height = 3.4 if n_columns == 1 and any(map(_is_crowded, panels.values())) else 2.8
    figure = new_figure(width, height * n_rows + 0.4 + 0.23 * math.ceil(len(labels) / n_legend_columns))
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, (env_id, lines) in zip(grid.flat, panels.items(), strict=False):
        has_bands = not _is_crowded(lines)
        for line in lines:
            handles[line.label] = _draw_line(axes, line, labels.index(line.label), has_bands)
        if not has_bands:
            _draw_ranges(axes, lines, labels)
        _finish_panel(axes, env_id, x, metric, is_first=axes in grid[:, 0])
        if env_id in unknown_bins:
            axes.set_ylabel("visited bins (widths may differ)")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    legend = figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=n_legend_columns,
        frameon=False,
        title=_legend_title(panels.values()),
        title_fontsize=9,
    )
    legend.get_title().set_color("#555555")
    return save_figure(figure, path)


def default_metric(runs: Sequence[RunRecord]) -> str:
    """
    Choose the metric to plot: the first of coverage, success rate and return that all runs have.

    :param runs: records of runs
    """
    return next((metric for metric in _METRICS if all(metric in run.progress for run in runs)), _METRICS[0])


@dataclass
class _Line:
    """Runs that are drawn as one curve: the steps and the metric of each."""

    label: str
    finished: bool
    curves: list[tuple[np.ndarray, np.ndarray]]

    def on_common_steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute the steps (n,) within the range of all runs, and the metric of each run there, (n_runs, n)."""
        first = max(steps[0] for steps, _ in self.curves)
        last = min(steps[-1] for steps, _ in self.curves)
        steps = np.unique(np.concatenate([steps for steps, _ in self.curves]))
        steps = steps[(steps >= first) & (steps <= last)]
        if not len(steps):
            raise ValueError(f"The runs of {self.label!r} have no steps in common: one ends before another begins.")
        return steps, np.stack([np.interp(steps, *curve) for curve in self.curves])


def _panels(runs: list[RunRecord], x: str, metric: str, fields: list[str]) -> dict[str, list[_Line]]:
    """Curves of each panel, by env id."""
    for run in runs:
        for field in fields:
            if field not in run.config:
                raise ValueError(f"{run.folder / CONFIG} has no {field!r}; it has {', '.join(run.config)}.")
        if metric not in run.progress:
            raise ValueError(f"{run.folder / PROGRESS} has no {metric!r}; it has {', '.join(run.progress)}.")
        if not np.isfinite(run.progress[metric]).any():
            raise ValueError(f"{run.folder / PROGRESS} has no values of {metric!r}.")
    # Only settings that differ are in the legend.
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
        line.curves.append((run.progress[x][known], run.progress[metric][known]))
    # Unfinished runs last and so on top, because they may equal a finished run with the same seed.
    return {env_id: sorted(lines.values(), key=lambda line: not line.finished) for env_id, lines in panels.items()}


def _check_bins(runs: list[RunRecord]) -> set[str]:
    """Refuse runs with different bins in an environment; return the env ids with unknown bins. Mazes have fixed bins."""
    by_env: dict[str, dict[Path, tuple[Any, Any]]] = {}
    for run in runs:
        if _ceiling(run.config["env_id"]) is None:
            # The summary holds the widths that were used, the configuration only those that were set.
            width = (run.summary or {}).get("bin_width") or run.config.get("bin_width")
            by_env.setdefault(run.config["env_id"], {})[run.folder] = run.config.get("coverage_dims"), width
    for env_id, bins in by_env.items():
        known = [(dims, width) for dims, width in bins.values() if width is not None]
        if any(dims != known[0][0] or not np.allclose(width, known[0][1]) for dims, width in known):
            found = "; ".join(f"{folder}: {width} in dimensions {dims}" for folder, (dims, width) in bins.items())
            raise ValueError(
                f"The runs in {env_id} count visited bins of different widths or dimensions and cannot be compared "
                f"({found}). Repeat exdm pretrain with the same --bin-width and --coverage-dims."
            )
    return {env_id for env_id, bins in by_env.items() if len(bins) > 1 and any(width is None for _, width in bins.values())}


def _setting(run: RunRecord, field: str) -> str:
    """Format a setting for the legend; empty if it is None."""
    value = run.config[field]
    if field == "pretrained":  # not the name of the run, which differs between seeds
        return "from scratch" if value is None else "pre-trained"
    if field == "reuse_data":
        return "reused data" if value else "new data"
    return "" if value is None else str(value)


def _is_crowded(lines: Sequence[_Line]) -> bool:
    return sum(len(line.curves) > 1 for line in lines) > _MAX_BANDS


def _draw_line(axes: Axes, line: _Line, index: int, has_band: bool) -> Any:
    steps, values = line.on_common_steps()
    color = COLORS[index % len(COLORS)]
    style = _LINE_STYLES[index // len(COLORS) % len(_LINE_STYLES)] if line.finished else _UNFINISHED
    marker = "o" if len(steps) == 1 else ""  # a single point is invisible without a marker
    (handle,) = axes.plot(steps, values.mean(axis=0), color=color, linestyle=style, linewidth=2.0, marker=marker)
    if has_band and len(values) > 1:
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.18, linewidth=0)
    return handle


def _draw_ranges(axes: Axes, lines: Sequence[_Line], labels: Sequence[str]) -> None:
    """Draw the range of each curve at its end, from minimum to maximum, as a bar right of all curves."""
    ends = {line.label: line.on_common_steps() for line in lines if len(line.curves) > 1}
    last = max(float(steps[-1]) for steps, _ in ends.values())
    for place, (label, (_, values)) in enumerate(sorted(ends.items(), key=lambda end: -end[1][1][:, -1].mean())):
        x, color = last * (1.025 + 0.015 * place), COLORS[labels.index(label) % len(COLORS)]
        axes.vlines(x, values[:, -1].min(), values[:, -1].max(), color=color, linewidth=2.0)
        axes.plot(x, values[:, -1].mean(), color=color, marker="o", markersize=3.5, linestyle="none")
    axes.spines["bottom"].set_bounds(0, last)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= last])


def _finish_panel(axes: Axes, env_id: str, x: str, metric: str, is_first: bool) -> None:
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
    style_curves(axes, ylabel, env_id, X_LABELS[x])
    axes.set_xlim(left=0)


def _legend_title(panels: Iterable[Sequence[_Line]]) -> str | None:
    panels = list(panels)
    counts = sorted({len(line.curves) for lines in panels for line in lines if line.finished})
    if not counts or counts[-1] == 1:
        return None
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    crowded = set(map(_is_crowded, panels))
    ranges = "band or bar" if len(crowded) > 1 else "bar at the end" if True in crowded else "band"
    return f"mean of {number} runs ({ranges}: minimum to maximum)"


def _ceiling(env_id: str) -> float | None:
    """Largest possible state coverage of a maze; None for other environments."""
    try:
        return StateCoverage(env_id).ceiling
    except ValueError:
        return None
