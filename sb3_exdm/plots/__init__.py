"""
Figures of a run, and comparisons of several runs.

Figures are drawn without a display, in colors for color-blind readers, and their files are written atomically.
"""

from sb3_exdm.plots.aggregates import plot_aggregates
from sb3_exdm.plots.curves import default_metric, plot_coverage, plot_learning_curve, plot_runs
from sb3_exdm.plots.maps import plot_reward, plot_visits

__all__ = [
    "default_metric",
    "plot_aggregates",
    "plot_coverage",
    "plot_learning_curve",
    "plot_reward",
    "plot_runs",
    "plot_visits",
]
