"""Callback that trains a diffusion policy inside Stable-Baselines3's loop."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch as th

from sb3_exdm.common.validation import check_choice
from sb3_exdm.finetuning.critics import Batch
from sb3_exdm.finetuning.operators import OPERATORS, Operator, make_operator
from sb3_exdm.finetuning.replay.buffer import FinetuneSamples
from sb3_exdm.finetuning.schedule import FinetuneSchedule
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy, ExplorationState

WARM_UPS = {"mixed": 0.5, "diffusion": 0.0, "gaussian": 1.0}
"""Share of the environments that warm up with the pre-trained Gaussian, by name."""
LOG_FREQ = 100
"""Updates between two records of the losses: reading them stalls a GPU."""


class DiffusionFinetuneCallback(FinetuneSchedule):
    """
    Train a :class:`~sb3_exdm.policies.diffusion_policy.DiffusionPolicy` with a policy improvement operator, in the phases of
    :class:`~sb3_exdm.finetuning.schedule.FinetuneSchedule`.

    The settings of the algorithm keep their meaning: ``learning_starts``, ``train_freq``, ``gradient_steps``, ``batch_size``,
    ``gamma``, ``tau``, ``learning_rate``. Only its update is replaced.

    :param operator: a name in :data:`~sb3_exdm.finetuning.operators.OPERATORS`
    :param operator_kwargs: arguments of the operator
    :param exploration_noise: standard deviation of the noise on actions, in units of [-1, 1], at least 0
    :param correlation: correlation of the noise of the pre-trained policies from one step to the next, in [0, 1); high values
        explore further, because a policy follows one behavior for a while
    :param warm_up: pre-trained policies of the warm-up, a name in :data:`WARM_UPS`: the diffusion policy, the Gaussian, or
        each in half of the environments. Without a pre-trained Gaussian it is always the diffusion policy.
    :param keep_exploring: whether one of four or more environments always acts with the pre-trained policy
    :param offline_updates: number of updates before the first step, if the replay buffer holds offline transitions
    :param critic_updates: number of updates of the critic alone when learning begins, so that a new critic does not mislead a
        pre-trained policy; only for operators with such an update
    :param kl_steps: steps over which the Gaussian is regularized towards the pre-trained one; only for operators that train it
    :param verbose: verbosity
    :raises ValueError: if the algorithm, its policy or its environment do not fit, or for settings out of range
    """

    def __init__(
        self,
        operator: str = "select",
        *,
        operator_kwargs: dict[str, Any] | None = None,
        exploration_noise: float = 0.1,
        correlation: float = 0.6,
        warm_up: str = "mixed",
        keep_exploring: bool = True,
        offline_updates: int = 5000,
        critic_updates: int = 0,
        kl_steps: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(offline_updates, critic_updates, kl_steps=kl_steps, verbose=verbose)
        check_choice("operator", operator, OPERATORS)
        check_choice("warm_up", warm_up, WARM_UPS)
        if kl_steps and not OPERATORS[operator].has_kl:
            raise ValueError(f"kl_steps regularizes the Gaussian, which the operator {operator!r} does not train.")
        if not 0.0 <= exploration_noise < float("inf"):
            raise ValueError(f"exploration_noise must be finite and at least 0, got {exploration_noise}.")
        if not 0.0 <= correlation < 1.0:
            raise ValueError(f"correlation must be at least 0 and less than 1, got {correlation}.")
        self.operator_name = operator
        self.operator_kwargs = operator_kwargs or {}
        if "learning_rate" in self.operator_kwargs:
            raise ValueError(
                "The operator learns at the learning_rate of the algorithm; set it there, not in operator_kwargs."
            )
        self.exploration_noise = exploration_noise
        self.correlation = correlation
        self.warm_up = warm_up
        self.keep_exploring = keep_exploring

    def _init_callback(self) -> None:
        model = self.model
        policy = model.policy
        if not isinstance(policy, DiffusionPolicy):
            raise ValueError(
                f"DiffusionFinetuneCallback trains a DiffusionPolicy of SAC, TD3 or DDPG, got {type(model).__name__} with "
                f'{type(policy).__name__}; construct it as SAC("DiffusionPolicy", env).'
            )
        normalizer = model.get_vec_normalize_env()
        if normalizer is not None and normalizer.norm_obs:
            raise ValueError("A DiffusionPolicy standardizes observations itself; use VecNormalize(..., norm_obs=False).")
        super()._init_callback()
        self.policy = policy
        settings = {"tau": self.model.tau, "learning_rate": float(model.lr_schedule(1.0))}
        self.operator: Operator = make_operator(self.operator_name, policy, **{**settings, **self.operator_kwargs})
        self.n_collected, self.n_updates = 0, 0
        state = policy.finetuning_state
        if state is not None and state["operator"] == self.operator_name:
            self.operator.load_training_state(deepcopy(state["parts"]))
            self.n_collected, self.n_updates = state["n_collected"], state["n_updates"]
        # Before the first update the critic cannot select.
        policy.action_selection = self.operator.action_selection if self.n_updates else ActionSelection()
        # The weights are in the model from now on, so it must load without the pre-trained run.
        model.policy_kwargs = policy.network_kwargs

    def _on_training_start(self) -> None:
        behavior, n_envs = self.policy.behavior, self.training_env.num_envs
        start_noise = th.randn((n_envs, behavior.dim), generator=behavior.generator, device=self.policy.device)
        self.policy.exploration = ExplorationState(self._actors(n_envs), self.exploration_noise, self.correlation, start_noise)
        self._cache_actions()
        super()._on_training_start()
        self._store_state()

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        assert self.policy.exploration is not None
        self.policy.exploration.actors = self._actors(self.training_env.num_envs)

    def _actors(self, n_envs: int) -> list[str]:
        """Actor of each environment."""
        share = WARM_UPS[self.warm_up] if self.policy.has_pretrained_gaussian else 0.0
        n_gaussian = int(share * n_envs)
        pretrained = ["behavior"] * (n_envs - n_gaussian) + ["behavior_gaussian"] * n_gaussian
        if self.n_updates == 0:
            return pretrained
        n_exploring = 1 if self.keep_exploring and n_envs >= 4 else 0
        return pretrained[:n_exploring] + [self.operator.exploring_actor] * (n_envs - n_exploring)

    def _on_rollout_end(self) -> None:
        self._cache_actions()
        super()._on_rollout_end()
        self._store_state()

    def _on_training_end(self) -> None:
        self.policy.exploration = None
        super()._on_training_end()

    def _cache_actions(self) -> None:
        """Sample actions of the pre-trained policy, which does not change, once for every transition."""
        if self.operator.n_cached_actions:
            self.buffer.cache_actions(
                self._sample_actions,
                self.operator.n_cached_actions,
                next_observations=self.operator.needs_next_cached_actions,
            )

    def _sample_actions(self, observations: np.ndarray) -> np.ndarray:
        features = self.policy.features(th.as_tensor(observations, device=self.policy.device))
        n_actions = self.operator.n_cached_actions
        return self.policy.actor.sample_actions(features, n_actions, model=self.policy.behavior).cpu().numpy()

    def _update(self, gradient_steps: int, critic_only: bool) -> None:
        model = self.model
        learn = self.operator.learn_critic if critic_only else self.operator.learn
        model._update_learning_rate(self.operator.optimizers())
        self.policy.action_selection = self.operator.action_selection
        self.operator.kl_coef = self.kl_coef
        for _ in range(gradient_steps):
            samples = self.buffer.sample(model.batch_size, env=model._vec_normalize_env)
            metrics = learn(self._batch(samples))
            self.n_updates += 1
            if self.n_updates % LOG_FREQ == 0:
                for key, value in metrics.items():
                    self.logger.record(f"train/{key}", value.item())
        model._n_updates += gradient_steps
        self.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")

    @th.no_grad()
    def _batch(self, samples: FinetuneSamples) -> Batch:
        n = len(samples.actions)
        features = self.policy.features(th.cat([samples.observations, samples.next_observations]))
        return Batch(
            features=features[:n],
            actions=samples.actions,
            rewards=samples.rewards[:, 0],
            next_features=features[n:],
            discounts=((1.0 - samples.dones) * samples.discounts)[:, 0],
            cached_actions=samples.cached_actions,
            next_cached_actions=samples.next_cached_actions,
        )

    def _store_state(self) -> None:
        """Store the training state in the policy, with which it is saved."""
        self.policy.finetuning_state = {
            "operator": self.operator_name,
            "parts": self.operator.training_state(),
            "n_collected": self.n_collected,
            "n_updates": self.n_updates,
        }
