"""
Fine-tuning in the mazes: the operators beside each other, the Gaussian that explored, and learning from scratch.

The goal is the cell furthest from the start, with a reward of 1 only there. Every run is a run folder of its own, so a sweep
that was stopped goes on where it was; runs are made seed by seed, so that it holds the first seeds of everything.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_exdm.benchmark.execute import check_sweep, is_complete
from sb3_exdm.benchmark.finetune_report import draw, make_report, table_rows
from sb3_exdm.benchmark.plan import METHODS, REUSE, Adaptation, Exploration, check_any, check_reuse, run_and_collect
from sb3_exdm.benchmark.tables import check_seeds, write_csv, write_text
from sb3_exdm.common.validation import check_integers
from sb3_exdm.envs import MazeLayout
from sb3_exdm.plots import read_run

MAZES = ("SquareC", "SquareTree", "SquareBottleneck", "SquareLarge")
ENV_KWARGS: dict[str, Any] = {
    "reward_type": "sparse",
    "goal_cell": "farthest",
    "goal_radius": 0.5,
    "terminate_on_success": True,
}
"""The task."""
N_EVAL_EPISODES = 50


def env_id(maze: str) -> str:
    """Id of a maze."""
    return f"Maze2d-{maze}-v0"


def run_finetune_sweep(
    out: str | Path,
    mazes: Sequence[str] = MAZES,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = range(5),
    reuse_data: str = "both",
    steps: int = 20_000,
    pretrain_steps: int = 100_000,
    pretrained: str | Path | None = None,
    jobs: int = 2,
    report_only: bool = False,
) -> str:
    """
    Run what is missing of a sweep, then write ``runs.csv``, ``results.md`` and ``finetune.png``.

    :param out: folder of the sweep
    :param mazes: names or env ids of mazes
    :param methods: some of :data:`METHODS`
    :param seeds: seeds, of the pre-training as well
    :param reuse_data: ``"yes"``, ``"no"`` or ``"both"``; from scratch there is nothing to use again
    :param steps: environment steps of a run
    :param pretrain_steps: environment steps of a pre-training
    :param pretrained: folder with the pre-training runs ``<maze>-<seed>``, where missing ones are made; by default
        ``<out>/pretrained``
    :param jobs: processes, each with one thread
    :param report_only: run nothing, report the runs that are complete
    :return: the tables in Markdown
    :raises ValueError: for unknown names or numbers out of range, or if there is nothing to report
    :raises ChildProcessError: if a run fails; the others are still run
    :raises RunInterrupted: if stopped from the keyboard
    """
    out = Path(out)
    check_sweep(out, jobs)
    check_integers(steps=(steps, 1), pretrain_steps=(pretrain_steps, 1))
    seeds = check_seeds(seeds)
    explored_in = out / "pretrained" if pretrained is None else Path(pretrained)
    explorations, adaptations = _runs(out, explored_in, mazes, methods, seeds, reuse_data, steps, pretrain_steps)
    complete = run_and_collect(out, explorations, adaptations, seeds, jobs, report_only)
    rows = table_rows(complete, [read_run(run.folder) for run in complete])
    write_csv(out / "runs.csv", rows)
    report = make_report(rows, adaptations, [run for run in explorations if is_complete(run)], ENV_KWARGS)
    write_text(out / "results.md", report)
    draw(complete, [read_run(run.folder) for run in complete], out / "finetune.png", METHODS)
    return report


def _runs(
    out: Path,
    explored_in: Path,
    mazes: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    reuse_data: str,
    steps: int,
    pretrain_steps: int,
) -> tuple[list[Exploration], list[Adaptation]]:
    """All runs of the sweep, whether complete or not."""
    if not mazes or not methods:
        raise ValueError("A sweep needs at least one maze and one method.")
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ValueError(f"Unknown method {unknown[0]!r}; choose among {', '.join(METHODS)}.")
    check_reuse(reuse_data)
    names = list(dict.fromkeys(MazeLayout.load(maze).name for maze in mazes))
    adaptations = [
        Adaptation(
            env_id(maze),
            method,
            seed,
            steps,
            None if method == "scratch" else explored_in / f"{maze}-{seed}",
            out / f"{maze}-{method}-{'reuse' if reuse else 'fresh'}-{seed}",
            reuse,
            ENV_KWARGS,
            N_EVAL_EPISODES,
        )
        for seed in seeds
        for maze in names
        for method in dict.fromkeys(methods)
        for reuse in REUSE[reuse_data]
        if not (reuse and method == "scratch")
    ]
    check_any(adaptations)
    needed = {run.pretrained for run in adaptations}
    explorations = [
        Exploration(env_id(maze), seed, pretrain_steps, folder)
        for seed in seeds
        for maze in names
        if (folder := explored_in / f"{maze}-{seed}") in needed
    ]
    return explorations, adaptations
