"""No intrinsic reward: the baseline of all others."""

import torch as th

from sb3_exdm.rewards.base import FittedReward
from sb3_exdm.rewards.registry import register_reward


@register_reward("zero")
class ZeroReward(FittedReward):
    """
    Reward of zero for every state. The agent explores by its own noise alone, and no reward can be computed faster.

    :param observation_space: any supported space
    :param action_space: not used
    :param kwargs: see :class:`~sb3_exdm.rewards.base.FittedReward`; not used
    """

    name = "zero"
    reward_transform = "identity"

    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        return {}

    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        return th.zeros(len(observations), device=self.device)
