"""The generative model, independent of reinforcement learning."""

from sb3_exdm.diffusion.energy import EnergyModel, contrastive_energy_loss
from sb3_exdm.diffusion.model import DiffusionModel, denoising_error
from sb3_exdm.diffusion.networks import NoisePredictor
from sb3_exdm.diffusion.schedule import VPSchedule

__all__ = ["DiffusionModel", "EnergyModel", "NoisePredictor", "VPSchedule", "contrastive_energy_loss", "denoising_error"]
