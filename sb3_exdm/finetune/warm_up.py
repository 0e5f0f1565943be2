"""Fine-tuning the agent that explored, with the algorithm that trained it."""

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_exdm.finetune.replay_buffer import FinetuneReplayBuffer


class WarmUpCallback(BaseCallback):
    """
    Collects the first ``learning_starts`` transitions with the policy that there is, where Stable-Baselines3 would act
    uniformly, and learns from the offline transitions of the replay buffer before the first step.

    :param offline_updates: updates before the first step, if the replay buffer has offline transitions
    :param uniform: act uniformly all the same, for an agent that is not pre-trained
    """

    def __init__(self, offline_updates: int = 5000, uniform: bool = False) -> None:
        super().__init__()
        self.offline_updates = offline_updates
        self.uniform = uniform

    def _init_callback(self) -> None:
        if not isinstance(self.model, OffPolicyAlgorithm):
            raise ValueError(f"WarmUpCallback is for off-policy algorithms, got {type(self.model).__name__}.")

    def _on_training_start(self) -> None:
        model = self.model
        assert isinstance(model, OffPolicyAlgorithm)
        self._gradient_steps, self._learning_starts = model.gradient_steps, model.learning_starts
        buffer = model.replay_buffer
        if isinstance(buffer, FinetuneReplayBuffer) and buffer.n_offline and buffer.has_signal:
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
        if self.num_timesteps > self._learning_starts and has_signal:
            model.gradient_steps = self._gradient_steps

    def _on_training_end(self) -> None:
        assert isinstance(self.model, OffPolicyAlgorithm)
        self.model.gradient_steps, self.model.learning_starts = self._gradient_steps, self._learning_starts
