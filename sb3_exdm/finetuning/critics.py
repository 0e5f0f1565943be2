"""Critics: one way to learn state-action values, and several ideas of what the next state is worth."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch as th
from torch import nn

from sb3_exdm.policies.diffusion_policy import DiffusionPolicy
from sb3_exdm.policies.networks import Critic


@dataclass
class Batch:
    """
    Transitions as operators see them. A target is ``rewards + discounts * (value of the next state)``.

    :param features: of the observations, ``(batch, features_dim)``
    :param actions: in [-1, 1], ``(batch, action_dim)``
    :param rewards: of one step, or of n with their discounts, ``(batch,)``
    :param next_features: of the observations after these steps, ``(batch, features_dim)``
    :param discounts: gamma to the number of steps, 0 where the episode terminated, ``(batch,)``
    :param candidates: actions of the pre-trained policy in the state, ``(batch, n_candidates, action_dim)``
    :param next_candidates: the same in the next state
    """

    features: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor
    next_features: th.Tensor
    discounts: th.Tensor
    candidates: th.Tensor | None = None
    next_candidates: th.Tensor | None = None


def expectile_loss(difference: th.Tensor, expectile: float) -> th.Tensor:
    r"""
    Asymmetric squared error :math:`|\tau - 1(u < 0)| u^2` (IQL, arXiv 2110.06169, eq. 5), averaged.

    :param difference: value aimed at minus value predicted
    :param expectile: in (0, 1); 0.5 is half the squared error, towards 1 the largest value aimed at counts
    :return: a scalar
    """
    weight = th.where(difference < 0, 1.0 - expectile, expectile)
    return (weight * difference.square()).mean()


class NextValue(Protocol):
    """What the next state is worth."""

    def __call__(self, batch: Batch) -> th.Tensor:
        """Values of the next states, ``(batch,)``, without gradient."""


class PolicyValue:
    """
    The value of an action that the fine-tuned diffusion policy takes in the next state, by the smaller target critic.

    :param policy: the policy
    """

    def __init__(self, policy: DiffusionPolicy) -> None:
        self.policy = policy

    @th.no_grad()
    def __call__(self, batch: Batch) -> th.Tensor:
        actions = self.policy.denoise(batch.next_features, 1, self.policy.actor.model)
        return self.policy.critic_target.min_q(batch.next_features, actions)[:, 0]


class SupportValue:
    r"""
    The softmax-weighted mean :math:`\sum_i \mathrm{softmax}_i(\alpha Q(s', a_i)) Q(s', a_i)` over actions of the pre-trained
    policy (in-support softmax Q-learning, QGPO, arXiv 2304.12824, eq. 21).

    :param policy: the policy
    :param inverse_temperature: alpha; towards infinity the best action counts
    """

    def __init__(self, policy: DiffusionPolicy, inverse_temperature: float = 10.0) -> None:
        self.policy = policy
        self.inverse_temperature = inverse_temperature

    @th.no_grad()
    def __call__(self, batch: Batch) -> th.Tensor:
        assert batch.next_candidates is not None
        values = self.policy.critic_target.min_q(batch.next_features, batch.next_candidates)  # (batch, n_candidates)
        return ((self.inverse_temperature * values).softmax(dim=1) * values).sum(dim=1)


class ExpectileValue(nn.Module):
    """
    A network of state values, fitted by expectile regression to the values of the actions in the data
    (IQL, arXiv 2110.06169, eq. 5).

    :param policy: the policy
    :param expectile: in (0, 1)
    :param learning_rate: of Adam
    """

    def __init__(self, policy: DiffusionPolicy, expectile: float = 0.7, learning_rate: float = 1e-3) -> None:
        super().__init__()
        if not 0.0 < expectile < 1.0:
            raise ValueError(f"expectile must lie between 0 and 1, got {expectile}.")
        self._critic_target = [policy.critic_target]  # in a list, so that it is no part of this module
        self.expectile = expectile
        self.value = Critic(policy.actor.features.dim, 0, policy.config["critic_arch"], n_critics=1).to(policy.device)
        self.optimizer = th.optim.Adam(self.value.parameters(), lr=learning_rate, fused=True)

    def state_values(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: ``(batch, features_dim)``
        :return: ``(batch,)``
        """
        return self.value(features, features[:, :0])[0]

    def learn(self, batch: Batch) -> th.Tensor:
        """One step of Adam; returns the loss."""
        with th.no_grad():
            aim = self._critic_target[0](batch.features, batch.actions).amin(dim=0)
        loss = expectile_loss(aim - self.state_values(batch.features), self.expectile)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @th.no_grad()
    def __call__(self, batch: Batch) -> th.Tensor:
        return self.state_values(batch.next_features)

    def training_state(self) -> dict[str, Any]:
        """Weights and state of the optimizer."""
        return {"weights": dict(self.value.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """:param state: from :meth:`training_state`"""
        self.value.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])


