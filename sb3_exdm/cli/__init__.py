"""
The command ``exdm``.

Each subcommand is a module of its own, imported when it is used, so that ``exdm --help`` answers before PyTorch is imported.
"""

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "pretrain": "Explore an environment without its reward.",
    "finetune": "Fine-tune a pre-trained agent on a task, or train from scratch.",
    "evaluate": "Evaluate an agent on whole episodes.",
    "clone": "Fit a diffusion policy to recorded transitions.",
    "plot": "Draw the curves of several runs in one figure.",
    "show": "Write a page with everything about a run.",
    "report": "Aggregate fine-tuning runs over tasks and seeds.",
    "benchmark": "Run the benchmarks of the documentation.",
    "push": "Share a run on the Hugging Face Hub.",
    "pull": "Download a run from the Hugging Face Hub.",
    "export": "Write explored transitions as a data set of Minari.",
    "doctor": "Check the installation.",
}
"""Subcommands and what they do; each is the module of the same name."""


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command line. Bad input, or a disk or memory that is full, ends with one sentence on stderr and exit code 2; set
    ``EXDM_DEBUG=1`` for the traceback. SIGTERM ends with exit code 143.

    :param argv: arguments after the name of the command, by default those of the process
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h"):
        print(_help())
    elif name == "--version":
        print(f"exdm {(Path(__file__).parents[1] / 'version.txt').read_text(encoding='utf-8').strip()}")
    elif name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        _fail(f"There is no command {name!r}.{hint} Choose one of {', '.join(COMMANDS)}; see exdm --help.")
    else:
        _run(name, arguments[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: exdm COMMAND [--help] [FLAGS]",
            "",
            "Reward-free exploration with diffusion models, for Gymnasium and Stable-Baselines3.",
            "",
            *lines,
            "",
            "exdm COMMAND --help shows the flags of a command, exdm --version the version.",
        ]
    )


def _run(name: str, argv: list[str]) -> None:
    handler = signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = lambda message, *_: print(f"exdm: warning: {message}", file=sys.stderr)
    try:
        import_module(f"sb3_exdm.cli.{name}").run(argv)
    except KeyboardInterrupt:
        _fail("Interrupted.")
    except BrokenPipeError:  # as in `exdm pretrain --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        if os.environ.get("EXDM_DEBUG") or not (_is_about_input(error) or _is_out_of_memory(error)):
            raise
        _fail(_sentence(error))
    except SystemExit as stop:
        from sb3_exdm.runs.folder import RunTerminated

        if isinstance(stop, RunTerminated):
            print(f"exdm: {stop.message}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _is_about_input(error: Exception) -> bool:
    """Any ``RuntimeError`` but an interruption is a defect, which should show where it is."""
    from sb3_exdm.runs.folder import RunInterrupted

    return not isinstance(error, RuntimeError) or isinstance(error, RunInterrupted)


def _is_out_of_memory(error: Exception) -> bool:
    """Tell errors of an allocation; PyTorch raises a ``RuntimeError`` on the CPU, and a subclass of it on a GPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _sentence(error: BaseException) -> str:
    if isinstance(error, Exception) and _is_out_of_memory(error):
        return (
            f"Out of memory: {(str(error) or type(error).__name__).splitlines()[0]}. Finished files are intact; a run with "
            "checkpoints can be resumed."
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str) -> None:
    print(f"exdm: {message}", file=sys.stderr)
    raise SystemExit(2)
