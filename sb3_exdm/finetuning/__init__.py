"""Fine-tuning of pre-trained policies: operators, critics, replay buffer, and the callbacks that use them."""

from sb3_exdm.finetuning.callback import DiffusionFinetuneCallback
from sb3_exdm.finetuning.distillation import distill
from sb3_exdm.finetuning.gaussian import FINETUNE_ALGORITHMS, GaussianFinetuneCallback
from sb3_exdm.finetuning.operators import OPERATORS, Operator, register_operator
from sb3_exdm.finetuning.relabel import relabel
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer

__all__ = [
    "FINETUNE_ALGORITHMS",
    "OPERATORS",
    "DiffusionFinetuneCallback",
    "FinetuneReplayBuffer",
    "GaussianFinetuneCallback",
    "Operator",
    "distill",
    "register_operator",
    "relabel",
]
