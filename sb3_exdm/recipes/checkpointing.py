"""Checkpoints of a training, from which it goes on as if it had never stopped."""

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_exdm.common.serialization import ArtifactError
from sb3_exdm.common.state import GlobalGenerators, StateError, capture, has_same_objects, restore
from sb3_exdm.exploration.callbacks import TransitionRecorder
from sb3_exdm.finetuning.replay.buffer import FinetuneReplayBuffer
from sb3_exdm.recipes.interruption import Interruption
from sb3_exdm.rewards.base import IntrinsicReward
from sb3_exdm.runs.config import TrainingConfig
from sb3_exdm.runs.folder import ProgressLog, RunFolder
from sb3_exdm.runs.row_file import RowFile


class StoppedBySignal(Exception):
    """A training was stopped by a signal."""


class Checkpointing(CallbackList):
    """
    Callbacks of a training, with checkpoints before them.

    A checkpoint is written between two iterations, after the updates of one and before the first step of the next, as soon as
    ``checkpoint_freq`` further steps were made; and after the last iteration. It holds the state of everything that can be
    reached from model and callbacks. Where the state of the environment is not known, as in processes of their own, episodes
    are cut at every checkpoint, in a run that goes on as in one that is resumed: recorded as truncated, and the environments
    reset with a seed that depends on that of the run and on the number of steps.

    :param callbacks: callbacks of the recipe
    :param user_callbacks: callbacks of the user, called after those of the recipe; those whose state is not known start anew
        when the run is resumed
    :param model: model
    :param config: ``seed``, ``total_timesteps``, ``checkpoint_freq`` and ``keep_checkpoints`` are used
    :param folder: run folder; None for no checkpoints
    :param log: progress log; None for none
    :param reports: rows of the progress log
    :param parts: further objects with state, by name
    :param recorder: memory of all transitions
    :param reward_model: model of the intrinsic reward, saved beside the agent
    """

    def __init__(
        self,
        callbacks: Sequence[BaseCallback],
        user_callbacks: Sequence[BaseCallback],
        *,
        model: BaseAlgorithm,
        config: TrainingConfig,
        folder: RunFolder | None,
        log: ProgressLog | None,
        reports: list[dict[str, float]],
        parts: Mapping[str, Any] | None = None,
        recorder: TransitionRecorder | None = None,
        reward_model: IntrinsicReward | None = None,
    ) -> None:
        super().__init__([*callbacks, *user_callbacks])
        self._trained = model
        self._config = config
        self._folder = folder
        self._log = log
        self._reports = reports
        self._recorder = recorder
        self._reward_model = reward_model
        self._root = {
            "generators": GlobalGenerators(),
            "model": model,
            "callbacks": list(callbacks),
            "reports": reports,
            **(parts or {}),
        }
        self._user_callbacks = list(user_callbacks)
        self._rows: dict[str, RowFile] = {}
        self._state: dict[str, Any] | None = None
        self._env_at_start: Any = None
        self._last_timesteps: int | None = None
        self.interruption = Interruption()
        """Signals to stop at the next point between two iterations."""
        self.is_last = True
        """False for a training beside others, of which the last one stops all."""

    @property
    def last_timesteps(self) -> int | None:
        """Steps of the last checkpoint; None if there is none."""
        return self._last_timesteps

    @property
    def is_resuming(self) -> bool:
        """True until the training has been restored."""
        return self._state is not None

    @property
    def has_ended(self) -> bool:
        """True if the training is resumed from its end."""
        return self._state is not None and self._state["has_ended"]

    def resume(self) -> bool:
        """
        Read the latest checkpoint, to go on from it in the next call of ``learn``.

        :return: False if there is none, so that the training starts from the beginning
        :raises ArtifactError: if it was made on another kind of device
        """
        assert self._folder is not None
        self._state = self._folder.load_state()
        if self._state is None:
            return False
        device = self._trained.device.type
        if self._state["device"] != device:
            raise ArtifactError(
                f"The run in {self._folder.path} was trained on the device {self._state['device']}; it cannot go on with "
                f"{device}. Pass device={self._state['device']!r}."
            )
        if self._state["threads"] != th.get_num_threads():
            warnings.warn(
                f"The run in {self._folder.path} was trained with {self._state['threads']} threads of PyTorch; with "
                f"{th.get_num_threads()}, results differ by rounding.",
                UserWarning,
                stacklevel=2,
            )
        self._last_timesteps = self._state["timesteps"]
        if self._config.total_timesteps > self._state["total_timesteps"]:
            self._state["has_ended"] = False
        return True

    # Points between two iterations ------------------------------------------------------------------------------------

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._env_at_start = self._capture_env()
        if self._state is not None:
            self._load_rows(self._state)
            self._restore(self._state)
            if self._log is not None:
                self._log.rewrite(self._reports)

    def _on_rollout_start(self) -> None:
        if self._state is not None:
            # Again, because the loop has drawn random numbers on its way here.
            state, self._state = self._state, None
            self._restore(state)
            if state["env"] is None:
                self._cut_episodes()
        else:
            self._save_if_due()
            if self.interruption.signal is not None and self.is_last:
                raise StoppedBySignal
        super()._on_rollout_start()

    def _on_training_end(self) -> None:
        if self._state is not None:
            self._state = None
        elif self._folder is not None and self._config.checkpoint_freq:
            self.save(has_ended=True)
        super()._on_training_end()

    def _save_if_due(self) -> None:
        freq, steps = self._config.checkpoint_freq, self._trained.num_timesteps
        if self._folder is None:
            return
        if freq and steps // freq > (self._last_timesteps or 0) // freq:
            if not self.save():
                self._cut_episodes()
        elif self.interruption.signal is not None and steps:
            self.save(only_exact=True)

    # Saving -----------------------------------------------------------------------------------------------------------

    def save(self, has_ended: bool = False, only_exact: bool = False) -> bool:
        """
        Write a checkpoint.

        :param has_ended: the training is at its end
        :param only_exact: write nothing unless the state of the environment is known
        :return: whether the state of the environment is known
        """
        assert self._folder is not None
        model = self._trained
        env = self._env_state()
        if env is None and only_exact:
            return False
        memories = self._memories()
        for name, (arrays, n_rows, n_per_step) in memories.items():
            if name not in self._rows:
                self._rows[name] = self._folder.row_file(name, arrays)
            self._rows[name].append(n_rows, n_changed=n_per_step)  # a cut has marked the last step
        without = [array for arrays, *_ in memories.values() for array in arrays.values()]
        buffer = model.replay_buffer if isinstance(model, OffPolicyAlgorithm) else None
        if isinstance(buffer, FinetuneReplayBuffer):
            without += buffer.cache_memories()
        state = {
            "timesteps": model.num_timesteps,
            "total_timesteps": self._config.total_timesteps,
            "has_ended": has_ended,
            "device": model.device.type,
            "threads": th.get_num_threads(),
            "rows": {name: self._rows[name].n_rows for name in memories},
            "next_row": _next_row(buffer),
            "env": env,
            "run": capture(self._root, without=without),
            "user_callbacks": [_capture_or_warn(callback, without) for callback in self._user_callbacks],
        }
        self._folder.save_checkpoint(model, self._reward_model, state, self._config.keep_checkpoints)
        self._last_timesteps = model.num_timesteps
        return env is not None

    def _env_state(self) -> Any:
        """State of the environment; None if it is not known, or of objects that a new environment would not have."""
        state = self._capture_env()
        if state is None or self._env_at_start is None or not has_same_objects(state, self._env_at_start):
            return None
        return state

    def _capture_env(self) -> Any:
        try:
            return capture(self.base_env, is_env=True)
        except (StateError, RecursionError):
            return None

    @property
    def base_env(self) -> VecEnv:
        """Environment without its wrappers."""
        env = self._trained.get_env()
        assert env is not None
        while isinstance(env, VecEnvWrapper):
            env = env.venv
        return env

    def _memories(self) -> dict[str, tuple[dict[str, np.ndarray], int, int]]:
        """Arrays, number of rows so far, and rows of a step, for each memory of transitions."""
        memories = {}
        model, n_envs = self._trained, self._trained.n_envs
        if self._recorder is not None:
            memories["transitions"] = (self._recorder.memory, self._recorder.size, n_envs)
        if isinstance(model, OffPolicyAlgorithm):
            assert model.replay_buffer is not None
            memories["replay"] = (_replay_arrays(model.replay_buffer), model.num_timesteps // n_envs, 1)
        return memories

    # Restoring --------------------------------------------------------------------------------------------------------

    def _load_rows(self, state: dict[str, Any]) -> None:
        assert self._folder is not None
        for name, (arrays, *_) in self._memories().items():
            self._rows[name] = self._folder.row_file(name, arrays)
            self._rows[name].load(state["rows"][name])

    def _restore(self, state: dict[str, Any]) -> None:
        model, has_grown = self._trained, self._config.total_timesteps > state["total_timesteps"]
        restore(self._root, state["run"], has_grown=has_grown)
        for callback, saved in zip(self._user_callbacks, state["user_callbacks"], strict=False):
            if saved is not None:
                restore(callback, saved)
        if state["env"] is not None:
            restore(self.base_env, state["env"])
        if isinstance(model, OffPolicyAlgorithm):
            buffer, n_rows = model.replay_buffer, state["rows"]["replay"]
            assert buffer is not None
            buffer.buffer_size = len(buffer.actions)  # of this run, which may have more steps
            buffer.pos, buffer.full = n_rows % buffer.buffer_size, n_rows >= buffer.buffer_size
            if state["next_row"] is not None:
                for name, row in state["next_row"].items():
                    _replay_arrays(buffer)[name][buffer.pos] = row.numpy()
        model._total_timesteps = self._config.total_timesteps
        # Of the log alone, which reports the speed of this process.
        model.start_time, model._num_timesteps_at_start = time.time_ns(), model.num_timesteps

    def _cut_episodes(self) -> None:
        """End all episodes as at a time limit, and reset the environments with a seed of this step."""
        model = self._trained
        env = model.get_env()
        assert env is not None
        seeds = np.random.SeedSequence([self._config.seed, model.num_timesteps])
        env.seed(int(seeds.generate_state(1)[0] % 2**31))
        model._last_obs = env.reset()  # type: ignore[assignment]
        model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        if model.get_vec_normalize_env() is not None:
            model._last_original_obs = model.get_vec_normalize_env().get_original_obs()  # type: ignore[union-attr]
        if isinstance(model, OffPolicyAlgorithm) and model.num_timesteps:
            buffer = model.replay_buffer
            assert buffer is not None
            goes_on = buffer.dones[buffer.pos - 1] == 0
            buffer.dones[buffer.pos - 1, goes_on] = 1.0
            buffer.timeouts[buffer.pos - 1, goes_on] = 1.0
        if self._recorder is not None:
            self._recorder.truncate(env.num_envs)


def _replay_arrays(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    """Arrays of a replay buffer with a row for each step, ``(buffer_size, n_envs, ...)`` each."""
    arrays: dict[str, Any] = {"observations": buffer.observations, "actions": buffer.actions, "rewards": buffer.rewards}
    arrays |= {"dones": buffer.dones, "timeouts": buffer.timeouts}
    if not buffer.optimize_memory_usage:
        arrays["next_observations"] = buffer.next_observations
    flat: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        flat |= {f"{name}.{key}": part for key, part in array.items()} if isinstance(array, dict) else {name: array}
    return flat | (buffer.online_cache_arrays() if isinstance(buffer, FinetuneReplayBuffer) else {})


def _next_row(buffer: ReplayBuffer | None) -> dict[str, th.Tensor] | None:
    """The row after the newest one, which holds its next observation where memory is saved."""
    if buffer is None or not buffer.optimize_memory_usage:
        return None
    return {name: th.as_tensor(array[buffer.pos].copy()) for name, array in _replay_arrays(buffer).items()}


def _capture_or_warn(callback: BaseCallback, without: list[np.ndarray]) -> Any:
    try:
        return capture(callback, without=without)
    except StateError as error:
        warnings.warn(
            f"The state of the callback {type(callback).__name__} is not saved; it starts anew in a resumed run: {error}",
            UserWarning,
            stacklevel=2,
        )
        return None
