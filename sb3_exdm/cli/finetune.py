"""``exdm finetune``."""

from dataclasses import dataclass

from sb3_exdm.cli.parsing import RunOptions, file_name, parse, run_and_report, stored_settings
from sb3_exdm.runs.config import FinetuneConfig
from sb3_exdm.runs.folder import RunFolder

DESCRIPTION = """\
Fine-tune a pre-trained agent on the reward of an environment, or train from scratch.

Evaluates at fixed intervals and writes a run folder: the agent and the distilled diffusion policy (safetensors), progress.csv,
summary.json, TensorBoard logs and the learning curve.

Example: exdm finetune --pretrained runs/demo --env-kwargs '{"goal_cell": "farthest"}' --out runs/adapted
"""


@dataclass
class Flags:
    """Flags of ``exdm finetune``."""

    settings: FinetuneConfig
    run: RunOptions


def run(argv: list[str]) -> None:
    """
    Fine-tune and report.

    :param argv: flags
    """
    stored = stored_settings(argv, FinetuneConfig)
    default = None if stored is None else Flags(stored, RunOptions())
    flags: Flags = parse(Flags, argv, "exdm finetune", DESCRIPTION, default)
    run_and_report(flags.settings, flags.run, _default_out(flags.settings))


def _default_out(config: FinetuneConfig) -> str:
    explored = {} if config.pretrained is None else RunFolder(config.pretrained).config
    if config.policy == "diffusion":
        how = config.operator or "select"
    else:
        how = config.algo or explored.get("algo", "sac")
    # The start is part of the name, so that runs that are compared do not replace each other.
    start = "scratch" if config.pretrained is None else "reuse" if config.reuse_data else "pretrained"
    # Without either of the two there is no environment, which the recipe reports.
    return file_name(config.env_id or explored.get("env_id", ""), config.policy, how, start, config.seed)
