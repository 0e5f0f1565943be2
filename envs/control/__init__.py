"""
Bodies with MuJoCo's physics: dm_control through shimmy, and the tasks of URLB.

Importing this package needs the extra ``dmc``; which tasks there are, :mod:`sb3_exdm.envs.urlb` says without it.
"""

from .versions import check_versions, choose_renderer

check_versions()
choose_renderer()

from .env import ControlEnv, ControlWrapper  # noqa: E402 - nothing may be imported before the checks
from .vector_env import ControlVectorEnv  # noqa: E402

__all__ = ["ControlEnv", "ControlVectorEnv", "ControlWrapper"]
