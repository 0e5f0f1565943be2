"""Whole runs: from an environment to a folder with a trained agent. The command line calls these."""

from pathlib import Path
from typing import Any

from sb3_exdm.recipes.behavior_cloning import clone
from sb3_exdm.recipes.evaluation import Evaluation, evaluate
from sb3_exdm.recipes.finetuning_run import FinetunedRun, finetune, resolve_finetune
from sb3_exdm.recipes.pretraining import PretrainedRun, pretrain, pretrain_seeds, resolve_pretrain
from sb3_exdm.recipes.video import record_video
from sb3_exdm.runs.config import FinetuneConfig, PretrainConfig

__all__ = [
    "Evaluation",
    "FinetunedRun",
    "PretrainedRun",
    "clone",
    "evaluate",
    "finetune",
    "pretrain",
    "pretrain_seeds",
    "record_video",
]


def run_config(config: PretrainConfig | FinetuneConfig, out: str | Path, **options: Any) -> PretrainedRun | FinetunedRun:
    """
    Run a configuration.

    :param config: configuration
    :param out: run folder
    :param options: ``overwrite``, ``resume``, ``device``, ``progress_bar`` and ``callback`` of the recipe
    """
    settings = config.to_kwargs()
    recipe: Any = pretrain if isinstance(config, PretrainConfig) else finetune
    return recipe(settings.pop("env_id"), **settings, out=out, **options)


def resolve(config: PretrainConfig | FinetuneConfig) -> PretrainConfig | FinetuneConfig:
    """
    Fill in all defaults of a configuration, as ``config.json`` holds them.

    :param config: configuration
    """
    return resolve_pretrain(config) if isinstance(config, PretrainConfig) else resolve_finetune(config)
