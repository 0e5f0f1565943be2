"""One robot, many tasks of URLB: pre-trained once without a reward, then fine-tuned in each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pandas as pd
from tyro.conf import arg

from sb3_exdm.benchmark.base import FinetuneSweep, Folder, Methods, Positive, Rewards, method_of
from sb3_exdm.benchmark.plan import PlannedRun, short_name
from sb3_exdm.benchmark.report import report
from sb3_exdm.benchmark.tables import markdown_table
from sb3_exdm.envs import TASKS
from sb3_exdm.runs.config import FinetuneConfig, OneOf, PretrainConfig
from sb3_exdm.runs.folder import RunFolder

# Returns of different tasks are comparable only as shares of the return of an expert.
DOMAINS = tuple(dict.fromkeys(task.domain for task in TASKS.values() if task.expert_return is not None))
START = 10_000
"""Steps within which a pre-trained policy must not be lost."""


@dataclass(kw_only=True)
class ControlBenchmark(FinetuneSweep):
    """
    One robot of URLB, many tasks: pre-trained without a reward, then fine-tuned in each task, beside learning from scratch.

    Runs that are complete in the output folder are not repeated, so an interrupted sweep goes on where it was. Writes
    report/report.md (or report-reuse/, with reused data), report.png and tables as CSV. Needs the extra dmc. On one core, a
    pre-training of 200,000 steps takes about ten minutes, fine-tuning of 50,000 about four.

    Example: exdm benchmark control --domain walker --seeds 10-12
    """

    out: Folder = Path("runs/control-benchmark")
    domain: Annotated[str, OneOf(DOMAINS), arg(metavar=f"{{{','.join(DOMAINS)}}}")] = "walker"
    """Robot. Its first task is the environment of the pre-training."""
    rewards: Rewards = ("score", "rnd")
    """Intrinsic rewards, each with a pre-training of its own; "module:NAME" imports the module that registers one first."""
    methods: Methods = ("gaussian", "select", "scratch")
    steps: Positive = 50_000
    pretrain_steps: Positive = 200_000

    settings: ClassVar[dict[str, Any]] = {"n_eval_episodes": 20, "distill_steps": 0}

    def tasks(self) -> list[str]:
        return [task.env_id for task in TASKS.values() if task.domain == self.domain]

    def pretrainings(self, env_id: str, seed: int) -> list[PlannedRun[PretrainConfig]]:
        shared = {"env_id": self.tasks()[0], "total_timesteps": self.pretrain_steps, "seed": seed, "checkpoint_freq": 0}
        configs = [PretrainConfig.make(reward=reward, **shared) for reward in dict.fromkeys(self.rewards)]
        return [PlannedRun(self.out / f"{self.domain}-{config.reward}-{seed}", config) for config in configs]

    def folder_name(self, config: FinetuneConfig, pretraining: PlannedRun[PretrainConfig] | None) -> str:
        reward = None if pretraining is None else pretraining.config.reward
        parts = short_name(config.env_id), method_of(config), reward, "reuse" if config.reuse_data else None, str(config.seed)
        return "-".join(filter(None, parts))

    @property
    def report_path(self) -> Path:
        return self.out / ("report" if self.reuse_data == "no" else "report-reuse") / "report.md"

    def report(self, runs: list[PlannedRun[FinetuneConfig]]) -> list[str]:
        return [
            f"{self.pretrain_steps:,} steps without a reward, then {self.steps:,} steps in each task.",
            report([run.folder for run in runs], self.report_path.parent, "normalized_score"),
            f"Return of the pre-trained policy, and the lowest return in the first {START:,} steps of fine-tuning as a "
            "fraction of it, mean over seeds:",
            markdown_table(_start_table(runs)),
        ]


def _start_table(runs: list[PlannedRun[FinetuneConfig]]) -> pd.DataFrame:
    """Returns of pre-trained policies when fine-tuning starts, a row for each method and a column for each task."""
    rows = []
    for run in runs:
        if run.requires is not None:
            summary, progress = RunFolder(run.folder).summary, RunFolder(run.folder).progress()
            returns = progress["mean_reward"][progress["timesteps"] <= START]
            method = f"{method_of(run.config)} after {summary['pretrained_reward']}"
            rows.append((method, short_name(run.config.env_id), returns[0], returns.min() / max(returns[0], 1e-9)))
    figures = pd.DataFrame(rows, columns=["method", "task", "first", "lowest"])
    means = figures.groupby(["method", "task"]).mean()
    cells = (means["first"].map("{:.0f}, ".format) + means["lowest"].map("{:.2f}".format)).unstack("task")
    return cells.reindex(index=figures["method"].unique(), columns=figures["task"].unique())
