"""Select: the default operator."""

from typing import Any, ClassVar

import torch as th

from sb3_exdm.common.validation import Positive
from sb3_exdm.finetuning.critics import Batch, GaussianUpdate
from sb3_exdm.finetuning.operators.base import Operator, register_operator
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy


@register_operator("select")
class Select(Operator):
    """
    Pre-trained diffusion policy and Gaussian propose actions, and the critic selects the best. The Gaussian is trained as in
    SAC. The critic evaluates the Gaussian alone, because the best of many candidates would be the most overestimated one. The
    diffusion policy covers everything that was explored, the Gaussian is precise (compare EXPO, arXiv 2507.07986, and PA-RL,
    arXiv 2412.06685).

    :param policy: policy to improve
    :param ent_coef: initial temperature of the Gaussian
    :param target_entropy: target entropy of the Gaussian; minus the dimension of the actions by default
    :param kwargs: arguments of :class:`Operator`
    """

    action_selection: ClassVar[ActionSelection] = ActionSelection(actor=0, behavior=8, gaussian=2)
    has_kl: ClassVar[bool] = True

    def __init__(
        self, policy: DiffusionPolicy, *, ent_coef: Positive = 0.01, target_entropy: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(policy, **kwargs)
        self.gaussian = GaussianUpdate(policy, self.learning_rate, ent_coef, target_entropy)
        self.parts = {"gaussian": self.gaussian}

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        self.gaussian.kl_coef = self.kl_coef
        return {**self.learn_critic(batch), **self.gaussian.learn(batch)}

    def learn_critic(self, batch: Batch) -> dict[str, th.Tensor]:
        return {"critic_loss": self.update_critic(batch, self.gaussian.next_values(batch))}
