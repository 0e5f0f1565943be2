"""Aggregates of many fine-tuning runs over tasks and seeds."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from scipy import stats

from sb3_exdm.benchmark.curves import AREA_CAPTION, STEPS_CAPTION, curve_figures, learning_curve, steps_table
from sb3_exdm.benchmark.statistics import (
    DIFFERENCES,
    MEAN_INTERVAL,
    RATE_INTERVAL,
    Interval,
    bootstrap_intervals,
    mean_interval,
    rate_interval,
)
from sb3_exdm.benchmark.tables import count, interval_cell, interval_table, markdown_table, score_matrix, write_text
from sb3_exdm.common.resources import check_output
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.common.validation import Between, Seed, check_choice, check_value
from sb3_exdm.plots import plot_aggregates
from sb3_exdm.runs.config import FinetuneConfig
from sb3_exdm.runs.folder import CONFIG, RunFolder

SCORES = {"normalized_score": "normalized score", "success_rate": "success rate", "mean_reward": "return"}
"""Scores of a run, keys of its summary, and their names in words."""
MIN_BOOTSTRAP_SEEDS = 10
"""Number of seeds from which on the interquartile mean, the median and the optimality gap have intervals."""
_COMPARABLE = ("normalized_score", "success_rate")  # between tasks; their best is 1
_REQUIRED = ("env_id", "algo", "policy", "operator", "pretrained", "reuse_data", "seed", "timesteps", "mean_reward")
# Settings that do not set methods apart: they are in the name of the method or the task, or do not affect training.
_NOT_METHOD = {
    *_REQUIRED,
    "total_timesteps",
    "env_kwargs",
    "vec_env",
    "distill_steps",
    "eval_freq",
    "n_eval_episodes",
    "video",
}
_SETTINGS = [field.name for field in fields(FinetuneConfig) if field.name not in _NOT_METHOD]

Facts = dict[str, Any]
"""Contents of ``config.json`` and ``summary.json`` of a run, and its ``folder``."""


def report(
    runs: Iterable[str | Path], out: str | Path = "runs/report", score: str = "auto", reps: int = 2000, seed: int = 0
) -> str:
    """
    Aggregate fine-tuning runs, and write ``report.md``, ``report.png``, ``runs.csv`` and ``aggregates.csv``.

    Runs of the same method differ only in task and seed. Aggregates are over the seeds that a method has in all of its tasks;
    the report names those left out, and methods that cover other tasks than others. The mean has an interval whose unit is
    the seed, since tasks that start from the same pre-training are not independent.

    :param runs: run folders of :func:`~sb3_exdm.finetune`, or folders of such; in the latter, interrupted runs are left out
    :param out: folder to write
    :param score: a name in :data:`SCORES`; ``"auto"`` takes the first that all runs have and that is comparable between tasks
    :param reps: number of bootstrap resamples
    :param seed: seed of the resamples
    :return: the report in Markdown
    :raises ArtifactError: if a folder holds no complete fine-tuning run
    :raises ValueError: if there is nothing to aggregate, runs have no such score, or two are of the same method, task and seed
    :raises ImportError: if rliable is needed, for :data:`MIN_BOOTSTRAP_SEEDS` seeds or more, and cannot be used
    """
    check_value("reps", reps, Annotated[int, Between(1, 10**6)])
    check_value("seed", seed, Seed)
    out = check_output(out)
    check_choice("score", score, ("auto", *SCORES))
    found, notes = _find_runs(runs)
    score = _choose_score(found, score)
    figures = _figures(found, score)
    aggregates, more_notes = _aggregates(figures, score, reps, seed)
    text = _make_report(figures, aggregates, score, [*notes, *more_notes], reps)
    _draw(aggregates, score, out / "report.png")
    write_text(out / "runs.csv", figures.to_csv(index=False))
    write_text(out / "aggregates.csv", aggregates.round(6).to_csv(index=False))
    write_text(out / "report.md", text)
    return text


# Runs ---------------------------------------------------------------------------------------------------------------------


def _find_runs(folders: Iterable[str | Path]) -> tuple[list[Facts], list[str]]:
    """All runs, each once, in the order they are named, and notes on those left out."""
    named: dict[Path, Path] = {}
    for folder in map(Path, folders):
        named.setdefault(folder.resolve(), folder)
    if not named:
        raise ValueError("There is nothing to report: name at least one run folder.")
    runs: dict[Path, Facts] = {}
    notes = []
    for folder in named.values():
        if folder.exists() and not folder.is_dir():
            raise ArtifactError(f"{folder} is not a folder.")
        inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
        if RunFolder(folder).exists() or not inside:
            complete = [folder]
        else:
            finetuned = [path for path in inside if RunFolder(path).config["command"] == "finetune"]
            complete = [path for path in finetuned if RunFolder(path).is_complete()]
            interrupted = count(len(finetuned) - len(complete), "interrupted run")
            if not complete:
                raise ArtifactError(f"{folder} holds no complete run of exdm finetune ({interrupted}).")
            if len(finetuned) > len(complete):
                notes.append(f"Left out: {interrupted} in {folder}.")
        for path in complete:
            runs.setdefault(path.resolve(), _read_run(path))
    return list(runs.values()), notes


def _read_run(folder: Path) -> Facts:
    config = RunFolder(folder).config
    if config["command"] != "finetune":
        raise ArtifactError(f"{folder} holds a run of exdm {config['command']}; name runs of exdm finetune.")
    # The summary repeats settings, whose types are checked in the configuration.
    facts = {**RunFolder(folder).summary, **config, "folder": str(folder)}
    missing = [key for key in _REQUIRED if key not in facts]
    if missing:
        raise ArtifactError(f"The run in {folder} has no {', '.join(missing)}; it may be damaged.")
    return facts


def _choose_score(runs: Sequence[Facts], score: str) -> str:
    missing = {
        name: [run["folder"] for run in runs if not isinstance(run.get(name), (int, float)) or not math.isfinite(run[name])]
        for name in SCORES
    }
    if score == "auto":
        for name in _COMPARABLE:
            if not missing[name]:
                return name
        raise ValueError(
            f"There is no score that all runs have: neither {' nor '.join(_COMPARABLE)}. Returns can be aggregated with "
            "--score mean_reward, for one environment only: those of different tasks are not comparable."
        )
    if missing[score]:
        raise ValueError(f"{count(len(missing[score]), 'run')} of {len(runs)} without {score}, such as {missing[score][0]}.")
    env_ids = list(dict.fromkeys(run["env_id"] for run in runs))
    if score == "mean_reward" and len(env_ids) > 1:
        raise ValueError(
            f"Returns of different tasks are not comparable, so mean_reward aggregates over one environment only; these runs "
            f"are of {', '.join(env_ids)}."
        )
    return score


def _figures(runs: Sequence[Facts], score: str) -> pd.DataFrame:
    """Rows of ``runs.csv``."""
    tasks = _task_names(runs)
    labels = pd.DataFrame({"method": _method_names(runs, tasks), "task": tasks, "seed": [run["seed"] for run in runs]})
    optional = [*SCORES, "expert_return", "pretrained_reward", "pretrained_timesteps"]
    columns = [*dict.fromkeys([*optional, *(name for name in _REQUIRED if name != "seed")]), "folder"]
    facts = pd.DataFrame([{name: run.get(name) for name in columns} for run in runs])
    facts["env_kwargs"] = [json.dumps(run.get("env_kwargs", {})) for run in runs]
    curves = pd.DataFrame([curve_figures(*learning_curve(run["folder"], score)) for run in runs])
    facts = facts.join(curves if score in _COMPARABLE else curves[["area"]])
    for (method, task, seed), same in facts["folder"].groupby([labels[name] for name in labels], sort=False):
        if len(same) > 1:
            raise ValueError(f"{' and '.join(same[:2])} are both of {method!r} in {task} with seed {seed}; name one of them.")
    return pd.concat([labels.assign(score=score, value=facts[score].astype(float)), facts], axis=1)


# Names --------------------------------------------------------------------------------------------------------------------


def _task_names(runs: Sequence[Facts]) -> list[str]:
    """The environment, with those of its arguments that are not the same in all runs."""
    arguments: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        arguments.setdefault(run["env_id"], []).append(_flat(run.get("env_kwargs", {})))
    names = []
    for run in runs:
        differing = _differing(arguments[run["env_id"]])
        words = ", ".join(word for key, word in _flat(run.get("env_kwargs", {})).items() if key in differing)
        names.append(f"{run['env_id']} ({words})" if words else run["env_id"])
    return names


def _method_names(runs: Sequence[Facts], tasks: Sequence[str]) -> list[str]:
    """
    Names that set methods apart. They include the number of steps where runs of the same name differ in it, and other
    settings where runs in the same task do; settings that depend on the task do not make another method.
    """
    names = [_short_name(run) for run in runs]
    full_names = list(names)
    for name in dict.fromkeys(names):
        mine = [i for i in range(len(runs)) if names[i] == name]
        steps, settings = {i: _steps(runs[i]) for i in mine}, {i: _settings(runs[i]) for i in mine}
        differing = _differing(list(steps.values()))
        for task in dict.fromkeys(tasks[i] for i in mine):
            differing |= _differing([settings[i] for i in mine if tasks[i] == task])
        for i in mine:
            words = {**steps[i], **settings[i]}
            full_names[i] = ", ".join([name, *(words[key] for key in words if key in differing)])
    return full_names


def _short_name(run: Facts) -> str:
    reward = run.get("pretrained_reward")
    start = "from scratch" if run["pretrained"] is None else "pre-trained" if reward is None else f"after {reward}"
    return f"{run['policy']} {run['operator'] or run['algo']}, {start}{', reused data' if run['reuse_data'] else ''}"


def _steps(run: Facts) -> dict[str, str]:
    words = {"timesteps": f"{run['timesteps']:,} steps"}
    if run.get("pretrained_timesteps") is not None:
        words["pretrained_timesteps"] = f"{run['pretrained_timesteps']:,} steps of pre-training"
    return words


def _settings(run: Facts) -> dict[str, str]:
    # 0 is the same as a setting that did not exist yet when the run was made.
    settings = _flat({key: run[key] for key in _SETTINGS if run.get(key)})
    settings.pop("algo_kwargs.policy_kwargs.pretrained", None)  # a folder, another one for each seed
    return settings


def _flat(settings: dict[str, Any], path: str = "") -> dict[str, str]:
    """Words for nested settings, by their path: ``{"a": {"b": 1}}`` becomes ``{"a.b": "a.b=1"}``."""
    words: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            words.update(_flat(value, f"{path}{key}."))
        else:
            words[f"{path}{key}"] = f"{path}{key}={json.dumps(value)}"
    return words


def _differing(words: Sequence[dict[str, str]]) -> set[str]:
    """Keys whose words are not the same in all."""
    return {key for mine in words for key in mine if len({other.get(key) for other in words}) > 1}


# Aggregates ---------------------------------------------------------------------------------------------------------------


def _aggregates(figures: pd.DataFrame, score: str, reps: int, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """Rows of ``aggregates.csv``, over the seeds that a method has in all of its tasks, and notes on what is left out."""
    rows, notes, lacking = [], [], {}
    for method in figures["method"].unique():
        every_task = score_matrix(figures, method, "value")
        scores = every_task.dropna(axis=1, how="all")
        complete, partly = scores.dropna(), scores[scores.isna().any(axis=1)]
        if complete.empty:
            numbers = ", ".join(f"{task} {number}" for task, number in scores.notna().sum().items())
            notes.append(f"{method}: not in the aggregates, as no seed has a run in every task. Runs: {numbers}.")
            continue
        if len(partly):
            seeds = ", ".join(f"{number} (no {', '.join(row.index[row.isna()])})" for number, row in partly.iterrows())
            notes.append(f"{method}: the aggregates leave out the seeds that lack a task: {seeds}.")
        if len(complete) == 1:
            notes.append(f"{method}: a single seed, so there are no intervals.")
        lacking[method] = [task for task in every_task if task not in scores]
        for name, interval in _intervals(complete.to_numpy(), score, reps, seed).items():
            label = {"method": method, "score": score, "aggregate": name, **interval._asdict()}
            rows.append({**label, "seeds": len(complete), "tasks": scores.shape[1]})
    if not rows:
        raise ValueError(f"There is nothing to aggregate. {' '.join(notes)}")
    if any(lacking.values()):
        words = "; ".join(f"{method} lacks {', '.join(tasks)}" for method, tasks in lacking.items() if tasks)
        notes.append(f"The methods do not cover the same tasks, so their aggregates are not comparable: {words}.")
    return pd.DataFrame(rows), notes


def _interval_of(score: str) -> Callable[[np.ndarray], Interval]:
    return rate_interval if score == "success_rate" else mean_interval


def _intervals(scores: np.ndarray, score: str, reps: int, seed: int) -> dict[str, Interval]:
    """Aggregates of scores ``(n_seeds, n_tasks)``. Returns have no known best, so they have no optimality gap."""
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "IQM": partial(stats.trim_mean, proportiontocut=0.25, axis=None),
        "median": lambda resample: float(np.median(resample.mean(axis=0))),
        "optimality gap": lambda resample: float(np.maximum(1.0 - resample, 0.0).mean()),
    }
    if score not in _COMPARABLE:
        del statistics["optimality gap"]
    if len(scores) < MIN_BOOTSTRAP_SEEDS:
        others = [Interval(float(function(scores)), math.nan, math.nan) for function in statistics.values()]
    else:
        others = bootstrap_intervals(scores, list(statistics.values()), reps, seed)
    return {"mean": _interval_of(score)(scores.mean(axis=1)), **dict(zip(statistics, others, strict=True))}


# Report -------------------------------------------------------------------------------------------------------------------


def _covered(aggregates: pd.DataFrame) -> dict[str, str]:
    """Number of tasks that each method covers: ``4``, or ``3 of 4``."""
    most = aggregates["tasks"].max()
    covered = aggregates.groupby("method", sort=False)["tasks"].first()
    return {method: f"{number}" if number == most else f"{number} of {most}" for method, number in covered.items()}


def _draw(aggregates: pd.DataFrame, score: str, path: Path) -> None:
    methods = [f"{name} ({number} tasks)" if " of " in number else name for name, number in _covered(aggregates).items()]
    panels = {
        f"{name}\n(lower is better)" if name == "optimality gap" else name: mine[["value", "low", "high"]].to_numpy()
        for name, mine in aggregates.groupby("aggregate", sort=False)
    }
    plot_aggregates(methods, panels, path, xlabel=SCORES[score])


def _make_report(figures: pd.DataFrame, aggregates: pd.DataFrame, score: str, notes: Sequence[str], reps: int) -> str:
    n_tasks, n_methods, n_seeds = (figures[name].nunique() for name in ("task", "method", "seed"))
    gap = " Optimality gap: mean shortfall from 1; lower is better." if score in _COMPARABLE else ""
    interval = RATE_INTERVAL if score == "success_rate" else MEAN_INTERVAL
    cells: dict[str, dict[str, str]] = {}
    for row in aggregates.itertuples():
        cell = interval_cell(Interval(row.value, row.low, row.high))
        counts = {"seeds": f"{row.seeds}", "tasks": _covered(aggregates)[row.method]}
        cells.setdefault(row.method, counts)[row.aggregate] = cell
    parts = [
        f"{SCORES[score].capitalize()} at the end of fine-tuning: {count(len(figures), 'run')}, "
        f"{count(n_methods, 'method')}, {count(n_tasks, 'task')}. Mean: of the means over tasks, with a {interval}. IQM: "
        f"mean of the middle half of all scores. Median: of the means of the tasks.{gap} From {MIN_BOOTSTRAP_SEEDS} seeds on, "
        f"these have 95 % percentile intervals of the stratified bootstrap by rliable, {reps:,} resamples of the seeds within "
        "each task.",
        *(["\n".join(f"- {note}" for note in notes)] if notes else []),
        markdown_table(pd.DataFrame.from_dict(cells, orient="index").rename_axis("method")),
        "![Aggregates and their intervals](report.png)",
        f"Mean {SCORES[score]} in each task, over all of its runs, with a {interval}; n is the number of runs if it is not "
        f"{n_seeds}:",
        markdown_table(interval_table(figures, "value", n_seeds, _interval_of(score))),
    ]
    has_differences = n_methods > 1 and n_seeds > 1
    if has_differences:
        parts += [f"{DIFFERENCES}:", markdown_table(interval_table(figures, "value", n_seeds, differences=True))]
    if figures["area"].notna().all():
        cells_of_area = interval_table(figures, "area", n_seeds, _interval_of(score))
        parts += [
            f"{AREA_CAPTION.format(SCORES[score])}, with a {interval}:",
            markdown_table(cells_of_area),
        ]
        if has_differences:
            parts += [f"{DIFFERENCES}:", markdown_table(interval_table(figures, "area", n_seeds, differences=True))]
        if score in _COMPARABLE:
            parts += [
                f"Steps to a {SCORES[score]} {STEPS_CAPTION}:",
                markdown_table(steps_table(figures)),
            ]
    return "\n\n".join(parts)
