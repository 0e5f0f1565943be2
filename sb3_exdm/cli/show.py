"""``exdm show``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sb3_exdm.cli.parsing import parse
from sb3_exdm.sharing.page import write_page

DESCRIPTION = """\
Write a page with everything about a run: curves, maps, video, figures, settings, and how to load it.

The page is one HTML file that opens without a network. The run may be unfinished.

Example: exdm show runs/demo
"""


@dataclass
class Flags:
    """Flags of ``exdm show``."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Run folder of exdm pretrain or exdm finetune."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: index.html in the run folder)")] = None
    """File to write."""
    open: bool = False
    """Open the page in a browser."""


def run(argv: list[str]) -> None:
    """
    Write, and open.

    :param argv: flags
    """
    flags: Flags = parse(Flags, argv, "exdm show", DESCRIPTION)
    page = write_page(flags.run, flags.out)
    print(page)
    if flags.open:
        import webbrowser

        webbrowser.open(page.absolute().as_uri())
