"""Weighted score matching."""

from typing import Any, ClassVar

import torch as th

from sb3_exdm.common.validation import Positive
from sb3_exdm.finetuning.critics import Batch, scaled_advantages
from sb3_exdm.finetuning.operators.base import register_operator
from sb3_exdm.finetuning.operators.exdm import NCachedActions
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
    :param n_cached_actions: actions of the pre-trained policy per observation, at least 2; the policy cannot be greedier than
        the best of them
    :param kwargs: arguments of :class:`~sb3_exdm.finetuning.operators.idql.IDQL`
    :raises ValueError: for fewer than 2 cached actions
    """

    action_selection: ClassVar[ActionSelection] = ActionSelection()

    def __init__(
        self, policy: DiffusionPolicy, *, beta: Positive = 0.1, n_cached_actions: NCachedActions = 32, **kwargs: Any
    ) -> None:
        super().__init__(policy, **kwargs)
        self.beta = beta
        self.n_cached_actions = n_cached_actions

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        losses = super().learn(batch)
        actions = batch.cached_actions
        assert actions is not None
        with th.no_grad():
            values = self.policy.critic_target.min_q(batch.features, actions)
        return losses | self.improve(batch.features, actions, scaled_advantages(values) / self.beta)

    def improve(self, features: th.Tensor, actions: th.Tensor, energies: th.Tensor) -> dict[str, th.Tensor]:
        """
        Update the actor once.

        :param features: features of the observations, ``(batch, features_dim)``
        :param actions: actions of the pre-trained policy, ``(batch, n_actions, action_dim)``
        :param energies: Q / beta of these actions, ``(batch, n_actions)``, up to a constant per observation
        :return: loss
        """
        model = self.policy.actor.model
        drawn = th.multinomial(energies.softmax(dim=1), 1, generator=model.generator)[:, 0]
        chosen = actions[th.arange(len(drawn), device=drawn.device), drawn]
        return {"policy_loss": model.fit(chosen, features)}
