"""
Soak test: repeat runs with checkpoints in one process for a given time, and report what grows.

python examples/experiments/soak.py --minutes 60 --out runs/soak

A pre-training (or fine-tuning) is one run without an end in sight; it is stopped when the time is up. Memory, speed, file
descriptors and child processes are sampled at fixed intervals. After the buffers are full, memory should not grow, and the
speed should not fall.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch as th
import tyro
from stable_baselines3.common.callbacks import BaseCallback
from tyro.conf import arg

import sb3_exdm

COLUMNS = ("seconds", "timesteps", "memory_mb", "descriptors", "children")


class Monitor(BaseCallback):
    """
    Sample the process at fixed intervals, and stop the training when the time is up.

    :param seconds: length of the training
    :param interval: seconds between two samples
    """

    def __init__(self, seconds: float, interval: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.interval = interval
        self.samples: list[tuple[float, ...]] = []

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()

    def _on_step(self) -> bool:
        elapsed = time.perf_counter() - self._start
        if elapsed >= self.interval * len(self.samples):
            self.samples.append((elapsed, self.num_timesteps, *sample_process()))
        return elapsed < self.seconds


def sample_process() -> tuple[float, int, int]:
    """
    Sample this process; Linux only.

    :return: resident memory in MiB, number of open file descriptors, number of child processes
    """
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd")), len(children)


@dataclass
class Soak:
    """Settings."""

    out: Path = Path("runs/soak")
    """Run folder, and the samples beside it."""
    command: Literal["pretrain", "finetune"] = "pretrain"
    """Command to run; a fine-tuning starts from scratch."""
    env: Annotated[str, arg(metavar="ID")] = "Maze2d-SquareA-v0"
    """Environment."""
    minutes: float = 60.0
    """Length of the run."""
    buffer_size: int = 20_000
    """Transitions in the replay buffer, which should be full long before the end."""
    checkpoint_freq: int = 5000
    """Steps between two checkpoints."""
    n_samples: int = 60
    """Samples of the process."""


def soak(settings: Soak) -> np.ndarray:
    """
    Run for the given time.

    :param settings: settings
    :return: samples, ``(n_samples, 5)``, in the columns of :data:`COLUMNS`
    """
    seconds = 60.0 * settings.minutes
    monitor = Monitor(seconds, seconds / settings.n_samples)
    # More steps than any machine makes in the time; the memory of transitions does not hold so many.
    arguments: dict = {"env": settings.env, "total_timesteps": 10**9, "out": settings.out, "overwrite": True}
    arguments |= {"algo_kwargs": {"buffer_size": settings.buffer_size}, "checkpoint_freq": settings.checkpoint_freq}
    arguments |= {"callback": monitor, "progress_bar": False}
    if settings.command == "pretrain":
        sb3_exdm.pretrain(**arguments, policy_steps=0)
    else:
        sb3_exdm.finetune(**arguments, distill_steps=0, eval_freq=10**9)
    return np.array(monitor.samples)


def report(samples: np.ndarray, buffer_size: int) -> str:
    """
    Describe what has grown.

    :param samples: from :func:`soak`
    :param buffer_size: transitions until the replay buffer is full
    """
    seconds, timesteps, memory, descriptors, children = samples.T
    full = int(np.searchsorted(timesteps, buffer_size))
    speed = np.diff(timesteps) / np.diff(seconds)
    lines = [f"{timesteps[-1]:,.0f} steps in {seconds[-1] / 60:.1f} min"]
    if full < len(samples) - 1:
        hours = (seconds[-1] - seconds[full]) / 3600
        growth = memory[-1] - memory[full]
        lines.append(f"memory: {memory[full]:.0f} MiB when the buffer was full, {growth:+.1f} MiB in {hours:.2f} h since")
    else:
        lines.append(f"memory: {memory[-1]:.0f} MiB; the buffer was never full, run longer or choose a smaller one")
    if len(speed) >= 4:
        quarter = len(speed) // 4
        lines.append(
            f"speed: {speed[:quarter].mean():.0f} steps/s in the first quarter, {speed[-quarter:].mean():.0f} in the last"
        )
    lines.append(
        f"file descriptors: {descriptors[0]:.0f} at first, {descriptors.max():.0f} at most, {descriptors[-1]:.0f} at last"
    )
    lines.append(f"child processes: {children[0]:.0f} at first, {children.max():.0f} at most, {children[-1]:.0f} at last")
    return "\n".join(lines)


if __name__ == "__main__":
    th.set_num_threads(1)
    chosen = tyro.cli(Soak, description=__doc__)
    measured = soak(chosen)
    np.savetxt(chosen.out / "soak.csv", measured, delimiter=",", header=",".join(COLUMNS), comments="", fmt="%.6g")
    print(report(measured, chosen.buffer_size))
