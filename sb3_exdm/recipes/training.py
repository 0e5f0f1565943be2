"""What all long runs share: settings that can be written down, logs, and what is kept when they are stopped."""

import json
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from sb3_exdm.rewards.base import IntrinsicReward
from sb3_exdm.runs.folder import ProgressLog, RunFolder, RunInterrupted


def check_plain(config: dict[str, Any]) -> None:
    """
    :param config: configuration of a run, with arguments of the user among it under names that end in ``_kwargs``
    :raises ValueError: if it cannot be written down as JSON
    """
    try:
        json.dumps(config)
    except TypeError as error:
        names = ", ".join(key for key in config if key.endswith("_kwargs"))
        raise ValueError(f"{names} must be plain data: {error}.") from None


def train(
    model: BaseAlgorithm,
    total_timesteps: int,
    callback: BaseCallback | list[BaseCallback],
    *,
    folder: RunFolder | None,
    log: ProgressLog | None,
    log_interval: int,
    reward_model: IntrinsicReward | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> None:
    """
    Train, with TensorBoard logs in the run folder.

    :param model: the agent
    :param total_timesteps: number of steps, over all environments together
    :param callback: for ``model.learn``
    :param folder: run folder, None for a run that writes nothing
    :param log: is closed at the end
    :param log_interval: see ``model.learn``
    :param reward_model: kept beside the agent
    :param on_interrupt: called when stopped from the keyboard, before anything is kept
    :raises RunInterrupted: if stopped from the keyboard; what was learned is kept in the run folder
    """
    logs_to = (None, []) if folder is None else (str(folder.path / "tensorboard"), ["tensorboard"])
    model.set_logger(configure(*logs_to))
    try:
        model.learn(total_timesteps, callback=callback, log_interval=log_interval)
    except KeyboardInterrupt:
        if on_interrupt is not None:
            on_interrupt()
        kept = "nothing was kept, as no output folder was given"
        if folder is not None:
            checkpoint = f"checkpoints/{model.num_timesteps}"
            folder.save_models(model, reward_model, checkpoint)
            kept = f"the agent is kept in {folder.path / checkpoint}"
        raise RunInterrupted(f"Interrupted after {model.num_timesteps} of {total_timesteps} steps; {kept}.") from None
    finally:
        if log is not None:
            log.close()
