"""Reward-free pre-training: intrinsic rewards, and the ways to give them to an agent."""

from sb3_exdm.exploration.replay_buffer import ScoreRewardDictReplayBuffer, ScoreRewardReplayBuffer
from sb3_exdm.exploration.vec_wrapper import VecScoreRewardWrapper
from sb3_exdm.exploration.wrapper import ScoreRewardWrapper
from sb3_exdm.rewards.base import REWARD_TRANSFORMS, FittedReward, IntrinsicReward
from sb3_exdm.rewards.registry import REWARDS, load_reward, make_reward
from sb3_exdm.rewards.score import ScoreModel

__all__ = [
    "REWARDS",
    "REWARD_TRANSFORMS",
    "FittedReward",
    "IntrinsicReward",
    "ScoreModel",
    "ScoreRewardDictReplayBuffer",
    "ScoreRewardReplayBuffer",
    "ScoreRewardWrapper",
    "VecScoreRewardWrapper",
    "load_reward",
    "make_reward",
]
