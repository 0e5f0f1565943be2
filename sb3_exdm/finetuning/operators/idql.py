"""IDQL: the best of several actions of the pre-trained policy."""

from typing import Any, ClassVar

import torch as th

from sb3_exdm.finetuning.critics import Batch, ExpectileValue
from sb3_exdm.finetuning.operators.base import Operator
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy


class IDQL(Operator):
    """
    Implicit diffusion Q-learning (arXiv 2304.10573): an IQL critic chooses among actions of the pre-trained policy, which
    stays as it is.

    :param policy: the policy
    :param tau: how far target critics follow in one update
    :param learning_rate: of the critic
    :param expectile: of IQL
    """

    acting: ClassVar[ActionSelection] = ActionSelection(actor=0, behavior=16)

    def __init__(
        self, policy: DiffusionPolicy, *, tau: float = 0.005, learning_rate: float = 1e-3, expectile: float = 0.7
    ) -> None:
        super().__init__(policy, tau=tau, learning_rate=learning_rate)
        self.value = ExpectileValue(policy, expectile, learning_rate)

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        value_loss = self.value.learn(batch)
        return {"value_loss": value_loss, "critic_loss": self.critic.learn(batch, self.value(batch))}

    def parts(self) -> dict[str, Any]:
        return {"value": self.value}
