"""Versions of the packages that dm_control tasks need, checked before any of them is imported."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module, metadata

NEEDED: dict[str, tuple[str, str]] = {"dm_control": ("1.0.50", "2"), "mujoco": ("3.17", "4"), "shimmy": ("2.0", "3")}
"""First supported and first unsupported version. dm_control 1.0.50 fails with mujoco 4, and with versions before 3.17."""


def check_versions() -> None:
    """
    Check that the packages of the extra ``dmc`` are installed, in supported versions.

    :raises ImportError: if one is missing or its version is not supported
    """
    for package, (first, too_new) in NEEDED.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise ImportError(
                f'The dm_control tasks need {package}, which is not installed: pip install "sb3-exdm[dmc]".'
            ) from None
        if not _numbers(first) <= _numbers(version) < _numbers(too_new):
            raise ImportError(
                f"The dm_control tasks need {package} of version {first} or newer, but older than {too_new}; {version} is "
                f'installed: pip install "{package}>={first},<{too_new}".'
            )


def choose_renderer() -> None:
    """
    Select EGL where there is no screen and ``MUJOCO_GL`` is not set, because MuJoCo would try to open a window. Rendering is
    disabled where EGL is missing. Must be called before dm_control is imported.
    """
    if sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"} & os.environ.keys():
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        import_module("mujoco")
        import_module("dm_control._render")
    except Exception:  # each missing library raises another type
        os.environ["MUJOCO_GL"] = "disabled"


def _numbers(version: str) -> tuple[int, ...]:
    """``"3.17.0rc1"`` as ``(3, 17, 0)``."""
    found = re.match(r"\d+(\.\d+)*", version)
    return () if found is None else tuple(int(part) for part in found.group().split("."))
