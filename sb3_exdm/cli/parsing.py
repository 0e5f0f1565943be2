"""Flags from dataclasses, and short errors."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import arg

from sb3_exdm.common.resources import use_threads
from sb3_exdm.common.validation import did_you_mean, shown
from sb3_exdm.recipes import run_config
from sb3_exdm.runs.config import FinetuneConfig, PretrainConfig, TrainingConfig
from sb3_exdm.runs.hyperparams import without_size_of_run

SelfConfig = TypeVar("SelfConfig", bound=TrainingConfig)

_TYRO = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


@dataclass(kw_only=True)
class RunOptions:
    """Options that do not change the results."""

    out: Annotated[
        str | None, arg(metavar="FOLDER", help_behavior_hint="(default: a name made of the settings, in runs/)")
    ] = None
    """Run folder to write."""
    overwrite: bool = False
    """Replace the run in the folder."""
    resume: bool = False
    """Go on with the run in the folder from its last checkpoint, or start it if there is none. Its settings are those of the
    run; only --steps may be changed, and only raised."""
    device: Annotated[str, arg(metavar="{auto,cpu,cuda}")] = "auto"
    """PyTorch device."""
    threads: Annotated[int, arg(metavar="N")] = 1
    """Threads of PyTorch. Networks as small as the default ones are fastest with one."""
    quiet: bool = False
    """No progress bar and no report; errors are still printed."""


def stored_settings(argv: Sequence[str], config_class: type[SelfConfig]) -> SelfConfig | None:
    """
    Settings of the run that ``--resume`` goes on with, as defaults of the flags.

    :param argv: arguments
    :param config_class: configuration of the command
    :return: None without ``--resume``, or if there is no such run
    :raises ArtifactError: if the run is damaged
    """
    from sb3_exdm.runs.folder import RunFolder

    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--out=") else [word])]
    if "--resume" not in words or "--out" not in words[:-1]:
        return None
    folder = RunFolder(words[words.index("--out") + 1])
    if not folder.exists() or folder.config["command"] != config_class.command:
        return None
    return config_class.from_dict(without_size_of_run(folder.config))


def parse(form: Any, argv: Sequence[str], prog: str, description: str, default: Any = None) -> Any:
    """
    Parse flags.

    :param form: dataclass, or a union of dataclasses for subcommands
    :param argv: arguments
    :param prog: name of the command
    :param description: first lines of the help
    :param default: instance of ``form`` with the defaults; None for those of its fields
    :return: instance of ``form``
    :raises ValueError: for an unknown flag, with the nearest known one, or a value that is empty or cannot be parsed
    """
    for i, word in enumerate(argv):
        if not word.strip() or (word.startswith("--") and word.endswith("=")):
            flag = word if word.strip() else argv[i - 1] if i and argv[i - 1].startswith("--") else "an argument"
            raise ValueError(f"The value of {flag.rstrip('=')} is empty. See {prog} --help.")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed, unknown = tyro.cli(
                form,
                prog=prog,
                description=description,
                args=list(argv),
                config=_TYRO,
                return_unknown_args=True,
                **({} if default is None else {"default": default}),
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(f"{_cut(_plain(errors.getvalue()))} See {prog} --help.") from None
        raise
    if unknown:
        flags = _flags(form, prog)
        word = next((word for word in unknown if word.startswith("-")), unknown[0])
        raise ValueError(f"There is no flag {shown(word)}{did_you_mean(word.split('=')[0], flags)}. See {prog} --help.")
    return parsed


def _flags(form: Any, prog: str) -> list[str]:
    """All flags of a command, read off its help."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(form, prog=prog, args=["--help"], config=_TYRO)
    return sorted(set(re.findall(r"--[a-z][\w-]*", text.getvalue())))


def _cut(text: str) -> str:
    """A message that may quote a value of thousands of characters."""
    return text if len(text) <= 600 else f"{text[:300]} … {text[-300:]}"


def _plain(box: str) -> str:
    """The message in a box of tyro, as one sentence."""
    text = " ".join(re.sub(r"[│╭╮╰╯─]|^\| | \|$|-{9,}|\x1b\[[\d;]*m", " ", box, flags=re.MULTILINE).split())
    # Of the types of an optional flag, the last says what was expected.
    text = re.sub(r"no type matching .* could be instantiated from .*_action=None\)\]: ", "", text)
    if missing := re.search(r"Missing from .*?: (--[\w-]+)", text):
        return f"{missing.group(1)} is required."
    text = re.sub(r"^(Parsing|Value) error ", "", text)
    return re.split(r"\s*(?:Argument helptext:|For full helptext|see --help)", text)[0].rstrip(".") + "."


def file_name(*parts: str | int) -> str:
    """
    Name a run folder.

    :param parts: parts of the name; an id may contain slashes, as in ``"ALE/Pong-v5"``
    """
    return "-".join(re.sub(r"[/:\\]", "-", str(part)) for part in parts)


def run_and_report(config: PretrainConfig | FinetuneConfig, options: RunOptions, default_out: str) -> None:
    """
    Run a configuration and print its figures.

    :param config: configuration
    :param options: options of the run
    :param default_out: name of the run folder in ``runs/``, if the options name none
    """
    use_threads(options.threads)
    run = run_config(
        config,
        Path("runs") / default_out if options.out is None else options.out,
        overwrite=options.overwrite,
        resume=options.resume,
        device=options.device,
        progress_bar=not options.quiet,
    )
    if not options.quiet:
        print(describe(run))


def describe(run: Any) -> str:
    """
    Describe a finished run with a folder: its figures and pictures.

    :param run: :class:`~sb3_exdm.PretrainedRun` or :class:`~sb3_exdm.FinetunedRun`
    """
    from sb3_exdm.runs.folder import RunFolder

    summary = run.summary
    steps, total = summary["timesteps"], summary["total_seconds"]
    speed = summary["steps_per_second"]
    lines = [
        f"{summary['env_id']}: {steps:,} steps in {total:.0f} s ({speed:,.0f} steps/s while training)",
        *describe_figures(summary),
    ]
    if run.path is not None:
        lines.append(f"run folder: {run.path}")
        for i, picture in enumerate(RunFolder(run.path).pictures()):
            lines.append(f"{'pictures:' if i == 0 else ' ' * 9} {picture}")
    return "\n".join(lines)


def describe_figures(summary: dict[str, Any]) -> list[str]:
    """
    List the main figures of a run or an evaluation, a line each.

    :param summary: contents of ``summary.json``, or of :meth:`~sb3_exdm.Evaluation.summary`
    """
    if "mean_reward" in summary:
        mean, std, length = (summary[key] for key in ("mean_reward", "std_reward", "mean_length"))
        lines = [f"mean reward: {mean:.4g} ± {std:.2g} ({summary['n_episodes']} episodes of {length:.0f} steps on average)"]
        if summary["success_rate"] is not None:
            lines.insert(0, f"success rate: {summary['success_rate']:.1%}")
        if summary["normalized_score"] is not None:
            lines.append(f"normalized score: {summary['normalized_score']:.3f} of an expert's {summary['expert_return']:.0f}")
        return lines
    coverage, of_ceiling = summary["coverage"], summary["coverage_of_ceiling"]
    if of_ceiling is not None:
        return [f"state coverage: {coverage:.3f}, {of_ceiling:.1%} of the reachable bins"]
    return [] if coverage is None else [f"visited bins: {coverage:,.0f}"]
