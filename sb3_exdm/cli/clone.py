"""``exdm clone``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

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
    """Run folder with transitions, replay buffer saved by Stable-Baselines3 (with --allow-pickle), or id of a local Minari
    dataset."""
    out: Annotated[Path, arg(metavar="FILE")]
    """File (.safetensors) or folder to write the policy to."""
    settings: CloneConfig
    allow_pickle: bool = False
    """Read a replay buffer saved by Stable-Baselines3, a pickle. It executes code: only for files that you trust."""
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
    how: dict[str, Any] = {"allow_pickle": flags.allow_pickle, "device": flags.device, "progress_bar": not flags.quiet}
    clone(flags.source, flags.out, **how, **settings)
    if not flags.quiet:
        print(f"diffusion policy: {flags.out}")
