"""The checks of ``exdm doctor``. Each returns what it found and, where something is wrong, the command that mends it."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sb3_exdm.doctor import probes

DISTRIBUTION = "sb3-exdm"

OK, OPTIONAL, BROKEN = "ok", "optional", "broken"

EXTRAS = {
    "benchmark": "exdm report and exdm benchmark",
    "dmc": "the robots of URLB",
    "robotics": "the environments of gymnasium-robotics",
    "video": "videos of agents",
    "hub": "exdm push and exdm pull",
    "minari": "data sets of Minari",
    "ray": "benchmarks on a Ray cluster",
}
"""Extras of the distribution that users install, and what needs them."""

OPENGL = ("glfw", "egl", "osmesa")
"""Ways in which MuJoCo can render, in the order in which dm_control tries them."""

_LEAST_SPACE = 2**30  # bytes


@dataclass(frozen=True)
class Check:
    """
    Result of a check.

    :param name: subject
    :param status: ``"ok"``; ``"optional"`` if something that ``exdm pretrain`` does not need is missing; ``"broken"``
    :param found: finding, a short phrase
    :param remedy: command or sentence that mends it; empty if there is nothing to mend
    """

    name: str
    status: str
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Fields as plain data."""
        return asdict(self)


def examine(out: str | Path = "runs") -> list[Check]:
    """
    Check the installation. Nothing that is broken raises an error; nothing is written.

    :param out: folder in which run folders are to be written
    :return: checks; ``exdm pretrain`` can run if none of them is ``"broken"``
    """
    imports = probes.start(probes.imports)
    opengl = {name: probes.start(probes.render, MUJOCO_GL=name) for name in OPENGL} if _has("mujoco") else {}
    checks = [_python(), *_packages()]
    found = probes.findings(imports)
    checks += [*_imports(found), *_device(found), _threads(found), *_folders(Path(out)), *_extras()]
    checks.append(_opengl([name for name, probe in opengl.items() if _succeeded(probes.findings(probe))]))
    return checks


