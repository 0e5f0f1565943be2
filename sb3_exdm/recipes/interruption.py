"""Signals that stop a training at a point from which it can be resumed."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """
    Remember SIGINT (Ctrl-C) and SIGTERM inside of a ``with`` block, instead of stopping wherever the process is. A second
    signal stops at once, with ``KeyboardInterrupt``. Signals that are ignored stay so, and only the main thread receives any.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """The first signal, None if there was none."""
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