class GaussianUpdate:
    r"""
    The soft value of the Gaussian, :math:`\min_i Q_i(s', a') - \alpha \log \pi(a' \mid s')` (SAC, arXiv 1812.05905, eq. 3),
    and SAC's updates of the Gaussian and of the temperature :math:`\alpha`.

    :param policy: the policy
    :param learning_rate: of Adam
    :param ent_coef: the temperature to begin with
    :param target_entropy: the entropy that the temperature aims at; minus the dimension of the actions by default
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
        self.log_ent_coef = th.full((), ent_coef, device=policy.device).log().requires_grad_()
        self.optimizer = th.optim.Adam([*policy.gaussian.parameters(), self.log_ent_coef], lr=learning_rate, fused=True)

    def _act(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        shape = (len(features), self.policy.actor.model.dim)
        return self.policy.gaussian.action_log_prob(
            features, th.randn(shape, generator=self.policy.actor.model.generator, device=features.device)
        )

    @th.no_grad()
    def __call__(self, batch: Batch) -> th.Tensor:
        actions, log_prob = self._act(batch.next_features)
        values = self.policy.critic_target(batch.next_features, actions).amin(dim=0)
        return values - self.log_ent_coef.exp() * log_prob

    def learn(self, batch: Batch) -> dict[str, th.Tensor]:
        """One step of Adam on Gaussian and temperature."""
        critic = self.policy.critic.requires_grad_(False)  # only the gradient in the actions is of use
        actions, log_prob = self._act(batch.features)
        ent_coef = self.log_ent_coef.exp()
        actor_loss = (ent_coef.detach() * log_prob - critic(batch.features, actions).amin(dim=0)).mean()
        ent_coef_loss = -(self.log_ent_coef * (log_prob.detach() + self.target_entropy)).mean()
        self.optimizer.zero_grad()
        (actor_loss + ent_coef_loss).backward()
        self.optimizer.step()
        critic.requires_grad_(True)
        return {"gaussian_loss": actor_loss.detach(), "ent_coef": ent_coef.detach()}

    def training_state(self) -> dict[str, Any]:
        """Temperature and state of the optimizer; the Gaussian is the policy's."""
        return {"log_ent_coef": self.log_ent_coef.detach(), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """:param state: from :meth:`training_state`"""
        self.log_ent_coef.data.copy_(state["log_ent_coef"])
        self.optimizer.load_state_dict(state["optimizer"])


class CriticLearner:
    """
    Regresses the critics of a policy on targets, and lets the target critics follow.

    :param policy: the policy
    :param tau: how far the target critics follow in one update
    """

    def __init__(self, policy: DiffusionPolicy, tau: float = 0.005) -> None:
        self.policy = policy
        self.tau = tau
        self._weights: list[th.Tensor] = list(policy.critic.parameters())
        self._target_weights: list[th.Tensor] = list(policy.critic_target.parameters())

    def learn(self, batch: Batch, next_values: th.Tensor) -> th.Tensor:
        """
        One step of Adam on the squared error of all critics.

        :param batch: transitions
        :param next_values: values of the next states, ``(batch,)``
        :return: the loss, a scalar
        """
        targets = batch.rewards + batch.discounts * next_values  # (batch,)
        values = self.policy.critic(batch.features, batch.actions)  # (n_critics, batch)
        loss = 0.5 * (values - targets).square().mean(dim=1).sum()
        optimizer = self.policy.critic.optimizer
        assert optimizer is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with th.no_grad():
            th._foreach_lerp_(self._target_weights, self._weights, self.tau)
        return loss.detach()


def scaled_advantages(values: th.Tensor) -> th.Tensor:
    """
    How much better each candidate is than the others of its state, in units of the standard deviation over the batch, so that
    a temperature means the same for rewards of every scale.

    :param values: ``(batch, n_candidates)``
    :return: ``(batch, n_candidates)``
    """
    advantages = values - values.mean(dim=1, keepdim=True)
    return advantages / advantages.square().mean().sqrt().clamp_min(1e-6)
