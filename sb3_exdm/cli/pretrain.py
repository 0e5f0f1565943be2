"""``exdm pretrain``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from sb3_exdm.cli.parsing import RunOptions, describe, file_name, parse, run_and_report, stored_settings
from sb3_exdm.common.resources import use_threads
from sb3_exdm.recipes import pretrain_seeds
from sb3_exdm.runs.config import PretrainConfig, Seeds

DESCRIPTION = """\
Explore an environment without its reward.

Trains an agent that is rewarded for reaching states that were rarely visited, fits a diffusion policy to its transitions, and
writes a run folder: the agent, the model of the intrinsic reward and the diffusion policy (safetensors), the explored
transitions, progress.csv, summary.json, TensorBoard logs and figures.

Example: exdm pretrain --env Maze2d-SquareA-v0 --steps 100000 --seed 0 --out runs/demo
"""


@dataclass
class Flags:
    """Flags of ``exdm pretrain``."""

    settings: PretrainConfig
    run: RunOptions
    seeds: Annotated[Seeds | None, arg(help_behavior_hint="(default: one run, with --seed)")] = None
    """Explore with several seeds in one process, A to B, or 0 to N-1: a run folder for each in the output folder. Only for
    sac, whose updates are made for all of them together."""


def run(argv: list[str]) -> None:
    """
    Pre-train and report.

    :param argv: flags
    """
    stored = stored_settings(argv, PretrainConfig)
    default = None if stored is None else Flags(stored, RunOptions())
    flags: Flags = parse(Flags, argv, "exdm pretrain", DESCRIPTION, default)
    config = flags.settings
    if flags.seeds is None:
        run_and_report(config, flags.run, file_name(config.env_id, config.algo, config.reward, config.seed))
        return
    if flags.run.resume:
        raise ValueError(
            "Several seeds are not resumed together; resume each run by itself: exdm pretrain --out FOLDER/seed-N --resume."
        )
    use_threads(flags.run.threads)
    settings = config.to_kwargs()
    del settings["seed"]
    runs = pretrain_seeds(
        settings.pop("env_id"),
        flags.seeds,
        out=Path("runs") / file_name(config.env_id, config.algo, config.reward, "seeds")
        if flags.run.out is None
        else flags.run.out,
        overwrite=flags.run.overwrite,
        device=flags.run.device,
        progress_bar=not flags.run.quiet,
        **settings,
    )
    if not flags.run.quiet:
        print("\n\n".join(map(describe, runs)))
