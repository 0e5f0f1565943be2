"""Schedule of fine-tuning inside Stable-Baselines3's loop."""

import warnings

from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_exdm.common.validation import check_integers
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer

NO_REWARD_SIGNAL = (
    "Fine-tuning saw no reward signal: all rewards were equal, so the policy did not learn the task. Train for more steps, "
    "reuse the transitions of the pre-training (reuse_data=True, --reuse-data), or choose an easier goal or another start."
)


KL_COEF = 0.05
"""Initial coefficient of the KL regularization, measured on the walker."""


class FinetuneSchedule(BaseCallback):
    """
    Base class of the callbacks that fine-tune. It decides when updates are made; a subclass makes them.

    1. Offline: ``offline_updates`` updates before the first step, if the replay buffer holds offline transitions.
    2. Warm-up: the pre-trained policy collects ``learning_starts`` transitions, where Stable-Baselines3 would act uniformly,
       and goes on until two rewards differ. Updates on equal rewards would only make it forget.
    3. Critic only: ``critic_updates`` updates of the critic alone, unless there were offline updates.
    4. Full: ``gradient_steps`` updates after every rollout. In the first ``kl_steps`` steps the policy is regularized towards
       the pre-trained one: with the full coefficient in the first half, annealed linearly to 0 in the second.

    A plain replay buffer is replaced by a :class:`~sb3_exdm.finetuning.replay.buffer.FinetuneReplayBuffer`.

    :param offline_updates: number of offline updates
    :param critic_updates: number of updates of the critic alone
    :param uniform: act uniformly during the warm-up and learn from equal rewards too, as Stable-Baselines3 does
    :param kl_steps: steps from the first update to the end of the KL regularization; none after offline updates
    :param verbose: verbosity
    :raises ValueError: for numbers out of range
    """

    model: OffPolicyAlgorithm

    def __init__(
        self, offline_updates: int, critic_updates: int, uniform: bool = False, kl_steps: int = 0, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        check_integers(offline_updates=(offline_updates, 0), critic_updates=(critic_updates, 0), kl_steps=(kl_steps, 0))
        self.kl_steps = kl_steps
        self.offline_updates = offline_updates
        self.critic_updates = critic_updates
        self.uniform = uniform
        self.n_collected = 0
        self.n_updates = 0
        self.first_update_timestep: int | None = None
        """Timestep of the first update, None before."""

    @property
    def saw_reward(self) -> bool:
        """True if two different rewards were seen."""
        return self.buffer.has_signal

    def _init_callback(self) -> None:
        name, model = type(self).__name__, self.model
        if not isinstance(model, OffPolicyAlgorithm):
            raise ValueError(f"{name} is for off-policy algorithms, got {type(model).__name__}.")
        buffer = model.replay_buffer
        if not isinstance(buffer, FinetuneReplayBuffer):
            if buffer is None or type(buffer) not in (ReplayBuffer, NStepReplayBuffer):
                raise ValueError(
                    f"{name} needs a FinetuneReplayBuffer or an ordinary ReplayBuffer, got {type(buffer).__name__}."
                )
            buffer = FinetuneReplayBuffer.from_buffer(buffer, gamma=model.gamma)
            model.replay_buffer = buffer
        if model.gradient_steps == 0:
            raise ValueError("gradient_steps=0 would never train the policy; set it to the number of updates per rollout.")
        self.buffer = buffer
        self.first_update_timestep = None
        self._kl_start: int | None = None
        self._gradient_steps, self._learning_starts = model.gradient_steps, model.learning_starts

    def _on_training_start(self) -> None:
        if self.buffer.n_offline and self.n_updates == 0 and self.buffer.has_signal:
            self._make_updates(self.offline_updates)
        self._take_over()

    def _take_over(self) -> None:
        """Keep the algorithm from its own updates, and from uniform actions in the next rollout."""
        self.model.gradient_steps = 0
        if not self.uniform:
            self.model.learning_starts = 0

    def _on_rollout_start(self) -> None:
        # Whatever is saved during a rollout holds the user's settings.
        self._restore_settings()
        self._n_before = self.num_timesteps

    def _restore_settings(self) -> None:
        self.model.gradient_steps, self.model.learning_starts = self._gradient_steps, self._learning_starts

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        n_new = self.num_timesteps - self._n_before
        self.n_collected += n_new
        if self.n_collected > self._learning_starts and (self.uniform or self.buffer.has_signal):
            if self.n_updates == 0:
                self._start_learning()
            self._make_updates(n_new if self._gradient_steps < 0 else self._gradient_steps)
        self._take_over()

    def _start_learning(self) -> None:
        """Prepare the first update after the warm-up."""
        self._make_updates(self.critic_updates, critic_only=True)
        if self.kl_steps:
            self._kl_start = self.num_timesteps

    @property
    def kl_coef(self) -> float:
        """Present coefficient of the KL regularization."""
        if self._kl_start is None:
            return 0.0
        progress = (self.num_timesteps - self._kl_start) / self.kl_steps
        return KL_COEF * min(max(2.0 - 2.0 * progress, 0.0), 1.0)

    def _make_updates(self, gradient_steps: int, critic_only: bool = False) -> None:
        if gradient_steps:
            if self.first_update_timestep is None:
                self.first_update_timestep = self.num_timesteps
            self._update(gradient_steps, critic_only)

    def _update(self, gradient_steps: int, critic_only: bool) -> None:
        """Make updates, of the critic alone if asked, and count them in ``n_updates``."""
        raise NotImplementedError

    def _on_training_end(self) -> None:
        self._restore_settings()
        if not self.saw_reward:
            warnings.warn(NO_REWARD_SIGNAL, UserWarning, stacklevel=2)
