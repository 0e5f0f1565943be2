"""Wheel and source distribution: built in isolation, the wheel installed and used outside of the repository."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sb3_exdm

ROOT = Path(__file__).parents[1]
SNIPPET = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command without the variables and the paths of this environment; return its output."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | environment
    done = subprocess.run([*map(str, command)], cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Wheel and source distribution; the wheel is built from the latter, without the repository."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.mark.long
def test_distributions_hold_the_package_and_nothing_else(distributions):
    wheel, source = distributions
    names = zipfile.ZipFile(wheel).namelist()
    for expected in ("sb3_exdm/py.typed", "sb3_exdm/version.txt", "sb3_exdm/envs/__init__.py", "sb3_exdm/envs/control/env.py"):
        assert expected in names
    assert any(name.startswith("sb3_exdm/envs/") and name.endswith(".json") for name in names)
    assert {name.split("/")[0] for name in names} == {"sb3_exdm", f"sb3_exdm-{sb3_exdm.__version__}.dist-info"}
    assert any(name.endswith("/LICENSE") for name in names)
    with tarfile.open(source) as archive:
        assert {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1} >= {
            "envs",
            "sb3_exdm",
            "README.md",
        }


@pytest.mark.long
def test_a_fresh_environment_runs_the_first_snippet_and_pretrain(distributions, tmp_path):
    """The dependencies, gigabytes, are those of this environment; the package is the wheel."""
    wheel, _ = distributions
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    Path(packages, "dependencies.pth").write_text("\n".join(dependencies))  # does not read the .pth files there
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    place = run(python, "-c", "import sb3_exdm, sb3_exdm.envs; print(sb3_exdm.__file__, sb3_exdm.envs.__file__)", cwd=tmp_path)
    assert place.count(str(tmp_path)) == 2
    assert SNIPPET is not None
    (tmp_path / "snippet.py").write_text(re.sub(r"learn\([\d_]+", "learn(300", SNIPPET[1]))
    run(python, "snippet.py", cwd=tmp_path, OMP_NUM_THREADS="1")
    exdm = tmp_path / "venv" / "bin" / "exdm"
    flags = "--env Maze2d-SquareA-v0 --steps 2000 --policy-steps 20 --out run --quiet"
    run(exdm, "pretrain", *flags.split(), cwd=tmp_path, OMP_NUM_THREADS="1")
    assert (tmp_path / "run" / "summary.json").is_file()
    assert sb3_exdm.__version__ in run(exdm, "--version", cwd=tmp_path)
