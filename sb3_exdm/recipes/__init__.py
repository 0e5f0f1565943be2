"""The whole way from an environment's id to a folder with a trained agent: what the command line calls."""

from sb3_exdm.recipes.behavior_cloning import clone
from sb3_exdm.recipes.evaluation import Evaluation, evaluate
from sb3_exdm.recipes.finetuning_run import FinetunedRun, finetune
from sb3_exdm.recipes.pretraining import PretrainedRun, pretrain
from sb3_exdm.recipes.video import record_video

__all__ = ["Evaluation", "FinetunedRun", "PretrainedRun", "clone", "evaluate", "finetune", "pretrain", "record_video"]
