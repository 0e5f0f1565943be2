"""
Reward-free exploration with diffusion models, for Gymnasium and Stable-Baselines3.

Importing the package registers the environments of :mod:`sb3_exdm.envs` with Gymnasium, and ``"DiffusionPolicy"`` as a policy
of SAC, TD3 and DDPG. The public names are listed in :mod:`sb3_exdm.api`.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

# The command `exdm` imports what a subcommand needs, so that its help does not wait for PyTorch.
if Path(sys.argv[0] if sys.argv else "").stem != "exdm" and sys.orig_argv[1:3] != ["-m", "sb3_exdm"]:
    from sb3_exdm.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Public names inside the command ``exdm``, where a module of the user may import the package."""
    api = import_module("sb3_exdm.api")
    if name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"module 'sb3_exdm' has no attribute {name!r}")
