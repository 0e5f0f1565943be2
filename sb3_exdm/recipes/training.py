"""The training loop of recipes: logs, and checkpoints of interrupted runs."""

from collections.abc import Callable, Sequence

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import MaybeCallback

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
    # An empty list of formats keeps SB3's logger silent.
    model.set_logger(configure(None, []) if folder is None else configure(str(folder.path / TENSORBOARD), ["tensorboard"]))
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


def _as_list(callback: MaybeCallback) -> list[BaseCallback]:
    if callback is None:
        return []
    if isinstance(callback, (list, CallbackList)):
        return list(callback.callbacks if isinstance(callback, CallbackList) else callback)
    return [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
