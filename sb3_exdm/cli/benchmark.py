"""``exdm benchmark``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg, subcommand

from sb3_exdm.cli.flags import ALGO_NAMES, FINETUNE_MAZES, MAZES, METHOD_NAMES, REWARD_NAMES

_ONLY_PRINT = "(default: only print)"


@dataclass
class BenchmarkCoverage:
    """
    State coverage in the mazes, beside the figures of the paper: every maze with every reward and seed.

    Runs that are complete in the output folder are not repeated, so an interrupted sweep goes on where it was. Writes
    runs.csv, results.md and coverage.png. One run of 100,000 steps takes one to two minutes on one core.

    Example: exdm benchmark coverage --rewards score rnd --mazes SquareLarge --seeds 3
    """

    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/benchmark")
    """Folder of the sweep; every run has its own folder in it."""
    seeds: Annotated[int, arg(metavar="N")] = 5
    """Seeds 0 to N-1."""
    mazes: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = MAZES
    """Mazes."""
    rewards: Annotated[tuple[str, ...], arg(metavar=f"{{{REWARD_NAMES}}} [...]")] = ("score",)
    """Intrinsic rewards."""
    algo: Annotated[str, arg(metavar=f"{{{ALGO_NAMES}}}")] = "sac"
    """Reinforcement learning algorithm."""
    steps: Annotated[int, arg(metavar="N")] = 100_000
    """Environment steps of a run."""
    jobs: Annotated[int, arg(metavar="N")] = 2
    """Runs at the same time, each on one core."""

    def run(self) -> None:
        """Run what is missing, then report."""
        from sb3_exdm.benchmark.coverage import run_sweep

        print(run_sweep(self.out, self.mazes, self.rewards, range(self.seeds), self.algo, self.steps, self.jobs))


@dataclass
class BenchmarkFinetune:
    """
    Fine-tuning in the mazes to the furthest cell: every operator, the Gaussian that explored, and learning from scratch.

    Runs that are complete in the output folder are not repeated, so an interrupted sweep goes on where it was; missing runs of
    pre-training are made first. Writes runs.csv, results.md and finetune.png. One run of 20,000 steps takes about a minute on
    one core, the pre-training of a maze and a seed one to two.

    Example: exdm benchmark finetune --methods select gaussian --mazes SquareTree --seeds 3
    """

    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/finetune-benchmark")
    """Folder of the sweep; every run has its own folder in it."""
    seeds: Annotated[int, arg(metavar="N")] = 5
    """Seeds 0 to N-1, of pre-training and of fine-tuning."""
    mazes: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = FINETUNE_MAZES
    """Mazes."""
    methods: Annotated[tuple[str, ...], arg(metavar=f"{{{METHOD_NAMES}}} [...]")] = tuple(METHOD_NAMES.split(","))
    """Operators of the diffusion policy; gaussian for the agent that explored, scratch for one that did not."""
    reuse_data: Annotated[str, arg(metavar="{both,yes,no}")] = "both"
    """Whether to begin with the transitions of the pre-training."""
    steps: Annotated[int, arg(metavar="N")] = 20_000
    """Environment steps of a run."""
    pretrain_steps: Annotated[int, arg(metavar="N")] = 100_000
    """Environment steps of a pre-training."""
    pretrained: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: <out>/pretrained)")] = None
    """Folder with runs of exdm pretrain named <maze>-<seed>; missing ones are made there."""
    jobs: Annotated[int, arg(metavar="N")] = 2
    """Runs at the same time, each on one core."""
    report_only: bool = False
    """Run nothing; report what is complete."""

    def run(self) -> None:
        """Run what is missing, then report."""
        from sb3_exdm.benchmark.finetune import run_finetune_sweep

        print(
            run_finetune_sweep(
                self.out,
                self.mazes,
                self.methods,
                range(self.seeds),
                self.reuse_data,
                self.steps,
                self.pretrain_steps,
                self.pretrained,
                self.jobs,
                self.report_only,
            )
        )


@dataclass
class BenchmarkControl:
    """
    One body of URLB, many tasks: pre-trained without a reward, then adapted to each task, beside learning from scratch.

    Runs that are complete in the output folder are not repeated, so an interrupted sweep goes on where it was. Writes
    report/report.md, report/report.png and tables as CSV. Needs the extras dmc and plots. On one core, 200,000 steps of
    pre-training take about ten minutes, 50,000 of fine-tuning about four.

    Example: exdm benchmark control --domain walker --seeds 3
    """

    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/control-benchmark")
    """Folder of the sweep; every run has its own folder in it."""
    domain: Annotated[str, arg(metavar="{walker,quadruped,jaco}")] = "walker"
    """The body."""
    rewards: Annotated[tuple[str, ...], arg(metavar=f"{{{REWARD_NAMES}}} [...]")] = ("score", "rnd")
    """Intrinsic rewards, each with a pre-training of its own."""
    methods: Annotated[tuple[str, ...], arg(metavar=f"{{{METHOD_NAMES}}} [...]")] = ("gaussian", "select", "scratch")
    """Operators of the diffusion policy; gaussian for the agent that explored, scratch for one that did not."""
    seeds: Annotated[int, arg(metavar="N")] = 3
    """Seeds 0 to N-1, of pre-training and of fine-tuning."""
    reuse_data: Annotated[str, arg(metavar="{both,yes,no}")] = "no"
    """Whether to begin with the transitions of the pre-training."""
    steps: Annotated[int, arg(metavar="N")] = 50_000
    """Environment steps of a run of fine-tuning."""
    pretrain_steps: Annotated[int, arg(metavar="N")] = 200_000
    """Environment steps of a pre-training."""
    jobs: Annotated[int, arg(metavar="N")] = 2
    """Runs at the same time, each on one core."""
    report_only: bool = False
    """Run nothing; report what is complete."""

    def run(self) -> None:
        """Run what is missing, then report."""
        from sb3_exdm.benchmark.control import run_control_sweep

        print(
            run_control_sweep(
                self.out,
                self.domain,
                self.rewards,
                self.methods,
                range(self.seeds),
                self.reuse_data,
                self.steps,
                self.pretrain_steps,
                self.jobs,
                self.report_only,
            )
        )


@dataclass
class BenchmarkEstimator:
    """
    How well rewards rank states by rarity: Spearman correlation with minus the log-density of known densities.

    The densities are one over a maze, and Gaussian mixtures in 4 to 80 dimensions whose scales differ by up to six orders of
    magnitude. Takes about three minutes.

    Example: exdm benchmark estimator --rewards score rnd --seeds 5
    """

    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint=_ONLY_PRINT)] = None
    """Folder for estimator.csv and estimator.md."""
    seeds: Annotated[int, arg(metavar="N")] = 3
    """Seeds 0 to N-1, of the densities and of the models."""
    rewards: Annotated[tuple[str, ...], arg(metavar=f"{{{REWARD_NAMES}}} [...]")] = ("score", "exdm-paper", "rnd")
    """Intrinsic rewards that score states."""
    fit_steps: Annotated[int, arg(metavar="N")] = 2000
    """Gradient steps on minibatches of 256."""

    def run(self) -> None:
        """Fit and report."""
        from examples.experiments.estimator import run_estimator

        print(run_estimator(self.rewards, range(self.seeds), self.fit_steps, self.out))


@dataclass
class BenchmarkBandit:
    """
    How close improved policies come to the exact one, where it is known: a bandit with five modes and a known value.

    Energy distances of guided sampling (CEP), its distillation, and weighted score matching. Takes about six minutes.

    Example: exdm benchmark bandit --seeds 1 --effort 0.5
    """

    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint=_ONLY_PRINT)] = None
    """Folder for bandit.csv, bandit.md and bandit.png."""
    seeds: Annotated[int, arg(metavar="N")] = 3
    """Seeds 0 to N-1."""
    effort: Annotated[float, arg(metavar="F")] = 1.0
    """Factor of all numbers of gradient steps."""

    def run(self) -> None:
        """Fit and report."""
        from examples.experiments.bandit import run_bandit

        print(run_bandit(range(self.seeds), self.out, self.effort))


@dataclass
class BenchmarkThroughput:
    """
    Speed on one core: of the mazes, of the wrappers under PPO, of the reward in pre-training, of acting and fine-tuning.

    What is compared takes turns, so that a busy machine slows both alike. Takes about eight minutes.

    Example: exdm benchmark throughput --repeats 5
    """

    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint=_ONLY_PRINT)] = None
    """Folder for throughput.md."""
    repeats: Annotated[int, arg(metavar="N")] = 3
    """How often everything is measured; the fastest counts. Acting and fine-tuning ten times as often."""
    steps: Annotated[int, arg(metavar="N")] = 20_000
    """Environment steps of each pre-training."""

    def run(self) -> None:
        """Measure and report."""
        from examples.experiments.throughput import run_throughput

        print(run_throughput(self.repeats, self.steps, self.out))


@dataclass
class Benchmark:
    """
    Measure what this library claims: coverage, fine-tuning in mazes and of bodies, the quality of the reward, speed.

    Example: exdm benchmark coverage --mazes SquareA --seeds 2 --out runs/benchmark
    """

    what: (
        Annotated[BenchmarkCoverage, subcommand("coverage")]
        | Annotated[BenchmarkFinetune, subcommand("finetune")]
        | Annotated[BenchmarkControl, subcommand("control")]
        | Annotated[BenchmarkEstimator, subcommand("estimator")]
        | Annotated[BenchmarkBandit, subcommand("bandit")]
        | Annotated[BenchmarkThroughput, subcommand("throughput")]
    )
    """What to measure."""

    def run(self) -> None:
        """Run the benchmark that was asked for."""
        self.what.run()
