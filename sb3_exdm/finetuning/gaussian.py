"""Fine-tuning of a pre-trained Gaussian or deterministic policy with the algorithm that trained it."""

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import polyak_update
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from sb3_exdm.algorithms.sac import FusedSAC, PolicyPenalty
from sb3_exdm.finetuning.schedule import KL_COEF, FinetuneSchedule

DETERMINISTIC_STD = 0.1
"""Standard deviation of the Gaussian around a deterministic action in the KL divergence, in units of [-1, 1]."""


class KLRegularized(OffPolicyAlgorithm):
    r"""
    Base class of the algorithms here. They can update the critic alone, and their actor loss has the additional term

    .. math:: c \cdot \mathrm{mean} |Q(s, \pi(s))| \cdot KL(\pi(\cdot \mid s) \,\|\, \pi_{pretrained}(\cdot \mid s)),

    which keeps the actor near the pre-trained one while the critic is inaccurate (kickstarting, Schmitt et al. 2018,
    arXiv 1803.03835). The factor of the value makes the coefficient c independent of the scale of rewards (TD3+BC,
    Fujimoto & Gu 2021, arXiv 2106.06860, section 5). Without either they compute the numbers of Stable-Baselines3.
    """

    kl_coef: float = 0.0
    """Coefficient c."""
    pretrained_actor: BasePolicy

    def start_regularization(self, kl_coef: float = KL_COEF) -> None:
        """
        Regularize towards the present actor from now on.

        :param kl_coef: coefficient, finite and at least 0
        :raises ValueError: for a coefficient out of range
        """
        if not 0.0 <= kl_coef < float("inf"):
            raise ValueError(f"kl_coef must be finite and at least 0, got {kl_coef}.")
        self.kl_coef = kl_coef
        self.pretrained_actor = self.policy.make_actor()  # type: ignore[operator]
        self.pretrained_actor.load_state_dict(self.actor.state_dict())
        self.pretrained_actor.requires_grad_(False)

    def build_missing(self, names: Collection[str]) -> None:
        """
        Build the pre-trained actor of a state that holds one.

        :param names: attributes that are missing
        """
        if "pretrained_actor" in names:
            self.start_regularization()

    def train(self, gradient_steps: int, batch_size: int = 64, critic_only: bool = False) -> None:
        """
        Sample the replay buffer and do the updates.

        :param gradient_steps: number of updates
        :param batch_size: batch size
        :param critic_only: update critic and target critic alone
        """
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizers())
        logs: dict[str, list[float]] = defaultdict(list)
        for step in range(gradient_steps):
            self._n_updates += 1
            data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            self._train_step(step, data, critic_only, logs)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for key, values in logs.items():
            self.logger.record(f"train/{key}", np.mean(values))

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [self.policy.actor.optimizer, self.policy.critic.optimizer]  # type: ignore[union-attr, list-item]

    def _train_step(self, step: int, data: Any, critic_only: bool, logs: dict[str, list[float]]) -> None:
        raise NotImplementedError

    def _targets(self, data: Any, next_q_values: th.Tensor) -> th.Tensor:
        discounts = self.gamma if data.discounts is None else data.discounts
        return data.rewards + (1 - data.dones) * discounts * next_q_values  # (batch, 1)

    def _regularization(self, q_values: th.Tensor, divergence: th.Tensor) -> th.Tensor:
        return self.kl_coef * q_values.detach().abs().mean() * divergence.mean()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "kl_coef", "pretrained_actor"]


def _descend(optimizer: th.optim.Optimizer, loss: Any) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


