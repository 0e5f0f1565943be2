"""Settings and schedule of fits that wrappers and replay buffers share."""

from dataclasses import dataclass
from typing import Annotated, Any

from gymnasium import spaces

from sb3_exdm.common.validation import BatchSize, Between, Updates, check_choice, check_kwargs
from sb3_exdm.rewards.base import REWARD_TRANSFORMS, IntrinsicReward
from sb3_exdm.rewards.registry import make_reward

EXTRINSIC_ADVICE = "Check the environment, or set extrinsic_coef=0 to ignore its reward."
"""Advice of error messages on task rewards that are not finite."""


@dataclass
class RewardSettings:
    """
    Weights of the two rewards, and schedule of the fits of the intrinsic reward, with the same meaning in wrappers and
    replay buffers, see :class:`~sb3_exdm.exploration.wrapper.ScoreRewardWrapper`. Transitions are counted over all
    environments together. The weights can be changed while training, e.g. to anneal one.
    """

    intrinsic_coef: float
    extrinsic_coef: float
    learning_starts: Annotated[int, Between(0)]
    train_freq: Annotated[int, Between(1)]
    gradient_steps: Updates
    batch_size: BatchSize
    reward_transform: str | None

    def __post_init__(self) -> None:
        check_kwargs(RewardSettings, vars(self))
        if self.reward_transform is not None:
            check_choice("reward_transform", self.reward_transform, REWARD_TRANSFORMS)

    def make_reward(
        self,
        reward: str | IntrinsicReward,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        reward_kwargs: dict[str, Any] | None,
        **defaults: Any,
    ) -> IntrinsicReward:
        """Build a model of the intrinsic reward from a name, with ``defaults`` for ``reward_kwargs``, or check an instance."""
        defaults = {"batch_size": self.batch_size, **defaults} if isinstance(reward, str) else {}
        return make_reward(reward, observation_space, action_space, **{**defaults, **(reward_kwargs or {})})


class FitSchedule:
    """
    Count transitions, and the gradient steps that are due after them.

    :param settings: ``learning_starts``, ``train_freq`` and ``gradient_steps`` are used
    """

    def __init__(self, settings: RewardSettings) -> None:
        self.settings = settings
        self.n_transitions = 0
        self.n_fits = 0

    def advance(self, n_transitions: int) -> int:
        """Count new transitions and return the number of gradient steps that are due."""
        self.n_transitions += n_transitions
        if self.n_transitions < self.settings.learning_starts:
            return 0
        n_due = self.n_transitions // self.settings.train_freq - self.n_fits
        self.n_fits += n_due
        return n_due * self.settings.gradient_steps
