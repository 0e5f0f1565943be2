"""The tables and the picture of :mod:`sb3_exdm.benchmark.finetune`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_exdm.benchmark.plan import Adaptation, Exploration
from sb3_exdm.benchmark.tables import bootstrap_interval, markdown_table, value_at
from sb3_exdm.envs import GoalTask, MazeLayout
from sb3_exdm.finetuning.operators import OPERATORS
from sb3_exdm.plots import RunRecord
from sb3_exdm.plots.style import COLORS, check_picture_path, new_figure, save_figure, style_curves
from sb3_exdm.runs.folder import RunFolder, versions

CHECKPOINTS = (5_000, 10_000, 20_000)
"""Steps at which the success rate is reported besides the end."""
_CONTROL_STYLES: tuple[Any, ...] = ((0, (1, 1)), (0, (4, 1.5)))
_CONDITIONS = {False: "fresh data only", True: "data of the pre-training used again"}


def table_rows(runs: Sequence[Adaptation], records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """
    The lines of ``runs.csv``.

    :param runs: complete runs
    :param records: what they wrote
    """
    rows = []
    for run, record in zip(runs, records, strict=True):
        assert record.summary is not None
        rates = record.progress["success_rate"]
        rows.append(
            {
                "maze": run.task,
                "method": run.method,
                "reuse_data": run.reuse,
                "seed": run.seed,
                "timesteps": record.summary["timesteps"],
                **{
                    f"success_{steps}": value_at(steps, record.progress["timesteps"], rates)
                    for steps in _checkpoints(run.steps)
                },
                "mean_reward": record.summary["mean_reward"],
                "exported": record.summary.get("exported_success_rate"),
                "seconds": record.summary["seconds"],
                "folder": run.folder.name,
            }
        )
    return rows


def _checkpoints(steps: int) -> list[int]:
    return [checkpoint for checkpoint in CHECKPOINTS if checkpoint < steps] + [steps]


def make_report(
    rows: list[dict[str, Any]],
    planned: Sequence[Adaptation],
    explorations: Sequence[Exploration],
    env_kwargs: dict[str, Any],
) -> str:
    """
    The tables.

    :param rows: from :func:`table_rows`
    :param planned: all runs of the sweep, whether complete or not
    :param explorations: the complete runs of pre-training
    :param env_kwargs: the task
    """
    n_seeds, steps = len({run.seed for run in planned}), planned[0].steps
    about = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts = [
        f"Success rate of the greedy policy in the mazes, mean over {n_seeds} seed{'s' if n_seeds > 1 else ''} with a 95 % "
        "percentile bootstrap interval of the mean over seeds (over all mazes: resampled within each). "
        f"{len(rows)} of {len(planned)} runs are complete; n is the number of runs where some are missing. {about}."
    ]
    for reuse, condition in _CONDITIONS.items():
        mine = [row for row in rows if row["reuse_data"] is reuse]
        expected = [run for run in planned if run.reuse is reuse]
        if mine:
            parts += [
                f"After {checkpoint:,} steps, {condition}:\n\n"
                + _table(mine, expected, f"success_{checkpoint}", with_seconds=checkpoint == steps)
                for checkpoint in _checkpoints(steps)
            ]
    exported = [row for row in rows if row["exported"] is not None and row["method"] == next(iter(OPERATORS))]
    if exported:
        parts.append(_exported_table(exported))
    if explorations:
        parts.append("Seeds whose pre-training ever reached the goal:\n\n" + _reached_table(explorations, env_kwargs))
    return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]], expected: Sequence[Adaptation], key: str, with_seconds: bool) -> str:
    mazes = list(dict.fromkeys(run.task for run in expected))
    n_seeds = len({run.seed for run in expected})
    table = []
    for method in dict.fromkeys(run.method for run in expected):
        groups = [[row[key] for row in rows if (row["maze"], row["method"]) == (maze, method)] for maze in mazes]
        cells = [_cell([group], n_seeds) for group in groups]
        if len(mazes) > 1:
            cells.append(_cell(groups, n_seeds))
        if with_seconds:
            seconds = [row["seconds"] for row in rows if row["method"] == method]
            cells.append(f"{np.mean(seconds):.0f}" if seconds else "–")
        table.append([method, *cells])
    header = ["method", *mazes, *(["all mazes"] if len(mazes) > 1 else []), *(["seconds per run"] if with_seconds else [])]
    return markdown_table(header, table)


def _exported_table(rows: list[dict[str, Any]]) -> str:
    """The default operator at the end of a run, beside the single diffusion policy that it was distilled into."""
    mazes = list(dict.fromkeys(row["maze"] for row in rows))
    table = []
    for reuse in dict.fromkeys(row["reuse_data"] for row in rows):
        mine = [row for row in rows if row["reuse_data"] is reuse]
        end = max(row["timesteps"] for row in mine)
        for name, key in (("as fine-tuned", f"success_{end}"), ("distilled", "exported")):
            groups = [[row[key] for row in mine if row["maze"] == maze] for maze in mazes]
            table.append([f"{name}, {'reused' if reuse else 'fresh'} data", *(_cell([group], len(group)) for group in groups)])
    return (
        "The default operator at the end of a run, and the single diffusion policy that it was distilled into, which acts "
        "without critic and Gaussian:\n\n" + markdown_table(["policy", *mazes], table)
    )


def _cell(groups: list[list[float]], n_seeds: int) -> str:
    """``mean [low, high]`` of the groups, and the number of values if some are missing; a dash if a group has none."""
    if not all(groups):
        return "–"
    text = f"{np.mean([np.mean(group) for group in groups]):.2f}"
    if max(map(len, groups)) > 1:
        low, high = bootstrap_interval(groups)
        text += f" [{low:.2f}, {high:.2f}]"
    n_values = sum(map(len, groups))
    return text if n_values == n_seeds * len(groups) else f"{text}, n = {n_values}"


def _reached_table(explorations: Sequence[Exploration], env_kwargs: dict[str, Any]) -> str:
    table = []
    for maze in dict.fromkeys(run.task for run in explorations):
        task = GoalTask(MazeLayout.load(maze), **env_kwargs)
        mine = [run for run in explorations if run.task == maze]
        visits = [
            int((task.distance(RunFolder(run.folder).transitions()["next_observations"], task.goal) <= task.goal_radius).sum())
            for run in mine
        ]
        n_reached = sum(count > 0 for count in visits)
        table.append([maze, f"{task.goal_cell}", f"{n_reached} of {len(mine)}", f"{np.median(visits):,.0f}"])
    return markdown_table(["maze", "goal cell", "seeds", "median number of steps there"], table)


def draw(runs: Sequence[Adaptation], records: Sequence[RunRecord], path: Path, methods: Sequence[str]) -> Path:
    """
    Success rate over steps: one column per maze, one row per condition, one line per method, with its bootstrap interval.

    :param runs: complete runs
    :param records: what they wrote
    :param path: the picture
    :param methods: all methods there are, so that each keeps its color
    """
    path = check_picture_path(path)
    mazes = list(dict.fromkeys(run.task for run in runs))
    conditions = [reuse for reuse in _CONDITIONS if any(run.reuse is reuse for run in runs)]
    figure = new_figure(max(3.2 * len(mazes), 6.0), 2.7 * len(conditions) + 0.8)
    grid = figure.subplots(len(conditions), len(mazes), squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for (i, j), axes in np.ndenumerate(grid):
        for index, method in enumerate(methods):
            wanted = (mazes[j], method, conditions[i])
            curves = [
                record.progress
                for run, record in zip(runs, records, strict=True)
                if (run.task, run.method, run.reuse) == wanted
            ]
            if curves:
                handles[method] = _draw_line(axes, curves, index)
        style_curves(axes, "success rate" if j == 0 else "", mazes[j] if i == 0 else None)
        if i < len(conditions) - 1:
            axes.set_xlabel("")
        axes.set(xlim=(0, max(run.steps for run in runs)), ylim=(0, 1.05))
        if j == len(mazes) - 1:
            axes.annotate(
                _CONDITIONS[conditions[i]],
                (1.02, 0.5),
                xycoords="axes fraction",
                rotation=270,
                fontsize=9,
                color="#555555",
                verticalalignment="center",
            )
    ordered = [method for method in methods if method in handles]
    figure.legend(
        [handles[method] for method in ordered], ordered, loc="outside lower center", ncols=min(len(ordered), 9), frameon=False
    )
    return save_figure(figure, path)


def _draw_line(axes: Any, curves: list[dict[str, np.ndarray]], index: int) -> Any:
    """The mean of some runs on the steps of the first of them, and its interval."""
    steps = curves[0]["timesteps"]
    values = np.stack([np.interp(steps, curve["timesteps"], curve["success_rate"]) for curve in curves])  # (n_runs, n)
    is_control = index >= len(COLORS)  # what comes after the operators
    color = "#666666" if is_control else COLORS[index]
    style: Any = _CONTROL_STYLES[index % len(_CONTROL_STYLES)] if is_control else "solid"
    (handle,) = axes.plot(steps, values.mean(axis=0), color=color, linestyle=style, linewidth=1.8, clip_on=False)
    if len(values) > 1:
        low, high = np.transpose([bootstrap_interval([column], 2000) for column in values.T])
        axes.fill_between(steps, low, high, color=color, alpha=0.07, linewidth=0)
    return handle
