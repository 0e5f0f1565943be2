"""Plans of sweeps: the runs that they consist of."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Generic, TypeVar

from sb3_exdm.runs.config import FinetuneConfig, PretrainConfig

AnyConfig = TypeVar("AnyConfig", PretrainConfig, FinetuneConfig)


@dataclass(frozen=True)
class PlannedRun(Generic[AnyConfig]):
    """
    Run of a sweep, as plain data.

    :param folder: run folder
    :param config: settings
    :param requires: run folder that must be complete before this run starts
    :param checked: settings that a complete run in the folder must agree in; None for all
    """

    folder: Path
    config: AnyConfig
    requires: Path | None = None
    checked: tuple[str, ...] | None = None


def sweep(config: AnyConfig, axes: Mapping[str, Iterable[Any]]) -> list[AnyConfig]:
    """
    Configurations of all combinations of values; the last axis changes fastest.

    :param config: settings that all share
    :param axes: values by the name of a field
    :raises ValueError: for an unknown field, or a value of the wrong type or out of range
    """
    combinations = product(*axes.values())
    return [type(config).make(**{**vars(config), **dict(zip(axes, values, strict=True))}) for values in combinations]


def short_name(env_id: str | None) -> str:
    """
    ``"SquareC"`` of ``"Maze2d-SquareC-v0"``, ``"walker-walk"`` of ``"URLB/walker-walk-v0"``.

    :param env_id: id of an environment
    """
    return re.sub(r"-v\d+$", "", (env_id or "").split("/")[-1]).removeprefix("Maze2d-")
