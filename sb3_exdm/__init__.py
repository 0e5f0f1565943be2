"""
Reward-free exploration with diffusion models, for Gymnasium and Stable-Baselines3.

Importing the package registers the environments of :mod:`sb3_exdm.envs` with Gymnasium, and ``"DiffusionPolicy"`` as the name
of a policy of Stable-Baselines3's SAC, TD3 and DDPG.
The function ``finetune`` hides the package of that name as an attribute; ``from sb3_exdm.finetuning import ...`` still finds it.
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
from sb3_exdm.finetuning import OPERATORS, DiffusionFinetuneCallback, FinetuneReplayBuffer
from sb3_exdm.metrics import BinCoverage, StateCoverage, state_coverage
from sb3_exdm.policies import DiffusionActor, DiffusionPolicy, DiffusionTD3Policy
from sb3_exdm.recipes import Evaluation, FinetunedRun, PretrainedRun, clone, evaluate, finetune, pretrain, record_video
from sb3_exdm.runs.folder import RunFolder, RunInterrupted

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

__all__ = [
    "OPERATORS",
    "BinCoverage",
    "DiffusionActor",
    "DiffusionFinetuneCallback",
    "DiffusionPolicy",
    "DiffusionTD3Policy",
    "Evaluation",
    "FinetuneReplayBuffer",
    "FinetunedRun",
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
    "clone",
    "envs",
    "evaluate",
    "finetune",
    "load_reward",
    "pretrain",
    "record_video",
    "state_coverage",
]
