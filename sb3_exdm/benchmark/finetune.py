"""Fine-tuning in the mazes: the operators beside the Gaussian policy that explored, and learning from scratch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pandas as pd
from tyro.conf import arg

from sb3_exdm.benchmark.base import METHODS, FinetuneSweep, Folder, Mazes, ReuseData, method_of
from sb3_exdm.benchmark.curves import AREA_CAPTION, STEPS_CAPTION, curve_figures, steps_table
from sb3_exdm.benchmark.plan import PlannedRun, short_name
from sb3_exdm.benchmark.statistics import DIFFERENCES, RATE_INTERVAL
from sb3_exdm.benchmark.tables import count, interval_table, markdown_table, value_at, write_text
from sb3_exdm.envs import GoalTask, MazeLayout
from sb3_exdm.plots import plot_runs
from sb3_exdm.runs.config import FinetuneConfig, PretrainConfig
from sb3_exdm.runs.folder import RunFolder

GOAL: dict[str, Any] = {
    "reward_type": "sparse",
    "goal_cell": "farthest",
    "goal_radius": 0.5,
    "terminate_on_success": True,
}
"""The task, as arguments of the maze: a reward of 1 in the cell furthest from the start, where the episode ends."""
CHECKPOINTS = (5_000, 10_000, 20_000)
"""Steps at which the success rate is reported besides the end."""
_DATA = {False: "new data only", True: "reused data"}


@dataclass(kw_only=True)
class FinetuneBenchmark(FinetuneSweep):
    """
    Fine-tuning in the mazes to the furthest cell: every operator, the Gaussian that explored, and learning from scratch.

    Runs that are complete in the output folder are not repeated, so an interrupted sweep goes on where it was; missing runs of
    pre-training are made first. Writes runs.csv, results.md, and finetune.png or, with reused data, finetune-reuse.png. One
    run of 20,000 steps takes about a minute on one core, the pre-training of a maze and a seed about four.

    Example: exdm benchmark finetune --methods select gaussian --mazes SquareTree --seeds 10-12
    """

    out: Folder = Path("runs/finetune-benchmark")
    mazes: Mazes = ("SquareC", "SquareTree", "SquareBottleneck", "SquareLarge")
    """Names or env ids of mazes."""
    reuse_data: ReuseData = "both"
    pretrained: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: <out>/pretrained)")] = None
    """Folder of a benchmark of coverage, whose runs named <maze>-sac-score-<seed> are used; missing ones are made there."""

    settings: ClassVar[dict[str, Any]] = {"env_kwargs": GOAL}

    def tasks(self) -> list[str]:
        return [f"Maze2d-{name}-v0" for name in dict.fromkeys(MazeLayout.load(maze).name for maze in self.mazes)]

    def pretrainings(self, env_id: str, seed: int) -> list[PlannedRun[PretrainConfig]]:
        folder = (self.pretrained or self.out / "pretrained") / f"{short_name(env_id)}-sac-score-{seed}"
        config = PretrainConfig.make(env_id=env_id, total_timesteps=self.pretrain_steps, seed=seed, checkpoint_freq=0)
        # Any pre-training of this length will do, with another reward for example.
        return [PlannedRun(folder, config, checked=("env_id", "total_timesteps", "seed"))]

    def folder_name(self, config: FinetuneConfig, pretraining: PlannedRun[PretrainConfig] | None) -> str:
        data = "reuse" if config.reuse_data else "fresh"
        return f"{short_name(config.env_id)}-{method_of(config)}-{data}-{config.seed}"

    def report(self, runs: list[PlannedRun[FinetuneConfig]]) -> list[str]:
        checkpoints = [steps for steps in CHECKPOINTS if steps < self.steps] + [self.steps]
        figures = pd.DataFrame([_figures(run, checkpoints) for run in runs])
        write_text(self.out / "runs.csv", figures.to_csv(index=False))
        n_seeds = len(set(self.seeds))
        parts = [f"Success rate of the greedy policy in the mazes, mean over {count(n_seeds, 'seed')} with a {RATE_INTERVAL}."]
        for reuse_data, mine in figures.groupby("reuse_data"):
            folders = [self.out / folder for folder in mine["folder"]]
            plot_runs(folders, self.out / f"finetune{'-reuse' if reuse_data else ''}.png", metric="success_rate")
            for steps in checkpoints:
                cells = interval_table(mine, f"success_{steps}", n_seeds)
                if steps == self.steps:
                    cells["seconds per run"] = mine.groupby("method")["seconds"].mean().map("{:.0f}".format)
                parts += [f"After {steps:,} steps, {_DATA[reuse_data]}:", markdown_table(cells)]
            if mine["method"].nunique() > 1:
                cells = interval_table(mine, f"success_{self.steps}", n_seeds, differences=True)
                parts += [f"{DIFFERENCES}, {_DATA[reuse_data]}:", markdown_table(cells)]
            parts += [
                f"{AREA_CAPTION.format('success rate')}, {_DATA[reuse_data]}:",
                markdown_table(interval_table(mine, "area", n_seeds)),
                f"Steps to a success rate {STEPS_CAPTION}, {_DATA[reuse_data]}:",
                markdown_table(steps_table(mine)),
            ]
        default = figures[(figures["method"] == METHODS[0]) & figures["distilled"].notna()]
        if len(default):
            columns = {"fine-tuned": f"success_{self.steps}", "distilled": "distilled"}
            labels = {name: name + ", " + default["reuse_data"].map(_DATA) for name in columns}
            both = [default.assign(method=labels[name], rate=default[column]) for name, column in columns.items()]
            parts += [
                f"{METHODS[0]} at the end of a run, and the single diffusion policy that it was distilled into, which acts "
                "without critic and Gaussian:",
                markdown_table(interval_table(pd.concat(both), "rate", n_seeds)),
            ]
        explored = [path for path in dict.fromkeys(run.requires for run in runs) if path and RunFolder(path).is_complete()]
        if explored:
            parts += ["Seeds whose pre-training reached the goal:", markdown_table(_reached(explored))]
        return parts


def _figures(run: PlannedRun[FinetuneConfig], checkpoints: list[int]) -> dict[str, Any]:
    """Row of ``runs.csv``."""
    config, summary, progress = run.config, RunFolder(run.folder).summary, RunFolder(run.folder).progress()
    curve = progress["timesteps"], progress["success_rate"]
    return {
        "task": short_name(config.env_id),
        "method": method_of(config),
        "reuse_data": config.reuse_data,
        "seed": config.seed,
        "timesteps": summary["timesteps"],
        **{f"success_{steps}": value_at(steps, *curve) for steps in checkpoints},
        **curve_figures(*curve),
        "mean_reward": summary["mean_reward"],
        "distilled": summary.get("distilled_success_rate"),
        "saw_reward": summary["saw_reward"],
        "seconds": summary["seconds"],
        "folder": run.folder.name,
    }


def _reached(folders: list[Path]) -> pd.DataFrame:
    """Number of steps of the pre-training runs in the goal."""
    rows = []
    for folder in map(RunFolder, folders):
        env_id = folder.config["env_id"]
        task = GoalTask(MazeLayout.load(env_id), **GOAL)
        distances = task.distance(folder.transitions()["next_observations"], task.goal)
        rows.append((short_name(env_id), str(task.goal_cell), int((distances <= task.goal_radius).sum())))
    groups = pd.DataFrame(rows, columns=["maze", "cell", "steps"]).groupby("maze", sort=False)
    return pd.DataFrame(
        {
            "goal cell": groups["cell"].first(),
            "seeds": groups["steps"].apply(lambda steps: f"{(steps > 0).sum()} of {len(steps)}"),
            "median number of steps there": groups["steps"].median().map("{:,.0f}".format),
        }
    )
