"""State coverage in the mazes after reward-free pre-training, beside the figures of the paper."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
from tyro.conf import arg

from sb3_exdm.benchmark.base import Benchmark, Mazes, Positive, Rewards
from sb3_exdm.benchmark.plan import PlannedRun, short_name, sweep
from sb3_exdm.benchmark.statistics import DIFFERENCES, RATE_INTERVAL
from sb3_exdm.benchmark.tables import count, interval_table, markdown_table, value_at, write_text
from sb3_exdm.envs import MazeLayout
from sb3_exdm.metrics import StateCoverage
from sb3_exdm.plots import plot_runs
from sb3_exdm.runs.config import NUpdates, OneOf, PretrainConfig
from sb3_exdm.runs.folder import RunFolder
from sb3_exdm.runs.hyperparams import ALGORITHMS

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
TUNED: dict[str, dict[str, Any]] = {"apt": {"reward_kwargs": {"n_neighbors": 3}}}
"""
Settings of rewards other than their defaults: the best of equally many in SquareD with seed 0, which no table reports
(``examples/experiments/reward_tuning.py``).
"""
CHECKPOINTS = (16_600, 50_000)
"""Steps at which coverage is reported besides the end. In SquareLarge the paper reaches 0.40 after the first of them."""


@dataclass(kw_only=True)
class CoverageBenchmark(Benchmark):
    """
    State coverage in the mazes, beside the figures of the paper: every maze with every reward and seed.

    Rewards have the settings that did best in a small tuning with the same budget for each. Runs that are complete in the
    output folder are not repeated, so an interrupted sweep goes on where it was. Writes
    runs.csv, results.md and coverage.png. One run of 100,000 steps takes about four minutes on one core. Fine-tuning can start
    from the runs with the score: exdm benchmark finetune --pretrained FOLDER.

    Example: exdm benchmark coverage --rewards score rnd --mazes SquareLarge --seeds 10-12
    """

    mazes: Mazes = tuple(PAPER_COVERAGE)
    """Names or env ids of mazes."""
    rewards: Rewards = ("score",)
    """Intrinsic rewards; "module:NAME" imports the module that registers one first. The others are compared with the first.
    count is the count-based bonus, an upper reference: it knows the bins of the metric."""
    algo: Annotated[str, OneOf(ALGORITHMS), arg(metavar=f"{{{','.join(ALGORITHMS)}}}")] = "sac"
    """Reinforcement learning algorithm."""
    steps: Positive = 100_000
    """Environment steps of a run."""
    policy_steps: NUpdates = 3000
    """Gradient steps of the diffusion policy of a run, 0 if none is fine-tuned later."""

    def plan(self) -> list[PlannedRun[PretrainConfig]]:
        mazes = dict.fromkeys(MazeLayout.load(maze).name for maze in self.mazes)
        settings: dict[str, Any] = {"total_timesteps": self.steps, "algo": self.algo, "policy_steps": self.policy_steps}
        shared = PretrainConfig(env_id="", checkpoint_freq=0, **settings)
        axes = {"env_id": [f"Maze2d-{maze}-v0" for maze in mazes], "reward": dict.fromkeys(self.rewards), "seed": self.seeds}
        return [
            PlannedRun(
                self.out / f"{short_name(config.env_id)}-{config.algo}-{config.reward}-{config.seed}",
                replace(config, **TUNED.get(config.reward, {})),
            )
            for config in sweep(shared, axes)
        ]

    def report(self, runs: list[PlannedRun[PretrainConfig]]) -> list[str]:
        figures = pd.DataFrame(map(_figures, runs))
        write_text(self.out / "runs.csv", figures.to_csv(index=False))
        plot_runs([run.folder for run in runs], self.out / "coverage.png")
        n_seeds = len(set(self.seeds))

        def table(column: str, differences: bool = False) -> pd.DataFrame:
            cells = interval_table(figures, column, n_seeds, differences=differences).T
            return cells.rename_axis(index="maze", columns=None)

        published = pd.DataFrame(
            {
                maze: {"ExDM, 100,000 steps": f"{mean:.2f} ± {std:.2f}", "ceiling": f"{StateCoverage(maze).ceiling:.3f}"}
                for maze, (mean, std) in PAPER_COVERAGE.items()
            }
        ).T
        parts = [
            f"State coverage with {self.algo} after {self.steps:,} steps, mean over {count(n_seeds, 'seed')} with a "
            f"{RATE_INTERVAL}. ExDM: as published, mean ± standard deviation of 10 seeds.",
            markdown_table(table("coverage").join(published)),
        ]
        if figures["method"].nunique() > 1:
            parts += [f"{DIFFERENCES}:", markdown_table(table("coverage", differences=True))]
        for steps in CHECKPOINTS:
            if figures[f"coverage_{steps}"].notna().all():
                parts += [f"After {steps:,} steps:", markdown_table(table(f"coverage_{steps}"))]
        groups = figures.rename(columns={"method": "reward"}).groupby("reward", sort=False)
        cost = {
            "seconds": groups["seconds"].mean().map("{:.0f}".format),
            "steps/s": groups["steps_per_second"].mean().map("{:,.0f}".format),
            # Not known on every system.
            "peak memory, MB": groups["peak_memory_mb"].max().map("{:.0f}".format, na_action="ignore"),
        }
        return [*parts, "Cost of a run, one thread:", markdown_table(pd.DataFrame(cost))]


def _figures(run: PlannedRun[PretrainConfig]) -> dict[str, Any]:
    """Row of ``runs.csv``."""
    record = RunFolder(run.folder).record()
    config, summary = record.config, RunFolder(run.folder).summary
    # Nothing is covered at the start.
    curve = [np.concatenate([[0.0], record.progress[column]]) for column in ("timesteps", "coverage")]
    return {
        "task": short_name(run.config.env_id),
        "method": config["reward"],
        "algo": config["algo"],
        "seed": config["seed"],
        "timesteps": summary["timesteps"],
        **{f"coverage_{steps}": value_at(steps, *curve) for steps in CHECKPOINTS},
        **{
            name: summary[name]
            for name in ("coverage", "coverage_of_ceiling", "seconds", "steps_per_second", "peak_memory_mb")
        },
        "folder": run.folder.name,
    }
