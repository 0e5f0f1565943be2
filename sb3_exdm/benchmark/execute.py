"""Many runs, each in a process and a run folder of its own; complete runs are not repeated."""

import json
import signal
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch as th
from joblib import Parallel, delayed
from joblib.externals.loky import ProcessPoolExecutor
from tqdm.auto import tqdm

from sb3_exdm.benchmark.plan import PlannedRun
from sb3_exdm.finetuning.operators import OPERATORS
from sb3_exdm.recipes import resolve, run_config
from sb3_exdm.rewards.registry import REWARDS
from sb3_exdm.runs.config import FinetuneConfig, PretrainConfig
from sb3_exdm.runs.folder import RunFolder, RunInterrupted


def is_complete(run: PlannedRun[Any]) -> bool:
    """
    Tell whether the folder holds the whole run.

    :param run: run of a plan
    :raises ValueError: if it holds a complete run with other settings, which is not thrown away
    :raises ArtifactError: if it is damaged, or from a newer version
    """
    folder = RunFolder(run.folder)
    if not folder.is_complete():
        return False
    config = resolve(run.config) if run.checked is None else run.config
    text = json.dumps(folder.config)
    if run.requires is not None:  # the sweep may have been moved, or named by another path
        text = text.replace(json.dumps(folder.config["pretrained"]), json.dumps(str(run.requires)))
    other = [name for name in config.differences(json.loads(text)) if run.checked is None or name in run.checked]
    if other:
        raise ValueError(
            f"{run.folder} holds a run with other settings ({', '.join(other)}); remove it, or choose another folder."
        )
    return True


def run_missing(runs: Sequence[PlannedRun[Any]], jobs: int) -> None:
    """
    Run what is not complete: first the runs that require no other, then those whose requirement is complete.

    Every run has a new process with one thread, so that its peak memory is its own, and so that a process that is killed takes
    no other run with it. Workers of joblib's own process pool are reused; here, joblib's threads start one of loky's for each
    run.

    :param runs: runs
    :param jobs: number of runs at the same time
    :raises ChildProcessError: if runs fail; the others are still run
    :raises RunInterrupted: if stopped from the keyboard
    """
    missing = [run for run in runs if not is_complete(run)]
    failures: list[str] = []
    processes = _Processes()
    try:
        with tqdm(total=len(missing), unit="run", disable=None) as bar:
            for stage in ([run for run in missing if run.requires is None], [run for run in missing if run.requires]):
                ready = [run for run in stage if run.requires is None or RunFolder(run.requires).is_complete()]
                failures += [f"{run.folder.name}: requires the run {run.requires}" for run in stage if run not in ready]
                bar.update(len(stage) - len(ready))
                results = Parallel(jobs, backend="threading", return_as="generator_unordered")(
                    delayed(processes.execute)(run) for run in ready
                )
                for failure in results:
                    failures += [failure] if failure else []
                    bar.update()
    except KeyboardInterrupt:
        raise RunInterrupted("Interrupted; complete runs are kept, and the same command does the rest.") from None
    finally:
        processes.stop()
    if failures:
        raise ChildProcessError(f"{len(failures)} of {len(missing)} runs failed: {'; '.join(failures)}")


class _Processes:
    """Processes of the runs in progress, which end when the sweep is interrupted."""

    def __init__(self) -> None:
        self._executors: set[Any] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def execute(self, run: PlannedRun[Any]) -> str | None:
        """Execute a run in a new process; return the failure, if there is one."""
        with self._lock:
            if self._stopped:
                return None
            executor = ProcessPoolExecutor(max_workers=1, initializer=_prepare_process)
            self._executors.add(executor)
        try:
            registry, name = _registered(run.config)
            executor.submit(_work, run, name and registry[name]).result()
        except Exception as error:  # one failure must not end the sweep
            return f"{run.folder.name}: {type(error).__name__}: {error}"
        except KeyboardInterrupt:  # here rather than in the caller, where a single job is executed in the main thread
            self.stop()
            raise
        finally:
            executor.shutdown()
            self._executors.discard(executor)
        return None

    def stop(self) -> None:
        """End all processes."""
        with self._lock:
            self._stopped = True
        for executor in list(self._executors):
            executor.shutdown(kill_workers=True)


def _prepare_process() -> None:
    # An interruption from the keyboard reaches all processes; the one that started the others ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    th.set_num_threads(1)
    # A summary says it too, with the name of its run.
    warnings.filterwarnings("ignore", message="Fine-tuning saw no reward")
    # The default lock of tqdm is a semaphore of the system, which a process that is killed leaves behind.
    tqdm.set_lock(threading.RLock())


def _registered(config: PretrainConfig | FinetuneConfig) -> tuple[Any, str | None]:
    """Registry and name of what a user may have registered in a module that a new process has not imported."""
    return (REWARDS, config.reward) if isinstance(config, PretrainConfig) else (OPERATORS, config.operator)


def _work(run: PlannedRun[Any], entry: Any) -> None:
    """Execute a run. Unpickling ``entry``, its reward or operator, has imported the module of the user."""
    registry, name = _registered(run.config)
    if name is not None and name not in registry:  # registered in a script, which is pickled by value
        registry.register(name)(entry)
    run_config(run.config, run.folder, overwrite=True, device="cpu", progress_bar=False)
