"""Resources of the machine: memory, devices, threads and output paths."""

import errno
import os
import tempfile
from pathlib import Path

import torch as th
from stable_baselines3.common.utils import get_device

from sb3_exdm.common.validation import Threads, check_value, shown

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices that models can be on."""

MAX_NAME = 200
"""Most bytes in the name of a file, with room for what temporary names add; file systems allow 255."""


def resolve_device(device: th.device | str) -> th.device:
    """
    Read a PyTorch device.

    :param device: device, or its name; ``"auto"`` for CUDA where available
    :raises ValueError: for an unknown device, or one that is not there
    """
    if device == "auto":
        return get_device("auto")
    try:
        resolved = th.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"Unknown device {shown(device)}: {str(error).splitlines()[0]}") from None
    if resolved.type not in DEVICES:
        raise ValueError(f"Unknown device {shown(device)}; choose auto, {', '.join(DEVICES)}.")
    try:
        th.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"The device {str(device)!r} is not there ({str(error).splitlines()[0]}); choose cpu, or auto for the best one."
        ) from None
    return resolved


def use_threads(n_threads: int) -> None:
    """
    Limit the threads of PyTorch.

    :param n_threads: number of threads
    :raises ValueError: for fewer than one, or so many that the system has none left
    """
    check_value("threads", n_threads, Threads)
    th.set_num_threads(n_threads)


def available_memory() -> int | None:
    """Bytes that can be allocated, within the limit of a container; None where the system does not report them."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = meminfo.read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        found.append(int(limit.read_text()) - int(used.read_text()))
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def check_memory(n_bytes: int, what: str, advice: str) -> None:
    """
    Refuse what cannot fit in memory, before it is allocated.

    :param n_bytes: bytes that it takes at least
    :param what: what takes them, in the error message
    :param advice: what to do about it
    :raises ValueError: if there is less memory
    """
    available = available_memory()
    if available is not None and n_bytes > available:
        raise ValueError(
            f"{what} takes {n_bytes / 2**30:,.1f} GiB of memory, {available / 2**30:,.1f} GiB are free; {advice}."
        )


def check_output(path: str | Path) -> Path:
    """
    Check that a file or folder can be written, without leaving anything behind.

    :param path: file or folder, which need not exist
    :raises ValueError: for an empty path, or one that no system allows
    :raises OSError: if nothing can be written there
    """
    if not str(path).strip():
        raise ValueError("The output path is empty; name a file or a folder.")
    if "\0" in str(path):
        raise ValueError("The output path holds a null character.")
    path = Path(path)
    for part in path.parts:
        if len(os.fsencode(part)) > MAX_NAME:
            raise ValueError(f"A name in the output path is longer than {MAX_NAME} bytes: {shown(part)}.")
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    if folder.is_dir():
        try:  # permissions do not tell: root has all, and some file systems take no file
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, f"Cannot write there ({error.strerror})", str(path)) from None
    elif folder != path.absolute():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return path
