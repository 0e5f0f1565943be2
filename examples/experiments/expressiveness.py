"""
Does fine-tuning need an expressive policy? Three initial policies with the same critics, schedule, data and warm-up.

The Gaussian policy that explored, as it was at the end; a Gaussian policy fitted to all explored transitions; a diffusion
policy fitted to the same. Each with and without a start noise that is correlated from one step to the next, in four mazes and
at a crossroads whose goal is drawn in every episode (crossroads.py), where the explored actions have two modes.

Example: python examples/experiments/expressiveness.py --seeds 10-14 --jobs 2

Complete runs are not repeated, so an interrupted sweep goes on where it was. Writes runs.csv and results.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro
from tyro.conf import arg

from sb3_exdm.benchmark.base import Benchmark, Folder, Positive
from sb3_exdm.benchmark.curves import AREA_CAPTION, STEPS_CAPTION, curve_figures, learning_curve, steps_table
from sb3_exdm.benchmark.finetune import GOAL
from sb3_exdm.benchmark.plan import PlannedRun, short_name
from sb3_exdm.benchmark.statistics import DIFFERENCES, RATE_INTERVAL
from sb3_exdm.benchmark.tables import count, interval_table, markdown_table, value_at, write_text
from sb3_exdm.common.validation import check_choice
from sb3_exdm.runs.config import FinetuneConfig, PretrainConfig

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # also in the processes of the runs

MAZES = ("SquareC", "SquareTree", "SquareBottleneck", "SquareLarge")
TASKS: dict[str, dict[str, Any]] = {
    **{maze: {"env_id": f"Maze2d-{maze}-v0", "env_kwargs": GOAL} for maze in MAZES},
    "Crossroads": {"env_id": "crossroads:Crossroads-v0"},
}
"""Environments of the tasks, and their arguments."""
INITIAL: dict[str, dict[str, Any]] = {
    "diffusion": {"policy": "diffusion", "operator": "select"},
    "last Gaussian": {"policy": "gaussian", "start": "last"},
    "cloned Gaussian": {"policy": "gaussian", "start": "cloned"},
}
"""Settings of the initial policies."""
CORRELATIONS = (0.6, 0.0)
"""Correlation of the start noise of two steps."""
CHECKPOINTS = (5_000, 10_000)
"""Steps at which the success rate is reported besides the end."""


@dataclass(kw_only=True)
class Expressiveness(Benchmark):
    """Every task with every initial policy, correlation and seed."""

    reports_on = FinetuneConfig

    out: Folder = Path("runs/expressiveness")
    """Folder of the runs."""
    tasks: Annotated[tuple[str, ...], arg(metavar=f"{{{','.join(TASKS)}}} [...]")] = tuple(TASKS)
    """Tasks."""
    pretrained: Folder = Path("runs/coverage")
    """Folder of a benchmark of coverage, whose runs named <maze>-sac-score-<seed> are used; missing ones are made there."""
    steps: Positive = 20_000
    """Environment steps of a fine-tuning run."""
    pretrain_steps: Positive = 100_000
    """Environment steps of a pre-training run."""

    def validate(self) -> None:
        super().validate()
        for task in self.tasks:
            check_choice("task", task, TASKS)

    def plan(self) -> list[PlannedRun[Any]]:
        runs: list[PlannedRun[Any]] = []
        for seed in dict.fromkeys(self.seeds):
            for task in dict.fromkeys(self.tasks):
                settings = TASKS[task]
                explored = PretrainConfig.make(
                    env_id=settings["env_id"], total_timesteps=self.pretrain_steps, seed=seed, checkpoint_freq=0
                )
                start = PlannedRun(
                    self.pretrained / f"{task}-sac-score-{seed}",
                    explored,
                    checked=("total_timesteps", "seed"),
                )
                runs.append(start)
                runs += [
                    PlannedRun(
                        self.out / f"{task}-{name.replace(' ', '-')}-{correlation:g}-{seed}",
                        FinetuneConfig.make(
                            **settings,
                            **policy,
                            total_timesteps=self.steps,
                            pretrained=start.folder,
                            correlation=correlation,
                            distill_steps=0,
                            seed=seed,
                        ),
                        start.folder,
                    )
                    for name, policy in INITIAL.items()
                    for correlation in CORRELATIONS
                ]
        return runs

    def report(self, runs: list[PlannedRun[FinetuneConfig]]) -> list[str]:
        checkpoints = [steps for steps in CHECKPOINTS if steps < self.steps] + [self.steps]
        figures = pd.DataFrame([_figures(run, checkpoints) for run in runs])
        write_text(self.out / "runs.csv", figures.to_csv(index=False))
        n_seeds = len(set(self.seeds))
        parts = [f"Success rate, mean over {count(n_seeds, 'seed')} with a {RATE_INTERVAL}."]
        for steps in checkpoints:
            column = f"success_{steps}"
            parts += [f"After {steps:,} steps:", markdown_table(interval_table(figures, column, n_seeds))]
        parts += [
            f"{AREA_CAPTION.format('success rate')}:",
            markdown_table(interval_table(figures, "area", n_seeds)),
            f"{DIFFERENCES}:",
            markdown_table(interval_table(figures, "area", n_seeds, differences=True)),
            f"Steps to a success rate {STEPS_CAPTION}:",
            markdown_table(steps_table(figures)),
        ]
        return parts


def _figures(run: PlannedRun[FinetuneConfig], checkpoints: list[int]) -> dict[str, Any]:
    """Row of ``runs.csv``."""
    config = run.config
    (initial,) = (name for name, policy in INITIAL.items() if all(getattr(config, key) == policy[key] for key in policy))
    curve = learning_curve(run.folder, "success_rate")
    return {
        "task": short_name((config.env_id or "").split(":")[-1]),
        "method": f"{initial}, {config.correlation:g}",
        "seed": config.seed,
        **{f"success_{steps}": value_at(steps, *curve) for steps in checkpoints},
        **curve_figures(*curve),
        "folder": run.folder.name,
    }


if __name__ == "__main__":
    print(tyro.cli(Expressiveness, description=__doc__).run())
