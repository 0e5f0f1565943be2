"""Progress of a run: a bar on a terminal, a few lines in a file or a pipe."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm

from sb3_exdm.common.state import Derived

_FORMAT = "{percentage:3.0f}% {bar} {desc}{remaining} left, {rate_fmt}"
"""The most important parts come first, because a narrow terminal cuts off the end."""
_N_LINES = 10
"""Lines of a whole run in a file or a pipe."""


class Progress(Derived):
    """
    Report of the steps of a run on stderr.

    A terminal shows a bar as wide as it is, also when its width changes; a notebook shows one too. A file or a pipe gets a
    line after each tenth of the steps, because a bar would fill it with control characters. The time left follows from the
    speed since the first update, whose steps may be those of a run that is resumed.

    :param total: number of steps
    :param enabled: False for no report
    """

    def __init__(self, total: int, enabled: bool = True) -> None:
        self.total = total
        self.n = 0
        self._text = ""
        self._start: float | None = None
        self._n_before = 0
        is_bar = enabled and (sys.stderr.isatty() or _is_notebook())
        self._prints = enabled and not is_bar
        arguments: dict[str, Any] = {"dynamic_ncols": True, "bar_format": _FORMAT}
        self._bar = tqdm(total=total, unit="step", disable=not is_bar, **arguments)

    def update(self, n: int) -> None:
        """
        Add steps.

        :param n: number of steps
        """
        before, self.n = self.n, self.n + n
        if self._start is None:
            self._begin()
        else:
            self._bar.update(n)
        if self._prints and before * _N_LINES // self.total < self.n * _N_LINES // self.total:
            print(f"{self.n:,} of {self.total:,} steps, {self._text}{self._time_left()}", file=sys.stderr, flush=True)

    def _begin(self) -> None:
        """Measure the speed from here on."""
        self._start = time.perf_counter()
        self._n_before = self._bar.initial = self._bar.n = self._bar.last_print_n = self.n
        self._bar.unpause()  # its clock too
        self._bar.refresh()

    def _time_left(self) -> str:
        done = self.n - self._n_before
        if self._start is None or done == 0:
            return "? left"
        seconds = (time.perf_counter() - self._start) * max(self.total - self.n, 0) / done
        return f"{tqdm.format_interval(seconds)} left"

    def describe(self, name: str, value: float) -> None:
        """
        Show a figure beside the steps.

        :param name: name of the figure
        :param value: value of the figure
        """
        self._text = f"{name} {value:.3g}, "
        self._bar.set_description_str(self._text, refresh=False)

    def close(self) -> None:
        """End the report; a bar stays on the screen."""
        self._bar.close()


def _is_notebook() -> bool:
    """Tell whether a notebook runs this code; IPython is not imported for that."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and type(ipython.get_ipython()).__name__ == "ZMQInteractiveShell"
