"""Logs for experiment trackers."""

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter


class LogCallback(BaseCallback):
    """
    Send everything that Stable-Baselines3 logs to an experiment tracker, besides the logger's own outputs.

    ``wandb.log``, ``trackio.log`` and ``mlflow.log_metrics`` all have the signature that is needed:

    >>> from stable_baselines3 import PPO
    >>> from sb3_exdm import LogCallback
    >>> logged = {}
    >>> def log(values, step):
    ...     logged[step] = values
    >>> model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=64).learn(128, callback=LogCallback(log))
    >>> list(logged)
    [64, 128]

    :param log: function of the values by name, and ``step``, the number of timesteps
    """

    def __init__(self, log: Callable[..., Any]) -> None:
        super().__init__()
        self._writer = _Writer(log)

    def _on_training_start(self) -> None:
        self.logger.output_formats.append(self._writer)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.logger.name_to_value:  # recorded after the last time that the logger wrote
            self.logger.dump(self.num_timesteps)
        self.logger.output_formats.remove(self._writer)


class _Writer(KVWriter):
    """Output of a logger: numbers only, without what is not for TensorBoard either."""

    def __init__(self, log: Callable[..., Any]) -> None:
        self._log = log

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Send the values of a step.

        :param key_values: values by name
        :param key_excluded: outputs that do not get a value, by its name
        :param step: number of timesteps
        """
        values = {
            key: float(value)
            for key, value in key_values.items()
            if isinstance(value, (int, float, np.number)) and "tensorboard" not in (key_excluded[key] or ())
        }
        if values:
            self._log(values, step=step)

    def close(self) -> None:
        """Close nothing: the tracker belongs to the caller."""
