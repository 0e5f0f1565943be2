"""What many runs of fine-tuning say together: aggregates with stratified bootstrap intervals, through rliable."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sb3_exdm.benchmark.tables import bootstrap_interval, markdown_table, write_csv, write_text
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.common.validation import check_integers
from sb3_exdm.plots import plot_aggregates
from sb3_exdm.runs.folder import CONFIG, SUMMARY, RunFolder

SCORES = {"normalized_score": "normalized score", "success_rate": "success rate", "mean_reward": "return"}
"""What a run can be scored by, a key of its summary, and what it is called."""
AGGREGATES = {
    "IQM": "aggregate_iqm",
    "median": "aggregate_median",
    "mean": "aggregate_mean",
    "optimality gap": "aggregate_optimality_gap",
}
"""Functions of ``rliable.metrics``, by what they are called."""
_COMPARABLE = ("normalized_score", "success_rate")  # between tasks; their best is 1
_REQUIRED = ("env_id", "algo", "policy", "operator", "pretrained", "reuse_data", "seed", "timesteps", "mean_reward")
# Settings that make another method of a run, besides what its name says.
_SETTINGS = ("n_envs", "offline_updates", "critic_updates", "kl_steps", "operator_kwargs", "algo_kwargs")


def report(
    runs: Iterable[str | Path], out: str | Path = "runs/report", score: str = "auto", reps: int = 2000, seed: int = 0
) -> str:
    """
    Aggregate runs of fine-tuning, and write ``report.md``, ``report.png``, ``runs.csv`` and ``aggregates.csv``.

    A method is what two runs have in common that differ only in task and seed. Only seeds that a method has in all of its
    tasks enter its aggregates; which do not, and which methods cover other tasks than others, the report says.

    :param runs: run folders of :func:`~sb3_exdm.finetuning`, or folders of such; in the latter, interrupted runs are left out
    :param out: folder to write
    :param score: a name in :data:`SCORES`; ``"auto"`` takes the first that all runs have and that is comparable between tasks
    :param reps: number of bootstrap resamples
    :param seed: of the resamples
    :return: the Markdown
    :raises ArtifactError: if a folder holds no complete run of fine-tuning
    :raises ValueError: if there is nothing to aggregate, runs have no such score, or two are of the same method, task and seed
    :raises ImportError: if rliable cannot be used
    """
    check_integers(reps=(reps, 1), seed=(seed, 0))
    if score not in ("auto", *SCORES):
        raise ValueError(f"Unknown score {score!r}; choose one of auto, {', '.join(SCORES)}.")
    found, notes = _find_runs(runs)
    rows = _table_rows(found, _choose_score(found, score))
    score = rows[0]["score"]
    matrices, more_notes = _matrices(rows)
    estimates = {method: _estimate(matrix.scores, _names(score), reps, seed) for method, matrix in matrices.items()}
    text = _make_report(rows, matrices, estimates, [*notes, *more_notes], reps)
    out = Path(out)
    _draw(matrices, estimates, score, out / "report.png")
    write_csv(out / "runs.csv", rows)
    write_csv(out / "aggregates.csv", _aggregate_rows(matrices, estimates, score))
    write_text(out / "report.md", text)
    return text


# Runs ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """
    A complete run.

    :param folder: its folder
    :param facts: what ``config.json`` and ``summary.json`` say together
    """

    folder: Path
    facts: dict[str, Any]

    def score(self, name: str) -> float | None:
        """A score, None if there is none."""
        value = self.facts.get(name)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _find_runs(folders: Iterable[str | Path]) -> tuple[list[_Run], list[str]]:
    """All runs, each once, in the order they are named; and what to say about those left out."""
    named: dict[Path, Path] = {}
    for folder in map(Path, folders):
        named.setdefault(folder.resolve(), folder)
    if not named:
        raise ValueError("There is nothing to report: name at least one run folder.")
    runs: dict[Path, _Run] = {}
    notes = []
    for folder in named.values():
        if not folder.is_dir():
            raise ArtifactError(
                f"{folder} is not a folder." if folder.exists() else f"The run folder {folder} does not exist."
            )
        complete = [folder]
        if not (folder / CONFIG).is_file():
            complete, n_interrupted = _complete_runs_in(folder)
            if n_interrupted:
                notes.append(f"Left out: {_count(n_interrupted, 'interrupted run')} in {folder}.")
        for path in complete:
            runs.setdefault(path.resolve(), _read_run(path))
    return list(runs.values()), notes


def _complete_runs_in(folder: Path) -> tuple[list[Path], int]:
    """The complete runs of fine-tuning one level below a folder, and the number of those that were interrupted."""
    inside = [path.parent for path in sorted(folder.glob(f"*/{CONFIG}"))]
    if not inside:
        raise ArtifactError(f"{folder} is no run folder, and none of the folders in it is: no {CONFIG} is there.")
    finetuned = [path for path in inside if RunFolder(path).config.get("command") == "finetune"]
    complete = [path for path in finetuned if (path / SUMMARY).is_file()]
    if not complete:
        interrupted = f" ({len(finetuned)} interrupted)" if finetuned else ""
        raise ArtifactError(f"{folder} holds no complete run of exdm finetune{interrupted}.")
    return complete, len(finetuned) - len(complete)


def _read_run(folder: Path) -> _Run:
    config = RunFolder(folder).config
    if config.get("command") != "finetune":
        raise ArtifactError(f"{folder} holds a run of exdm {config.get('command')}; name runs of exdm finetune.")
    facts = {**config, **RunFolder(folder).summary}
    missing = [key for key in _REQUIRED if key not in facts]
    if missing:
        raise ArtifactError(f"The run in {folder} does not say {', '.join(missing)}; it may be damaged.")
    return _Run(folder, facts)


def _choose_score(runs: Sequence[_Run], score: str) -> str:
    if score == "auto":
        for name in _COMPARABLE:
            if all(run.score(name) is not None for run in runs):
                return name
        raise ValueError(
            f"There is no score that all runs have: neither {' nor '.join(_COMPARABLE)}. Returns can be aggregated with "
            "--score mean_reward, for one environment only: those of different tasks are not comparable."
        )
    missing = [run.folder for run in runs if run.score(score) is None]
    if missing:
        raise ValueError(f"{_count(len(missing), 'run')} of {len(runs)} without {score}, such as {missing[0]}.")
    env_ids = list(dict.fromkeys(run.facts["env_id"] for run in runs))
    if score == "mean_reward" and len(env_ids) > 1:
        raise ValueError(
            f"Returns of different tasks are not comparable, so mean_reward aggregates over one environment only; these runs "
            f"are of {', '.join(env_ids)}."
        )
    return score


def _table_rows(runs: Sequence[_Run], score: str) -> list[dict[str, Any]]:
    """The lines of ``runs.csv``, which everything else is made of."""
    tasks = _task_names(runs)
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for run, method, task in zip(runs, _method_names(runs, tasks), tasks, strict=True):
        facts = run.facts
        key = (method, task, facts["seed"])
        if key in rows:
            raise ValueError(
                f"{rows[key]['folder']} and {run.folder} are both of {method!r} in {task} with seed {facts['seed']}; "
                "name one of them."
            )
        rows[key] = {
            "method": method,
            "task": task,
            "seed": facts["seed"],
            "score": score,
            "value": run.score(score),
            **{name: facts.get(name) for name in (*SCORES, "expert_return")},
            "env_id": facts["env_id"],
            "env_kwargs": json.dumps(facts.get("env_kwargs", {})),
            **{name: facts[name] for name in ("policy", "operator", "algo", "reuse_data", "timesteps", "pretrained")},
            **{name: facts.get(name) for name in ("pretrained_reward", "pretrained_timesteps")},
            "folder": str(run.folder),
        }
    return list(rows.values())


# Names --------------------------------------------------------------------------------------------------------------------


def _task_names(runs: Sequence[_Run]) -> list[str]:
    """The environment, with those of its arguments that are not the same in all runs."""
    arguments: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        arguments.setdefault(run.facts["env_id"], []).append(_env_kwargs(run))
    names = []
    for run in runs:
        env_id, mine = run.facts["env_id"], _env_kwargs(run)
        telling = _differing(arguments[env_id])
        words = ", ".join(mine[key] for key in mine if key in telling)
        names.append(f"{env_id} ({words})" if words else env_id)
    return names


def _env_kwargs(run: _Run) -> dict[str, str]:
    return _flat(run.facts.get("env_kwargs", {}))


def _method_names(runs: Sequence[_Run], tasks: Sequence[str]) -> list[str]:
    """
    What sets methods apart. Runs of one name may still differ in how long they trained, or, in the same task, in other
    settings: then the name says so, lest they be pooled. Settings that go with the task do not make another method.
    """
    names = [_short_name(run) for run in runs]
    full_names = list(names)
    for name in dict.fromkeys(names):
        mine = [i for i in range(len(runs)) if names[i] == name]
        steps = {i: _steps(runs[i]) for i in mine}
        settings = {i: _settings(runs[i]) for i in mine}
        telling = _differing(list(steps.values()))
        for task in dict.fromkeys(tasks[i] for i in mine):
            telling |= _differing([settings[i] for i in mine if tasks[i] == task])
        for i in mine:
            words = {**steps[i], **settings[i]}
            full_names[i] = ", ".join([name, *(words[key] for key in words if key in telling)])
    return full_names


def _short_name(run: _Run) -> str:
    facts, reward = run.facts, run.facts.get("pretrained_reward")
    start = "from scratch" if facts["pretrained"] is None else "pre-trained" if reward is None else f"after {reward}"
    return f"{facts['policy']} {facts['operator'] or facts['algo']}, {start}{', reused data' if facts['reuse_data'] else ''}"


def _steps(run: _Run) -> dict[str, str]:
    words = {"timesteps": f"{run.facts['timesteps']:,} steps"}
    if run.facts.get("pretrained_timesteps") is not None:
        words["pretrained_timesteps"] = f"{run.facts['pretrained_timesteps']:,} steps of pre-training"
    return words


def _settings(run: _Run) -> dict[str, str]:
    # What is 0 says the same as nothing, as it is in runs from before there was such a setting.
    settings = _flat({key: run.facts[key] for key in _SETTINGS if run.facts.get(key)})
    settings.pop("algo_kwargs.policy_kwargs.pretrained", None)  # a folder, another one for each seed
    return settings


def _flat(settings: dict[str, Any], path: str = "") -> dict[str, str]:
    """What a name says of nested settings, by where they are: ``{"a": {"b": 1}}`` is ``{"a.b": "a.b=1"}``."""
    words: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            words.update(_flat(value, f"{path}{key}."))
        else:
            words[f"{path}{key}"] = f"{path}{key}={json.dumps(value)}"
    return words


def _differing(words: Sequence[dict[str, str]]) -> set[str]:
    """Keys of what is not the same in all."""
    keys = {key for mine in words for key in mine}
    return {key for key in keys if len({mine.get(key) for mine in words}) > 1}


# Aggregates ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Matrix:
    """The scores (n_seeds, n_tasks) of a method."""

    tasks: list[str]
    seeds: list[int]
    scores: np.ndarray


def _matrices(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, _Matrix], list[str]]:
    """The scores of the methods that have a seed in all of their tasks; and what to say about those left out."""
    matrices, notes = {}, []
    for method in dict.fromkeys(row["method"] for row in rows):
        scores = {(row["seed"], row["task"]): row["value"] for row in rows if row["method"] == method}
        tasks = list(dict.fromkeys(task for _, task in scores))
        seeds = sorted({seed for seed, _ in scores})
        lacking = {seed: [task for task in tasks if (seed, task) not in scores] for seed in seeds}
        complete = [seed for seed in seeds if not lacking[seed]]
        if complete:
            matrices[method] = _Matrix(
                tasks, complete, np.array([[scores[seed, task] for task in tasks] for seed in complete])
            )
            if len(complete) < len(seeds):
                seeds_left_out = ", ".join(f"{seed} (no {', '.join(lacking[seed])})" for seed in seeds if lacking[seed])
                notes.append(f"{method}: the aggregates leave out the seeds that lack a task: {seeds_left_out}.")
        else:
            counts = ", ".join(f"{task} {sum(other == task for _, other in scores)}" for task in tasks)
            notes.append(f"{method}: not in the aggregates, as no seed has a run in every task. Runs: {counts}.")
    if not matrices:
        raise ValueError(f"There is nothing to aggregate. {' '.join(notes)}")
    all_tasks = _tasks_of(matrices)
    fewer = {
        method: [task for task in all_tasks if task not in matrix.tasks]
        for method, matrix in matrices.items()
        if len(matrix.tasks) < len(all_tasks)
    }
    if fewer:
        lacking_tasks = "; ".join(f"{method} lacks {', '.join(tasks)}" for method, tasks in fewer.items())
        notes.append(f"The methods do not cover the same tasks, so their aggregates are not comparable: {lacking_tasks}.")
    notes += [
        f"{method}: a single seed, so there are no intervals." for method, matrix in matrices.items() if len(matrix.seeds) == 1
    ]
    return matrices, notes


def _tasks_of(matrices: dict[str, _Matrix]) -> list[str]:
    return list(dict.fromkeys(task for matrix in matrices.values() for task in matrix.tasks))


def _names(score: str) -> list[str]:
    """The aggregates of a score. Returns have no known best that could be missed."""
    return [name for name in AGGREGATES if name != "optimality gap" or score in _COMPARABLE]


def _estimate(scores: np.ndarray, names: Sequence[str], reps: int, seed: int) -> np.ndarray:
    """
    Aggregates, each with the ends of its 95 % interval, which are NaN for a single seed: ``(n_aggregates, 3)``.

    :param scores: ``(n_seeds, n_tasks)``
    :param names: of the aggregates
    :param reps: number of resamples
    :param seed: of the resamples
    """
    library, metrics = _import_rliable()
    functions = [getattr(metrics, AGGREGATES[name]) for name in names]

    def aggregate(resample: np.ndarray) -> np.ndarray:
        return np.array([function(resample) for function in functions])

    if len(scores) == 1:
        return np.column_stack([aggregate(scores), np.full((len(names), 2), np.nan)])
    # rliable draws from the generator that all of numpy shares, whatever random_state it is given.
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        values, intervals = library.get_interval_estimates({"": scores}, aggregate, reps=reps)
    finally:
        np.random.set_state(state)
    return np.column_stack([values[""], intervals[""].T])


def _import_rliable() -> tuple[Any, Any]:
    """rliable is an extra of this package, and slow to import."""
    try:
        from rliable import library, metrics
    except ImportError:
        raise ImportError('Reports need rliable, which is not installed: pip install "sb3-exdm[plots]".') from None
    except TypeError:  # arch, which rliable needs, calls something that pandas 3 changed
        version = metadata.version("pandas")
        raise ImportError(f'rliable cannot be imported with pandas {version}: pip install "pandas<3".') from None
    return library, metrics


# Report -------------------------------------------------------------------------------------------------------------------


def _aggregate_rows(matrices: dict[str, _Matrix], estimates: dict[str, np.ndarray], score: str) -> list[dict[str, Any]]:
    """The lines of ``aggregates.csv``."""
    rows = []
    for method, matrix in matrices.items():
        for name, estimate in zip(_names(score), estimates[method], strict=True):
            value, low, high = (round(float(number), 6) if math.isfinite(number) else None for number in estimate)
            counts = {"seeds": len(matrix.seeds), "tasks": len(matrix.tasks)}
            rows.append(
                {"method": method, "score": score, "aggregate": name, "value": value, "low": low, "high": high, **counts}
            )
    return rows


def _draw(matrices: dict[str, _Matrix], estimates: dict[str, np.ndarray], score: str, path: Path) -> None:
    covered = _covered(matrices)
    methods = [f"{method} ({covered[method]} tasks)" if " of " in covered[method] else method for method in matrices]
    panels = {}
    for i, name in enumerate(_names(score)):
        title = f"{name}\n(lower is better)" if name == "optimality gap" else name
        panels[title] = np.stack([estimates[method][i] for method in matrices])
    plot_aggregates(methods, panels, path, xlabel=SCORES[score])


def _make_report(
    rows: Sequence[dict[str, Any]],
    matrices: dict[str, _Matrix],
    estimates: dict[str, np.ndarray],
    notes: Sequence[str],
    reps: int,
) -> str:
    score = rows[0]["score"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    gap = " Optimality gap: by how much scores fall short of 1 on average; lower is better." if score in _COMPARABLE else ""
    parts = [
        f"{SCORES[score].capitalize()} at the end of fine-tuning: {_count(len(rows), 'run')}, "
        f"{_count(len(methods), 'method')}, {_count(len(tasks), 'task')}. In brackets: 95 % percentile intervals of the "
        f"stratified bootstrap, {reps:,} resamples of the seeds within each task, by rliable {metadata.version('rliable')}. "
        f"IQM: mean of the middle half of all scores. Median and mean: of the means of the tasks.{gap}"
    ]
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    parts.append(_aggregate_table(matrices, estimates, score))
    parts.append("![Aggregates and their intervals](report.png)")
    parts.append(f"Mean {SCORES[score]} in each task, over all of its runs, with a 95 % bootstrap interval:")
    parts += [f"{task}:\n\n" + _task_table([row for row in rows if row["task"] == task], methods) for task in tasks]
    return "\n\n".join(parts)


def _aggregate_table(matrices: dict[str, _Matrix], estimates: dict[str, np.ndarray], score: str) -> str:
    covered = _covered(matrices)
    table = [
        [method, f"{len(matrix.seeds)}", covered[method], *(_cell(*estimate) for estimate in estimates[method])]
        for method, matrix in matrices.items()
    ]
    return markdown_table(["method", "seeds", "tasks", *_names(score)], table)


def _covered(matrices: dict[str, _Matrix]) -> dict[str, str]:
    """How many tasks each method covers: ``4``, or ``3 of 4``."""
    n_tasks = len(_tasks_of(matrices))
    counts = {method: len(matrix.tasks) for method, matrix in matrices.items()}
    return {method: f"{count}" if count == n_tasks else f"{count} of {n_tasks}" for method, count in counts.items()}


def _task_table(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> str:
    table = []
    for method in methods:
        values = [row["value"] for row in rows if row["method"] == method]
        if values:
            interval = bootstrap_interval([values]) if len(values) > 1 else (math.nan, math.nan)
            table.append([method, f"{len(values)}", _cell(float(np.mean(values)), *interval)])
    return markdown_table(["method", "runs", "mean"], table)


def _cell(value: float, low: float, high: float) -> str:
    """``value [low, high]``; the value alone if there is no interval."""
    text = _number(value)
    return f"{text} [{_number(low)}, {_number(high)}]" if math.isfinite(low) else text


def _number(value: float) -> str:
    """Three decimals of a score, one of a large return."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def _count(number: int, what: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"
