"""``exdm export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sb3_exdm.cli.parsing import parse
from sb3_exdm.sharing.minari import export_minari

DESCRIPTION = """\
Write the explored transitions of a run as a local data set of Minari.

The folder of data sets is MINARI_DATASETS_PATH, by default ~/.minari/datasets. exdm clone reads them.

Example: exdm export runs/demo maze2d/square-a-v0
"""


@dataclass
class Flags:
    """Flags of ``exdm export``."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Run folder of exdm pretrain."""
    dataset: Positional[Annotated[str, arg(metavar="ID")]]
    """New id, (namespace/)name-vN."""
    author: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: none)")] = None
    """Author, in the metadata."""
    author_email: Annotated[str | None, arg(metavar="ADDRESS", help_behavior_hint="(default: none)")] = None
    """Address of the author, in the metadata."""


def run(argv: list[str]) -> None:
    """
    Write, and say where.

    :param argv: flags
    """
    flags: Flags = parse(Flags, argv, "exdm export", DESCRIPTION)
    print(export_minari(flags.run, flags.dataset, author=flags.author, author_email=flags.author_email))
