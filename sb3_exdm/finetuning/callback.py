"""The callback that trains a diffusion policy inside of Stable-Baselines3's loop."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_exdm.common.validation import check_integers
from sb3_exdm.finetuning.critics import Batch
from sb3_exdm.finetuning.operators import Operator, check_operator, make_operator
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer, FinetuneSamples
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy, ExplorationState

LOG_FREQ = 100
"""Updates between two records of the losses: reading them stalls a GPU."""


class DiffusionFinetuneCallback(BaseCallback):
    """
    Trains a :class:`~sb3_exdm.policies.diffusion_policy.DiffusionPolicy` while the algorithm collects transitions.

    The algorithm's settings keep their meaning: ``learning_starts`` (steps of the pre-trained policy, instead of uniform
    actions, before the first update), ``train_freq``, ``gradient_steps``, ``batch_size``, ``gamma``, ``tau``,
    ``learning_rate``. Only its own update is replaced, by that of an operator; ``gradient_steps`` and ``learning_starts`` are
    0 meanwhile and restored at the end. A plain replay buffer is exchanged for a
    :class:`~sb3_exdm.finetuning.replay.buffer.FinetuneReplayBuffer`.

    :param operator: a name in :data:`~sb3_exdm.finetuning.operators.OPERATORS`
    :param operator_kwargs: arguments of the operator
    :param exploration_noise: standard deviation of the noise on actions, in units of [-1, 1], at least 0
    :param correlation: of the start noise of the pre-trained policy from one step to the next, in [0, 1): it explores further
        if it keeps to one behavior for a while
    :param keep_exploring: one of four or more environments goes on with the pre-trained policy
    :param offline_updates: updates before the first step, if the replay buffer has offline transitions
    :param critic_updates: updates of the critic alone, when learning begins, so that what was pre-trained is not led by a
        critic that knows nothing; only for operators that tell the two apart
    :param verbose: verbosity
    :raises ValueError: if the algorithm, its policy or its environment do not fit, with what to do
    """

    def __init__(
        self,
        operator: str = "select",
        *,
        operator_kwargs: dict[str, Any] | None = None,
        exploration_noise: float = 0.1,
        correlation: float = 0.6,
        keep_exploring: bool = True,
        offline_updates: int = 5000,
        critic_updates: int = 0,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_operator(operator)
        check_integers(offline_updates=(offline_updates, 0), critic_updates=(critic_updates, 0))
        if not 0.0 <= exploration_noise < float("inf"):
            raise ValueError(f"exploration_noise must be finite and at least 0, got {exploration_noise}.")
        if not 0.0 <= correlation < 1.0:
            raise ValueError(f"correlation must be at least 0 and less than 1, got {correlation}.")
        self.operator_name = operator
        self.operator_kwargs = operator_kwargs or {}
        self.exploration_noise = exploration_noise
        self.correlation = correlation
        self.keep_exploring = keep_exploring
        self.offline_updates = offline_updates
        self.critic_updates = critic_updates
        self.n_collected = 0
        self.n_updates = 0

    def _init_callback(self) -> None:
        model = self.model
        if not isinstance(model, OffPolicyAlgorithm) or not isinstance(model.policy, DiffusionPolicy):
            raise ValueError(
                f"DiffusionFinetuneCallback trains a DiffusionPolicy of SAC, TD3 or DDPG, got {type(model).__name__} with "
                f'{type(model.policy).__name__}; construct it as SAC("DiffusionPolicy", env).'
            )
        normalizer = model.get_vec_normalize_env()
        if normalizer is not None and normalizer.norm_obs:
            raise ValueError("A DiffusionPolicy standardizes observations itself; use VecNormalize(..., norm_obs=False).")
        if "learning_rate" in self.operator_kwargs:
            raise ValueError(
                "The operator learns at the learning_rate of the algorithm; set it there, not in operator_kwargs."
            )
        self.policy: DiffusionPolicy = model.policy
        self.buffer = self._finetune_buffer(model)
        # Of the same process, of a file, or None.
        state = self.policy.learner_state if self.policy.learner is None else self.policy.learner.training_state()
        self.operator: Operator = make_operator(
            self.operator_name,
            self.policy,
            **{"tau": model.tau, "learning_rate": float(model.lr_schedule(1.0)), **self.operator_kwargs},
        )
        self.n_collected, self.n_updates = 0, 0
        if state is not None:
            if model.gradient_steps == 0:  # saved or interrupted while a callback was at work
                model.gradient_steps, model.learning_starts = state["gradient_steps"], state["learning_starts"]
            if state["operator"] == self.operator_name:
                self.operator.load_training_state(state["parts"])
                self.n_collected, self.n_updates = state["n_collected"], state["n_updates"]
        self._gradient_steps, self._learning_starts = model.gradient_steps, model.learning_starts
        self.policy.learner = self
        # Before the first update the critic knows nothing that it could choose by.
        self.policy.acting = self.operator.acting if self.n_updates else ActionSelection()
        # The weights are in the model from now on: it must load where the run folder is not.
        model.policy_kwargs = {**model.policy_kwargs, "pretrained": None}

    def _finetune_buffer(self, model: OffPolicyAlgorithm) -> FinetuneReplayBuffer:
        buffer = model.replay_buffer
        if isinstance(buffer, FinetuneReplayBuffer):
            return buffer
        if not isinstance(buffer, ReplayBuffer) or isinstance(buffer, DictReplayBuffer):
            raise ValueError(f"DiffusionFinetuneCallback needs an ordinary replay buffer, got {type(buffer).__name__}.")
        model.replay_buffer = FinetuneReplayBuffer.from_buffer(buffer, gamma=model.gamma)
        return model.replay_buffer

    def _on_training_start(self) -> None:
        model = self.model
        assert isinstance(model, OffPolicyAlgorithm)
        if model.gradient_steps == 0:
            raise ValueError("gradient_steps=0 would never train the policy; give it the number of updates per rollout.")
        behavior = self.policy.behavior
        shape = (self.training_env.num_envs, behavior.dim)
        start_noise = th.randn(shape, generator=behavior.generator, device=self.policy.device)
        self._rollout = ExplorationState([], self.exploration_noise, self.correlation, start_noise)
        model.gradient_steps = 0
        model.learning_starts = 0
        if self.buffer.n_offline and self.n_updates == 0 and self.buffer.has_signal:
            self._cache_candidates()
            self._update(self.offline_updates, self.operator.learn)

    def _on_rollout_start(self) -> None:
        self._n_before = self.num_timesteps
        self._rollout.modes = self._modes(self.training_env.num_envs)
        self.policy.rollout = self._rollout

    def _modes(self, n_envs: int) -> list[str]:
        """Who acts in which environment."""
        pretrained = ["behavior"] * n_envs
        if self.policy.has_pretrained_gaussian:
            pretrained[n_envs - n_envs // 2 :] = ["gaussian"] * (n_envs // 2)
        if self.n_updates == 0:
            return pretrained
        n_exploring = 1 if self.keep_exploring and n_envs >= 4 else 0
        return pretrained[:n_exploring] + ["policy"] * (n_envs - n_exploring)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.policy.rollout = None
        collected = self.num_timesteps - self._n_before
        self.n_collected += collected
        self._cache_candidates()
        # As long as all rewards are the same there is nothing to learn; learning it would forget what was explored.
        if self.n_collected > self._learning_starts and self.buffer.has_signal:
            if self.n_updates == 0:
                self._update(self.critic_updates, self.operator.learn_critic)
            self._update(collected if self._gradient_steps < 0 else self._gradient_steps, self.operator.learn)

    def _on_training_end(self) -> None:
        self.policy.rollout = None
        assert isinstance(self.model, OffPolicyAlgorithm)
        self.model.gradient_steps, self.model.learning_starts = self._gradient_steps, self._learning_starts

    def _cache_candidates(self) -> None:
        """What the frozen pre-trained policy would do in a state is drawn once and kept with the transition."""
        if self.operator.n_candidates:
            self.buffer.cache_candidates(
                self._sample_candidates,
                self.operator.n_candidates,
                next_observations=self.operator.needs_next_candidates,
            )

    def _sample_candidates(self, observations: np.ndarray) -> np.ndarray:
        features = self.policy.features(th.as_tensor(observations, device=self.policy.device))
        return self.policy.denoise(features, self.operator.n_candidates).cpu().numpy()

    def _update(self, gradient_steps: int, learn: Callable[[Batch], dict[str, th.Tensor]]) -> None:
        """Some updates of the operator, or of its critic alone."""
        model = self.model
        assert isinstance(model, OffPolicyAlgorithm)
        model._update_learning_rate(self.operator.optimizers())
        self.policy.acting = self.operator.acting
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
        n_rows = len(samples.actions)
        features = self.policy.features(th.cat([samples.observations, samples.next_observations]))
        return Batch(
            features=features[:n_rows],
            actions=samples.actions,
            rewards=samples.rewards[:, 0],
            next_features=features[n_rows:],
            discounts=((1.0 - samples.dones) * samples.discounts)[:, 0],
            candidates=samples.candidates,
            next_candidates=samples.next_candidates,
        )

    def training_state(self) -> dict[str, Any]:
        """What goes into ``model.save`` beside the policy."""
        return {
            "operator": self.operator_name,
            "parts": self.operator.training_state(),
            "n_collected": self.n_collected,
            "n_updates": self.n_updates,
            "gradient_steps": self._gradient_steps,
            "learning_starts": self._learning_starts,
        }
