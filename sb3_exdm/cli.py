"""
The command ``exdm``.

Each subcommand is a dataclass: its fields are the flags, its docstring and those of the fields are the help. What takes long
to import is imported when a command runs, so that help and mistyped flags answer at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, arg, subcommand

if TYPE_CHECKING:
    from sb3_exdm.recipes import PretrainedRun

_DEFAULT_OUT = "(default: runs/<env>-<algo>-<reward>-<seed>)"
_ONLY_PRINT = "(default: only print)"
# Names are checked by the library, which knows best; these are for the help.
REWARD_NAMES = "score,edp,exdm-paper,rnd,apt,count,zero"
ALGO_NAMES = "sac,td3,ddpg,ppo"
_MAZES = "SquareA", "SquareB", "SquareC", "SquareD", "SquareTree", "SquareBottleneck", "SquareLarge"


@dataclass
class Pretrain:
    """
    Explore an environment without its reward.

    Trains an agent that is paid for reaching states it has rarely visited, and writes a run folder: the agent and its model
    of novelty (safetensors), the explored transitions, progress.csv, summary.json, TensorBoard logs and pictures.

    Example: exdm pretrain --env Maze2d-SquareA-v0 --steps 100000 --seed 0 --out runs/demo
    """

    env: Annotated[str, arg(metavar="ID")]
    """Id of a Gymnasium environment, e.g. Maze2d-SquareLarge-v0 or Pendulum-v1. "module:ID" imports the module first."""
    steps: Annotated[int, arg(metavar="N")] = 100_000
    """Environment steps, over all environments together."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of everything."""
    algo: Annotated[str, arg(metavar=f"{{{ALGO_NAMES}}}")] = "sac"
    """Reinforcement learning algorithm. ppo for actions that are not continuous."""
    reward: Annotated[str, arg(metavar=f"{{{REWARD_NAMES}}}")] = "score"
    """Intrinsic reward: ExDM's denoising error (score), EDP's of the action (edp), or one to compare with."""
    n_envs: Annotated[int, arg(metavar="N")] = 8
    """Environments that are stepped together."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/<env>-<algo>-<reward>-<seed>)")] = (
        None
    )
    """Run folder to write."""
    overwrite: bool = False
    """Replace the run that is in the folder."""
    coverage_dims: Annotated[tuple[int, ...] | None, arg(metavar="D [D ...]", help_behavior_hint="(default: 0 1)")] = None
    """Dimensions of the observation whose visited bins are counted, where the environment is no maze."""
    env_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Arguments of the environment, e.g. '{"g": 9.81}'."""
    algo_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Changes to the settings of the algorithm, e.g. '{"learning_rate": 0.001}'."""
    reward_kwargs: Annotated[str, arg(metavar="JSON")] = "{}"
    """Arguments of the reward, e.g. '{"n_levels": 2}'."""
    device: Annotated[str, arg(metavar="{auto,cpu,cuda}")] = "auto"
    """PyTorch device."""
    threads: Annotated[int, arg(metavar="N")] = 1
    """Threads of PyTorch. Networks as small as the default ones are fastest with one, by far if the machine is busy."""
    checkpoint_freq: Annotated[int, arg(metavar="N")] = 25_000
    """Steps between two checkpoints in the run folder, 0 for none."""
    quiet: bool = False
    """No progress bar, no report; errors are still printed."""

    def run(self) -> None:
        """Train and report."""
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}.")
        if self.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {self.threads}.")
        kwargs = {name: _json_object(getattr(self, name), name) for name in ("env_kwargs", "algo_kwargs", "reward_kwargs")}
        import torch as th

        from sb3_exdm.recipes import pretrain

        th.set_num_threads(self.threads)
        # An id may have slashes, as in "ALE/Pong-v5".
        name = "-".join([self.env.replace("/", "-").replace(":", "-"), self.algo, self.reward, str(self.seed)])
        run = pretrain(
            self.env,
            self.steps,
            algo=self.algo,
            reward=self.reward,
            seed=self.seed,
            n_envs=self.n_envs,
            out=self.out or Path("runs") / name,
            coverage_dims=self.coverage_dims,
            overwrite=self.overwrite,
            device=self.device,
            checkpoint_freq=self.checkpoint_freq,
            progress_bar=not self.quiet,
            **kwargs,
        )
        if not self.quiet:
            print(describe(run))


@dataclass
class Plot:
    """
    Draw the curves of several runs in one figure, one panel per environment.

    Runs that differ only in the seed make one line, their mean, with a band from the lowest to the highest. A run that was
    interrupted, or still goes on, is drawn dashed, up to where it came.

    Example: exdm plot runs/Maze2d-SquareA-v0-sac-* --out coverage.png
    """

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]] = ()
    """Run folders that exdm pretrain wrote."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("coverage.png")
    """The picture to write: .png, .pdf, .svg or .jpg."""
    metric: Annotated[str, arg(metavar="COLUMN")] = "coverage"
    """Column of progress.csv to draw."""

    def run(self) -> None:
        """Draw."""
        from sb3_exdm.plots import plot_runs

        print(plot_runs(self.runs, self.out, metric=self.metric))


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
    mazes: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = _MAZES
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
        from sb3_exdm.benchmark.estimator import run_estimator

        print(run_estimator(self.rewards, range(self.seeds), self.fit_steps, self.out))


