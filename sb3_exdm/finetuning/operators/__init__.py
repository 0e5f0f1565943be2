"""Policy improvement operators, by name. :data:`OPERATORS` is what ``operator=`` accepts."""

from typing import Any

from sb3_exdm.finetuning.operators.base import Operator
from sb3_exdm.finetuning.operators.exdm import ExDM
from sb3_exdm.finetuning.operators.gradient import DIPO, DQL, QSM
from sb3_exdm.finetuning.operators.idql import IDQL
from sb3_exdm.finetuning.operators.select import Select
from sb3_exdm.finetuning.operators.weighted import Weighted
from sb3_exdm.policies.diffusion_policy import DiffusionPolicy

OPERATORS: dict[str, type[Operator]] = {
    "select": Select,
    "exdm": ExDM,
    "idql": IDQL,
    "dql": DQL,
    "qsm": QSM,
    "dipo": DIPO,
    "weighted": Weighted,
}
"""The operators, by name; the first is the default."""


def make_operator(name: str, policy: DiffusionPolicy, **kwargs: Any) -> Operator:
    """
    :param name: a key of :data:`OPERATORS`
    :param policy: the policy to improve
    :param kwargs: arguments of the operator
    :raises ValueError: if the name is unknown or an argument does not exist
    """
    check_operator(name)
    try:
        return OPERATORS[name](policy, **kwargs)
    except TypeError as error:
        raise ValueError(f"The operator {name!r} does not take these arguments: {error}.") from error


def check_operator(name: str) -> None:
    """:raises ValueError: if the name is unknown"""
    if name not in OPERATORS:
        raise ValueError(f"Unknown operator {name!r}; choose one of {', '.join(OPERATORS)}.")


__all__ = ["OPERATORS", "Operator", "check_operator", "make_operator"]
