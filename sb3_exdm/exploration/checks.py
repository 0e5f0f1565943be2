"""What the settings of every way to give an intrinsic reward must satisfy."""

import math

import numpy as np

from sb3_exdm.exploration.reward import SHAPINGS


def check_integers(**settings: tuple[int, int]) -> None:
    """
    :param settings: value and smallest allowed value, by name
    :raises ValueError: naming the first setting that is no integer or too small
    """
    for name, (value, smallest) in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < smallest:
            raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}.")


def check_pay(intrinsic_coef: float, extrinsic_coef: float, shaping: str | None) -> None:
    """
    :param intrinsic_coef: weight of the intrinsic reward
    :param extrinsic_coef: weight of the task's reward
    :param shaping: a name in :data:`~sb3_exdm.exploration.reward.SHAPINGS`, or None
    :raises ValueError: for a weight that is not finite, or an unknown name
    """
    for name, coef in (("intrinsic_coef", intrinsic_coef), ("extrinsic_coef", extrinsic_coef)):
        if not math.isfinite(coef):
            raise ValueError(f"{name} must be finite, got {coef}: every reward would be lost.")
    if shaping is not None and shaping not in SHAPINGS:
        raise ValueError(f"Unknown shaping {shaping!r}; choose one of {', '.join(SHAPINGS)}.")
