"""Time that a run has taken, over interruptions."""

import time
from typing import Any


class Stopwatch:
    """Clock that starts when it is made, and goes on from the time in its state when a run is resumed."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed time in seconds, without that between an interruption and the resumption."""
        return time.perf_counter() - self._start

    def capture_state(self) -> dict[str, Any]:
        """Return the elapsed time."""
        return {"seconds": self.seconds}

    def restore_state(self, state: dict[str, Any]) -> None:
        """
        Go on from an elapsed time.

        :param state: from :meth:`capture_state`
        """
        self._start = time.perf_counter() - state["seconds"]
