"""The folder of a run: its files, their writer and their reader."""

import csv
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_exdm.common.resources import check_memory
from sb3_exdm.common.serialization import (
    FORMAT_VERSION,
    ArtifactError,
    atomic_path,
    load_tree,
    read_json,
    save_tree,
    sync,
    write_json,
)
from sb3_exdm.common.state import Derived
from sb3_exdm.common.validation import check_value, shown
from sb3_exdm.policies.diffusion_actor import POLICY, DiffusionActor
from sb3_exdm.rewards.base import FittedReward, IntrinsicReward
from sb3_exdm.rewards.registry import load_reward
from sb3_exdm.runs.agent_io import CONFIG, load_agent, observation_moments, save_agent
from sb3_exdm.runs.config import FinetuneConfig, PretrainConfig, TrainingConfig
from sb3_exdm.runs.lock import FolderLock
from sb3_exdm.runs.row_file import RowFile

SUMMARY = "summary.json"
PROGRESS = "progress.csv"
MODEL = "model.safetensors"
REWARD = "reward.safetensors"
TRANSITIONS = "transitions.npz"
VIDEO = "video.mp4"
PAGE = "index.html"
CHECKPOINTS = "checkpoints"
STATE = "state.safetensors"
ROWS = ".rows"
TENSORBOARD = "tensorboard"
LOCK = "run.lock"
_FILES = (SUMMARY, PROGRESS, MODEL, REWARD, POLICY, TRANSITIONS, VIDEO, PAGE, CONFIG)
_STATE_KIND = "training state"