class FinetuneSAC(KLRegularized, FusedSAC):
    """
    SAC with KL regularization, see :class:`KLRegularized`, and the update of
    :class:`~sb3_exdm.algorithms.sac.FusedSAC` where that is possible. The parameters are those of Stable-Baselines3's SAC.
    """

    def train(self, gradient_steps: int, batch_size: int = 64, critic_only: bool = False) -> None:
        """
        Sample the replay buffer and do the updates.

        :param gradient_steps: number of updates
        :param batch_size: batch size
        :param critic_only: update critic and target critic alone
        """
        if not self._train_fused(gradient_steps, batch_size, critic_only):
            super().train(gradient_steps, batch_size, critic_only)

    def _policy_penalty(
        self, observations: th.Tensor, gaussian: tuple[th.Tensor, th.Tensor], values: list[th.Tensor]
    ) -> PolicyPenalty | None:
        r"""
        KL divergence of two Gaussians,
        :math:`\sum_i \log(\sigma'_i / \sigma_i) + (\sigma_i^2 + (\mu_i - \mu'_i)^2) / 2 \sigma_i'^2 - 1/2`, in nats.
        """
        if not self.kl_coef:
            return None
        actor: Any = self.pretrained_actor
        (mean, log_std), (old_mean, old_log_std, _) = gaussian, actor.get_action_dist_params(observations)
        precision = (-2.0 * old_log_std).exp()
        difference, ratio = mean - old_mean, (2.0 * (log_std - old_log_std)).exp()
        divergence = (old_log_std - log_std + 0.5 * (ratio + difference.square() * precision - 1.0)).sum(dim=1)
        weight = self.kl_coef * th.cat(values, dim=1).abs().mean()
        batch = len(mean)
        return PolicyPenalty(
            weight * divergence.mean(), weight / batch * difference * precision, weight / batch * (ratio - 1.0)
        )

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return super()._optimizers() + ([] if self.ent_coef_optimizer is None else [self.ent_coef_optimizer])

    def _train_step(self, step: int, data: Any, critic_only: bool, logs: dict[str, list[float]]) -> None:
        if self.use_sde:
            self.actor.reset_noise()
        ent_coef = self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()
        logs["ent_coef"].append(ent_coef.item())
        if not critic_only:
            actions_pi, log_prob = self.actor.action_log_prob(data.observations)
            log_prob = log_prob.reshape(-1, 1)
            distribution = self.actor.action_dist.distribution  # the next call of the actor replaces it
            if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
                assert isinstance(self.target_entropy, float)
                ent_coef_loss = -(self.log_ent_coef * (log_prob + self.target_entropy).detach()).mean()
                logs["ent_coef_loss"].append(_descend(self.ent_coef_optimizer, ent_coef_loss))
        with th.no_grad():
            next_actions, next_log_prob = self.actor.action_log_prob(data.next_observations)
            next_q_values = th.cat(self.critic_target(data.next_observations, next_actions), dim=1)
            next_q_values = next_q_values.min(dim=1, keepdim=True).values - ent_coef * next_log_prob.reshape(-1, 1)
            targets = self._targets(data, next_q_values)
        critic_loss = 0.5 * sum(F.mse_loss(q, targets) for q in self.critic(data.observations, data.actions))
        logs["critic_loss"].append(_descend(self.critic.optimizer, critic_loss))
        if not critic_only:
            q_values = th.cat(self.critic(data.observations, actions_pi), dim=1)  # (batch, n_critics)
            actor_loss = (ent_coef * log_prob - q_values.min(dim=1, keepdim=True).values).mean()
            if self.kl_coef:
                actor_loss = actor_loss + self._regularization(q_values, self._divergence(data.observations, distribution))
            logs["actor_loss"].append(_descend(self.actor.optimizer, actor_loss))
        if step % self.target_update_interval == 0:
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

    def _divergence(self, observations: Any, distribution: Normal) -> th.Tensor:
        """KL divergence of the actor from the pre-trained one, which squashing does not change, in nats, ``(batch,)``."""
        actor: Any = self.pretrained_actor
        mean, log_std, kwargs = actor.get_action_dist_params(observations)
        pretrained = actor.action_dist.proba_distribution(mean, log_std, **kwargs).distribution
        return kl_divergence(distribution, pretrained).sum(dim=1)


