"""Reads what a run folder says about its run: settings, progress and summary, but no weights."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_exdm.common.serialization import ArtifactError, read_json
from sb3_exdm.runs.folder import CONFIG, PROGRESS, SUMMARY, RunFolder

_SETTINGS = ("env_id", "algo", "reward", "seed")
_FINETUNE_SETTINGS = ("env_id", "algo", "policy", "operator", "pretrained", "reuse_data", "seed")
_METRICS = ("coverage", "success_rate", "mean_reward")


@dataclass(frozen=True)
class RunRecord:
    """
    A run as plain data.

    :param folder: the run folder
    :param config: contents of ``config.json``
    :param summary: contents of ``summary.json``; None if the run was interrupted, or still goes on
    :param progress: columns of ``progress.csv``, each (n_rows,) with n_rows >= 1; NaN where nothing was written
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    progress: dict[str, np.ndarray]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary is not None

    @property
    def is_finetuned(self) -> bool:
        """Whether ``exdm finetune`` wrote it, rather than ``exdm pretrain``."""
        return self.config.get("command") == "finetune"


def read_run(folder: str | Path) -> RunRecord:
    """
    Read a run folder, of a run that was interrupted too.

    :param folder: what ``exdm pretrain`` or ``exdm finetune`` wrote
    :raises ArtifactError: if it is no run folder, damaged, without a single row of progress, or from a newer version
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder." if folder.exists() else f"The run folder {folder} does not exist.")
    config = RunFolder(folder).config
    settings = _FINETUNE_SETTINGS if config.get("command") == "finetune" else _SETTINGS
    missing = [key for key in settings if key not in config]
    if missing:
        raise ArtifactError(f"{folder / CONFIG} does not say {', '.join(missing)}; it may be damaged.")
    summary = read_json(folder / SUMMARY) if (folder / SUMMARY).exists() else None
    return RunRecord(folder, config, summary, _read_progress(folder / PROGRESS))


def default_metric(runs: Sequence[RunRecord]) -> str:
    """
    What to draw of some runs, if nobody says: coverage, or else the rate of successes, or else the return.

    :param runs: the runs
    """
    return next((metric for metric in _METRICS if all(metric in run.progress for run in runs)), _METRICS[0])


def _read_progress(path: Path) -> dict[str, np.ndarray]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"The run in {path.parent} has no {path.name}: it stopped before it wrote any progress.") from None
    except UnicodeDecodeError:
        raise ArtifactError(f"{path} is not text; it may be damaged.") from None
    lines = text.splitlines()
    if lines and not text.endswith("\n"):
        lines.pop()  # a run that was killed, or still goes on, may leave half a row
    if not lines:
        raise ArtifactError(f"{path} is empty: the run stopped before it wrote any progress, or still begins.")
    header, *rows = csv.reader(lines)
    if "timesteps" not in header:
        raise ArtifactError(f"{path} has no column 'timesteps'; it may be damaged.")
    if not rows:
        raise ArtifactError(f"{path} has no rows: the run stopped before it wrote any progress.")
    try:
        values = [[float(cell) if cell else math.nan for cell in row] for row in rows]
        table = np.array(values, dtype=np.float64).reshape(len(rows), len(header))  # (n_rows, n_columns)
    except ValueError:
        raise ArtifactError(f"{path} has a row that is not {len(header)} numbers; it may be damaged.") from None
    if not (np.diff(table[:, header.index("timesteps")], prepend=-1.0) > 0).all():
        raise ArtifactError(f"The timesteps in {path} do not increase; it may be damaged.")
    return dict(zip(header, table.T, strict=True))