_CONFIGS: dict[str, type[TrainingConfig]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
_REQUIRED = {
    "pretrain": ("env_id", "algo", "reward", "seed"),
    "finetune": ("env_id", "algo", "policy", "operator", "pretrained", "reuse_data", "seed"),
}
_FIGURES: dict[str, Any] = {
    **dict.fromkeys(("timesteps", "pretrained_timesteps", "n_episodes", "n_updates"), int | None),
    **dict.fromkeys(("seconds", "total_seconds", "steps_per_second", "coverage", "coverage_of_ceiling"), float | None),
    **dict.fromkeys(("mean_reward", "std_reward", "mean_length", "success_rate", "normalized_score"), float | None),
    **dict.fromkeys(("expert_return", "peak_memory_mb"), float | None),
    "pretrained_reward": str | None,
}
"""Types of figures in a summary."""


class RunInterrupted(RuntimeError):
    """A run was stopped before its end; the message says why, and what was kept."""


class RunTerminated(SystemExit):
    """
    A run was stopped by SIGTERM; the exit status is 143.

    :param message: what was kept
    """

    def __init__(self, message: str) -> None:
        super().__init__(143)
        self.message = message


@dataclass(frozen=True)
class RunRecord:
    """
    Configuration and figures of a run, as plain data.

    :param folder: run folder
    :param config: contents of ``config.json``
    :param summary: contents of ``summary.json``; None if the run was interrupted or is not finished
    :param progress: columns of ``progress.csv``, each ``(n,)`` with n >= 1; NaN where nothing was written
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    progress: dict[str, np.ndarray]

    @property
    def finished(self) -> bool:
        """True if the run reached its end."""
        return self.summary is not None

    @property
    def is_finetuned(self) -> bool:
        """True for ``exdm finetune``, False for ``exdm pretrain``."""
        return self.config["command"] == "finetune"

    def __repr__(self) -> str:
        return f"RunRecord({str(self.folder)!r}, finished={self.finished})"


class RunFolder:
    """
    A folder with the files of one run. Creating the object touches nothing.

    :param path: folder
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    # Writing ----------------------------------------------------------------------------------------------------------

    def create(self, config: dict[str, Any], overwrite: bool = False) -> None:
        """
        Make the folder and write the configuration, so that an interrupted run can be identified.

        :param config: plain data
        :param overwrite: remove the files of an earlier run; other files in the folder stay
        :raises FileExistsError: if the folder holds a run, or files that are not of a run but have the names of its files, or
            is a file
        """
        self.check_free(overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        if self.exists():
            self.remove()
        self.write_config(config)

    def remove(self) -> None:
        """Remove the files of the run; other files in the folder stay."""
        self.clean()
        for pattern in ("*.png", f"{TENSORBOARD}/events.*", f"{CHECKPOINTS}/*{ROWS}", f"{CHECKPOINTS}/*/*.safetensors"):
            for old in self.path.glob(pattern):
                old.unlink()
        for folder in self.path.glob(f"{CHECKPOINTS}/*/"):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        for name in _FILES:  # the configuration last: a folder without it would not be known as a run
            (self.path / name).unlink(missing_ok=True)

    def check_free(self, overwrite: bool) -> None:
        """
        Refuse a folder that a new run must not write to; touches nothing.

        :param overwrite: an earlier run may be replaced
        :raises FileExistsError: see :meth:`create`
        """
        self._refuse_file()
        if self.exists() and not overwrite:
            raise FileExistsError(
                f"{self.path} already holds a run; choose another folder, allow overwriting it, or resume it."
            )
        foreign = [name for name in _FILES if (self.path / name).exists()]
        if foreign and not self._is_run():
            raise FileExistsError(
                f"{self.path} holds {foreign[0]}, but is not the folder of a run; choose another one, or remove the file."
            )

    def _refuse_file(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"The output folder {self.path} is a file; name a folder.")

    def _is_run(self) -> bool:
        try:
            return bool(self.config)
        except ArtifactError:
            return False

    def write_config(self, config: dict[str, Any]) -> None:
        """
        Write the configuration.

        :param config: plain data
        """
        write_json(self.path / CONFIG, {"format_version": FORMAT_VERSION, **config, "versions": versions()})

    def lock(self) -> FolderLock:
        """
        Take the folder for this process, and make it if it is missing.

        :raises FolderLocked: if another process writes to it
        :raises FileExistsError: if it is a file
        """
        self._refuse_file()
        return FolderLock(self.path / LOCK)

    def clean(self) -> None:
        """Remove unfinished files, which a process that was killed has left."""
        for name in (*_FILES, "coverage.png", "visits.png", "reward.png", "learning_curve.png"):
            path = self.path / name
            for left in self.path.glob(f".{path.stem}-*{path.suffix}"):
                left.unlink()
        for folder in self.path.glob(f"{CHECKPOINTS}/.*"):
            if folder.is_dir():
                shutil.rmtree(folder)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """
        Write the figures of the run, which marks it as complete.

        :param summary: plain data
        """
        write_json(self.path / SUMMARY, {"format_version": FORMAT_VERSION, **summary, "versions": versions()})

    def save_transitions(self, transitions: dict[str, np.ndarray]) -> None:
        """
        Write the explored transitions.

        :param transitions: arrays with one row per transition
        """
        with atomic_path(self.path / TRANSITIONS) as temporary, temporary.open("wb") as file:
            try:
                np.savez_compressed(file, **transitions)  # type: ignore[arg-type]
            except ValueError as error:
                if isinstance(error.__context__, OSError):  # zipfile hides that the disk is full
                    raise error.__context__ from None
                raise

    def save_models(self, model: BaseAlgorithm, reward_model: IntrinsicReward | None) -> None:
        """
        Write the agent and the model of the intrinsic reward at the end of the run.

        :param model: agent
        :param reward_model: model of the intrinsic reward, if there is one
        """
        _write_models(self.path, model, reward_model)

    def save_checkpoint(
        self, model: BaseAlgorithm, reward_model: IntrinsicReward | None, state: dict[str, Any] | None, keep: int = 0
    ) -> None:
        """
        Write a checkpoint: complete, or not at all.

        :param model: agent
        :param reward_model: model of the intrinsic reward, if there is one
        :param state: state of the training, see :meth:`load_state`; None if it cannot be resumed from here
        :param keep: number of checkpoints to keep, the latest ones; 0 for all
        """
        folder = self.path / CHECKPOINTS / str(model.num_timesteps)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            os.chmod(temporary, 0o755)
            _write_models(temporary, model, reward_model)
            if state is not None:
                save_tree(temporary / STATE, state, kind=_STATE_KIND)
            if folder.exists():  # from a run that was resumed further back
                shutil.rmtree(folder)
            os.replace(temporary, folder)
            sync(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if keep:
            for old in self.checkpoints()[:-keep]:
                shutil.rmtree(self._models(old))

    def load_state(self) -> dict[str, Any] | None:
        """
        Read the state of the latest checkpoint that a training can be resumed from; later ones are removed.

        :return: what :meth:`save_checkpoint` was given; None if there is no such checkpoint
        """
        state = None
        for timesteps in reversed(self.checkpoints()):
            try:
                state = load_tree(self._models(timesteps) / STATE, kind=_STATE_KIND)
                break
            except ArtifactError:  # of the agent alone, or damaged
                shutil.rmtree(self._models(timesteps))
        return state

    def row_file(self, name: str, arrays: Mapping[str, np.ndarray]) -> RowFile:
        """
        File of the rows of a memory, beside the checkpoints.

        :param name: name of the memory
        :param arrays: its arrays, ``(capacity, ...)`` each
        """
        (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        return RowFile(self.path / CHECKPOINTS / f"{name}{ROWS}", arrays)

    def reopen(self, keep_logs: bool) -> None:
        """
        Mark the run as unfinished, to go on with it.

        :param keep_logs: False if it starts from the beginning, without its logs
        """
        (self.path / SUMMARY).unlink(missing_ok=True)
        if not keep_logs:
            for old in (*self.tensorboard.glob("events.*"), self.path / PROGRESS):
                old.unlink(missing_ok=True)

    def progress_log(self) -> "ProgressLog":
        """Open ``progress.csv`` for writing."""
        return ProgressLog(self.path / PROGRESS)

    # Reading ----------------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Tell whether the folder holds a run, complete or not."""
        return (self.path / CONFIG).is_file()

    def is_complete(self) -> bool:
        """Tell whether the folder holds a run that reached its end."""
        return self.exists() and (self.path / SUMMARY).is_file()

    @property
    def config(self) -> dict[str, Any]:
        """
        Contents of ``config.json``.

        :raises ArtifactError: if the folder holds no run, or one from another version
        """
        if not self.exists():
            if not self.path.exists():
                raise ArtifactError(f"The run folder {self.path} does not exist.")
            raise ArtifactError(f"{self.path} is not a run folder: it has no {CONFIG}.")
        config = read_json(self.path / CONFIG)
        if not isinstance(config.get("command"), str) or config["command"] not in _REQUIRED:
            raise ArtifactError(f"{self.path / CONFIG} names no command of exdm; it may be damaged.")
        missing = [key for key in _REQUIRED[config["command"]] if key not in config]
        if missing:
            raise ArtifactError(f"{self.path / CONFIG} lacks {', '.join(missing)}; it may be damaged.")
        try:
            _CONFIGS[config["command"]].check_content(config)
        except ValueError as error:
            raise ArtifactError(f"{self.path / CONFIG} cannot be used: {error} It may be damaged.") from None
        if not isinstance(config["env_id"], str) or ":" in config["env_id"]:
            # A run folder must not execute anything, but Gymnasium would import the module in "module:ID".
            raise ArtifactError(
                f"{self.path / CONFIG} names no environment, but {shown(config['env_id'])}; it may be damaged."
            )
        return config

    @property
    def summary(self) -> dict[str, Any]:
        """
        Contents of ``summary.json``.

        :raises ArtifactError: if the run was interrupted, or is from another version
        """
        _ = self.config
        if not self.is_complete():
            raise ArtifactError(f"The run in {self.path} was interrupted: it has no {SUMMARY}. Resume it, or run it again.")
        summary = read_json(self.path / SUMMARY)
        try:
            for name, hint in _FIGURES.items():
                check_value(name, summary.get(name), hint)
        except ValueError as error:
            raise ArtifactError(f"{self.path / SUMMARY} cannot be used: {error} It may be damaged.") from None
        return summary

    def record(self) -> RunRecord:
        """
        Configuration and figures of the run, which may be unfinished.

        :raises ArtifactError: if the folder holds no run, is damaged, or has no progress yet
        """
        config = self.config
        return RunRecord(self.path, config, self.summary if self.is_complete() else None, self.progress())

    def progress(self) -> dict[str, np.ndarray]:
        """
        Columns of ``progress.csv``, each ``(n,)``; NaN where nothing was written.

        :raises ArtifactError: if the file is missing, damaged or has no rows
        """
        path = self.path / PROGRESS
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ArtifactError(f"The run in {self.path} has no {PROGRESS}: it stopped before any progress.") from None
        except UnicodeDecodeError:
            raise ArtifactError(f"{path} is not text; it may be damaged.") from None
        lines = text.splitlines()
        if lines and not text.endswith("\n"):
            lines.pop()  # a run that was killed, or is not finished, may leave half a row
        header, *rows = csv.reader(lines) if lines else [[]]
        if not rows:
            raise ArtifactError(f"{path} has no rows: the run stopped before any progress, or has just begun.")
        if "timesteps" not in header:
            raise ArtifactError(f"{path} has no column 'timesteps'; it may be damaged.")
        try:
            values = [[float(cell) if cell else math.nan for cell in row] for row in rows]
            table = np.array(values, dtype=np.float64).reshape(len(rows), len(header))  # (n_rows, n_columns)
        except ValueError:
            raise ArtifactError(f"{path} has a row that is not {len(header)} numbers; it may be damaged.") from None
        if not (np.diff(table[:, header.index("timesteps")], prepend=-1.0) > 0).all():
            raise ArtifactError(f"The timesteps in {path} do not increase; it may be damaged.")
        return dict(zip(header, table.T, strict=True))

    def transitions(self) -> dict[str, np.ndarray]:
        """
        The explored transitions, one row each, in the order of time.

        :raises ArtifactError: if the file is missing or damaged
        """
        path = self.path / TRANSITIONS
        try:
            with np.load(path, allow_pickle=False) as file:
                size = sum(entry.file_size for entry in file.zip.infolist())
                check_memory(size, "What it holds", "it may be damaged")
                transitions = {key: file[key] for key in file.files}
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist.") from None
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged archive
            raise ArtifactError(f"{path} cannot be read ({error}); it may be damaged.") from None
        if missing := [key for key in ("observations", "actions") if key not in transitions]:
            raise ArtifactError(f"{path} lacks {', '.join(missing)}; it may be damaged.")
        shapes = [array.shape for array in transitions.values()]
        if any(shape[:1] != shapes[0][:1] or not shape for shape in shapes):
            raise ArtifactError(f"The arrays in {path} have different lengths; it may be damaged.")
        if any(array.dtype.kind not in "biuf" for array in transitions.values()):
            raise ArtifactError(f"{path} holds something else than numbers; it may be damaged.")
        return transitions

    def checkpoints(self) -> list[int]:
        """Timesteps of the checkpoints, in increasing order."""
        found = (path.parent.name for path in self.path.glob(f"{CHECKPOINTS}/*/{MODEL}"))
        return sorted(int(name) for name in found if name.isdigit())

    def load_model(
        self,
        env: VecEnv | gym.Env | None = None,
        device: th.device | str = "auto",
        *,
        checkpoint: int | None = None,
    ) -> BaseAlgorithm:
        """
        Load the agent, optimizers included, with an empty ordinary replay buffer. Executes no pickle.

        :param env: environment to continue in; not needed to predict
        :param device: PyTorch device
        :param checkpoint: timesteps of a checkpoint, one of :meth:`checkpoints`; None for the end of the run
        :raises ArtifactError: if there is no such file, or it cannot be used
        """
        return load_agent(self._models(checkpoint, must_exist=True) / MODEL, self.config, env, device)

    def load_reward(self, device: th.device | str = "auto", *, checkpoint: int | None = None) -> FittedReward:
        """
        Load the model of the intrinsic reward. Executes no pickle.

        :param device: PyTorch device
        :param checkpoint: timesteps of a checkpoint, one of :meth:`checkpoints`; None for the end of the run
        :raises ArtifactError: if there is no such file, or it cannot be used
        """
        return load_reward(self._models(checkpoint, must_exist=True) / REWARD, device)

    def load_policy(self, device: th.device | str = "auto") -> DiffusionActor:
        """
        Load the diffusion policy. Executes no pickle.

        :param device: PyTorch device
        :raises ArtifactError: if the run has none, or it cannot be used
        """
        return DiffusionActor.load(self.path, device)

    def observation_moments(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and variance that vector observations were standardized with, ``(dim,)`` each; None if they were not."""
        return observation_moments(self.path / MODEL)

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard logs."""
        return self.path / TENSORBOARD

    def pictures(self) -> list[Path]:
        """Figures and video of the run."""
        return [*sorted(self.path.glob("*.png")), *self.path.glob(VIDEO)]

    def _models(self, checkpoint: int | None, must_exist: bool = False) -> Path:
        """Folder of the models at the end of the run, or at a checkpoint."""
        if checkpoint is None:
            return self.path
        if must_exist and checkpoint not in self.checkpoints():
            known = ", ".join(map(str, self.checkpoints())) or "none"
            raise ArtifactError(f"{self.path} has no checkpoint {checkpoint}; it has {known}.")
        return self.path / CHECKPOINTS / str(checkpoint)


def _write_models(folder: Path, model: BaseAlgorithm, reward_model: IntrinsicReward | None) -> None:
    save_agent(folder / MODEL, model)
    if reward_model is not None:
        reward_model.save(folder / REWARD)


class ProgressLog(Derived):
    """
    Writer of ``progress.csv``: a header, then a row per report, each complete on disk as soon as it is written.

    :param path: file, which is made when the first row is written
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self._writer: csv.DictWriter | None = None

    def rewrite(self, rows: Sequence[dict[str, float]]) -> None:
        """
        Replace all rows, for a run that goes on from a checkpoint.

        :param rows: rows up to the checkpoint
        """
        self.close()
        with atomic_path(self._path) as temporary:
            again = ProgressLog(temporary)
            for row in rows:
                again.write(row)
            again.close()
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, fieldnames=list(rows[0])) if rows else None

    def write(self, row: dict[str, float]) -> None:
        """
        Add a row.

        :param row: figures by column, the same columns every time
        """
        if self._writer is None:
            self._file = self._file or self._path.open("w", newline="", encoding="utf-8")
            self._writer = csv.DictWriter(self._file, fieldnames=list(row))
            self._writer.writeheader()
        self._writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers of a run depend on."""
    packages = ("sb3-exdm", "stable-baselines3", "gymnasium", "torch", "numpy")
    found = {"python": platform.python_version(), "platform": f"{sys.platform}-{platform.machine()}"}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
