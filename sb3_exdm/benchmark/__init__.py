"""
What this library claims, measured: ``exdm benchmark coverage``, ``finetune``, ``estimator`` and ``throughput``.

Each module has one function that runs the benchmark and returns its tables in Markdown.
"""
