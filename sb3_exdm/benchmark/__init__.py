"""
Benchmarks: ``exdm benchmark coverage``, ``finetune`` and ``control``, and the report of fine-tuning runs.

A benchmark is a plan, a list of runs, and a report of those that are complete.
"""

try:
    import joblib  # noqa: F401
    import pandas  # noqa: F401
    import scipy  # noqa: F401
except ImportError as error:
    raise ImportError(f'Benchmarks and reports need {error.name}: pip install "sb3-exdm[benchmark]".') from None
