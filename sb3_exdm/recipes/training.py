"""The training loop of recipes: logs, and what is kept of runs that are stopped."""

import contextlib
import signal
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from torch.utils.tensorboard import SummaryWriter

from sb3_exdm.algorithms.sac import FusedSAC
from sb3_exdm.algorithms.stacked import RandomState, learn_together
from sb3_exdm.common.resources import check_output
from sb3_exdm.recipes.checkpointing import Checkpointing, StoppedBySignal
from sb3_exdm.recipes.interruption import Interruption
from sb3_exdm.runs.config import TrainingConfig
from sb3_exdm.runs.folder import ProgressLog, RunFolder, RunInterrupted, RunTerminated

HOW_TO_RESUME = "go on with the same command and --resume (resume=True)"
_NOTHING_KEPT = "nothing was saved, because no output folder was given"


def train(
    model: BaseAlgorithm,
    total_timesteps: int,
    checkpointing: Checkpointing,
    *,
    folder: RunFolder | None,
    log: ProgressLog | None,
    log_interval: int,
    on_interrupt: Callable[[], None] | None = None,
) -> None:
    """
    Train, with TensorBoard logs in the run folder.

    :param model: model
    :param total_timesteps: number of steps, over all environments together
    :param checkpointing: callbacks, with their checkpoints
    :param folder: run folder, None for a run that writes nothing
    :param log: progress log, closed at the end
    :param log_interval: argument of ``model.learn``
    :param on_interrupt: called when the training was stopped, after a checkpoint
    :raises RunInterrupted: if stopped from the keyboard, or if a process of an environment ends
    :raises RunTerminated: if stopped by SIGTERM
    """
    model.set_logger(_logger(folder, checkpointing.last_timesteps))
    if checkpointing.has_ended:
        total_timesteps = checkpointing.last_timesteps or total_timesteps
    interruption = checkpointing.interruption
    try:
        with interruption:
            model.learn(total_timesteps, callback=checkpointing, log_interval=log_interval)
    except (StoppedBySignal, KeyboardInterrupt):
        if on_interrupt is not None:
            on_interrupt()
        raise _stopped(interruption, model, total_timesteps, _kept(folder, checkpointing)) from None
    except (EOFError, ConnectionError) as error:
        if not isinstance(checkpointing.base_env, SubprocVecEnv):
            raise
        raise RunInterrupted(
            f"A process of an environment ended after {model.num_timesteps} of {total_timesteps} steps, because it failed or "
            f"was killed; {_kept(folder, checkpointing)}."
        ) from error
    finally:
        if log is not None:
            log.close()


def _stopped(
    interruption: Interruption, model: BaseAlgorithm, total_timesteps: int, kept: str
) -> RunInterrupted | RunTerminated:
    """Error of a training that a signal has stopped; ``kept`` says what was saved of it."""
    message = f"after {model.num_timesteps} of {total_timesteps} steps; {kept}."
    if interruption.signal == signal.SIGTERM:
        return RunTerminated(f"Terminated {message}")
    return RunInterrupted(f"Interrupted {message}")


def _kept(folder: RunFolder | None, checkpointing: Checkpointing) -> str:
    if folder is None:
        return _NOTHING_KEPT
    if checkpointing.last_timesteps is None:
        return f"there is no checkpoint yet in {folder.path}"
    return f"the state is saved in {folder.path}, checkpoint {checkpointing.last_timesteps}: {HOW_TO_RESUME}"


class Run(Protocol):
    """Run that :func:`train_together` trains."""

    model: BaseAlgorithm
    folder: RunFolder | None
    checkpointing: Checkpointing
    log_interval: int

    def on_interrupt(self) -> None:
        """Report the last steps of a training that was stopped."""


def train_together(runs: Sequence[Run], total_timesteps: int, random_states: Sequence[RandomState]) -> None:
    """
    Train the agents of several runs that differ only in their seeds, see
    :func:`~sb3_exdm.algorithms.stacked.learn_together`.

    :param runs: runs
    :param total_timesteps: number of steps of each run
    :param random_states: random generators of each run
    :raises RunInterrupted: if stopped from the keyboard
    :raises RunTerminated: if stopped by SIGTERM
    """
    models = []
    for run in runs:
        assert isinstance(run.model, FusedSAC)
        run.model.set_logger(_logger(run.folder, None))
        models.append(run.model)
    # The last run receives the signals: when it stops, all others are at the same point, with a checkpoint.
    interruption = runs[-1].checkpointing.interruption
    for run in runs:
        run.checkpointing.is_last = run is runs[-1]
        run.checkpointing.interruption = interruption
    try:
        with interruption:
            callbacks = [run.checkpointing for run in runs]
            learn_together(models, total_timesteps, callbacks, random_states, runs[0].log_interval)
    except (StoppedBySignal, KeyboardInterrupt):
        for run in runs:
            run.on_interrupt()
        kept = _NOTHING_KEPT
        if runs[0].folder is not None:
            kept = (
                f"the last checkpoints are in {runs[0].folder.path.parent}; every run can be resumed by itself, as a run of "
                "exdm pretrain with its folder and its seed"
            )
        raise _stopped(interruption, models[0], total_timesteps, kept) from None


