"""The whole way from an environment's id to a folder with a trained agent: what the command line calls."""

from sb3_exdm.recipes.clone import clone
from sb3_exdm.recipes.evaluate import Evaluation, evaluate
from sb3_exdm.recipes.finetune import FinetunedRun, finetune
from sb3_exdm.recipes.pretrain import PretrainedRun, pretrain
from sb3_exdm.recipes.video import record_video

__all__ = ["Evaluation", "FinetunedRun", "PretrainedRun", "clone", "evaluate", "finetune", "pretrain", "record_video"]
