"""Reward-free pre-training: intrinsic rewards, and the ways to give them to an agent."""

from sb3_exdm.exploration.registry import REWARDS, load_reward, make_reward
from sb3_exdm.exploration.replay_buffer import ScoreRewardDictReplayBuffer, ScoreRewardReplayBuffer
from sb3_exdm.exploration.reward import SHAPINGS, FittedReward, IntrinsicReward
from sb3_exdm.exploration.score import ScoreModel
from sb3_exdm.exploration.vec_wrapper import VecScoreRewardWrapper
from sb3_exdm.exploration.wrapper import ScoreRewardWrapper

__all__ = [
    "REWARDS",
    "SHAPINGS",
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
