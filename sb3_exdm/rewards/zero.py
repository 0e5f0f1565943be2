"""No intrinsic reward: the agent that every other reward has to beat."""

from typing import ClassVar

import torch as th
from gymnasium import spaces

from sb3_exdm.rewards.base import FittedReward


class ZeroReward(FittedReward):
    """
    Pays nothing for any state. What an agent explores with it is due to its own noise, and the time it takes is the
    floor of what any other reward can reach.

    :param observation_space: any supported space
    :param action_space: not used
    :param batch_size: not used
    :param seed: not used
    :param device: PyTorch device
    """

    name: ClassVar[str] = "zero"
    reward_transform: ClassVar[str] = "identity"

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space | None = None,
        *,
        batch_size: int = 256,
        seed: int | None = None,
        device: th.device | str = "auto",
    ) -> None:
        super().__init__(observation_space, action_space, batch_size=batch_size, seed=seed, device=device)

    def _fit_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> dict[str, float]:
        return {}

    def _score_batch(self, observations: th.Tensor, actions: th.Tensor | None) -> th.Tensor:
        return th.zeros(len(observations), device=self.device)
