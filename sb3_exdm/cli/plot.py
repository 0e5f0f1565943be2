"""``exdm plot``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sb3_exdm.cli.parsing import parse
from sb3_exdm.plots import default_metric, plot_runs
from sb3_exdm.plots.curves import X_LABELS
from sb3_exdm.runs.folder import RunFolder

DESCRIPTION = """\
Draw the curves of several runs in one figure, one panel per environment.

Runs that differ only in the seed are one line, their mean, with a band from the lowest to the highest. A run that was
interrupted, or is not finished, is a dashed line of its own.

Example: exdm plot runs/Maze2d-SquareA-v0-sac-* --out coverage.png
"""


@dataclass
class Flags:
    """Flags of ``exdm plot``."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]] = ()
    """Run folders, all of exdm pretrain or all of exdm finetune."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: <metric>.png)")] = None
    """Figure to write: .png, .pdf, .svg or .jpg."""
    metric: Annotated[
        str | None, arg(metavar="COLUMN", help_behavior_hint="(default: coverage, or else success_rate or mean_reward)")
    ] = None
    """Column of progress.csv to draw."""
    x: Annotated[str, arg(metavar=f"{{{','.join(X_LABELS)}}}")] = "timesteps"
    """Column of the x axis."""


def run(argv: list[str]) -> None:
    """
    Draw.

    :param argv: flags
    """
    flags: Flags = parse(Flags, argv, "exdm plot", DESCRIPTION)
    metric = flags.metric or default_metric([RunFolder(folder).record() for folder in flags.runs])
    print(plot_runs(flags.runs, flags.out or Path(f"{metric}.png"), metric=metric, x=flags.x))
