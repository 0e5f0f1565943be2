"""Adapting a diffusion policy to a task: critics, policy improvement operators, and the callback that runs them."""

from sb3_exdm.finetuning.anchor import ActorAnchor
from sb3_exdm.finetuning.callback import DiffusionFinetuneCallback
from sb3_exdm.finetuning.distillation import distill
from sb3_exdm.finetuning.gaussian import WarmUpCallback
from sb3_exdm.finetuning.operators import OPERATORS, Operator
from sb3_exdm.finetuning.relabel import relabel
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer

__all__ = [
    "OPERATORS",
    "ActorAnchor",
    "DiffusionFinetuneCallback",
    "FinetuneReplayBuffer",
    "Operator",
    "WarmUpCallback",
    "distill",
    "relabel",
]
