"""What a body of dm_control's suite has to say for many of it to be stepped together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from dm_control.mujoco import Physics
from dm_control.rl.control import Environment

Reader = Callable[[np.ndarray, np.ndarray], None]
"""Writes the observation ``(dim,)`` and the quantities that rewards depend on ``(n_quantities,)`` of one physics into rows."""


@dataclass(frozen=True)
class Body:
    """
    A body and its tasks.

    :param make: Makes dm_control's environment of a task, given its name, without a time limit
    :param reader: Makes the :data:`Reader` of a physics. It holds views of MuJoCo's arrays, which stay where they are
    :param n_quantities: How many quantities rewards depend on
    :param rewards: For each task, what it pays: from the quantities, each ``(n,)``, to rewards ``(n,)``
    """

    make: Callable[[str], Environment]
    reader: Callable[[Physics], Reader]
    n_quantities: int
    rewards: Mapping[str, Callable[..., Any]]