def begin(
    folder: RunFolder | None,
    checkpointing: Checkpointing,
    config: TrainingConfig,
    resolve: Callable[[int], TrainingConfig],
    *,
    overwrite: bool,
    resume: bool,
) -> bool:
    """
    Open the run folder for a new run, or for one that goes on.

    :param folder: run folder, which this process has locked; None for a run that writes nothing
    :param checkpointing: checkpoints of the run
    :param config: settings, with all defaults filled in
    :param resolve: function from a number of steps to the settings that a run of so many steps would have
    :param overwrite: replace the run in the folder
    :param resume: go on with the run in the folder
    :return: False if that run is complete, and has as many steps
    :raises ValueError: if it has other settings
    :raises FileExistsError: if there is a run that must neither be replaced nor resumed
    """
    if folder is None:
        return True
    content = {"command": config.command, **config.to_dict()}
    if not (resume and folder.exists()):
        folder.create(content, overwrite)
        return True
    stored = folder.config
    if stored["command"] != config.command:
        raise ValueError(f"{folder.path} holds a run of exdm {stored['command']}, not of exdm {config.command}.")
    n_steps = stored["total_timesteps"]
    if config.total_timesteps < n_steps:
        raise ValueError(
            f"The run in {folder.path} has total_timesteps={n_steps}, which can be raised, not lowered to "
            f"{config.total_timesteps}."
        )
    _check_same(folder, resolve(n_steps), stored)
    folder.clean()
    if folder.is_complete() and config.total_timesteps == n_steps:
        warnings.warn(
            f"The run in {folder.path} is complete: {n_steps} steps. Nothing was done; to go on, raise the number of steps.",
            UserWarning,
            stacklevel=3,
        )
        return False
    goes_on = checkpointing.resume()
    folder.reopen(keep_logs=goes_on)
    folder.write_config(content)
    return True


def check_arguments(out: Any, overwrite: bool, resume: bool) -> None:
    """
    Check arguments that recipes share.

    :param out: run folder
    :param overwrite: replace the run in it
    :param resume: go on with the run in it
    :raises ValueError: if they do not fit together, or for a path that no system allows
    :raises OSError: if nothing can be written to the folder
    """
    if out is not None:
        check_output(out)
    if resume and overwrite:
        raise ValueError("A run is either resumed or overwritten: leave out one of resume and overwrite.")
    if resume and out is None:
        raise ValueError("To resume a run, name its folder (out=).")


def _check_same(folder: RunFolder, config: TrainingConfig, stored: dict[str, Any]) -> None:
    """Refuse to go on with a run under other settings."""
    for name in config.differences(stored):
        given, before = config.to_dict()[name], stored.get(name)
        while isinstance(given, dict) and isinstance(before, dict):
            key = next(key for key in {**before, **given} if given.get(key) != before.get(key))
            name, given, before = f"{name}.{key}", given.get(key), before.get(key)
        raise ValueError(f"The run in {folder.path} has {name}={before!r}, not {given!r}; resume it with the same settings.")


def draw_or_warn(draw: Callable[[], None], what: str) -> None:
    """
    Draw pictures, without which a run is complete too.

    :param draw: draws them
    :param what: what cannot be seen if it fails
    """
    try:
        draw()
    except Exception as error:  # whatever it is, the run must not be lost
        warnings.warn(f"{what} could not be drawn: {type(error).__name__}: {error}", UserWarning, stacklevel=2)


def close_env(env: VecEnv) -> None:
    """
    Close an environment, of which processes may have ended already.

    :param env: environment
    """
    with contextlib.suppress(EOFError, ConnectionError):
        env.close()


def as_list(callback: MaybeCallback) -> list[BaseCallback]:
    """
    Convert the callbacks of a user.

    :param callback: callback, or list of callbacks
    """
    if callback is None:
        return []
    if isinstance(callback, (list, CallbackList)):
        return list(callback.callbacks if isinstance(callback, CallbackList) else callback)
    return [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]


def _logger(folder: RunFolder | None, last_timesteps: int | None) -> Logger:
    """TensorBoard in the run folder, without what was logged after the checkpoint; a run that writes nothing is silent."""
    if folder is None:
        return Logger(None, [])
    path = str(folder.tensorboard)
    output = TensorBoardOutputFormat(path)
    if last_timesteps is not None:
        output.writer.close()
        output.writer = SummaryWriter(log_dir=path, purge_step=last_timesteps + 1)
    return Logger(path, [output])