@dataclass
class BenchmarkThroughput:
    """
    Speed on one core: steps/s of the mazes, cost of the wrappers under PPO, cost of the reward in pre-training.

    What is compared takes turns, so that a busy machine slows both alike. Takes about five minutes.

    Example: exdm benchmark throughput --repeats 5
    """

    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint=_ONLY_PRINT)] = None
    """Folder for throughput.md."""
    repeats: Annotated[int, arg(metavar="N")] = 3
    """How often everything is measured; the fastest counts."""
    steps: Annotated[int, arg(metavar="N")] = 20_000
    """Environment steps of each pre-training."""

    def run(self) -> None:
        """Measure and report."""
        from sb3_exdm.benchmark.throughput import run_throughput

        print(run_throughput(self.repeats, self.steps, self.out))


@dataclass
class Benchmark:
    """
    Measure what this library claims: coverage, the quality of the reward, speed.

    Example: exdm benchmark coverage --mazes SquareA --seeds 2 --out runs/benchmark
    """

    what: (
        Annotated[BenchmarkCoverage, subcommand("coverage")]
        | Annotated[BenchmarkEstimator, subcommand("estimator")]
        | Annotated[BenchmarkThroughput, subcommand("throughput")]
    )
    """What to measure."""

    def run(self) -> None:
        """Run the benchmark that was asked for."""
        self.what.run()


Command = (
    Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Plot, subcommand("plot")]
    | Annotated[Benchmark, subcommand("benchmark")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command line. Whatever is wrong with the input is one sentence on stderr and exit code 2; set ``EXDM_DEBUG=1`` to
    see where an error came from.

    :param argv: arguments after the name of the command, those of the process by default
    """
    try:
        command = tyro.cli(
            Command,
            prog="exdm",
            description="Reward-free exploration with diffusion models, for Gymnasium and Stable-Baselines3.",
            args=argv,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
        command.run()
    except KeyboardInterrupt:
        _fail("Interrupted.")
    except BrokenPipeError:  # as in `exdm --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("EXDM_DEBUG") or not _is_for_users(error):
            raise
        _fail(_sentence(error))


def _is_for_users(error: Exception) -> bool:
    """Whether an error is about the input; any other ``RuntimeError`` is a bug that should show where it is."""
    from sb3_exdm.run_folder import RunInterrupted

    return not isinstance(error, RuntimeError) or isinstance(error, RunInterrupted)


def describe(run: PretrainedRun) -> str:
    """
    What a run reached and where its pictures are, for people.

    :param run: a finished run with a folder
    """
    summary = run.summary
    steps, seconds, speed = (summary[key] for key in ("timesteps", "seconds", "steps_per_second"))
    lines = [f"{summary['env_id']}: {steps:,} steps in {seconds:.0f} s ({speed:,.0f} steps/s)"]
    coverage, of_ceiling = summary["coverage"], summary["coverage_of_ceiling"]
    if of_ceiling is not None:
        lines.append(f"state coverage: {coverage:.3f}, {of_ceiling:.1%} of what can be reached")
    elif coverage is not None:
        lines.append(f"visited bins: {coverage:,.0f}")
    if run.path is not None:
        lines.append(f"run folder: {run.path}")
        pictures = sorted(run.path.glob("*.png"))
        lines.extend(f"{'pictures:' if picture is pictures[0] else ' ' * 9} {picture}" for picture in pictures)
    return "\n".join(lines)


def _json_object(text: str, name: str) -> dict[str, Any]:
    flag = "--" + name.replace("_", "-")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} must be JSON such as '{{\"key\": 1}}', got {text!r}: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{flag} must be a JSON object such as '{{\"key\": 1}}', got {text!r}.")
    return value


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str) -> None:
    print(f"exdm: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