class FinetuneTD3(KLRegularized, TD3):
    """TD3 with KL regularization, see :class:`KLRegularized`. The parameters are those of Stable-Baselines3's TD3."""

    def _train_step(self, step: int, data: Any, critic_only: bool, logs: dict[str, list[float]]) -> None:
        with th.no_grad():
            noise = data.actions.clone().data.normal_(0, self.target_policy_noise)
            noise = noise.clamp(-self.target_noise_clip, self.target_noise_clip)
            next_actions = (self.actor_target(data.next_observations) + noise).clamp(-1, 1)
            next_q_values = th.cat(self.critic_target(data.next_observations, next_actions), dim=1)
            targets = self._targets(data, next_q_values.min(dim=1, keepdim=True).values)
        critic_loss = sum(F.mse_loss(q, targets) for q in self.critic(data.observations, data.actions))
        logs["critic_loss"].append(_descend(self.critic.optimizer, critic_loss))
        if self._n_updates % self.policy_delay:
            return
        if not critic_only:
            actions_pi = self.actor(data.observations)
            q_values = self.critic.q1_forward(data.observations, actions_pi)  # (batch, 1)
            actor_loss = -q_values.mean()
            if self.kl_coef:
                actor_loss = actor_loss + self._regularization(q_values, self._divergence(data.observations, actions_pi))
            logs["actor_loss"].append(_descend(self.actor.optimizer, actor_loss))
            polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)
            polyak_update(self.actor_batch_norm_stats, self.actor_batch_norm_stats_target, 1.0)
        polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        polyak_update(self.critic_batch_norm_stats, self.critic_batch_norm_stats_target, 1.0)

    def _divergence(self, observations: Any, actions: th.Tensor) -> th.Tensor:
        """KL divergence between Gaussians around the actions of the actor and of the pre-trained one, ``(batch,)``."""
        return (actions - self.pretrained_actor(observations)).square().sum(dim=1) / (2.0 * DETERMINISTIC_STD**2)


class FinetuneDDPG(FinetuneTD3, DDPG):
    """DDPG with KL regularization, see :class:`KLRegularized`. The parameters are those of Stable-Baselines3's DDPG."""


FINETUNE_ALGORITHMS: dict[str, type[KLRegularized]] = {"sac": FinetuneSAC, "td3": FinetuneTD3, "ddpg": FinetuneDDPG}
"""Algorithms that fine-tune a pre-trained actor, by the name of the algorithm that trained it."""


class GaussianFinetuneCallback(FinetuneSchedule):
    """
    Fine-tune the policy that explored with its own algorithm, in the phases of
    :class:`~sb3_exdm.finetuning.schedule.FinetuneSchedule`, which start anew in every call of ``learn``.

    A new critic ruins a pre-trained actor within a few hundred updates. It can therefore be trained alone first, and the actor
    can be regularized: with the full coefficient in the first half of ``kl_steps``, annealed linearly to 0 in the second.

    :param offline_updates: number of updates before the first step, if the replay buffer holds offline transitions
    :param critic_updates: number of updates of the critic alone when learning begins; none after offline updates
    :param kl_steps: steps from the first update to the end of the KL regularization; none after offline updates
    :param uniform: act uniformly during the warm-up and learn from equal rewards too, for an agent from scratch
    :param verbose: verbosity
    :raises ValueError: for numbers out of range, or an algorithm that is not in :data:`FINETUNE_ALGORITHMS` where
        ``critic_updates`` or ``kl_steps`` need one
    """

    def __init__(
        self,
        offline_updates: int = 5000,
        critic_updates: int = 0,
        kl_steps: int = 0,
        uniform: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(offline_updates, critic_updates, uniform, kl_steps, verbose)

    def _init_callback(self) -> None:
        super()._init_callback()
        model = self.model
        if (self.critic_updates or self.kl_steps) and not isinstance(model, KLRegularized):
            names = ", ".join(algorithm.__name__ for algorithm in FINETUNE_ALGORITHMS.values())
            raise ValueError(f"critic_updates and kl_steps need {names} (sb3_exdm.finetuning), got {type(model).__name__}.")
        self.n_collected, self.n_updates = model.num_timesteps, 0

    def _start_learning(self) -> None:
        super()._start_learning()
        if self.kl_steps:
            assert isinstance(self.model, KLRegularized)
            self.model.start_regularization()

    def _update(self, gradient_steps: int, critic_only: bool) -> None:
        model = self.model
        if isinstance(model, KLRegularized) and self.kl_steps:
            model.kl_coef = self.kl_coef
        kwargs = {"critic_only": True} if critic_only else {}
        model.train(gradient_steps=gradient_steps, batch_size=model.batch_size, **kwargs)
        self.n_updates += gradient_steps

    def _on_training_end(self) -> None:
        super()._on_training_end()
        if isinstance(self.model, KLRegularized):
            self.model.kl_coef = 0.0
