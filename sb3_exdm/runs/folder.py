"""The folder of a run: its files, their writer and their reader."""

import csv
import math
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_exdm.common.serialization import FORMAT_VERSION, ArtifactError, atomic_path, read_json, write_json
from sb3_exdm.policies.diffusion_actor import POLICY, DiffusionActor
from sb3_exdm.rewards.base import FittedReward, IntrinsicReward
from sb3_exdm.rewards.registry import load_reward
from sb3_exdm.runs.agent_io import load_agent, observation_moments, save_agent

CONFIG = "config.json"
SUMMARY = "summary.json"
PROGRESS = "progress.csv"
MODEL = "model.safetensors"
REWARD = "reward.safetensors"
TRANSITIONS = "transitions.npz"
VIDEO = "video.mp4"
PAGE = "index.html"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"

_REQUIRED = {
    "pretrain": ("env_id", "algo", "reward", "seed"),
    "finetune": ("env_id", "algo", "policy", "operator", "pretrained", "reuse_data", "seed"),
}


class RunInterrupted(RuntimeError):
    """Training was stopped from the keyboard; the message says what was kept."""


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
        :raises FileExistsError: if the folder holds a run, or is a file
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"The output folder {self.path} is a file; name a folder.")
        if self.exists():
            if not overwrite:
                raise FileExistsError(f"{self.path} already holds a run; choose another folder or allow overwriting it.")
            self.remove()
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CONFIG, {"format_version": FORMAT_VERSION, **config, "versions": versions()})

    def remove(self) -> None:
        """Remove the files of the run; other files in the folder stay."""
        for name in (SUMMARY, CONFIG, PROGRESS, MODEL, REWARD, POLICY, TRANSITIONS, VIDEO, PAGE):
            (self.path / name).unlink(missing_ok=True)
        for pattern in ("*.png", f"{TENSORBOARD}/events.*", f"{CHECKPOINTS}/*/*.safetensors"):
            for old in self.path.glob(pattern):
                old.unlink()

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
            np.savez_compressed(file, **transitions)  # type: ignore[arg-type]

    def save_models(self, model: BaseAlgorithm, reward_model: IntrinsicReward | None, checkpoint: int | None = None) -> None:
        """
        Write the agent and the model of the intrinsic reward.

        :param model: agent
        :param reward_model: model of the intrinsic reward, if there is one
        :param checkpoint: number of timesteps, to write a checkpoint rather than the end of the run
        """
        folder = self._models(checkpoint)
        save_agent(folder / MODEL, model)
        if reward_model is not None:
            reward_model.save(folder / REWARD)

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
        if config.get("command") not in _REQUIRED:
            raise ArtifactError(f"{self.path / CONFIG} names no command of exdm; it may be damaged.")
        missing = [key for key in _REQUIRED[config["command"]] if key not in config]
        if missing:
            raise ArtifactError(f"{self.path / CONFIG} lacks {', '.join(missing)}; it may be damaged.")
        return config

    @property
    def summary(self) -> dict[str, Any]:
        """
        Contents of ``summary.json``.

        :raises ArtifactError: if the run was interrupted, or is from another version
        """
        _ = self.config
        if not self.is_complete():
            raise ArtifactError(f"The run in {self.path} was interrupted: it has no {SUMMARY}. Run it again.")
        return read_json(self.path / SUMMARY)

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
                return {key: file[key] for key in file.files}
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist.") from None
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged archive
            raise ArtifactError(f"{path} cannot be read ({error}); it may be damaged.") from None

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


class ProgressLog:
    """
    Writer of ``progress.csv``: a header, then a row per report, each complete on disk as soon as it is written.

    :param path: file
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter | None = None

    def write(self, row: dict[str, float]) -> None:
        """
        Add a row.

        :param row: figures by column, the same columns every time
        """
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, fieldnames=list(row))
            self._writer.writeheader()
        self._writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
