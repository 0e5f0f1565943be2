"""``exdm pull``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sb3_exdm.cli.parsing import parse
from sb3_exdm.sharing.hub import load_from_hub

DESCRIPTION = """\
Download a run from the Hugging Face Hub.

Only data is accepted: a repository with any other file, such as a pickle or a script, is refused.

Example: exdm pull user/demo --out runs/demo
"""


@dataclass
class Flags:
    """Flags of ``exdm pull``."""

    repo: Positional[Annotated[str, arg(metavar="USER/NAME")]]
    """Repository."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/NAME)")] = None
    """Run folder to write."""
    revision: Annotated[str | None, arg(metavar="REVISION", help_behavior_hint="(default: the newest commit)")] = None
    """Branch, tag or commit."""
    no_transitions: bool = False
    """Do not download the explored transitions."""
    overwrite: bool = False
    """Replace the run in the folder."""


def run(argv: list[str]) -> None:
    """
    Download, and say where to.

    :param argv: flags
    """
    flags: Flags = parse(Flags, argv, "exdm pull", DESCRIPTION)
    folder = load_from_hub(
        flags.repo,
        flags.out,
        revision=flags.revision,
        transitions=not flags.no_transitions,
        overwrite=flags.overwrite,
    )
    print(folder.path)
