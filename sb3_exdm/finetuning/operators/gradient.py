"""Operators with the gradient of the critic in the action: DQL, QSM and DIPO."""

import math
from typing import Annotated, Any

import torch as th

from sb3_exdm.common.validation import Between, NonNegative
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

    def __init__(self, policy: DiffusionPolicy, *, eta: NonNegative = 1.0, **kwargs: Any) -> None:
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
    Q-score matching (arXiv 2312.11752): the score of the policy is regressed on :math:`c\, \nabla_a Q`, so that the policy is
    :math:`\pi(a \mid s) \propto e^{c\, Q(s, a)}` on the action box.

    The published target is :math:`c\, \nabla_a Q(s, a_t)` at every noise level. That is the score of clean actions. At high
    noise it lacks the term that pulls noisy actions back to the data, and a sampler without bound multiplies them by up to
    :math:`1 / \alpha_T \approx 150`; the published code clips the actions to the box in every sampling step instead. Here the
    restoring term is that of the flat prior on the box, whose posterior given :math:`a_t` is a truncated normal distribution
    with mean :math:`m` and variance :math:`v` (:func:`box_posterior`). To first order in Q,

    .. math:: E[a \mid a_t] \approx m + v\, c\, \nabla_a Q(s, m),

    and the noise is regressed on :math:`(a_t - \alpha_t E[a \mid a_t]) / \sigma_t`. At low noise inside of the box this is the
    published target. The prediction of the action is clipped to the box in the target and in every sampling step.

    :param policy: policy to improve; its actor samples with a bound from now on
    :param scale: c, for gradients of root mean square 1 over the batch. The policy nears the maximum of Q as it grows, but
        few sampling steps overshoot beyond about 10.
    :param kwargs: arguments of :class:`Operator`
    """

    def __init__(self, policy: DiffusionPolicy, *, scale: NonNegative = 10.0, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.scale = scale
        policy.actor.model.bound = 1.0

    def improve(self, batch: Batch) -> th.Tensor:
        model = self.policy.actor.model

        def target(x_t: th.Tensor, log_snr: th.Tensor) -> th.Tensor:
            alpha, sigma = (level.unsqueeze(1) for level in model.levels(log_snr))
            mean, variance = box_posterior(x_t, alpha, sigma)
            actions = mean + self.scale * variance * self._value_gradient(batch.features, mean)
            return (x_t - alpha * actions.clamp(-1.0, 1.0)) / sigma

        return model.fit(batch.actions, batch.features, target=target)


def box_posterior(x_t: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    r"""
    Compute mean and variance of data with a uniform prior on [-1, 1] given a noisy sample: those of a normal distribution
    with mean :math:`x_t / \alpha` and standard deviation :math:`\sigma / \alpha`, truncated to [-1, 1].

    :param x_t: noisy samples, ``(batch, dim)``
    :param alpha: factor of the data, ``(batch, 1)``
    :param sigma: factor of the noise, ``(batch, 1)``
    :return: mean and variance, each ``(batch, dim)``
    """
    # Differences of almost equal numbers need double precision, and the lower tail, where they do not round to zero.
    std = (sigma / alpha).double()
    center = (x_t / alpha).double()
    low, high = (-1.0 - center.abs()) / std, (1.0 - center.abs()) / std
    probability = (th.special.ndtr(high) - th.special.ndtr(low)).clamp_min(1e-300)
    density_low, density_high = ((-0.5 * z.square()).exp() / math.sqrt(2.0 * math.pi) for z in (low, high))
    shift = (density_low - density_high) / probability
    mean = center.sign() * (center.abs() + std * shift).clamp(-1.0, 1.0)
    variance = std.square() * (1.0 + (low * density_low - high * density_high) / probability - shift.square())
    # No variance on [-1, 1] with this mean is larger than 1 - mean^2.
    return mean.to(x_t.dtype), variance.clamp_min(0.0).minimum(1.0 - mean.square()).to(x_t.dtype)


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

    def __init__(
        self,
        policy: DiffusionPolicy,
        *,
        n_gradient_steps: Annotated[int, Between(0, 1000)] = 8,
        step_size: NonNegative = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, **kwargs)
        self.n_gradient_steps = n_gradient_steps
        self.step_size = step_size

    def improve(self, batch: Batch) -> th.Tensor:
        actions = batch.actions
        for _ in range(self.n_gradient_steps):
            actions = (actions + self.step_size * self._value_gradient(batch.features, actions)).clamp(-1.0, 1.0)
        return self.policy.actor.model.fit(actions, batch.features)
