"""The training loop of recipes: logs, and checkpoints of interrupted runs."""

from collections.abc import Callable, Sequence
from typing import Protocol

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_exdm.algorithms.sac import FusedSAC
from sb3_exdm.algorithms.stacked import RandomState, learn_together
from sb3_exdm.exploration.callbacks import ExplorationCallback
from sb3_exdm.rewards.base import IntrinsicReward
from sb3_exdm.runs.folder import TENSORBOARD, ProgressLog, RunFolder, RunInterrupted


def train(
    model: BaseAlgorithm,
    total_timesteps: int,
    callbacks: Sequence[BaseCallback],
    user_callback: MaybeCallback,
    *,
    folder: RunFolder | None,
    log: ProgressLog | None,
    log_interval: int,
    reward_model: IntrinsicReward | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> None:
    """
    Train, with TensorBoard logs in the run folder.

    :param model: model
    :param total_timesteps: number of steps, over all environments together
    :param callbacks: callbacks of the recipe
    :param user_callback: callback, or list of callbacks, of the user, called after those of the recipe
    :param folder: run folder, None for a run that writes nothing
    :param log: progress log, closed at the end
    :param log_interval: argument of ``model.learn``
    :param reward_model: model of the intrinsic reward, saved with the agent when the run is interrupted
    :param on_interrupt: called when stopped from the keyboard, before anything is saved
    :raises RunInterrupted: if stopped from the keyboard; a checkpoint is in the run folder
    """
    model.set_logger(_logger(folder))
    try:
        model.learn(total_timesteps, callback=[*callbacks, *_as_list(user_callback)], log_interval=log_interval)
    except KeyboardInterrupt:
        if on_interrupt is not None:
            on_interrupt()
        kept = "nothing was saved, because no output folder was given"
        if folder is not None:
            folder.save_models(model, reward_model, model.num_timesteps)
            kept = f"the agent is saved in {folder.path}, checkpoint {model.num_timesteps}"
        raise RunInterrupted(f"Interrupted after {model.num_timesteps} of {total_timesteps} steps; {kept}.") from None
    finally:
        if log is not None:
            log.close()


class Run(Protocol):
    """Run that :func:`train_together` trains."""

    model: BaseAlgorithm
    reward_model: IntrinsicReward
    folder: RunFolder | None
    callback: ExplorationCallback
    log_interval: int


def train_together(runs: Sequence[Run], total_timesteps: int, random_states: Sequence[RandomState]) -> None:
    """
    Train the agents of several runs that differ only in their seeds, see
    :func:`~sb3_exdm.algorithms.stacked.learn_together`.

    :param runs: runs
    :param total_timesteps: number of steps of each run
    :param random_states: random generators of each run
    :raises RunInterrupted: if stopped from the keyboard; checkpoints are in the run folders
    """
    models = []
    for run in runs:
        assert isinstance(run.model, FusedSAC)
        run.model.set_logger(_logger(run.folder))
        models.append(run.model)
    callbacks = [CallbackList([run.callback]) for run in runs]
    try:
        learn_together(models, total_timesteps, callbacks, random_states, runs[0].log_interval)
    except KeyboardInterrupt:
        for run in runs:
            run.callback.finish()
            if run.folder is not None:
                run.folder.save_models(run.model, run.reward_model, run.model.num_timesteps)
        kept = "nothing was saved, because no output folder was given"
        if runs[0].folder is not None:
            kept = f"the agents are saved in {runs[0].folder.path.parent}"
        raise RunInterrupted(f"Interrupted after {models[0].num_timesteps} of {total_timesteps} steps; {kept}.") from None


def _logger(folder: RunFolder | None) -> Logger:
    """TensorBoard in the run folder. An empty list of formats keeps SB3's logger silent."""
    return configure(None, []) if folder is None else configure(str(folder.path / TENSORBOARD), ["tensorboard"])


def _as_list(callback: MaybeCallback) -> list[BaseCallback]:
    if callback is None:
        return []
    if isinstance(callback, (list, CallbackList)):
        return list(callback.callbacks if isinstance(callback, CallbackList) else callback)
    return [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
