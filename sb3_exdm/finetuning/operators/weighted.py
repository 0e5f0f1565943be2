"""Score matching weighted by the value of the actions."""

from typing import Any, ClassVar

import torch as th

from sb3_exdm.finetuning.critics import Batch, ExpectileValue, scaled_advantages
from sb3_exdm.finetuning.operators.base import Operator
from sb3_exdm.policies.diffusion_policy import DiffusionPolicy


class Weighted(Operator):
    r"""
    Fits the actor to :math:`\pi_d e^{Q / \beta}` directly: of the cached actions of the pre-trained policy one is drawn with
    probability :math:`\mathrm{softmax}(Q / \beta)`, and the actor learns to denoise it. In expectation this is score matching
    with these weights (compare arXiv 2502.00361), without an energy network and without its gradient.

    :param policy: the policy
    :param tau: how far target critics follow in one update
    :param learning_rate: of the critic's value
    :param expectile: of IQL
    :param beta: temperature, in units of the standard deviation of the advantages
    """

    n_candidates: ClassVar[int] = 8

    def __init__(
        self,
        policy: DiffusionPolicy,
        *,
        tau: float = 0.005,
        learning_rate: float = 1e-3,
        expectile: float = 0.7,
        beta: float = 0.1,
    ) -> None:
        super().__init__(policy, tau=tau, learning_rate=learning_rate)
        self.beta = beta
        self.value = ExpectileValue(policy, expectile, learning_rate)

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        value_loss = self.value.learn(batch)
        critic_loss = self.critic.learn(batch, self.value(batch))
        assert batch.candidates is not None
        model = self.policy.actor.model
        with th.no_grad():
            values = self.policy.critic_target.min_q(batch.features, batch.candidates)
            weights = (scaled_advantages(values) / self.beta).softmax(dim=1)
            drawn = th.multinomial(weights, 1, generator=model.generator)[:, 0]
        actions = batch.candidates[th.arange(len(drawn), device=drawn.device), drawn]
        return {
            "critic_loss": critic_loss,
            "value_loss": value_loss,
            "policy_loss": model.fit(actions, batch.features),
        }

    def parts(self) -> dict[str, Any]:
        return {"value": self.value}
