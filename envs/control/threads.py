"""Threads that share the simulation of several environments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch as th

MIN_ENVS_PER_THREAD = 2
"""Number of sub-envs below which another thread costs more than it saves."""


def choose_num_threads(num_envs: int) -> int:
    """
    Choose a number of threads.

    :param num_envs: number of environments
    :return: number of CPUs that this process may use, but no more threads than PyTorch uses, which is one for runs side by
        side, at most one for every :data:`MIN_ENVS_PER_THREAD` environments, and at least one
    """
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(n_cpus, th.get_num_threads(), num_envs // MIN_ENVS_PER_THREAD), 1)


class ThreadTeam:
    """
    Calling thread and helpers that work through a list together. The helpers live until :meth:`close`.

    :param num_threads: number of threads, the calling one included; 1 for no helpers
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._helpers = ThreadPoolExecutor(num_threads - 1, "sb3-exdm-control") if num_threads > 1 else None

    def run(self, function: Callable[[int], None], items: Sequence[int]) -> None:
        """
        Call a function with every item, in any order. Returns, or raises, when no call is in progress.

        :param function: function that releases the interpreter lock for most of its time
        :param items: arguments, one a call
        :raises Exception: what a call raises; its thread leaves its other items to the others
        """
        if self._helpers is None or len(items) < 2:
            for item in items:
                function(item)
            return
        remaining = iter(items)  # shared: every thread takes the next one, so that none waits for a slow one

        def work() -> None:
            for item in remaining:
                function(item)

        futures = [self._helpers.submit(work) for _ in range(min(self.num_threads, len(items)) - 1)]
        try:
            work()
        finally:
            errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Stop the helpers."""
        if self._helpers is not None:
            self._helpers.shutdown()
