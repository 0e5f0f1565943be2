"""``exdm benchmark``."""

from typing import Annotated

from tyro.conf import subcommand

from sb3_exdm.benchmark.base import Benchmark
from sb3_exdm.benchmark.control import ControlBenchmark
from sb3_exdm.benchmark.coverage import CoverageBenchmark
from sb3_exdm.benchmark.finetune import FinetuneBenchmark
from sb3_exdm.cli.parsing import parse

DESCRIPTION = """\
Run the benchmarks of the documentation: state coverage and fine-tuning in the mazes, and the robots of URLB.

Example: exdm benchmark coverage --mazes SquareA --seeds 10-11 --out runs/benchmark
"""
_COMMAND = (
    Annotated[CoverageBenchmark, subcommand("coverage")]
    | Annotated[FinetuneBenchmark, subcommand("finetune")]
    | Annotated[ControlBenchmark, subcommand("control")]
)


def run(argv: list[str]) -> None:
    """
    Run what is missing of a benchmark, and report.

    :param argv: name of the benchmark and its flags
    """
    benchmark: Benchmark = parse(_COMMAND, argv, "exdm benchmark", DESCRIPTION)
    print(benchmark.run())