def _has(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _python() -> Check:
    return Check("python", OK, f"{platform.python_version()}, {sys.platform}-{platform.machine()}, {sys.executable}")


def _packages() -> Iterator[Check]:
    """The distribution itself, and the packages that it cannot do without."""
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield Check(DISTRIBUTION, BROKEN, "not installed", "pip install -e . in the folder with setup.py")
        return
    yield Check(DISTRIBUTION, OK, f"{version}, {Path(__file__).parents[1]}")
    for requirement in _requirements(DISTRIBUTION):
        problem = _problem(requirement)
        name = requirement.name
        yield Check(name, OK, metadata.version(name)) if problem is None else Check(name, BROKEN, problem, _pip(requirement))


def _requirements(distribution: str, extra: str = "") -> list[Any]:
    """Requirements of a distribution, or of one of its extras alone."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # a dependency of matplotlib; without it, the imports tell what is missing
        return []
    found = []
    for text in metadata.requires(distribution) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            belongs = not extra
        else:
            belongs = bool(extra) and marker.evaluate({"extra": extra})
        if belongs:
            found.append(requirement)
    return found


def _problem(requirement: Any) -> str | None:
    """Say why a requirement is not met; None if it is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{version}, but {requirement.specifier} is needed"
    for extra in requirement.extras:
        for part in _requirements(requirement.name, extra):
            if problem := _problem(part):
                return f"{part.name} {problem}"
    return None


def _pip(requirement: Any) -> str:
    return f'pip install "{requirement.name}{requirement.specifier}"'


def _imports(found: list[dict[str, Any]]) -> Iterator[Check]:
    """Check that ``exdm pretrain`` can be imported and a maze be stepped."""
    if any("ready" in finding for finding in found):
        yield Check("exdm pretrain", OK, "imports, and steps a maze")
        return
    last = [finding["importing"] for finding in found if "importing" in finding]
    broken = next((finding for finding in found if "broken" in finding), None)
    if broken is None:
        broken = {"broken": last[-1] if last else "python", "because": (found or [{}])[-1].get("error", "no answer")}
    name, reason = broken["broken"], " ".join(broken["because"].split())
    package = {"stable_baselines3": "stable-baselines3", "sb3_exdm": DISTRIBUTION}.get(name, name)
    yield Check("exdm pretrain", BROKEN, f"import {name} failed: {reason}", f"pip install --force-reinstall {package}")


def _device(found: list[dict[str, Any]]) -> Iterator[Check]:
    torch = next((finding for finding in found if "gpus" in finding), None)
    if torch is None:
        return
    if torch["gpus"]:
        yield Check("GPU", OK, f"{', '.join(torch['gpus'])} (CUDA {torch['cuda_build']})")
    elif torch["cuda_build"] is None and shutil.which("nvidia-smi"):
        yield Check("GPU", OPTIONAL, "a driver is installed, but PyTorch was built without CUDA", "pip install torch for CUDA")
    else:
        yield Check("GPU", OK, "none; a CPU is enough")


def _threads(found: list[dict[str, Any]]) -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = next((f", PyTorch's default is {finding['threads']}" for finding in found if "threads" in finding), "")
    limit = f", OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else ""
    return Check("threads", OK, f"{cores} cores{torch}{limit}; exdm uses 1 unless --threads says otherwise")


def _folders(out: Path) -> Iterator[Check]:
    """Check that run folders and temporary files can be written."""
    yield _folder("run folders", out.absolute(), "Name another folder: exdm pretrain --out FOLDER.")
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError as error:
        yield Check("temporary files", BROKEN, str(error), "Set TMPDIR to a folder that can be written.")
    else:
        yield _folder("temporary files", temporary, "Set TMPDIR to another folder.")


def _folder(name: str, path: Path, remedy: str) -> Check:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        # Permissions do not tell everything: a file system may be read-only, or full.
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"0")
    except OSError as error:
        return Check(name, BROKEN, f"{path} cannot be written: {error.strerror}", remedy)
    free = shutil.disk_usage(existing).free
    if free < _LEAST_SPACE:
        return Check(name, BROKEN, f"{path} has only {free / 2**20:.0f} MiB left", remedy)
    return Check(name, OK, f"{path}, {free / 2**30:.0f} GiB free")


def _extras() -> Iterator[Check]:
    """Optional packages."""
    known = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or [] if _has(DISTRIBUTION) else []
    for extra in (name for name in EXTRAS if name in known):
        requirements = _requirements(DISTRIBUTION, extra)
        problems = [f"{requirement.name} {problem}" for requirement in requirements if (problem := _problem(requirement))]
        if problems:
            found = f"{'; '.join(problems)} (for {EXTRAS[extra]})"
            yield Check(f"[{extra}]", OPTIONAL, found, f'pip install "{DISTRIBUTION}[{extra}]"')
        else:
            shown = ", ".join(f"{requirement.name} {metadata.version(requirement.name)}" for requirement in requirements)
            yield Check(f"[{extra}]", OK, f"{shown} (for {EXTRAS[extra]})")


def _succeeded(found: list[dict[str, Any]]) -> bool:
    return any("rendered" in finding for finding in found)


def _opengl(working: list[str]) -> Check:
    """Check that MuJoCo can render, for videos of robots and observations that are images."""
    if not _has("mujoco"):
        return Check("OpenGL", OPTIONAL, "not tried without MuJoCo", f'pip install "{DISTRIBUTION}[dmc]"')
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    said = f"MUJOCO_GL={chosen}" if chosen else "MUJOCO_GL is not set"
    if not working:
        remedy = "Install libEGL (Debian: libegl1) and set MUJOCO_GL=egl, or libOSMesa (libosmesa6) and MUJOCO_GL=osmesa."
        return Check("OpenGL", OPTIONAL, f"MuJoCo cannot render ({said})", remedy)
    if chosen and chosen not in working:
        found = f"MuJoCo cannot render with {said}, but with {' or '.join(working)}"
        return Check("OpenGL", OPTIONAL, found, f"export MUJOCO_GL={working[0]}")
    return Check("OpenGL", OK, f"MuJoCo renders with {' or '.join(working)} ({said})")
