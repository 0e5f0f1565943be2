"""Propose and select: the default."""

from typing import Any, ClassVar

import torch as th

from sb3_exdm.finetuning.critics import Batch, GaussianUpdate
from sb3_exdm.finetuning.operators.base import Operator
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy


class Select(Operator):
    """
    The pre-trained diffusion policy and the Gaussian both propose actions, and the critic takes the best. The Gaussian learns
    from the same critic as in SAC, and the critic values what the Gaussian does, since the best of many proposals would be the
    one that it over-estimates most. The diffusion policy reaches everything that was explored, which a Gaussian that has
    settled does not; the Gaussian is precise where the diffusion policy only samples (compare EXPO, arXiv 2507.07986, and
    PA-RL, 2412.06685).

    :param policy: the policy
    :param tau: how far target critics follow in one update
    :param learning_rate: of Gaussian and temperature
    :param ent_coef: temperature of the Gaussian to begin with
    :param target_entropy: of the Gaussian, minus the dimension of the actions by default
    """

    acting: ClassVar[ActionSelection] = ActionSelection(actor=0, behavior=8, gaussian=2)

    def __init__(
        self,
        policy: DiffusionPolicy,
        *,
        tau: float = 0.005,
        learning_rate: float = 1e-3,
        ent_coef: float = 0.01,
        target_entropy: float | None = None,
    ) -> None:
        super().__init__(policy, tau=tau, learning_rate=learning_rate)
        self.gaussian = GaussianUpdate(policy, learning_rate, ent_coef, target_entropy)

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        return {**self.learn_critic(batch), **self.gaussian.learn(batch)}

    def learn_critic(self, batch: Batch) -> dict[str, th.Tensor]:
        return {"critic_loss": self.critic.learn(batch, self.gaussian(batch))}

    def parts(self) -> dict[str, Any]:
        return {"gaussian": self.gaussian}
