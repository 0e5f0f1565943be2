"""IDQL: the best of several actions of the pre-trained policy."""

from typing import Any, ClassVar

import torch as th

from sb3_exdm.common.validation import Expectile
from sb3_exdm.finetuning.critics import Batch, ExpectileValue
from sb3_exdm.finetuning.operators.base import Operator, register_operator
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy


@register_operator("idql")
class IDQL(Operator):
    """
    Implicit diffusion Q-learning (arXiv 2304.10573): an IQL critic selects among actions of the pre-trained policy, which is
    not trained.

    :param policy: policy to improve
    :param expectile: expectile of IQL
    :param kwargs: arguments of :class:`Operator`
    """

    action_selection: ClassVar[ActionSelection] = ActionSelection(actor=0, behavior=16)

    def __init__(self, policy: DiffusionPolicy, *, expectile: Expectile = 0.7, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.value = ExpectileValue(policy, expectile, self.learning_rate)
        self.parts = {"value": self.value}

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        value_loss = self.value.learn(batch)
        return {"value_loss": value_loss, "critic_loss": self.update_critic(batch, self.value.next_values(batch))}
