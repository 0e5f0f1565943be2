"""
State coverage in the mazes after reward-free pre-training, beside the figures of the paper.

A sweep over mazes, rewards and seeds. Every run is a run folder of its own, so a sweep that was stopped goes on where it
was, and ``exdm plot`` can draw any part of it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_exdm.benchmark.execute import check_sweep, run_missing
from sb3_exdm.benchmark.tables import check_seeds, markdown_table, mean_std, value_at, write_csv, write_text
from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.envs import Maze2dSB3VecEnv, MazeLayout
from sb3_exdm.metrics import StateCoverage
from sb3_exdm.plots import RunRecord, plot_runs, read_run
from sb3_exdm.recipes import pretrain
from sb3_exdm.rewards.registry import REWARDS
from sb3_exdm.runs.folder import versions
from sb3_exdm.runs.hyperparams import check_algorithm, default_settings

PAPER_COVERAGE = {
    "SquareA": (0.99, 0.02),
    "SquareB": (0.99, 0.01),
    "SquareC": (0.98, 0.02),
    "SquareD": (0.78, 0.01),
    "SquareTree": (0.91, 0.01),
    "SquareBottleneck": (0.75, 0.15),
    "SquareLarge": (0.71, 0.07),
}
"""ExDM after 100,000 steps, mean and standard deviation of 10 seeds (arXiv 2502.07279)."""

CHECKPOINTS = (16_600, 50_000)
"""Steps at which coverage is reported besides the end. In SquareLarge the paper reaches 0.40 after the first of them."""


@dataclass(frozen=True)
class Run:
    """
    One run of a sweep.

    :param maze: name of the maze
    :param reward: name of the reward
    :param seed: seed of everything
    :param algo: name of the algorithm
    :param steps: environment steps
    :param folder: run folder
    """

    maze: str
    reward: str
    seed: int
    algo: str
    steps: int
    folder: Path

    @property
    def env_id(self) -> str:
        """Id of the maze."""
        return f"Maze2d-{self.maze}-v0"

    @property
    def requires(self) -> None:
        """Nothing."""

    def differences(self, config: dict[str, Any]) -> list[str]:
        """Settings in which another run differs from this one."""
        return [key for key, value in self._config().items() if config.get(key) != value]

    def execute(self) -> None:
        """Explore."""
        pretrain(
            self.env_id,
            self.steps,
            algo=self.algo,
            reward=self.reward,
            seed=self.seed,
            out=self.folder,
            overwrite=True,
            device="cpu",
            checkpoint_freq=0,
            policy_steps=0,
            progress_bar=False,
        )

    def _config(self) -> dict[str, Any]:
        env = Maze2dSB3VecEnv(self.maze, 1)
        settings = default_settings(self.algo, env.observation_space, env.action_space)
        config = {
            "env_id": self.env_id,
            "total_timesteps": self.steps,
            "algo": self.algo,
            "reward": self.reward,
            "seed": self.seed,
            "env_kwargs": {},
            "algo_kwargs": settings,
            "reward_kwargs": {},
        }
        return json.loads(json.dumps(config))  # tuples become lists, as in the file


def run_sweep(
    out: str | Path,
    mazes: Sequence[str] = tuple(PAPER_COVERAGE),
    rewards: Sequence[str] = ("score",),
    seeds: Sequence[int] = range(5),
    algo: str = "sac",
    steps: int = 100_000,
    jobs: int = 2,
) -> str:
    """
    Run what is missing of a sweep, then write ``runs.csv``, ``results.md`` and ``coverage.png``.

    :param out: folder of the sweep
    :param mazes: names or env ids of mazes
    :param rewards: names of rewards
    :param seeds: seeds
    :param algo: name of the algorithm
    :param steps: environment steps of a run
    :param jobs: processes, each with one thread
    :return: the tables in Markdown
    :raises ValueError: for unknown names or numbers out of range
    :raises ChildProcessError: if a run fails; the others are still run
    :raises RunInterrupted: if stopped from the keyboard
    """
    check_sweep(Path(out), jobs)
    runs = _runs(Path(out), mazes, rewards, check_seeds(seeds), algo, steps)
    run_missing(runs, Path(out), jobs)
    records = [read_run(run.folder) for run in runs]
    write_csv(Path(out) / "runs.csv", [_row(run, record) for run, record in zip(runs, records, strict=True)])
    report = _report(runs, records)
    write_text(Path(out) / "results.md", report)
    plot_runs([run.folder for run in runs], Path(out) / "coverage.png")
    return report


def _runs(out: Path, mazes: Sequence[str], rewards: Sequence[str], seeds: Sequence[int], algo: str, steps: int) -> list[Run]:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if not mazes or not rewards:
        raise ValueError("A sweep needs at least one maze and one reward.")
    names = list(dict.fromkeys(MazeLayout.load(maze).name for maze in mazes))
    check_algorithm(algo, Maze2dSB3VecEnv(names[0], 1).action_space, names[0])
    unknown = [reward for reward in rewards if reward not in REWARDS]
    if unknown:
        raise ValueError(f"Unknown reward {unknown[0]!r}; choose among {', '.join(REWARDS)}.")
    return [
        Run(maze, reward, seed, algo, steps, out / f"{maze}-{algo}-{reward}-{seed}")
        for maze in names
        for reward in dict.fromkeys(rewards)
        for seed in seeds
    ]


def _row(run: Run, record: RunRecord) -> dict[str, Any]:
    """A line of ``runs.csv``."""
    summary = record.summary
    if summary is None:
        raise ArtifactError(f"The run in {run.folder} was interrupted; run the benchmark again.")
    return {
        "maze": run.maze,
        "reward": run.reward,
        "algo": run.algo,
        "seed": run.seed,
        "timesteps": summary["timesteps"],
        **{f"coverage_{steps}": _coverage_at(record, steps) for steps in CHECKPOINTS},
        "coverage": round(summary["coverage"], 4),
        "coverage_of_ceiling": round(summary["coverage_of_ceiling"], 4),
        "seconds": summary["seconds"],
        "steps_per_second": summary["steps_per_second"],
        "peak_memory_mb": summary["peak_memory_mb"],
        "folder": run.folder.name,
    }


def _coverage_at(record: RunRecord, steps: int) -> float | None:
    """Coverage after some steps, interpolated between two rows of the progress; None if the run is shorter."""
    timesteps, coverage = record.progress["timesteps"], record.progress["coverage"]
    return value_at(steps, np.concatenate([[0.0], timesteps]), np.concatenate([[0.0], coverage]))


def _report(runs: list[Run], records: list[RunRecord]) -> str:
    rows = [_row(run, record) for run, record in zip(runs, records, strict=True)]
    rewards = list(dict.fromkeys(run.reward for run in runs))
    n_seeds, steps, algo = len({run.seed for run in runs}), runs[0].steps, runs[0].algo
    about = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts = [
        f"State coverage, {algo}, mean ± standard deviation of {n_seeds} seed{'s' if n_seeds > 1 else ''}. "
        f"ExDM: as published, 10 seeds. {about}.",
        f"After {steps:,} steps:\n\n" + _coverage_table(rows, rewards, "coverage", with_paper=True),
    ]
    for checkpoint in CHECKPOINTS:
        key = f"coverage_{checkpoint}"
        if all(row[key] is not None for row in rows):
            parts.append(f"After {checkpoint:,} steps:\n\n" + _coverage_table(rows, rewards, key, with_paper=False))
    parts.append("Cost of a run, one thread:\n\n" + _cost_table(rows, rewards))
    return "\n\n".join(parts)


def _coverage_table(rows: list[dict[str, Any]], rewards: list[str], key: str, with_paper: bool) -> str:
    table = []
    for maze in dict.fromkeys(row["maze"] for row in rows):
        cells = [mean_std([row[key] for row in rows if (row["maze"], row["reward"]) == (maze, name)]) for name in rewards]
        if with_paper:
            mean, std = PAPER_COVERAGE[maze]
            cells += [f"{mean:.2f} ± {std:.2f}", f"{StateCoverage(maze).ceiling:.3f}"]
        table.append([maze, *cells])
    return markdown_table(["maze", *rewards, *(["ExDM, 100,000 steps", "ceiling"] if with_paper else [])], table)


def _cost_table(rows: list[dict[str, Any]], rewards: list[str]) -> str:
    table = []
    for name in rewards:
        mine = [row for row in rows if row["reward"] == name]
        # Not known on every system.
        memory = [row["peak_memory_mb"] for row in mine if row["peak_memory_mb"] is not None]
        table.append(
            [
                name,
                f"{np.mean([row['seconds'] for row in mine]):.0f}",
                f"{np.mean([row['steps_per_second'] for row in mine]):,.0f}",
                f"{max(memory):.0f}" if memory else "–",
            ]
        )
    return markdown_table(["reward", "seconds", "steps/s", "peak memory, MB"], table)
