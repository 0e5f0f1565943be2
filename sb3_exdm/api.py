"""The public names of the package, all available as ``sb3_exdm.NAME``."""

import sb3_exdm.envs as envs
from sb3_exdm.algorithms import FusedSAC
from sb3_exdm.exploration.callbacks import IntrinsicRewardCallback
from sb3_exdm.exploration.replay_buffer import ScoreRewardDictReplayBuffer, ScoreRewardReplayBuffer
from sb3_exdm.exploration.vec_wrapper import VecScoreRewardWrapper
from sb3_exdm.exploration.wrapper import ScoreRewardWrapper
from sb3_exdm.finetuning.callback import DiffusionFinetuneCallback
from sb3_exdm.finetuning.operators import OPERATORS, Operator, register_operator
from sb3_exdm.finetuning.relabel import relabel
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer
from sb3_exdm.metrics import BinCoverage, StateCoverage, state_coverage
from sb3_exdm.policies import DiffusionActor, DiffusionPolicy, DiffusionTD3Policy
from sb3_exdm.recipes import (
    Evaluation,
    FinetunedRun,
    PretrainedRun,
    clone,
    evaluate,
    finetune,
    pretrain,
    pretrain_seeds,
    record_video,
)
from sb3_exdm.rewards.base import FittedReward, IntrinsicReward
from sb3_exdm.rewards.registry import REWARDS, load_reward, make_reward, register_reward
from sb3_exdm.rewards.score import ScoreModel
from sb3_exdm.runs.config import FinetuneConfig, PretrainConfig
from sb3_exdm.runs.envs import EnvFactory, register_env_factory
from sb3_exdm.runs.folder import RunFolder, RunInterrupted
from sb3_exdm.sharing.hub import load_from_hub, push_to_hub
from sb3_exdm.sharing.log_callback import LogCallback
from sb3_exdm.sharing.minari import export_minari
from sb3_exdm.sharing.page import write_page

__all__ = [
    "OPERATORS",
    "REWARDS",
    "BinCoverage",
    "DiffusionActor",
    "DiffusionFinetuneCallback",
    "DiffusionPolicy",
    "DiffusionTD3Policy",
    "EnvFactory",
    "Evaluation",
    "FinetuneConfig",
    "FinetuneReplayBuffer",
    "FinetunedRun",
    "FittedReward",
    "FusedSAC",
    "IntrinsicReward",
    "IntrinsicRewardCallback",
    "LogCallback",
    "Operator",
    "PretrainConfig",
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
    "export_minari",
    "finetune",
    "load_from_hub",
    "load_reward",
    "make_reward",
    "pretrain",
    "pretrain_seeds",
    "push_to_hub",
    "record_video",
    "register_env_factory",
    "register_operator",
    "register_reward",
    "relabel",
    "state_coverage",
    "write_page",
]
