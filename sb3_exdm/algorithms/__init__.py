"""Algorithms of Stable-Baselines3 with faster updates."""

from sb3_exdm.algorithms.sac import FusedSAC

__all__ = ["FusedSAC"]
