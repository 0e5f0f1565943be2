"""Weighted score matching."""

from typing import Any, ClassVar

import torch as th

from sb3_exdm.finetuning.critics import Batch, scaled_advantages
from sb3_exdm.finetuning.operators.base import register_operator
from sb3_exdm.finetuning.operators.idql import IDQL
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy


@register_operator("weighted")
class Weighted(IDQL):
    r"""
    Score matching weighted by values, for the policy :math:`\pi_d e^{Q / \beta}`: one of the cached actions of the pre-trained
    policy is drawn with probability :math:`\mathrm{softmax}(Q / \beta)`, and the actor is trained to denoise it. In
    expectation this is score matching with these weights (compare arXiv 2502.00361), without an energy model. The critic is
    that of IQL.

    :param policy: policy to improve
    :param beta: temperature, in units of the standard deviation of the advantages
    :param kwargs: arguments of :class:`~sb3_exdm.finetuning.operators.idql.IDQL`
    """

    action_selection: ClassVar[ActionSelection] = ActionSelection()
    n_cached_actions: ClassVar[int] = 8

    def __init__(self, policy: DiffusionPolicy, *, beta: float = 0.1, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.beta = beta

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        losses = super().learn(batch)
        assert batch.cached_actions is not None
        model = self.policy.actor.model
        with th.no_grad():
            values = self.policy.critic_target.min_q(batch.features, batch.cached_actions)
            weights = (scaled_advantages(values) / self.beta).softmax(dim=1)
            drawn = th.multinomial(weights, 1, generator=model.generator)[:, 0]
        actions = batch.cached_actions[th.arange(len(drawn), device=drawn.device), drawn]
        return {**losses, "policy_loss": model.fit(actions, batch.features)}
