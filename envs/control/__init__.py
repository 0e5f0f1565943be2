"""
Continuous control with MuJoCo: dm_control through shimmy, and the tasks of URLB.

Importing this package needs the extra ``dmc``. :mod:`sb3_exdm.envs.urlb` lists the tasks without it.
"""

from .versions import check_versions, choose_renderer

check_versions()
choose_renderer()

from .env import ControlEnv, ControlWrapper  # noqa: E402 - dm_control must not be imported before the checks
from .vector_env import ControlVectorEnv  # noqa: E402

__all__ = ["ControlEnv", "ControlVectorEnv", "ControlWrapper"]
