"""
Tuning of the intrinsic rewards with equal budgets: nine settings of each, in a maze and with seeds that no table reports.

Every reward is tried with three values of its most important parameter and all three transforms. The setting with the best
mean coverage is the one that a comparison should use.

Example: python examples/experiments/reward_tuning.py --rewards rnd apt --jobs 2

Complete runs are not repeated, so an interrupted sweep goes on where it was. Writes runs.csv and results.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro
from tyro.conf import arg

from sb3_exdm.benchmark.base import Benchmark, Folder, Mazes, Positive
from sb3_exdm.benchmark.plan import PlannedRun, short_name
from sb3_exdm.benchmark.tables import markdown_table, write_text
from sb3_exdm.common.validation import check_choice
from sb3_exdm.envs import MazeLayout
from sb3_exdm.rewards.base import REWARD_TRANSFORMS
from sb3_exdm.runs.config import PretrainConfig
from sb3_exdm.runs.folder import RunFolder

CANDIDATES: dict[str, tuple[str, tuple[float, ...]]] = {
    "score": ("learning_rate", (5e-3, 1e-2, 2e-2)),
    "rnd": ("learning_rate", (1e-3, 3e-3, 1e-2)),
    "apt": ("n_neighbors", (3, 12, 48)),
    "count": ("bin_width", (0.01, 0.02, 0.04)),
    "edp": ("learning_rate", (5e-3, 1e-2, 2e-2)),
}
"""Tuned parameter of each reward and its values."""


@dataclass(kw_only=True)
class RewardTuning(Benchmark):
    """Nine settings of every reward, with every maze and seed."""

    out: Folder = Path("runs/reward-tuning")
    """Folder of the runs."""
    seeds: Annotated[tuple[int, ...], arg(metavar="SEED [SEED ...]")] = (0, 1)
    """Seeds of all runs; those of tables start at 10."""
    mazes: Mazes = ("SquareD",)
    """Names or env ids of mazes."""
    rewards: Annotated[tuple[str, ...], arg(metavar=f"{{{','.join(CANDIDATES)}}} [...]")] = tuple(CANDIDATES)
    """Intrinsic rewards."""
    steps: Positive = 30_000
    """Environment steps of a run."""

    def validate(self) -> None:
        super().validate()
        for reward in self.rewards:
            check_choice("reward", reward, CANDIDATES)

    def plan(self) -> list[PlannedRun[PretrainConfig]]:
        return [
            PlannedRun(
                self.out / f"{maze}-{reward}-{value:g}-{transform}-{seed}",
                PretrainConfig.make(
                    env_id=f"Maze2d-{maze}-v0",
                    total_timesteps=self.steps,
                    reward=reward,
                    reward_kwargs={CANDIDATES[reward][0]: value},
                    reward_transform=transform,
                    seed=seed,
                    policy_steps=0,
                    checkpoint_freq=0,
                ),
            )
            for maze in dict.fromkeys(MazeLayout.load(maze).name for maze in self.mazes)
            for reward in dict.fromkeys(self.rewards)
            for value in CANDIDATES[reward][1]
            for transform in REWARD_TRANSFORMS
            for seed in dict.fromkeys(self.seeds)
        ]

    def report(self, runs: list[PlannedRun[PretrainConfig]]) -> list[str]:
        figures = pd.DataFrame(map(_figures, runs))
        write_text(self.out / "runs.csv", figures.to_csv(index=False))
        groups = figures.groupby(["reward", "setting", "transform"], sort=False)["coverage"]
        means = groups.mean().reset_index()
        means["runs"] = groups.size().to_numpy()
        best = means.loc[means.groupby("reward", sort=False)["coverage"].idxmax()]
        means["best"] = ["yes" if i in best.index else "" for i in means.index]
        cells = means.assign(coverage=means["coverage"].map("{:.3f}".format), runs=means["runs"].astype(str))
        title = f"State coverage after {self.steps:,} steps in {', '.join(self.mazes)}, mean over seeds:"
        return [title, markdown_table(cells.set_index("reward"))]


def _figures(run: PlannedRun[PretrainConfig]) -> dict[str, Any]:
    """Row of ``runs.csv``."""
    config, summary = run.config, RunFolder(run.folder).summary
    ((parameter, value),) = config.reward_kwargs.items()
    return {
        "task": short_name(config.env_id),
        "reward": config.reward,
        "setting": f"{parameter} {value:g}",
        "transform": config.reward_transform,
        "seed": config.seed,
        "coverage": summary["coverage"],
        "seconds": summary["seconds"],
        "folder": run.folder.name,
    }


if __name__ == "__main__":
    print(tyro.cli(RewardTuning, description=__doc__).run())
