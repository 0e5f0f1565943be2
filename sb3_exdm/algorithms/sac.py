"""SAC with a fused update: the numbers of Stable-Baselines3's SAC at a fraction of its overhead."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn

from sb3_exdm.common.dense import DenseLayers, FlatAdam, FlatParameters, is_plain_adam
from sb3_exdm.common.state import Derived
from sb3_exdm.exploration.replay_buffer import ScoreRewardReplayBuffer

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
    _acting: "_ActingNetworks | None" = None

    def _setup_model(self) -> None:
        super()._setup_model()
        self._networks, self._acting = None, None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_networks", "_acting"]

    def recompute(self) -> None:
        """Build the networks of the fused update again, after optimizers that have made steps were restored."""
        if self.critic.optimizer.state:
            self._fused_networks()

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

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Compute actions, see :meth:`stable_baselines3.common.base_class.BaseAlgorithm.predict`. Batches of observations take
        a short cut through the networks of the fused update.

        :param observation: observations, ``(n, *observation_space.shape)``, or a single one
        :param state: returned as it is
        :param episode_start: not used
        :param deterministic: take the mean instead of a sample
        :return: actions in the units of the environment ``(n, *action_space.shape)``, and ``state``
        """
        if self._acting is None or not self._acting.is_current(self.actor):
            self._acting = _ActingNetworks(self.actor) if self.unsupported() is None else None
        networks, shape = self._acting, self.observation_space.shape
        if networks is None or not isinstance(observation, np.ndarray) or observation.shape[1:] != shape:
            return super().predict(observation, state, episode_start, deterministic)
        with th.inference_mode():
            actions = networks.actions(th.as_tensor(observation, device=self.device).float(), deterministic)
        scaled = actions.cpu().numpy().reshape(len(observation), *self.action_space.shape)  # type: ignore[misc]
        return self.policy.unscale_action(scaled), state

    def _fused_networks(self) -> "_Networks | None":
        """Networks of the fused update, built when they are new or were replaced; None if the update cannot be fused."""
        if self._networks is None or not self._networks.is_current(self):
            self._networks = _Networks(self) if self.unsupported() is None else None
        return self._networks

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Update actor, critics and entropy coefficient, see :meth:`stable_baselines3.sac.sac.SAC.train`.

        :param gradient_steps: number of updates
        :param batch_size: transitions of a minibatch
        """
        if not self._train_fused(gradient_steps, batch_size):
            super().train(gradient_steps, batch_size)

    def _train_fused(self, gradient_steps: int, batch_size: int, critic_only: bool = False) -> bool:
        """
        Do the fused updates if they are possible.

        :param gradient_steps: number of updates
        :param batch_size: transitions of a minibatch
        :param critic_only: update critics and their targets alone
        :return: False if nothing was done, because the update cannot be fused
        """
        networks = self._fused_networks()
        self.logger.record("train/fused", float(networks is not None), exclude="tensorboard")
        if networks is None:
            return False
        # The mode matters to dropout and batch norm alone, which the networks do not have.
        self._update_learning_rate([flat.optimizers[0] for flat in networks.optimizers])
        losses = []
        with th.inference_mode():
            for gradient_step, samples in enumerate(self._minibatches(gradient_steps, batch_size)):
                losses.append(self._update(samples, self._draw_noise(batch_size, critic_only), networks, critic_only))
                if gradient_step % self.target_update_interval == 0:
                    networks.update_target(self.tau)
        self._log_updates(losses)
        return True

    def _log_updates(self, losses: list[dict[str, th.Tensor]]) -> None:
        """Count and log updates; their losses are read once, after all of them."""
        self._n_updates += len(losses)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if losses:
            means = th.stack([th.cat([value.flatten() for value in loss.values()]) for loss in losses]).mean(dim=0)
            for name, mean in zip(losses[0], means.tolist(), strict=True):
                self.logger.record(f"train/{name}", mean)

    def _minibatches(self, n_minibatches: int, batch_size: int) -> Iterable[Any]:
        """Draw minibatches, together where the replay buffer can."""
        buffer: Any = self.replay_buffer
        if isinstance(buffer, ScoreRewardReplayBuffer):
            return buffer.sample_minibatches(n_minibatches, batch_size, self._vec_normalize_env)
        return (buffer.sample(batch_size, env=self._vec_normalize_env) for _ in range(n_minibatches))

    def _draw_noise(self, batch_size: int, critic_only: bool = False) -> th.Tensor:
        """Draw the noise of an update as Stable-Baselines3 does, ``(2 * batch, action_dim)``, half as much for the critic."""
        dim = int(np.prod(self.action_space.shape))  # type: ignore[arg-type]
        parts = [th.empty(batch_size, dim, device=self.device).normal_() for _ in range(1 if critic_only else 2)]
        return th.cat(parts)

    def _update(
        self, samples: ReplayBufferSamples, noise: th.Tensor, networks: "_Networks", critic_only: bool = False
    ) -> dict[str, th.Tensor]:
        """
        Do one update on a minibatch; stacked networks have a further first axis in all arrays.

        :param samples: transitions, ``(batch, ...)``
        :param noise: from :meth:`_draw_noise`
        :param networks: networks to update
        :param critic_only: update critics alone
        :return: what to log, scalars
        """
        batch = samples.actions.shape[-2]
        discounts = self.gamma if samples.discounts is None else samples.discounts
        # Rows of the minibatch first, then those of the next observations: one pass of the actor serves both.
        features = networks.features(th.cat([samples.observations, samples.next_observations], dim=-2).float())
        present, following = features[..., :batch, :], features[..., batch:, :]  # (batch, features_dim) each
        policy = _PolicyPass(networks, following if critic_only else features, noise)
        log_prob, next_log_prob = policy.log_prob[..., :batch, :], policy.log_prob[..., -batch:, :]  # (batch, 1) each
        losses: dict[str, th.Tensor] = {}

        # Entropy coefficient: the gradient of -log_alpha * mean(log_prob + target_entropy).
        if networks.log_ent_coef is None:
            ent_coef = self.ent_coef_tensor
        elif critic_only:
            ent_coef = networks.log_ent_coef.exp()
        else:
            ent_coef = networks.log_ent_coef.exp()  # (1, 1) or (n_networks, 1, 1)
            excess = log_prob.mean(dim=-2, keepdim=True) + float(self.target_entropy)
            losses["ent_coef_loss"] = -(networks.log_ent_coef * excess)
            optimizer = networks.optimizers[-1]
            optimizer.gradient.copy_(excess.flatten()).neg_()
            optimizer.step()
        losses["ent_coef"] = ent_coef

        # Critics: 0.5 * sum_k mean (Q_k - y)^2.
        next_inputs = th.cat([following, policy.actions[..., -batch:, :]], dim=-1)
        next_values = _smallest([critic.forward(next_inputs).result for critic in networks.targets])[0]  # (batch, 1)
        next_values -= ent_coef * next_log_prob
        targets = samples.rewards + (1 - samples.dones) * discounts * next_values  # (batch, 1)
        inputs = th.cat([present, samples.actions], dim=-1)
        critic_losses = []
        for critic in networks.critics:
            done = critic.forward(inputs)
            error = done.result - targets  # (batch, 1)
            critic_losses.append(error.square().mean(dim=-2, keepdim=True))
            critic.backward(done, error.div_(batch))
        losses["critic_loss"] = 0.5 * sum(critic_losses[1:], start=critic_losses[0])
        networks.critic_optimizer.step()
        if critic_only:
            return losses

        # Actor, led by the critics after their update. The gradient of the minimum is that of the smallest critic.
        inputs[..., features.shape[-1] :] = policy.actions[..., :batch, :]
        passes = [critic.forward(inputs) for critic in networks.critics]
        min_values, smallest = _smallest([done.result for done in passes])  # (batch, 1)
        value_grads = [  # of the minimum in the action, (batch, action_dim) each
            critic.input_gradient(done, is_smallest, first_column=features.shape[-1])
            for critic, done, is_smallest in zip(networks.critics, passes, smallest, strict=True)
        ]
        losses["actor_loss"] = (ent_coef * log_prob - min_values).mean(dim=-2, keepdim=True)
        penalty = self._policy_penalty(samples.observations, policy.gaussian(batch), [done.result for done in passes])
        if penalty is not None:
            losses["actor_loss"] += penalty.loss
        policy.backward(batch, sum(value_grads[1:], start=value_grads[0]), ent_coef, penalty)
        networks.actor_optimizer.step()
        return losses

    def _policy_penalty(
        self, observations: th.Tensor, gaussian: tuple[th.Tensor, th.Tensor], values: list[th.Tensor]
    ) -> "PolicyPenalty | None":
        """
        Further term of the actor loss, for subclasses.

        :param observations: ``(batch, *shape)``
        :param gaussian: mean and log standard deviation of the actions before squashing, ``(batch, action_dim)`` each
        :param values: values of the actor's actions, one ``(batch, 1)`` for each critic
        :return: None for no further term
        """
        return None


class PolicyPenalty(NamedTuple):
    """
    A term of the actor loss that depends on mean and log standard deviation of the Gaussian alone.

    :param loss: the term, a scalar
    :param grad_mean: its gradient in the mean, ``(batch, action_dim)``
    :param grad_log_std: its gradient in the log standard deviation, ``(batch, action_dim)``
    """

    loss: th.Tensor
    grad_mean: th.Tensor
    grad_log_std: th.Tensor


def _smallest(values: list[th.Tensor]) -> tuple[th.Tensor, list[th.Tensor]]:
    """
    Compute the minimum over the critics.

    :param values: value of each critic, ``(batch, 1)``
    :return: minimum ``(batch, 1)``, and for each critic 1 where it is the first smallest, else 0, ``(batch, 1)``
    """
    if len(values) == 1:
        return values[0], [th.ones_like(values[0])]
    minimum, indices = th.cat(values, dim=-1).min(dim=-1, keepdim=True)
    return minimum, [(indices == k).float() for k in range(len(values))]


class _Networks(Derived):
    """
    The networks of a model as stacks of dense layers. Those of several models of the same shape are computed together.

    :param models: models whose update can be fused
    """

    def __init__(self, *models: FusedSAC) -> None:
        actor, critic = models[0].actor, models[0].critic
        self.actor_optimizer = FlatAdam(*(model.actor.optimizer for model in models))
        self.critic_optimizer = FlatAdam(*(model.critic.optimizer for model in models))
        self.optimizers = [self.actor_optimizer, self.critic_optimizer]
        self.log_ent_coef: th.Tensor | None = None
        ent_coef_optimizers = [model.ent_coef_optimizer for model in models if model.ent_coef_optimizer is not None]
        if ent_coef_optimizers:
            self.optimizers.append(FlatAdam(*ent_coef_optimizers))
            # (1, 1), for several models (n_models, 1, 1)
            self.log_ent_coef = self.optimizers[-1].values.view(*([len(models)] if len(models) > 1 else []), 1, 1)
        self.target = FlatParameters(*(model.critic_target.parameters() for model in models))  # in the order of the critic's
        self._extractor: Any = actor.features_extractor  # has no parameters
        self.trunk = DenseLayers(_linear(actor.latent_pi), self.actor_optimizer, activate_last=True)
        # One stack for both heads would copy their weights: two products are cheaper.
        self.mean = DenseLayers(_linear([actor.mu]), self.actor_optimizer)
        self.log_std = DenseLayers(_linear([actor.log_std]), self.actor_optimizer)
        self.critics = [DenseLayers(_linear(network), self.critic_optimizer) for network in critic.q_networks]
        self.targets = [DenseLayers(_linear(network), self.target) for network in models[0].critic_target.q_networks]

    def is_current(self, *models: FusedSAC) -> bool:
        """Tell whether the models still have these networks and optimizers, which loading replaces."""
        for i, model in enumerate(models):
            optimizers = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
            mine = [flat.optimizers[i] for flat in self.optimizers]
            if any(a is not b for a, b in zip(mine, optimizers, strict=False)):
                return False
            if next(model.critic_target.parameters()) is not self.target.groups[i][0]:
                return False
        return all(flat.is_current for flat in (*self.optimizers, self.target))

    def features(self, observations: th.Tensor) -> th.Tensor:
        """
        Compute the features.

        :param observations: ``(batch, *shape)``, for several models ``(n_models, batch, *shape)``
        :return: ``(batch, features_dim)`` or ``(n_models, batch, features_dim)``
        """
        if self.target.groups[1:]:
            return self._extractor(observations.flatten(0, 1)).unflatten(0, observations.shape[:2])
        return self._extractor(observations)

    def update_target(self, tau: float) -> None:
        """Move the target critics towards the critics (Polyak averaging)."""
        self.target.values.lerp_(self.critic_optimizer.values, tau)


class _ActingNetworks(Derived):
    """
    The networks that act.

    :param actor: actor whose update can be fused
    """

    def __init__(self, actor: Actor) -> None:
        self.features: Any = actor.features_extractor
        self.trunk = DenseLayers(_linear(actor.latent_pi), activate_last=True)
        self.mean, self.log_std = DenseLayers(_linear([actor.mu])), DenseLayers(_linear([actor.log_std]))

    def is_current(self, actor: Actor) -> bool:
        """Tell whether the actor still has these weights, and not a copy in other memory."""
        (layer,) = _linear([actor.mu])
        return self.mean.weights[0].data_ptr() == layer.weight.data_ptr()

    def actions(self, observations: th.Tensor, deterministic: bool) -> th.Tensor:
        """
        Compute actions in [-1, 1] to act with.

        :param observations: ``(n, *shape)``
        :param deterministic: take the mean instead of a sample
        :return: ``(n, action_dim)``
        """
        latent = self.trunk.forward(self.features(observations)).result  # (n, width)
        mean = self.mean.forward(latent).result
        if not deterministic:
            log_std = self.log_std.forward(latent).result.clamp_(LOG_STD_MIN, LOG_STD_MAX)
            mean = mean.addcmul_(log_std.exp_(), th.empty_like(mean).normal_())
        return mean.tanh_()


class _PolicyPass:
    """
    Actions and log-densities of a squashed Gaussian, with what their gradients need.

    :param networks: networks of the actor
    :param features: ``(batch, features_dim)``
    :param noise: standard normal, ``(batch, action_dim)``
    """

    def __init__(self, networks: _Networks, features: th.Tensor, noise: th.Tensor) -> None:
        self.networks = networks
        self.trunk = networks.trunk.forward(features)
        self.mean, self.log_std = networks.mean.forward(self.trunk.result), networks.log_std.forward(self.trunk.result)
        self.clipped = log_std = self.log_std.result.clamp(LOG_STD_MIN, LOG_STD_MAX)  # (batch, action_dim)
        self.spread = log_std.exp().mul_(noise)  # sigma * epsilon
        self.actions = (self.mean.result + self.spread).tanh_()
        self.slope = th.addcmul(th.ones_like(noise), self.actions, self.actions, value=-1)  # derivative of tanh
        self.padded_slope = self.slope + SQUASH_EPSILON
        terms = self.padded_slope.log().add_(log_std).addcmul_(noise, noise, value=0.5)
        self.log_prob = terms.sum(dim=-1, keepdim=True).add_(noise.shape[-1] * _HALF_LOG_2PI).neg_()  # (batch, 1)

    def gaussian(self, batch: int) -> tuple[th.Tensor, th.Tensor]:
        """Mean and log standard deviation before squashing, ``(batch, action_dim)`` each, of the first rows."""
        return self.mean.result[..., :batch, :], self.clipped[..., :batch, :]

    def backward(self, batch: int, value_grad: th.Tensor, ent_coef: th.Tensor, penalty: PolicyPenalty | None = None) -> None:
        """
        Write the gradient of the actor loss over the first rows, see :class:`FusedSAC`, to the optimizer.

        :param batch: number of rows
        :param value_grad: gradient of the smallest value in the action, ``(batch, action_dim)``
        :param ent_coef: entropy coefficient
        :param penalty: further term of the loss
        """
        networks, raw = self.networks, self.log_std.result[..., :batch, :]
        weight = ent_coef / batch
        grad_mean = (2.0 * weight) * self.actions[..., :batch, :] / self.padded_slope[..., :batch, :]  # (batch, action_dim)
        grad_mean.sub_(value_grad, alpha=1.0 / batch).mul_(self.slope[..., :batch, :])
        is_inside = (raw >= LOG_STD_MIN) & (raw <= LOG_STD_MAX)
        grad_log_std = (grad_mean * self.spread[..., :batch, :]).sub_(weight)  # (batch, action_dim)
        if penalty is not None:
            grad_mean += penalty.grad_mean
            grad_log_std += penalty.grad_log_std
        grad_log_std.mul_(is_inside)
        grad_latent = grad_mean @ networks.mean.weights[0]  # (batch, width)
        grad_latent += grad_log_std @ networks.log_std.weights[0]
        networks.mean.backward(self.mean.rows(batch), grad_mean)
        networks.log_std.backward(self.log_std.rows(batch), grad_log_std)
        networks.trunk.backward(self.trunk.rows(batch), grad_latent)


def _linear(layers: Any) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
