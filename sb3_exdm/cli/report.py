"""``exdm report``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sb3_exdm.benchmark.report import report
from sb3_exdm.cli.parsing import parse

DESCRIPTION = """\
Aggregate fine-tuning runs over tasks and seeds, with intervals over the seeds.

Writes report.md, report.png, runs.csv and aggregates.csv, and prints the first. A folder that is not a run stands for all
complete fine-tuning runs in it.

Example: exdm report runs/finetune-benchmark --out runs/report
"""


@dataclass
class Flags:
    """Flags of ``exdm report``."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]] = ()
    """Run folders of exdm finetune, or folders of them."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/report")
    """Folder to write."""
    score: Annotated[str, arg(metavar="{auto,normalized_score,success_rate,mean_reward}")] = "auto"
    """Score of a run: by default normalized_score if all runs have it, or else success_rate. Returns (mean_reward) of
    different tasks are not comparable, so they are for one environment only."""
    reps: Annotated[int, arg(metavar="N")] = 2000
    """Resamples of the bootstrap."""


def run(argv: list[str]) -> None:
    """
    Aggregate.

    :param argv: flags
    """
    flags: Flags = parse(Flags, argv, "exdm report", DESCRIPTION)
    print(report(flags.runs, flags.out, flags.score, flags.reps))
