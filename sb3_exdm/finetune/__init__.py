"""Adapting a diffusion policy to a task: critics, policy improvement operators, and the callback that runs them."""

from sb3_exdm.finetune.anchor import ActorAnchor
from sb3_exdm.finetune.callback import DiffusionFinetuneCallback
from sb3_exdm.finetune.distillation import distil
from sb3_exdm.finetune.operators import OPERATORS, Operator
from sb3_exdm.finetune.replay_buffer import FinetuneReplayBuffer
from sb3_exdm.finetune.reward_query import relabel
from sb3_exdm.finetune.warm_up import WarmUpCallback

__all__ = [
    "OPERATORS",
    "ActorAnchor",
    "DiffusionFinetuneCallback",
    "FinetuneReplayBuffer",
    "Operator",
    "WarmUpCallback",
    "distil",
    "relabel",
]
