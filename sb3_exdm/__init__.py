"""
Reward-free exploration with diffusion models, for Gymnasium and Stable-Baselines3.

Importing the package registers the environments of :mod:`sb3_exdm.envs` with Gymnasium.
"""

from pathlib import Path

from sb3_exdm import envs
from sb3_exdm.exploration import (
    IntrinsicReward,
    ScoreModel,
    ScoreRewardDictReplayBuffer,
    ScoreRewardReplayBuffer,
    ScoreRewardWrapper,
    VecScoreRewardWrapper,
    load_reward,
)
from sb3_exdm.metrics import BinCoverage, StateCoverage, state_coverage
from sb3_exdm.recipes import PretrainedRun, pretrain
from sb3_exdm.run_folder import RunFolder, RunInterrupted

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

__all__ = [
    "BinCoverage",
    "IntrinsicReward",
    "PretrainedRun",
    "RunFolder",
    "RunInterrupted",
    "ScoreModel",
    "ScoreRewardDictReplayBuffer",
    "ScoreRewardReplayBuffer",
    "ScoreRewardWrapper",
    "StateCoverage",
    "VecScoreRewardWrapper",
    "envs",
    "load_reward",
    "pretrain",
    "state_coverage",
]
