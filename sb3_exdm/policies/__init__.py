"""Policies for Stable-Baselines3. Importing this package registers ``"DiffusionPolicy"`` with SAC, TD3 and DDPG."""

from stable_baselines3 import SAC, TD3

from sb3_exdm.policies.diffusion_actor import DiffusionActor
from sb3_exdm.policies.diffusion_policy import ActionSelection, DiffusionPolicy, DiffusionTD3Policy

SAC.policy_aliases["DiffusionPolicy"] = DiffusionPolicy
TD3.policy_aliases["DiffusionPolicy"] = DiffusionTD3Policy  # DDPG shares the aliases of TD3

__all__ = ["ActionSelection", "DiffusionActor", "DiffusionPolicy", "DiffusionTD3Policy"]
