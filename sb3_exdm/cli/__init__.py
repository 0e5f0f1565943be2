"""The command ``exdm``: what it makes of its arguments, and of what goes wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from tyro.conf import subcommand

from sb3_exdm.cli.commands import Benchmark, Clone, Evaluate, Finetune, Plot, Pretrain, Report

Command = (
    Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Finetune, subcommand("finetune")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Plot, subcommand("plot")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Clone, subcommand("clone")]
    | Annotated[Benchmark, subcommand("benchmark")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command line. Whatever is wrong with the input is one sentence on stderr and exit code 2; set ``EXDM_DEBUG=1`` to
    see where an error came from.

    :param argv: arguments after the name of the command, those of the process by default
    """
    try:
        command = tyro.cli(
            Command,
            prog="exdm",
            description="Reward-free exploration with diffusion models, for Gymnasium and Stable-Baselines3.",
            args=argv,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
        command.run()
    except KeyboardInterrupt:
        _fail("Interrupted.")
    except BrokenPipeError:  # as in `exdm --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("EXDM_DEBUG") or not _is_for_users(error):
            raise
        _fail(_sentence(error))


def _is_for_users(error: Exception) -> bool:
    """Whether an error is about the input; any other ``RuntimeError`` is a bug that should show where it is."""
    from sb3_exdm.runs.folder import RunInterrupted

    return not isinstance(error, RuntimeError) or isinstance(error, RunInterrupted)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str) -> None:
    print(f"exdm: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
