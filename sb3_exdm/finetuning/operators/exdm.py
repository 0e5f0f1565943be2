"""ExDM: critic, energy guidance and score distillation in turn."""

from typing import Any, ClassVar

import torch as th

from sb3_exdm.diffusion.energy import EnergyModel
from sb3_exdm.finetuning.critics import Batch, ExpectileValue, SupportValue, scaled_advantages
from sb3_exdm.finetuning.operators.base import Operator
from sb3_exdm.policies.diffusion_policy import DiffusionPolicy


class ExDM(Operator):
    r"""
    Algorithm 2 of ExDM (arXiv 2502.07279): the policy of round n is :math:`\pi_n \propto \pi_d e^{Q_{n-1} / \beta}`, with
    :math:`\pi_d` pre-trained. Each update takes one step of all three: an IQL critic, the energy of its values (contrastive
    energy prediction) and the distillation of the guided score into the actor, which then acts without guidance.

    :param policy: the policy
    :param tau: how far target critics follow in one update
    :param learning_rate: of critic, energy and actor
    :param critic: ``"iql"``, or ``"support"`` for in-support softmax Q-learning
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
        critic: str = "iql",
        expectile: float = 0.7,
        beta: float = 1.0 / 3.0,
    ) -> None:
        super().__init__(policy, tau=tau, learning_rate=learning_rate)
        self.beta = beta
        if critic not in ("iql", "support"):
            raise ValueError(f'critic must be "iql" or "support", got {critic!r}.')
        self.value = ExpectileValue(policy, expectile, learning_rate) if critic == "iql" else None
        self.support = SupportValue(policy)
        self.needs_next_candidates = critic == "support"
        actor = policy.actor
        self.energy = EnergyPart(
            actor.model.dim,
            actor.features.dim,
            learning_rate=learning_rate,
            seed=int(th.randint(2**31, ())),
            device=policy.device,
        )

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        losses = {}
        if self.value is None:
            losses["critic_loss"] = self.critic.learn(batch, self.support(batch))
        else:
            losses["value_loss"] = self.value.learn(batch)
            losses["critic_loss"] = self.critic.learn(batch, self.value(batch))
        assert batch.candidates is not None
        with th.no_grad():
            values = self.policy.critic_target.min_q(batch.features, batch.candidates)
        energy_loss = self.energy.fit(batch.candidates, scaled_advantages(values) / self.beta, batch.features)
        distillation_loss = self.policy.actor.model.fit(
            batch.candidates[:, 0],
            batch.features,
            target=lambda x_t, log_snr: self._guided_noise(x_t, log_snr, batch.features),
        )
        return {**losses, "energy_loss": energy_loss, "distillation_loss": distillation_loss}

    @th.no_grad()
    def _guided_noise(self, x_t: th.Tensor, log_snr: th.Tensor, features: th.Tensor) -> th.Tensor:
        """The noise prediction of pi_d e^(Q / beta): that of pi_d, minus sigma times the gradient of the energy."""
        _, sigma = self.policy.behavior.levels(log_snr)
        gradient = self.energy.gradient(x_t, log_snr, features)
        return self.policy.behavior.predict_noise(x_t, log_snr, features) - sigma.unsqueeze(1) * gradient

    def parts(self) -> dict[str, Any]:
        return {"energy": self.energy} if self.value is None else {"value": self.value, "energy": self.energy}


class EnergyPart(EnergyModel):
    """An energy model whose training state holds the weights too."""

    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), "weights": dict(self.state_dict())}

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        self.load_state_dict(state["weights"])
