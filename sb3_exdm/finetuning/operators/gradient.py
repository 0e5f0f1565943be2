"""Operators that follow the gradient of the critic in the action: DQL, QSM and DIPO."""

import torch as th

from sb3_exdm.finetuning.critics import Batch, PolicyValue
from sb3_exdm.finetuning.operators.base import Operator
from sb3_exdm.policies.diffusion_policy import DiffusionPolicy


class _GradientOperator(Operator):
    """An operator whose critic values the actions of the diffusion policy itself."""

    def __init__(self, policy: DiffusionPolicy, *, tau: float = 0.005, learning_rate: float = 1e-3) -> None:
        super().__init__(policy, tau=tau, learning_rate=learning_rate)
        self.next_value = PolicyValue(policy)

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        critic_loss = self.critic.learn(batch, self.next_value(batch))
        self.policy.critic.requires_grad_(False)
        actor_loss = self.improve(batch)
        self.policy.critic.requires_grad_(True)
        return {"critic_loss": critic_loss, "actor_loss": actor_loss}

    def improve(self, batch: Batch) -> th.Tensor:
        """One step of the actor; returns its loss."""
        raise NotImplementedError

    def _value_gradient(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Gradient of the smaller critic in the action, divided by its root mean square over the batch, so that a step means the
        same for rewards of every scale; ``(batch, action_dim)``.
        """
        with th.enable_grad():
            actions = actions.detach().requires_grad_()
            value = self.policy.critic(features, actions).amin(dim=0).sum()
            gradient = th.autograd.grad(value, actions)[0]
        return gradient / gradient.square().mean().sqrt().clamp_min(1e-6)


class DQL(_GradientOperator):
    r"""
    Diffusion Q-learning (arXiv 2208.06193): denoising error on the actions of the data minus :math:`\eta Q(s, a)`, with the
    gradient of Q taken through the whole chain that made the action a.

    :param policy: the policy
    :param tau: how far target critics follow in one update
    :param learning_rate: ignored, the policy's optimizers are used
    :param eta: weight of the value, which is divided by its mean size over the batch
    """

    def __init__(self, policy: DiffusionPolicy, *, tau: float = 0.005, learning_rate: float = 1e-3, eta: float = 1.0) -> None:
        super().__init__(policy, tau=tau, learning_rate=learning_rate)
        self.eta = eta

    def improve(self, batch: Batch) -> th.Tensor:
        actor = self.policy.actor
        actions = actor.model.sample(
            len(batch.features),
            batch.features,
            n_sampling_steps=self.policy.n_sampling_steps,
            grid=actor.config["grid"],
            network=actor.model.network,
        )
        values = self.policy.critic(batch.features, actions.clamp(-1.0, 1.0)).amin(dim=0)
        value_loss = -values.mean() / values.abs().mean().detach().clamp_min(1e-6)
        loss = actor.model.loss(batch.actions, batch.features) + self.eta * value_loss
        actor.model.descend(loss)
        return loss.detach()


class QSM(_GradientOperator):
    r"""
    Q-score matching (arXiv 2312.11752): the score of the policy regresses on :math:`c\, \nabla_a Q`, so the noise prediction
    on
    :math:`-\sigma_t\, c\, \nabla_a Q(s, a_t)`.

    :param policy: the policy
    :param tau: how far target critics follow in one update
    :param learning_rate: ignored, the policy's optimizers are used
    :param scale: c, for gradients of root mean square 1
    """

    def __init__(
        self, policy: DiffusionPolicy, *, tau: float = 0.005, learning_rate: float = 1e-3, scale: float = 1.0
    ) -> None:
        super().__init__(policy, tau=tau, learning_rate=learning_rate)
        self.scale = scale

    def improve(self, batch: Batch) -> th.Tensor:
        def target(x_t: th.Tensor, log_snr: th.Tensor) -> th.Tensor:
            _, sigma = self.policy.actor.model.levels(log_snr)
            return -sigma.unsqueeze(1) * self.scale * self._value_gradient(batch.features, x_t.clamp(-1.0, 1.0))

        return self.policy.actor.model.fit(batch.actions, batch.features, target=target)


class DIPO(_GradientOperator):
    """
    Diffusion policy with action gradients (arXiv 2305.13122): the actions of the data climb the value, and the actor is fitted
    to where they arrive. The climb starts anew from the data in every update, where the published method stores its end.

    :param policy: the policy
    :param tau: how far target critics follow in one update
    :param learning_rate: ignored, the policy's optimizers are used
    :param n_gradient_steps: steps of the climb
    :param step_size: of one step, for gradients of root mean square 1, in units of [-1, 1]
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        *,
        tau: float = 0.005,
        learning_rate: float = 1e-3,
        n_gradient_steps: int = 8,
        step_size: float = 0.05,
    ) -> None:
        super().__init__(policy, tau=tau, learning_rate=learning_rate)
        self.n_gradient_steps = n_gradient_steps
        self.step_size = step_size

    def improve(self, batch: Batch) -> th.Tensor:
        actions = batch.actions
        for _ in range(self.n_gradient_steps):
            actions = (actions + self.step_size * self._value_gradient(batch.features, actions)).clamp(-1.0, 1.0)
        return self.policy.actor.model.fit(actions, batch.features)
