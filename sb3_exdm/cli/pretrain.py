"""``exdm pretrain``."""

from dataclasses import dataclass

from sb3_exdm.cli.parsing import RunOptions, file_name, parse, run_and_report
from sb3_exdm.runs.config import PretrainConfig

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


def run(argv: list[str]) -> None:
    """
    Pre-train and report.

    :param argv: flags
    """
    flags: Flags = parse(Flags, argv, "exdm pretrain", DESCRIPTION)
    config = flags.settings
    run_and_report(config, flags.run, file_name(config.env_id, config.algo, config.reward, config.seed))
