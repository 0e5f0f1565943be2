"""Fine-tuning the agent that explored, with the algorithm that trained it."""

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_exdm.common.validation import check_integers
from sb3_exdm.finetuning.anchor import ActorAnchor
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer

ANCHOR_STRENGTH = 0.05
"""Of :class:`~sb3_exdm.finetuning.anchor.ActorAnchor`, measured on the walker."""


class WarmUpCallback(BaseCallback):
    """
    Collects the first ``learning_starts`` transitions with the policy that there is, where Stable-Baselines3 would act
    uniformly, and learns from the offline transitions of the replay buffer before the first step.

    A new critic can first learn what the policy is worth: led by a critic that knows nothing, a pre-trained policy is lost
    within a few hundred updates. As a critic of few transitions is wrong about all other actions, the actor can also be held
    near what it was (:class:`~sb3_exdm.finetuning.anchor.ActorAnchor`), fully for half of ``kl_steps``, then less and less.

    :param offline_updates: updates before the first step, if the replay buffer has offline transitions
    :param critic_updates: updates of the critic alone, when learning begins without offline transitions
    :param kl_steps: steps, from the beginning of learning, after which the actor is free; it is not held where there are
        offline transitions
    :param uniform: act uniformly all the same, and learn as usual, for an agent that is not pre-trained
    :raises ValueError: for numbers out of range, or if the algorithm is not off-policy
    """

    def __init__(self, offline_updates: int = 5000, critic_updates: int = 0, kl_steps: int = 0, uniform: bool = False) -> None:
        super().__init__()
        check_integers(offline_updates=(offline_updates, 0), critic_updates=(critic_updates, 0), kl_steps=(kl_steps, 0))
        self.offline_updates = offline_updates
        self.critic_updates = critic_updates
        self.kl_steps = kl_steps
        self.uniform = uniform
        self._anchor: ActorAnchor | None = None

    def _init_callback(self) -> None:
        if not isinstance(self.model, OffPolicyAlgorithm):
            raise ValueError(f"WarmUpCallback is for off-policy algorithms, got {type(self.model).__name__}.")

    def _on_training_start(self) -> None:
        model = self.model
        assert isinstance(model, OffPolicyAlgorithm)
        self._gradient_steps, self._learning_starts = model.gradient_steps, model.learning_starts
        buffer = model.replay_buffer
        self._knows_nothing = True
        if isinstance(buffer, FinetuneReplayBuffer) and buffer.n_offline and buffer.has_signal:
            self._knows_nothing = self.offline_updates == 0
            model.train(gradient_steps=self.offline_updates, batch_size=model.batch_size)
        if not self.uniform:
            model.learning_starts = 0
            model.gradient_steps = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model = self.model
        assert isinstance(model, OffPolicyAlgorithm)
        buffer = model.replay_buffer
        # As long as all rewards are the same there is nothing to learn, and what explored would be forgotten.
        has_signal = self.uniform or not isinstance(buffer, FinetuneReplayBuffer) or buffer.has_signal
        if self.num_timesteps > self._learning_starts and has_signal and model.gradient_steps == 0:
            if self._knows_nothing:
                self._begin(model)
            model.gradient_steps = self._gradient_steps
        if self._anchor is not None:
            self._loosen(self._anchor)

    def _begin(self, model: OffPolicyAlgorithm) -> None:
        if self.critic_updates:
            self._train_critic()
        if self.kl_steps:
            self._anchor = ActorAnchor(model, ANCHOR_STRENGTH)
            self._anchored_at = self.num_timesteps

    def _loosen(self, anchor: ActorAnchor) -> None:
        """In full for the first half, then linearly to nothing."""
        elapsed = (self.num_timesteps - self._anchored_at) / self.kl_steps
        anchor.strength = ANCHOR_STRENGTH * min(2.0 - 2.0 * elapsed, 1.0)
        if elapsed >= 1.0:
            self._release()

    def _release(self) -> None:
        if self._anchor is not None:
            self._anchor.release()
            self._anchor = None

    def _train_critic(self) -> None:
        """Some updates with an actor that stays as it is."""
        model = self.model
        assert isinstance(model, OffPolicyAlgorithm)
        actor = model.policy.actor
        assert isinstance(actor, BasePolicy)
        actor.requires_grad_(False)
        model.train(gradient_steps=self.critic_updates, batch_size=model.batch_size)
        actor.requires_grad_(True)

    def _on_training_end(self) -> None:
        self._release()
        assert isinstance(self.model, OffPolicyAlgorithm)
        self.model.gradient_steps, self.model.learning_starts = self._gradient_steps, self._learning_starts
