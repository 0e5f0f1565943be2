"""``exdm clone``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sb3_exdm.cli.parsing import parse
from sb3_exdm.recipes import clone
from sb3_exdm.runs.config import CloneConfig

DESCRIPTION = """\
Fit a diffusion policy to recorded transitions (behavior cloning).

SAC("DiffusionPolicy", env, policy_kwargs=dict(pretrained=FILE)) starts from it, and so does exdm finetune --pretrained if the
file is in a run folder.

Example: exdm clone runs/demo --out runs/demo
"""


@dataclass
class Flags:
    """Flags of ``exdm clone``."""

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    """Run folder with transitions, replay buffer saved by Stable-Baselines3 (.pkl: reading it executes code, so only open
    files that you trust), or id of a local Minari dataset."""
    out: Annotated[Path, arg(metavar="FILE")]
    """File (.safetensors) or folder to write the policy to."""
    settings: CloneConfig
    device: Annotated[str, arg(metavar="{auto,cpu,cuda}")] = "auto"
    """PyTorch device."""
    quiet: bool = False
    """No progress bar and no report; errors are still printed."""


def run(argv: list[str]) -> None:
    """
    Fit, and say what was written.

    :param argv: flags
    """
    flags: Flags = parse(Flags, argv, "exdm clone", DESCRIPTION)
    settings = flags.settings.to_kwargs()
    clone(flags.source, flags.out, **settings, device=flags.device, progress_bar=not flags.quiet)
    if not flags.quiet:
        print(f"diffusion policy: {flags.out}")
