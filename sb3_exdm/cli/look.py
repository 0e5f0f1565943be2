"""``exdm evaluate``, ``exdm plot``, ``exdm report``, and what is printed about a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from sb3_exdm.cli.flags import check_positive, json_object

if TYPE_CHECKING:
    from sb3_exdm.recipes import FinetunedRun, PretrainedRun


@dataclass
class Evaluate:
    """
    Play whole episodes with a trained agent, and print what it earned.

    Example: exdm evaluate runs/adapted --episodes 100
    """

    agent: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Run folder, or the file of a diffusion policy."""
    env: Annotated[str | None, arg(metavar="ID", help_behavior_hint="(default: that of the run)")] = None
    """Id of a Gymnasium environment."""
    episodes: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 50, or 10 if they are long)")] = None
    """Episodes to play."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the environments."""
    stochastic: bool = False
    """Draw actions, instead of the best guess at each."""
    env_kwargs: Annotated[str | None, arg(metavar="JSON", help_behavior_hint="(default: those of the run)")] = None
    """Arguments of the environment, e.g. '{"goal_cell": "farthest"}'."""
    device: Annotated[str, arg(metavar="{auto,cpu,cuda}")] = "auto"
    """PyTorch device."""
    threads: Annotated[int, arg(metavar="N")] = 1
    """Threads of PyTorch."""
    video: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Film one more episode: .mp4 or .gif."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Play and report."""
        check_positive(episodes=1 if self.episodes is None else self.episodes, threads=self.threads)
        env_kwargs = None if self.env_kwargs is None else json_object(self.env_kwargs, "env_kwargs")
        import torch as th

        from sb3_exdm.recipes import evaluate, record_video
        from sb3_exdm.recipes.video import check_video

        if self.video is not None:
            check_video(self.video)
        th.set_num_threads(self.threads)
        evaluation = evaluate(
            self.agent,
            self.env,
            self.episodes,
            seed=self.seed,
            deterministic=not self.stochastic,
            env_kwargs=env_kwargs,
            device=self.device,
        )
        figures = evaluation.summary()
        print(json.dumps(figures, indent=2) if self.json else "\n".join(_results(figures)))
        if self.video is not None:
            record_video(
                self.agent,
                self.video,
                self.env,
                seed=self.seed,
                deterministic=not self.stochastic,
                env_kwargs=env_kwargs,
                device=self.device,
            )


@dataclass
class Plot:
    """
    Draw the curves of several runs in one figure, one panel per environment.

    Runs that differ only in the seed make one line, their mean, with a band from the lowest to the highest. A run that was
    interrupted, or still goes on, is drawn dashed, up to where it came.

    Example: exdm plot runs/Maze2d-SquareA-v0-sac-* --out coverage.png
    """

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]] = ()
    """Run folders that exdm pretrain wrote, or that exdm finetune did."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: <metric>.png)")] = None
    """The picture to write: .png, .pdf, .svg or .jpg."""
    metric: Annotated[
        str | None, arg(metavar="COLUMN", help_behavior_hint="(default: coverage, or else success_rate or mean_reward)")
    ] = None
    """Column of progress.csv to draw."""

    def run(self) -> None:
        """Draw."""
        from sb3_exdm.plots import default_metric, plot_runs, read_run

        metric = self.metric or default_metric([read_run(run) for run in self.runs])
        print(plot_runs(self.runs, self.out or Path(f"{metric}.png"), metric=metric))


@dataclass
class Report:
    """
    Aggregate runs of fine-tuning over tasks and seeds: IQM, median, mean and optimality gap with their intervals.

    The intervals are those of rliable, a stratified bootstrap over seeds. Writes report.md, report.png, runs.csv and
    aggregates.csv, and prints the first. A folder that is no run stands for all complete runs of fine-tuning in it.

    Example: exdm report runs/finetune-benchmark --out runs/report
    """

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]] = ()
    """Run folders that exdm finetune wrote, or folders of such."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/report")
    """Folder to write."""
    score: Annotated[str, arg(metavar="{auto,normalized_score,success_rate,mean_reward}")] = "auto"
    """What counts of a run: by default normalized_score if all runs have it, or else success_rate. Returns (mean_reward) of
    different tasks are not comparable, so they are for one environment only."""
    reps: Annotated[int, arg(metavar="N")] = 2000
    """Resamples of the bootstrap."""

    def run(self) -> None:
        """Aggregate."""
        check_positive(reps=self.reps)
        from sb3_exdm.benchmark.report import report

        print(report(self.runs, self.out, self.score, self.reps))


def describe(run: PretrainedRun | FinetunedRun) -> str:
    """
    What a run reached and where its pictures are, for people.

    :param run: a finished run with a folder
    """
    from sb3_exdm.runs.folder import VIDEO

    summary = run.summary
    steps, seconds, speed = (summary[key] for key in ("timesteps", "seconds", "steps_per_second"))
    lines = [f"{summary['env_id']}: {steps:,} steps in {seconds:.0f} s ({speed:,.0f} steps/s)", *_results(summary)]
    if run.path is not None:
        lines.append(f"run folder: {run.path}")
        pictures = [*sorted(run.path.glob("*.png")), *run.path.glob(VIDEO)]
        lines.extend(f"{'pictures:' if picture is pictures[0] else ' ' * 9} {picture}" for picture in pictures)
    return "\n".join(lines)


def _results(summary: dict[str, Any]) -> list[str]:
    """The figures that matter, a line each."""
    if "mean_reward" in summary:
        mean, std, length = (summary[key] for key in ("mean_reward", "std_reward", "mean_length"))
        lines = [f"mean reward: {mean:.4g} ± {std:.2g} ({summary['n_episodes']} episodes of {length:.0f} steps on average)"]
        if summary["success_rate"] is not None:
            lines.insert(0, f"success rate: {summary['success_rate']:.1%}")
        if summary["normalized_score"] is not None:
            lines.append(f"normalized score: {summary['normalized_score']:.3f} of an expert's {summary['expert_return']:.0f}")
        return lines
    coverage, of_ceiling = summary["coverage"], summary["coverage_of_ceiling"]
    if of_ceiling is not None:
        return [f"state coverage: {coverage:.3f}, {of_ceiling:.1%} of what can be reached"]
    return [] if coverage is None else [f"visited bins: {coverage:,.0f}"]
