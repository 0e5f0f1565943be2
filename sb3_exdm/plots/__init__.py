"""
The pictures of a run, and of several runs beside each other.

Figures are drawn off screen, with colors that color-blind readers tell apart, and written whole or not at all.
"""

from sb3_exdm.plots.aggregates import plot_aggregates
from sb3_exdm.plots.curves import plot_coverage, plot_learning_curve, plot_runs
from sb3_exdm.plots.maps import plot_reward, plot_visits
from sb3_exdm.plots.records import RunRecord, default_metric, read_run

__all__ = [
    "RunRecord",
    "default_metric",
    "plot_aggregates",
    "plot_coverage",
    "plot_learning_curve",
    "plot_reward",
    "plot_runs",
    "plot_visits",
    "read_run",
]
