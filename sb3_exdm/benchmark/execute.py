"""Many runs, each in a process and a run folder of its own: what is complete is not repeated."""

import multiprocessing
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch as th
from tqdm.auto import tqdm

from sb3_exdm.common.serialization import read_json
from sb3_exdm.runs.folder import CONFIG, SUMMARY, RunInterrupted


class SweepRun(Protocol):
    """A run of a sweep. It is sent to another process, so it is plain data."""

    @property
    def folder(self) -> Path:
        """Its run folder."""

    @property
    def requires(self) -> Path | None:
        """Run folder that must be complete before this run starts."""

    def differences(self, config: dict[str, Any]) -> list[str]:
        """Settings in which a run in the folder, with this ``config.json``, is another one than this."""

    def execute(self) -> None:
        """Run; replaces what is in the folder."""


def is_complete(run: SweepRun) -> bool:
    """
    Whether the folder holds the whole run.

    :param run: a run
    :raises ValueError: if it holds a whole run with other settings than it would have today, which is not thrown away
    :raises ArtifactError: if it is damaged, or from a newer version
    """
    if not (run.folder / CONFIG).is_file() or not (run.folder / SUMMARY).is_file():
        return False
    other = run.differences(read_json(run.folder / CONFIG))
    if other:
        raise ValueError(
            f"{run.folder} holds a run with other settings ({', '.join(other)}); remove it, or choose another folder."
        )
    return True


def check_sweep(out: Path, jobs: int) -> None:
    """:raises ValueError: if the output folder is a file, or there is nobody to work"""
    if out.exists() and not out.is_dir():
        raise ValueError(f"The output folder {out} is a file; name a folder.")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}.")


def run_missing(runs: Sequence[SweepRun], out: Path, jobs: int) -> None:
    """
    Run what is not complete, in this order as far as what a run requires allows it.

    :param runs: the runs
    :param out: folder of the sweep, for the message
    :param jobs: processes, each with one thread
    :raises ChildProcessError: if a run fails; the others are still run
    :raises RunInterrupted: if stopped from the keyboard
    """
    waiting = [run for run in runs if not is_complete(run)]
    if not waiting:
        return
    n_runs, failures, failed = len(waiting), [], set()
    # A fresh process for every run, so that its peak memory is its own; spawned, because PyTorch does not survive a fork.
    context = multiprocessing.get_context("spawn")
    active: dict[Any, tuple[SweepRun, Any]] = {}
    try:
        with tqdm(total=n_runs, unit="run", disable=None) as bar:
            while waiting or active:
                unfinished = {run.folder for run in waiting} | {run.folder for run, _ in active.values()}
                ready = [run for run in waiting if run.requires not in unfinished]
                for run in ready[: jobs - len(active)]:
                    waiting.remove(run)
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(run, sender), daemon=True)
                    process.start()
                    sender.close()  # so that the end of the process closes the pipe
                    active[receiver] = run, process
                for ended in wait(list(active)):
                    run, process = active.pop(ended)
                    failure = _result(run, process, ended)
                    if failure:
                        failures.append(failure)
                        failed.add(run.folder)
                    hopeless = [later for later in waiting if later.requires in failed]
                    waiting = [later for later in waiting if later not in hopeless]
                    failures += [f"{later.folder.name}: needs {run.folder.name}" for later in hopeless]
                    bar.update(1 + len(hopeless))
    except KeyboardInterrupt:
        raise RunInterrupted(f"Interrupted; complete runs are kept in {out}, the same command does the rest.") from None
    finally:
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            process.join()
    if failures:
        raise ChildProcessError(f"{len(failures)} of {n_runs} runs failed: {'; '.join(failures)}")


def run_one(run: SweepRun) -> str | None:
    """
    :param run: what to run
    :return: what went wrong, if anything did
    """
    try:
        run.execute()
    except Exception as error:  # one failure must not end the sweep
        return f"{run.folder.name}: {type(error).__name__}: {error}"
    return None


def _work(run: SweepRun, sender: Connection) -> None:
    """The whole life of a process."""
    # An interruption reaches all processes; the one that started the others ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    th.set_num_threads(1)
    # The lock that tqdm makes by default is a semaphore of the system, which a process that is ended leaves behind.
    tqdm.set_lock(threading.RLock())
    sender.send(run_one(run))


def _result(run: SweepRun, process: Any, receiver: Any) -> str | None:
    try:
        failure = receiver.recv()
    except EOFError:
        process.join()
        failure = f"{run.folder.name}: the process ended with exit code {process.exitcode}"
    process.join()
    receiver.close()
    return failure
