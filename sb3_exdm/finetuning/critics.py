"""Losses and estimates of values that the operators share."""

from dataclasses import dataclass
from typing import Any

import torch as th
from torch.distributions import Normal, kl_divergence

from sb3_exdm.common.serialization import load_optimizer
from sb3_exdm.policies.diffusion_policy import DiffusionPolicy
from sb3_exdm.policies.networks import Critic


@dataclass
class Batch:
    """
    Minibatch of transitions. The target of a critic is ``rewards + discounts * next_values``.

    :param features: features of the observations, ``(batch, features_dim)``
    :param actions: actions in [-1, 1], ``(batch, action_dim)``
    :param rewards: n-step returns, ``(batch,)``
    :param next_features: features of the observations after n steps, ``(batch, features_dim)``
    :param discounts: gamma to the power of n, 0 where the episode terminated, ``(batch,)``
    :param cached_actions: actions of the pre-trained policy for the observations, ``(batch, n_actions, action_dim)``
    :param next_cached_actions: the same for the next observations
    """

    features: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor
    next_features: th.Tensor
    discounts: th.Tensor
    cached_actions: th.Tensor | None = None
    next_cached_actions: th.Tensor | None = None


def expectile_loss(difference: th.Tensor, expectile: float) -> th.Tensor:
    r"""
    Compute the asymmetric squared error :math:`|\tau - 1(u < 0)| u^2` (IQL, arXiv 2110.06169, eq. 5), averaged.

    :param difference: target minus prediction
    :param expectile: in (0, 1); 0.5 for half the squared error, towards 1 for the maximum of the targets
    :return: scalar
    """
    weight = th.where(difference < 0, 1.0 - expectile, expectile)
    return (weight * difference.square()).mean()


@th.no_grad()
def support_value(policy: DiffusionPolicy, batch: Batch, inverse_temperature: float = 10.0) -> th.Tensor:
    r"""
    Estimate the values of the next states by the softmax-weighted mean
    :math:`\sum_i \mathrm{softmax}_i(\alpha Q(s', a_i)) Q(s', a_i)` over cached actions (in-support softmax Q-learning, QGPO,
    arXiv 2304.12824, eq. 21).

    :param policy: policy
    :param batch: transitions with cached actions of the next observations
    :param inverse_temperature: alpha; towards infinity for the maximum
    :return: values, ``(batch,)``
    """
    assert batch.next_cached_actions is not None
    values = policy.critic_target.min_q(batch.next_features, batch.next_cached_actions)  # (batch, n_actions)
    return ((inverse_temperature * values).softmax(dim=1) * values).sum(dim=1)


