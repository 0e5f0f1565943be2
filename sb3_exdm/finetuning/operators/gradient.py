"""Operators with the gradient of the critic in the action: DQL, QSM and DIPO."""

from typing import Any

import torch as th

from sb3_exdm.finetuning.critics import Batch
from sb3_exdm.finetuning.operators.base import Operator, register_operator
from sb3_exdm.policies.diffusion_policy import DiffusionPolicy


class GradientOperator(Operator):
    """Base class of operators whose critic evaluates the actor; a subclass implements :meth:`improve`."""

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        with th.no_grad():
            next_actions = self.policy.actor.sample_actions(batch.next_features, 1)
            next_values = self.policy.critic_target.min_q(batch.next_features, next_actions)[:, 0]
        return {"critic_loss": self.update_critic(batch, next_values), "actor_loss": self.improve(batch)}

    def improve(self, batch: Batch) -> th.Tensor:
        """Take one step of the actor's optimizer and return the loss."""
        raise NotImplementedError

    def _value_gradient(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Gradient of the minimum of the critics in the action, divided by its root mean square over the batch, so that a step
        has the same meaning for rewards of every scale; ``(batch, action_dim)``.
        """
        with th.enable_grad():
            actions = actions.detach().requires_grad_()
            value = self.policy.critic(features, actions).amin(dim=0).sum()
            gradient = th.autograd.grad(value, actions)[0]
        return gradient / gradient.square().mean().sqrt().clamp_min(1e-6)


@register_operator("dql")
class DQL(GradientOperator):
    r"""
    Diffusion Q-learning (arXiv 2208.06193): denoising error of the actions in the data minus :math:`\eta Q(s, a)`, with the
    gradient of Q through all sampling steps of the action a.

    :param policy: policy to improve
    :param eta: weight of the value, which is divided by its mean absolute value over the batch
    :param kwargs: arguments of :class:`Operator`
    """

    def __init__(self, policy: DiffusionPolicy, *, eta: float = 1.0, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
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


@register_operator("qsm")
class QSM(GradientOperator):
    r"""
    Q-score matching (arXiv 2312.11752): the score of the policy is regressed on :math:`c\, \nabla_a Q`, which means the noise
    prediction on :math:`-\sigma_t\, c\, \nabla_a Q(s, a_t)`.

    :param policy: policy to improve
    :param scale: c, for gradients of root mean square 1
    :param kwargs: arguments of :class:`Operator`
    """

    def __init__(self, policy: DiffusionPolicy, *, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.scale = scale

    def improve(self, batch: Batch) -> th.Tensor:
        model = self.policy.actor.model

        def target(x_t: th.Tensor, log_snr: th.Tensor) -> th.Tensor:
            _, sigma = model.levels(log_snr)
            return -sigma.unsqueeze(1) * self.scale * self._value_gradient(batch.features, x_t.clamp(-1.0, 1.0))

        return model.fit(batch.actions, batch.features, target=target)


@register_operator("dipo")
class DIPO(GradientOperator):
    """
    Diffusion policy with action gradients (arXiv 2305.13122): the actions in the data ascend the value, and the actor is
    fitted to the results. The ascent starts from the data in every update; the published method stores the results.

    :param policy: policy to improve
    :param n_gradient_steps: number of gradient steps in the action
    :param step_size: size of a step for gradients of root mean square 1, in units of [-1, 1]
    :param kwargs: arguments of :class:`Operator`
    """

    def __init__(self, policy: DiffusionPolicy, *, n_gradient_steps: int = 8, step_size: float = 0.05, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.n_gradient_steps = n_gradient_steps
        self.step_size = step_size

    def improve(self, batch: Batch) -> th.Tensor:
        actions = batch.actions
        for _ in range(self.n_gradient_steps):
            actions = (actions + self.step_size * self._value_gradient(batch.features, actions)).clamp(-1.0, 1.0)
        return self.policy.actor.model.fit(actions, batch.features)
