"""Settings and steps that benchmarks share: plan, run what is missing, report what is complete."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import arg

from sb3_exdm.benchmark.execute import is_complete, run_missing
from sb3_exdm.benchmark.plan import PlannedRun
from sb3_exdm.benchmark.tables import write_text
from sb3_exdm.common.resources import check_output
from sb3_exdm.common.validation import Between, check_choice
from sb3_exdm.finetuning.operators import OPERATORS
from sb3_exdm.rewards.registry import REWARDS
from sb3_exdm.runs.config import Config, FinetuneConfig, OneOf, Positive, PretrainConfig, Seeds
from sb3_exdm.runs.folder import versions

GAUSSIAN, CLONED, SCRATCH = "gaussian", "gaussian-cloned", "scratch"
METHODS = (*(name for name in OPERATORS if name != "sac"), GAUSSIAN, CLONED, SCRATCH)
"""
The operators of the diffusion policy; the Gaussian policy that explored, improved by SAC; a Gaussian policy fitted to the
explored transitions, improved in the same way; SAC from scratch.
"""
_GAUSSIANS = (GAUSSIAN, CLONED, SCRATCH)
REUSE_DATA = {"both": (False, True), "no": (False,), "yes": (True,)}
"""Values of the flag, and of ``reuse_data`` in the runs."""


Folder = Annotated[Path, arg(metavar="FOLDER")]
Mazes = Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")]
Rewards = Annotated[tuple[str, ...], arg(metavar=f"{{{','.join(REWARDS)}}} [...]")]
Methods = Annotated[tuple[str, ...], arg(metavar=f"{{{','.join(METHODS)}}} [...]")]
ReuseData = Annotated[str, OneOf(REUSE_DATA), arg(metavar=f"{{{','.join(REUSE_DATA)}}}")]


@dataclass(kw_only=True)
class Benchmark(Config):
    """Settings that all benchmarks share."""

    reports_on: ClassVar[type[Config]] = PretrainConfig
    """Kind of runs that the report is about."""

    out: Folder = Path("runs/benchmark")
    """Folder of the sweep; every run has a folder of its own in it."""
    seeds: Seeds = (10, 11, 12, 13, 14)
    """Seeds of all runs, A to B, or 0 to N-1. The settings of this library were chosen with seeds below 10."""
    jobs: Annotated[int, Between(1, 1024), arg(metavar="N")] = 2
    """Runs at the same time, each on one core."""
    report_only: bool = False
    """Run nothing; report the runs that are complete."""

    def validate(self) -> None:
        super().validate()
        check_output(self.out)
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"The output folder {self.out} is a file; name a folder.")
        for name, value in vars(self).items():
            if isinstance(value, (tuple, list, range)) and not value:
                raise ValueError(f"{name} must name at least one.")

    @property
    def report_path(self) -> Path:
        """Report, in Markdown."""
        return self.out / "results.md"

    def plan(self) -> list[PlannedRun[Any]]:
        """List all runs, complete or not."""
        raise NotImplementedError

    def report(self, runs: list[PlannedRun[Any]]) -> list[str]:
        """
        Make tables and pictures.

        :param runs: complete runs
        :return: paragraphs of the report, in Markdown
        """
        raise NotImplementedError

    def run(self) -> str:
        """
        Run what is missing, then report.

        :return: the report, in Markdown
        :raises ValueError: for unknown names or numbers out of range, or if there is nothing to report
        :raises ChildProcessError: if a run fails; the others are still run
        :raises RunInterrupted: if stopped from the keyboard
        """
        self.validate()
        planned = self.plan()
        reported = [run for run in planned if isinstance(run.config, self.reports_on)]
        complete = reported
        if self.report_only:
            complete = [run for run in reported if is_complete(run)]
        else:
            run_missing(planned, self.jobs)
        if not complete:
            raise ValueError(f"There is nothing to report: {self.out} holds no complete run of this sweep.")
        counts = f"{len(complete)} of {len(reported)} runs are complete; n is the number of runs where some are missing."
        about = ", ".join(f"{name} {version}" for name, version in versions().items())
        text = "\n\n".join([f"{counts} {about}.", *self.report(complete)])
        write_text(self.report_path, text)
        return text


@dataclass(kw_only=True)
class FinetuneSweep(Benchmark):
    """Settings that benchmarks of fine-tuning share."""

    reports_on: ClassVar[type[Config]] = FinetuneConfig
    settings: ClassVar[dict[str, Any]] = {}
    """Further settings of the fine-tuning runs."""

    methods: Methods = METHODS
    """Operators of the diffusion policy, "module:NAME" for one of your own; gaussian for the Gaussian policy that explored,
    gaussian-cloned for one fitted to the explored transitions, scratch for a new one. The others are compared with the
    first."""
    reuse_data: ReuseData = "no"
    """Learn from the transitions of the pre-training too, relabeled with the reward of the task."""
    steps: Positive = 20_000
    """Environment steps of a fine-tuning run."""
    pretrain_steps: Positive = 100_000
    """Environment steps of a pre-training run."""

    def validate(self) -> None:
        super().validate()
        for method in self.methods:
            if ":" not in method:
                check_choice("method", method, METHODS)

    def tasks(self) -> list[str]:
        """Ids of the environments."""
        raise NotImplementedError

    def pretrainings(self, env_id: str, seed: int) -> list[PlannedRun[PretrainConfig]]:
        """Runs that fine-tuning in a task starts from."""
        raise NotImplementedError

    def folder_name(self, config: FinetuneConfig, pretraining: PlannedRun[PretrainConfig] | None) -> str:
        """Name the folder of a fine-tuning run."""
        raise NotImplementedError

    def plan(self) -> list[PlannedRun[Any]]:
        runs: dict[Path, PlannedRun[Any]] = {}
        for seed, env_id, method in product(self.seeds, self.tasks(), dict.fromkeys(self.methods)):
            starts: Sequence[PlannedRun[PretrainConfig] | None] = (
                [None] if method == SCRATCH else self.pretrainings(env_id, seed)
            )
            for start, reuse_data in product(starts, REUSE_DATA[self.reuse_data]):
                if reuse_data and start is None:
                    continue
                folder = None if start is None else start.folder
                config = FinetuneConfig.make(
                    env_id=env_id,
                    total_timesteps=self.steps,
                    pretrained=folder,
                    policy="gaussian" if method in _GAUSSIANS else "diffusion",
                    operator=None if method in _GAUSSIANS else method,
                    start="cloned" if method == CLONED else "last",
                    seed=seed,
                    reuse_data=reuse_data,
                    **self.settings,
                )
                if start is not None:
                    runs.setdefault(start.folder, start)
                run = PlannedRun(self.out / self.folder_name(config, start), config, folder)
                runs[run.folder] = run
        if not runs:
            raise ValueError("From scratch there are no data to reuse: add other methods, or set reuse_data='no'.")
        return list(runs.values())


def method_of(config: FinetuneConfig) -> str:
    """Name the method of a run: one of :data:`METHODS`, or an operator of the user."""
    if config.operator is not None:
        return config.operator
    return SCRATCH if config.pretrained is None else CLONED if config.start == "cloned" else GAUSSIAN
