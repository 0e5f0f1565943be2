"""Policy improvement operators. Importing this package registers them, the default first."""

from sb3_exdm.finetuning.operators.base import OPERATORS, Operator, make_operator, register_operator

from sb3_exdm.finetuning.operators import select, exdm, idql, gradient, weighted, sac  # noqa: F401  # isort: skip

__all__ = ["OPERATORS", "Operator", "make_operator", "register_operator"]
