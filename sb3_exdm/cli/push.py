"""``exdm push``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sb3_exdm.cli.parsing import parse
from sb3_exdm.sharing.hub import push_to_hub

DESCRIPTION = """\
Share a finished run on the Hugging Face Hub: weights, settings, figures, pictures, video, and a model card.

Log in first (hf auth login), or set HF_TOKEN. What an earlier push left is replaced.

Example: exdm push runs/demo user/demo
"""


@dataclass
class Flags:
    """Flags of ``exdm push``."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """Run folder of exdm pretrain or exdm finetune."""
    repo: Positional[Annotated[str, arg(metavar="USER/NAME")]]
    """Repository, made if it does not exist."""
    private: bool = False
    """Make it a private repository, if it does not exist."""
    no_transitions: bool = False
    """Do not share the explored transitions, which fine-tuning can reuse."""
    message: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="(default: command and environment)")] = None
    """Message of the commit."""


def run(argv: list[str]) -> None:
    """
    Upload, and say where to.

    :param argv: flags
    """
    flags: Flags = parse(Flags, argv, "exdm push", DESCRIPTION)
    print(
        push_to_hub(flags.run, flags.repo, private=flags.private, transitions=not flags.no_transitions, message=flags.message)
    )
