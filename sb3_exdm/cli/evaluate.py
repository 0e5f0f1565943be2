"""``exdm evaluate``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sb3_exdm.cli.parsing import describe_figures, parse
from sb3_exdm.recipes import evaluate, record_video
from sb3_exdm.recipes.video import check_video
from sb3_exdm.runs.config import EvaluateConfig

DESCRIPTION = """\
Evaluate an agent on whole episodes.

Example: exdm evaluate runs/adapted --episodes 100
"""


@dataclass
class Flags:
    """Flags of ``exdm evaluate``."""

    agent: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Run folder, or the file of a diffusion policy."""
    settings: EvaluateConfig
    env: Annotated[str | None, arg(metavar="ID", help_behavior_hint="(default: that of the run)")] = None
    """Id of a Gymnasium environment."""
    device: Annotated[str, arg(metavar="{auto,cpu,cuda}")] = "auto"
    """PyTorch device."""
    video: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Record one more episode: .mp4 or .gif."""
    json: bool = False
    """Print JSON."""


def run(argv: list[str]) -> None:
    """
    Evaluate and report.

    :param argv: flags
    """
    flags: Flags = parse(Flags, argv, "exdm evaluate", DESCRIPTION)
    if flags.video is not None:
        check_video(flags.video)
    settings = flags.settings.to_kwargs()
    figures = evaluate(flags.agent, flags.env, **settings, device=flags.device).summary()
    print(json.dumps(figures, indent=2) if flags.json else "\n".join(describe_figures(figures)))
    if flags.video is not None:
        settings.pop("n_episodes")
        record_video(flags.agent, flags.video, flags.env, **settings, device=flags.device)
