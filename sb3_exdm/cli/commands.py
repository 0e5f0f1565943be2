"""
The subcommands of ``exdm``.

Each is a dataclass: its fields are the flags, its docstring and those of the fields are the help. What takes long to import
is imported when a command runs, so that help and mistyped flags answer at once.
"""

from sb3_exdm.cli.benchmark import (
    Benchmark,
    BenchmarkControl,
    BenchmarkCoverage,
    BenchmarkEstimator,
    BenchmarkFinetune,
    BenchmarkThroughput,
)
from sb3_exdm.cli.look import Evaluate, Plot, Report, describe
from sb3_exdm.cli.train import Clone, Finetune, Pretrain

__all__ = [
    "Benchmark",
    "BenchmarkControl",
    "BenchmarkCoverage",
    "BenchmarkEstimator",
    "BenchmarkFinetune",
    "BenchmarkThroughput",
    "Clone",
    "Evaluate",
    "Finetune",
    "Plot",
    "Pretrain",
    "Report",
    "describe",
]
