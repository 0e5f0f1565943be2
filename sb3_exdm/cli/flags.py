"""What the flags of several commands share."""

from __future__ import annotations

import json
from typing import Any

# Names are checked by the library, which knows best; these are for the help.
REWARD_NAMES = "score,edp,exdm-paper,rnd,apt,count,zero"
ALGO_NAMES = "sac,td3,ddpg,ppo"
OPERATOR_NAMES = "select,exdm,idql,dql,qsm,dipo,weighted"
METHOD_NAMES = f"{OPERATOR_NAMES},gaussian,scratch"
MAZES = "SquareA", "SquareB", "SquareC", "SquareD", "SquareTree", "SquareBottleneck", "SquareLarge"
FINETUNE_MAZES = "SquareC", "SquareTree", "SquareBottleneck", "SquareLarge"


def json_object(text: str, name: str) -> dict[str, Any]:
    """
    :param text: what was given to a flag
    :param name: of the field
    :raises ValueError: if it is no JSON object
    """
    flag = "--" + name.replace("_", "-")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} must be JSON such as '{{\"key\": 1}}', got {text!r}: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{flag} must be a JSON object such as '{{\"key\": 1}}', got {text!r}.")
    return value


def check_positive(**flags: int) -> None:
    """:raises ValueError: if one is not"""
    for name, value in flags.items():
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")


def file_name(*parts: str | int) -> str:
    """The name of a run folder. An id may have slashes, as in "ALE/Pong-v5"."""
    return "-".join(str(part).replace("/", "-").replace(":", "-") for part in parts)
