"""SAC with a fused update: the numbers of Stable-Baselines3's SAC at a fraction of its overhead."""

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn

from sb3_exdm.algorithms.dense import DenseLayers, adam_step, is_plain_adam

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # as in Stable-Baselines3
SQUASH_EPSILON = 1e-6
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class FusedSAC(SAC):
    r"""
    Drop-in replacement for Stable-Baselines3's :class:`~stable_baselines3.sac.sac.SAC` with a faster update.

    Most of the time of an update on small networks goes into autograd, modules, distributions and optimizers rather than
    into matrix products. Here all gradients are written out, the features of a batch are computed once for actor, critics
    and targets, and Adam is called directly. Losses agree with those of SAC up to rounding; files saved by one class load
    in the other.

    **Gradients.** With :math:`u = \mu + \sigma \epsilon`, :math:`a = \tanh u` and the entropy coefficient :math:`\alpha`,

    .. math::
        \log \pi = \sum_i -\tfrac12 \epsilon_i^2 - \log \sigma_i - \tfrac12 \log 2\pi - \log(1 - a_i^2 + \eta), \qquad
        L = \tfrac1B \sum (\alpha \log \pi - \min_k Q_k(s, a)),

    where :math:`\eta = 10^{-6}`. As :math:`\epsilon` does not depend on the parameters,

    .. math::
        \frac{\partial L}{\partial u} = (1 - a^2) \left( \frac{2 \alpha a}{B (1 - a^2 + \eta)}
            - \frac1B \frac{\partial \min_k Q_k}{\partial a} \right), \quad
        \frac{\partial L}{\partial \mu} = \frac{\partial L}{\partial u}, \quad
        \frac{\partial L}{\partial \log \sigma} = \sigma \epsilon \frac{\partial L}{\partial u} - \frac{\alpha}{B}

    (zero where :math:`\log \sigma` is clipped), and :math:`\partial L_Q / \partial Q_k = (Q_k - y) / B` for the critics.

    The fused update covers vector observations, ReLU networks with plain Adam, and feature extractors without parameters.
    In all other cases (images, Dict observations, gSDE, other activations or optimizers, shared or learned features) the
    update of Stable-Baselines3 runs instead; ``train/fused`` in the log says which one did.

    The parameters are those of SAC.
    """

    _networks: "_Networks | None" = None

    def _setup_model(self) -> None:
        super()._setup_model()
        self._networks = None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_networks"]

    def unsupported(self) -> str | None:
        """Return why the update cannot be fused, None if it can."""
        policy = self.policy
        if not isinstance(policy, SACPolicy):
            return f"the policy is {type(policy).__name__}"
        if not isinstance(self.observation_space, spaces.Box) or is_image_space(self.observation_space):
            return f"the observations are not vectors: {self.observation_space}"
        if self.use_sde:
            return "gSDE is used"
        if policy.share_features_extractor or any(True for _ in self.actor.features_extractor.parameters()):
            return "the features extractor has parameters or is shared"
        if any(True for _ in self.critic.features_extractor.parameters()):
            return "the features extractor of the critic has parameters"
        if type(self.actor) is not Actor or not self.actor.net_arch:
            return "the actor has no hidden layers or is a subclass"
        stacks: list[Any] = [self.actor.latent_pi, *self.critic.q_networks]
        if any(not isinstance(layer, (nn.Linear, nn.ReLU)) for stack in stacks for layer in stack):
            return "a network has other layers than Linear and ReLU"
        optimizers = [self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer]
        if not all(is_plain_adam(optimizer) for optimizer in optimizers if optimizer is not None):
            return "an optimizer is not plain Adam"
        return None

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Update actor, critics and entropy coefficient, see :meth:`stable_baselines3.sac.sac.SAC.train`.

        :param gradient_steps: number of updates
        :param batch_size: transitions of a minibatch
        """
        reason = self.unsupported()
        self.logger.record("train/fused", float(reason is None), exclude="tensorboard")
        if reason is not None:
            super().train(gradient_steps, batch_size)
            return
        # The mode matters to dropout and batch norm alone, which the networks do not have.
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        if self._networks is None or not self._networks.belongs_to(self):
            self._networks = _Networks(self)
        losses = []
        with th.no_grad():
            for gradient_step in range(gradient_steps):
                samples = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)  # type: ignore[union-attr]
                losses.append(self._update(samples, self._networks))
                if gradient_step % self.target_update_interval == 0:
                    th._foreach_lerp_(self._networks.target_parameters, self._networks.critic_parameters, self.tau)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in losses[0] if losses else ():
            mean = th.stack([loss[name] for loss in losses]).mean()  # read once, after all updates
            self.logger.record(f"train/{name}", mean.item())

    def _update(self, samples: ReplayBufferSamples, networks: "_Networks") -> dict[str, th.Tensor]:
        """One update on a minibatch; returns what to log, as tensors."""
        batch, action_dim = samples.actions.shape
        discounts = self.gamma if samples.discounts is None else samples.discounts
        # Rows of the minibatch first, then those of the next observations: one pass of the actor serves both.
        observations = th.cat([samples.observations, samples.next_observations]).float()
        features = networks.features(observations)  # (2 * batch, features_dim)
        noise = features.new_empty(2 * batch, action_dim)
        noise[:batch].normal_()  # two draws, in the order of Stable-Baselines3
        noise[batch:].normal_()
        policy = networks.act(features, noise)
        log_prob, next_log_prob = policy.log_prob.split(batch)  # (batch, 1) each
        actions, next_actions = policy.actions.split(batch)  # (batch, action_dim) each
        losses: dict[str, th.Tensor] = {}

        # Entropy coefficient: the gradient of -log_alpha * mean(log_prob + target_entropy).
        if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
            ent_coef = self.log_ent_coef.exp()  # (1,)
            excess = (log_prob + self.target_entropy).mean()
            losses["ent_coef_loss"] = -(self.log_ent_coef * excess).squeeze()
            adam_step(self.ent_coef_optimizer, [self.log_ent_coef], [-excess.reshape(self.log_ent_coef.shape)])
        else:
            ent_coef = self.ent_coef_tensor
        losses["ent_coef"] = ent_coef.squeeze()

        # Critics: 0.5 * sum_k mean (Q_k - y)^2.
        next_inputs = th.cat([features[batch:], next_actions], dim=1)
        next_values = th.cat([critic.forward(next_inputs)[-1] for critic in networks.targets], dim=1)  # (batch, n_critics)
        next_values = next_values.amin(dim=1, keepdim=True) - ent_coef * next_log_prob
        targets = samples.rewards + (1 - samples.dones) * discounts * next_values  # (batch, 1)
        inputs = th.cat([features[:batch], samples.actions], dim=1)
        grads: list[th.Tensor] = []
        critic_loss = targets.new_zeros(())
        for critic in networks.critics:
            values = critic.forward(inputs)
            error = values[-1] - targets  # (batch, 1)
            critic_loss = critic_loss + 0.5 * error.square().mean()
            grads += critic.backward(values, error / batch)
        losses["critic_loss"] = critic_loss
        adam_step(self.critic.optimizer, networks.critic_parameters, grads)

        # Actor, led by the critics after their update. The gradient of the minimum is that of the smallest critic.
        inputs = th.cat([features[:batch], actions], dim=1)
        passes = [critic.forward(inputs) for critic in networks.critics]
        min_values, smallest = th.cat([values[-1] for values in passes], dim=1).min(dim=1, keepdim=True)  # (batch, 1)
        value_grad = th.zeros_like(actions)  # of the minimum in the action, (batch, action_dim)
        for k, (critic, values) in enumerate(zip(networks.critics, passes, strict=True)):
            value_grad += critic.input_gradient(values, (smallest == k).float(), first_column=features.shape[1])
        losses["actor_loss"] = (ent_coef * log_prob - min_values).mean()
        adam_step(self.actor.optimizer, networks.actor_parameters, policy.backward(batch, value_grad, ent_coef))
        return losses


class _Networks:
    """
    The networks of a model as stacks of dense layers.

    :param model: model whose update can be fused
    """

    def __init__(self, model: FusedSAC) -> None:
        actor = model.actor
        self.model_critic = model.critic
        self.features = actor.features_extractor
        self.trunk = DenseLayers(_linear(actor.latent_pi), relu_last=True)
        # One stack for both heads would copy their weights: two products are cheaper.
        self.mean, self.log_std = DenseLayers([actor.mu]), DenseLayers([actor.log_std])  # type: ignore[list-item]
        self.critics = [DenseLayers(_linear(network)) for network in model.critic.q_networks]
        self.targets = [DenseLayers(_linear(network)) for network in model.critic_target.q_networks]
        self.actor_parameters = [*self.trunk.parameters, *self.mean.parameters, *self.log_std.parameters]
        self.critic_parameters = [parameter for critic in self.critics for parameter in critic.parameters]
        self.target_parameters = [parameter for critic in self.targets for parameter in critic.parameters]

    def belongs_to(self, model: FusedSAC) -> bool:
        """Tell whether the model still has these networks, which ``load`` replaces."""
        return self.model_critic is model.critic

    def act(self, features: th.Tensor, noise: th.Tensor) -> "_PolicyPass":
        """
        Sample actions.

        :param features: ``(batch, features_dim)``
        :param noise: standard normal, ``(batch, action_dim)``
        """
        return _PolicyPass(self, features, noise)


class _PolicyPass:
    """
    Actions and log-densities of a squashed Gaussian, with what their gradients need.

    :param networks: networks of the actor
    :param features: ``(batch, features_dim)``
    :param noise: standard normal, ``(batch, action_dim)``
    """

    def __init__(self, networks: _Networks, features: th.Tensor, noise: th.Tensor) -> None:
        self.networks = networks
        self.hidden = networks.trunk.forward(features)
        latent = self.hidden[-1]  # (batch, width)
        self.raw_log_std = networks.log_std.forward(latent)[-1]  # (batch, action_dim)
        log_std = self.raw_log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        self.spread = log_std.exp() * noise  # sigma * epsilon
        self.actions = (networks.mean.forward(latent)[-1] + self.spread).tanh_()
        self.slope = 1.0 - self.actions.square()  # derivative of tanh
        squash = (self.slope + SQUASH_EPSILON).log()
        terms = 0.5 * noise.square() + log_std + squash
        self.log_prob = -(terms.sum(dim=1, keepdim=True) + noise.shape[1] * _HALF_LOG_2PI)  # (batch, 1)

    def backward(self, batch: int, value_grad: th.Tensor, ent_coef: th.Tensor) -> list[th.Tensor]:
        """
        Compute the gradient of the actor loss over the first rows, see :class:`FusedSAC`.

        :param batch: number of rows
        :param value_grad: gradient of the smallest value in the action, ``(batch, action_dim)``
        :param ent_coef: entropy coefficient
        :return: gradients of the parameters of trunk, mean and log standard deviation
        """
        actions, slope, raw = self.actions[:batch], self.slope[:batch], self.raw_log_std[:batch]
        weight = ent_coef / batch
        grad_mean = slope * (2.0 * weight * actions / (slope + SQUASH_EPSILON) - value_grad / batch)  # (batch, action_dim)
        is_inside = (raw >= LOG_STD_MIN) & (raw <= LOG_STD_MAX)
        grad_log_std = (grad_mean * self.spread[:batch] - weight) * is_inside  # (batch, action_dim)
        hidden = [values[:batch] for values in self.hidden]
        heads = ((self.networks.mean, grad_mean), (self.networks.log_std, grad_log_std))
        grad_latent = sum(grad @ head.weights[0] for head, grad in heads)  # (batch, width)
        grads = self.networks.trunk.backward(hidden, grad_latent)  # type: ignore[arg-type]
        for head, grad in heads:
            grads += head.backward([hidden[-1]], grad)
        return grads


def _linear(layers: Any) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
