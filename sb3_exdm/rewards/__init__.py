"""Intrinsic rewards. Importing the package registers those of the library."""

from sb3_exdm.rewards import apt, count, exdm_paper, rnd, score, zero
from sb3_exdm.rewards.registry import REWARDS, load_reward, make_reward, register_reward

__all__ = ["REWARDS", "apt", "count", "exdm_paper", "load_reward", "make_reward", "register_reward", "rnd", "score", "zero"]
