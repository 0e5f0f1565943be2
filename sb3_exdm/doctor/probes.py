"""
What a check imports or calls in a process of its own, because it may crash.

A probe prints a line of JSON for each finding, at once, so that a crash loses only what would have come after it.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

TIMEOUT = 60.0
"""Seconds after which a probe is ended."""

MODULES = ("numpy", "torch", "gymnasium", "stable_baselines3", "safetensors", "matplotlib", "tensorboard", "tqdm", "tyro")
"""Modules without which ``exdm pretrain`` does not start, in the order in which they are imported."""


def start(probe: Callable[[], None], **environment: str) -> subprocess.Popen:
    """
    Start a probe in a process of its own, with the search path of this one.

    :param probe: function of this module
    :param environment: changes to the environment variables
    """
    # The first argument keeps the package from importing PyTorch before the probe says so.
    code = f"import sys; sys.path[:] = {sys.path!r}; sys.argv[0] = 'exdm'; import {__name__} as p; p.{probe.__name__}()"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def findings(process: subprocess.Popen) -> list[dict[str, Any]]:
    """
    Wait for a probe.

    :param process: from :func:`start`
    :return: its findings; the last one has the key ``error`` if the process crashed or took longer than :data:`TIMEOUT`
    """
    try:
        printed, complaint = process.communicate(timeout=TIMEOUT)
        failure = None if process.returncode == 0 else _reason(process.returncode, complaint)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
        failure = f"no answer within {TIMEOUT:.0f} s"
    found = []
    for line in printed.splitlines():
        if line.startswith("{"):  # other lines are from the imported packages
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found if failure is None else [*found, {"error": failure}]


def _reason(code: int, complaint: str) -> str:
    lines = complaint.strip().splitlines()
    ended = f"the process was ended by signal {-code}" if code < 0 else f"the process ended with exit code {code}"
    return f"{ended}: {lines[-1]}" if lines else ended


def _tell(**finding: Any) -> None:
    print(json.dumps(finding), flush=True)


def imports() -> None:
    """Import what ``exdm pretrain`` imports, step a maze, and describe PyTorch."""
    for name in MODULES:
        _tell(importing=name)
        try:
            importlib.import_module(name)
        except Exception as error:
            _tell(broken=name, because=f"{type(error).__name__}: {error}")
            return
    import torch as th

    _tell(
        threads=th.get_num_threads(),
        cuda_build=th.version.cuda,
        gpus=[th.cuda.get_device_name(i) for i in range(th.cuda.device_count())] if th.cuda.is_available() else [],
    )
    _tell(importing="sb3_exdm")
    try:
        importlib.import_module("sb3_exdm.cli.pretrain")
        import gymnasium as gym

        env = gym.make("Maze2d-SquareA-v0")
        env.reset(seed=0)
        env.step(env.action_space.sample())
        env.close()
    except Exception as error:
        _tell(broken="sb3_exdm", because=f"{type(error).__name__}: {error}")
        return
    _tell(ready=True)


def render() -> None:
    """Render an empty scene with MuJoCo, by the OpenGL that ``MUJOCO_GL`` names."""
    import mujoco

    with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16) as renderer:
        renderer.render()
    _tell(rendered=True)