class ExpectileValue:
    """
    State value network, fitted to the values of the actions in the data by expectile regression
    (IQL, arXiv 2110.06169, eq. 5).

    :param policy: policy
    :param expectile: in (0, 1)
    :param learning_rate: learning rate of Adam
    :raises ValueError: for an expectile out of range
    """

    def __init__(self, policy: DiffusionPolicy, expectile: float = 0.7, learning_rate: float = 1e-3) -> None:
        if not 0.0 < expectile < 1.0:
            raise ValueError(f"expectile must lie between 0 and 1, got {expectile}.")
        self.policy = policy
        self.expectile = expectile
        net_arch = policy.network_kwargs["net_arch"]["qf"]
        self.network = Critic(policy.actor.features.dim, 0, net_arch, n_critics=1).to(policy.device)
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=learning_rate, fused=True)

    def state_values(self, features: th.Tensor) -> th.Tensor:
        """Predict the values of states, ``(batch,)``."""
        return self.network(features, features[:, :0])[0]

    def learn(self, batch: Batch) -> th.Tensor:
        """Take one step of Adam and return the loss."""
        with th.no_grad():
            targets = self.policy.critic_target(batch.features, batch.actions).amin(dim=0)
        loss = expectile_loss(targets - self.state_values(batch.features), self.expectile)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @th.no_grad()
    def next_values(self, batch: Batch) -> th.Tensor:
        """Predict the values of the next states, ``(batch,)``."""
        return self.state_values(batch.next_features)

    def training_state(self) -> dict[str, Any]:
        """Return weights and state of the optimizer."""
        return {"weights": dict(self.network.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned."""
        self.network.load_state_dict(state["weights"])
        load_optimizer(self.optimizer, state["optimizer"])


class GaussianUpdate:
    r"""
    SAC's update of the policy's Gaussian and of the temperature :math:`\alpha`, with its soft value
    :math:`\min_i Q_i(s', a') - \alpha \log \pi(a' \mid s')` of the next state (SAC, arXiv 1812.05905, eq. 3).

    :param policy: policy
    :param learning_rate: learning rate of Adam
    :param ent_coef: initial temperature
    :param target_entropy: target entropy of the Gaussian; minus the dimension of the actions by default
    :raises ValueError: if ``ent_coef`` is not positive
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        learning_rate: float = 1e-3,
        ent_coef: float = 0.01,
        target_entropy: float | None = None,
    ) -> None:
        if ent_coef <= 0.0:
            raise ValueError(f"ent_coef must be positive, got {ent_coef}.")
        self.policy = policy
        self.target_entropy = -float(policy.actor.model.dim) if target_entropy is None else float(target_entropy)
        self.kl_coef = 0.0
        """Coefficient of the KL divergence from the pre-trained Gaussian, relative to the mean absolute value."""
        self.log_ent_coef = th.full((), ent_coef, device=policy.device).log().requires_grad_()
        self._parameters = [*policy.gaussian.parameters(), self.log_ent_coef]
        self.optimizer = th.optim.Adam(self._parameters, lr=learning_rate, fused=True)

    def _sample(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        shape = (len(features), self.policy.actor.model.dim)
        noise = th.randn(shape, generator=self.policy.actor.model.generator, device=features.device)
        return self.policy.gaussian.action_log_prob(features, noise)

    @th.no_grad()
    def next_values(self, batch: Batch) -> th.Tensor:
        """Estimate the soft values of the next states, ``(batch,)``."""
        actions, log_prob = self._sample(batch.next_features)
        values = self.policy.critic_target(batch.next_features, actions).amin(dim=0)
        return values - self.log_ent_coef.exp() * log_prob

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        """Take one step of Adam on Gaussian and temperature, and return loss and temperature."""
        actions, log_prob = self._sample(batch.features)
        ent_coef = self.log_ent_coef.exp()
        values = self.policy.critic(batch.features, actions)  # (n_critics, batch)
        actor_loss = (ent_coef.detach() * log_prob - values.amin(dim=0)).mean()
        if self.kl_coef:
            actor_loss = actor_loss + self.kl_coef * values.detach().abs().mean() * self._divergence(batch.features).mean()
        ent_coef_loss = -(self.log_ent_coef * (log_prob.detach() + self.target_entropy)).mean()
        self.optimizer.zero_grad()
        (actor_loss + ent_coef_loss).backward(inputs=self._parameters)  # the critic gets no gradient
        self.optimizer.step()
        return {"gaussian_loss": actor_loss.detach(), "ent_coef": ent_coef.detach()}

    def _divergence(self, features: th.Tensor) -> th.Tensor:
        """KL divergence from the pre-trained Gaussian, which squashing does not change, in nats, ``(batch,)``."""
        gaussians = []
        for network in (self.policy.gaussian, self.policy.behavior_gaussian):
            mean, log_std = network(features)
            gaussians.append(Normal(mean, log_std.exp()))
        return kl_divergence(*gaussians).sum(dim=1)

    def training_state(self) -> dict[str, Any]:
        """Return temperature and state of the optimizer. The Gaussian is part of the policy."""
        return {"log_ent_coef": self.log_ent_coef.detach(), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`training_state` returned."""
        self.log_ent_coef.data.copy_(state["log_ent_coef"])
        load_optimizer(self.optimizer, state["optimizer"])


def scaled_advantages(values: th.Tensor) -> th.Tensor:
    """
    Center the values of each state and divide them by their standard deviation over the batch, so that a temperature has
    the same meaning for rewards of every scale.

    :param values: values of several actions, ``(batch, n_actions)``
    :return: advantages, ``(batch, n_actions)``
    """
    advantages = values - values.mean(dim=1, keepdim=True)
    return advantages / advantages.square().mean().sqrt().clamp_min(1e-6)
