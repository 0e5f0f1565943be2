"""The generative model. Knows nothing about reinforcement learning."""

from sb3_exdm.diffusion.loss import denoising_error, gaussian_denoising_error
from sb3_exdm.diffusion.model import DiffusionModel
from sb3_exdm.diffusion.networks import FourierFeatures, NoisePredictor
from sb3_exdm.diffusion.schedule import VPSchedule
from sb3_exdm.diffusion.solver import dpm_solver_2m

__all__ = [
    "DiffusionModel",
    "FourierFeatures",
    "NoisePredictor",
    "VPSchedule",
    "denoising_error",
    "dpm_solver_2m",
    "gaussian_denoising_error",
]
