"""ExDM: alternating updates of critic, energy guidance and score distillation."""

from typing import Annotated, Any

import torch as th

from sb3_exdm.common.validation import Between, Expectile, Positive, check_choice
from sb3_exdm.diffusion import EnergyModel
from sb3_exdm.finetuning.critics import Batch, ExpectileValue, scaled_advantages, support_value
from sb3_exdm.finetuning.operators.base import Operator, register_operator
from sb3_exdm.policies.diffusion_policy import DiffusionPolicy

NCachedActions = Annotated[int, Between(2, 4096)]


@register_operator("exdm")
class ExDM(Operator):
    r"""
    Algorithm 2 of ExDM (arXiv 2502.07279): the policy of round n is :math:`\pi_n \propto \pi_d e^{Q_{n-1} / \beta}`, with
    :math:`\pi_d` pre-trained. Each update takes one step of the critic, one of the energy of its values (contrastive energy
    prediction), and one that distills the guided score into the actor, which then acts without guidance.

    :param policy: policy to improve
    :param critic: ``"iql"``, or ``"support"`` for in-support softmax Q-learning
    :param expectile: expectile of IQL
    :param beta: temperature, in units of the standard deviation of the advantages
    :param n_cached_actions: actions of the pre-trained policy per observation, at least 2. Few of them shrink the gradient of
        the energy: the softmax over their values cannot weigh actions that are not among them. 32 as in the paper.
    :param kwargs: arguments of :class:`Operator`
    :raises ValueError: for an unknown critic, or fewer than 2 cached actions
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        *,
        critic: str = "iql",
        expectile: Expectile = 0.7,
        beta: Positive = 1.0 / 3.0,
        n_cached_actions: NCachedActions = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, **kwargs)
        check_choice("critic", critic, ("iql", "support"))
        self.beta = beta
        self.n_cached_actions = n_cached_actions
        self.value = ExpectileValue(policy, expectile, self.learning_rate) if critic == "iql" else None
        self.needs_next_cached_actions = critic == "support"
        actor = policy.actor
        self.energy = _Energy(
            actor.model.dim,
            actor.features.dim,
            learning_rate=self.learning_rate,
            seed=int(th.randint(2**31, ())),
            device=policy.device,
        )
        self.parts = {"energy": self.energy} if self.value is None else {"value": self.value, "energy": self.energy}

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        losses = {}
        if self.value is None:
            losses["critic_loss"] = self.update_critic(batch, support_value(self.policy, batch))
        else:
            losses["value_loss"] = self.value.learn(batch)
            losses["critic_loss"] = self.update_critic(batch, self.value.next_values(batch))
        actions = batch.cached_actions
        assert actions is not None
        with th.no_grad():
            values = self.policy.critic_target.min_q(batch.features, actions)
        return losses | self.improve(batch.features, actions, scaled_advantages(values) / self.beta)

    def improve(self, features: th.Tensor, actions: th.Tensor, energies: th.Tensor) -> dict[str, th.Tensor]:
        """
        Update energy and actor once.

        :param features: features of the observations, ``(batch, features_dim)``
        :param actions: actions of the pre-trained policy, ``(batch, n_actions, action_dim)``
        :param energies: Q / beta of these actions, ``(batch, n_actions)``, up to a constant per observation
        :return: losses
        """
        energy_loss = self.energy.fit(actions, energies, features)
        distillation_loss = self.policy.actor.model.fit(
            actions[:, 0], features, target=lambda x_t, log_snr: self._guided_noise(x_t, log_snr, features)
        )
        return {"energy_loss": energy_loss, "distillation_loss": distillation_loss}

    @th.no_grad()
    def _guided_noise(self, x_t: th.Tensor, log_snr: th.Tensor, features: th.Tensor) -> th.Tensor:
        """Noise prediction of pi_d e^(Q / beta): that of pi_d, minus sigma times the gradient of the energy."""
        behavior = self.policy.behavior
        _, sigma = behavior.levels(log_snr)
        gradient = self.energy.gradient(x_t, log_snr, features)
        return behavior.predict_noise(x_t, log_snr, features) - sigma.unsqueeze(1) * gradient


class _Energy(EnergyModel):
    """Energy model whose training state includes its weights, because it is not part of the policy."""

    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), "weights": dict(self.state_dict())}

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        self.load_state_dict(state["weights"])
