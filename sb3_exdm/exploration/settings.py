"""Settings that every way to give an intrinsic reward shares."""

import math

from sb3_exdm.rewards.base import REWARD_TRANSFORMS


def check_coefficients(intrinsic_coef: float, extrinsic_coef: float, reward_transform: str | None) -> None:
    """
    Refuse weights that are not finite, and unknown transforms.

    :param intrinsic_coef: weight of the intrinsic reward
    :param extrinsic_coef: weight of the task reward
    :param reward_transform: a name in :data:`~sb3_exdm.rewards.base.REWARD_TRANSFORMS`, or None
    :raises ValueError: for a weight that is not finite, or an unknown name
    """
    for name, coef in (("intrinsic_coef", intrinsic_coef), ("extrinsic_coef", extrinsic_coef)):
        if not math.isfinite(coef):
            raise ValueError(f"{name} must be finite, got {coef}: every reward would be lost.")
    if reward_transform is not None and reward_transform not in REWARD_TRANSFORMS:
        raise ValueError(f"Unknown reward_transform {reward_transform!r}; choose one of {', '.join(REWARD_TRANSFORMS)}.")
