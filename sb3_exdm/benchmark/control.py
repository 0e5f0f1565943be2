"""
One body, many tasks: pre-trained once without a reward, then adapted to each task of URLB, beside learning from scratch.

Every run is a run folder of its own, so a sweep that was stopped goes on where it was; runs are made seed by seed, so that it
holds the first seeds of everything.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sb3_exdm.benchmark.execute import check_sweep
from sb3_exdm.benchmark.plan import (
    METHODS,
    REUSE,
    Adaptation,
    Exploration,
    check_any,
    check_reuse,
    run_and_collect,
    short_name,
)
from sb3_exdm.benchmark.report import report
from sb3_exdm.benchmark.tables import check_seeds, markdown_table, write_text
from sb3_exdm.common.validation import check_integers
from sb3_exdm.envs.urlb import TASKS
from sb3_exdm.plots import read_run
from sb3_exdm.rewards.registry import REWARDS

N_EVAL_EPISODES = 20
START = 10_000
"""Steps within which a pre-trained policy must not be lost."""


def run_control_sweep(
    out: str | Path,
    domain: str = "walker",
    rewards: Sequence[str] = ("score", "rnd"),
    methods: Sequence[str] = ("gaussian", "select", "scratch"),
    seeds: Sequence[int] = range(3),
    reuse_data: str = "no",
    steps: int = 50_000,
    pretrain_steps: int = 200_000,
    jobs: int = 2,
    report_only: bool = False,
) -> str:
    """
    Run what is missing of a sweep, then report it: normalized scores and their aggregates (see
    :func:`~sb3_exdm.benchmark.report.report`), and how much is lost when fine-tuning starts.

    :param out: folder of the sweep; the report goes to ``<out>/report``, or, where data are reused, ``<out>/report-reuse``
    :param domain: the body, ``"walker"``, ``"quadruped"`` or ``"jaco"``
    :param rewards: names of intrinsic rewards, each with a pre-training of its own, in the body's first task
    :param methods: some of :data:`~sb3_exdm.benchmark.plan.METHODS`
    :param seeds: seeds, of the pre-training as well
    :param reuse_data: ``"no"``, ``"yes"`` or ``"both"``: begin with the transitions of the pre-training, worth what the task
        would have paid; from scratch there is nothing to use again
    :param steps: environment steps of a run of fine-tuning
    :param pretrain_steps: environment steps of a pre-training
    :param jobs: processes, each with one thread
    :param report_only: run nothing, report the runs that are complete
    :return: the report in Markdown
    :raises ValueError: for unknown names or numbers out of range, or if there is nothing to report
    :raises ChildProcessError: if a run fails; the others are still run
    :raises RunInterrupted: if stopped from the keyboard
    """
    out = Path(out)
    check_sweep(out, jobs)
    check_integers(steps=(steps, 1), pretrain_steps=(pretrain_steps, 1))
    seeds = check_seeds(seeds)
    explorations, adaptations = _runs(out, domain, rewards, methods, seeds, reuse_data, steps, pretrain_steps)
    complete = run_and_collect(out, explorations, adaptations, seeds, jobs, report_only)
    report_folder = out / ("report" if reuse_data == "no" else "report-reuse")
    text = report([run.folder for run in complete], report_folder, "normalized_score")
    text = "\n\n".join(
        [
            f"{len(complete)} of {len(adaptations)} runs are complete: {pretrain_steps:,} steps without a reward, then "
            f"{steps:,} steps a task.",
            text,
            f"Return of the policy before fine-tuning, and the lowest in the first {START:,} steps over it, mean over seeds:",
            _start_table(complete),
        ]
    )
    write_text(report_folder / "report.md", text)
    return text


def _runs(
    out: Path,
    domain: str,
    rewards: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    reuse_data: str,
    steps: int,
    pretrain_steps: int,
) -> tuple[list[Exploration], list[Adaptation]]:
    """All runs of the sweep, whether complete or not."""
    # Returns of different tasks can be put together only as shares of what an expert reaches.
    known_tasks = [task for task in TASKS.values() if task.expert_return is not None]
    env_ids = [task.env_id for task in known_tasks if task.domain == domain]
    if not env_ids:
        domains = ", ".join(dict.fromkeys(task.domain for task in known_tasks))
        raise ValueError(f"There are no published expert returns for {domain!r}; choose one of {domains}.")
    for kind, given, known in (("method", methods, METHODS), ("reward", rewards, REWARDS)):
        if not given:
            raise ValueError(f"A sweep needs at least one {kind}.")
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"Unknown {kind} {unknown[0]!r}; choose among {', '.join(known)}.")
    check_reuse(reuse_data)
    explorations = [
        Exploration(env_ids[0], seed, pretrain_steps, out / f"{domain}-{reward}-{seed}", reward)
        for seed in seeds
        for reward in dict.fromkeys(rewards)
        if set(methods) != {"scratch"}
    ]
    starts = [
        (method, reward, reuse)
        for method in dict.fromkeys(methods)
        for reward in ([None] if method == "scratch" else dict.fromkeys(rewards))
        for reuse in REUSE[reuse_data]
        if not (reuse and method == "scratch")
    ]
    adaptations = [
        Adaptation(
            env_id,
            method,
            seed,
            steps,
            None if reward is None else out / f"{domain}-{reward}-{seed}",
            out / "-".join(filter(None, [short_name(env_id), method, reward, "reuse" if reuse else None, str(seed)])),
            reuse,
            n_eval_episodes=N_EVAL_EPISODES,
            distill_steps=0,
        )
        for seed in seeds
        for env_id in env_ids
        for method, reward, reuse in starts
    ]
    check_any(adaptations)
    return explorations, adaptations


def _start_table(runs: list[Adaptation]) -> str:
    """What becomes of a pre-trained policy when fine-tuning starts, a row per method and a column per task."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    cells: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in runs:
        if run.pretrained is not None:
            record = read_run(run.folder)
            assert record.summary is not None
            progress = record.progress
            returns = progress["mean_reward"][progress["timesteps"] <= START]
            method = f"{run.method} after {record.summary['pretrained_reward']}"
            cells.setdefault((method, run.task), []).append((returns[0], returns.min() / max(returns[0], 1e-9)))
    rows = []
    for method in dict.fromkeys(method for method, _ in cells):
        row = [method]
        for task in tasks:
            found = np.array(cells.get((method, task), [])).reshape(-1, 2)
            row.append("–" if not len(found) else f"{found[:, 0].mean():.0f}, {found[:, 1].mean():.2f}")
        rows.append(row)
    return markdown_table(["method", *tasks], rows)
