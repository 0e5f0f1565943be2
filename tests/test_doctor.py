"""``exdm doctor``: what it finds, what it recommends, and that nothing makes it crash."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from sb3_exdm.cli import main
from sb3_exdm.cli.doctor import describe
from sb3_exdm.doctor import Check, checks, examine, probes


@pytest.fixture(autouse=True)
def without_opengl(monkeypatch):
    """MuJoCo is not tried, which takes a second."""
    monkeypatch.setattr(checks, "OPENGL", ())


def by_name(found):
    return {check.name: check for check in found}


def doctor(capsys, *flags):
    """Exit code and printed text of the command."""
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *flags])
    return stop.value.code, capsys.readouterr().out


@pytest.fixture
def shadow(tmp_path, monkeypatch):
    """Replace a package by a file with some code, for the probes."""

    def write(name, code):
        (tmp_path / "shadow").mkdir(exist_ok=True)
        (tmp_path / "shadow" / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path / "shadow")

    return write


@pytest.mark.slow
def test_a_sound_installation(capsys, tmp_path):
    code, text = doctor(capsys, "--json", "--out", str(tmp_path / "runs"))
    found = json.loads(text)
    assert code == 0 and found["can_run"]
    status = {check["name"]: check["status"] for check in found["checks"]}
    assert status["exdm pretrain"] == status["torch"] == status["run folders"] == "ok"
    assert {"GPU", "threads", "OpenGL", "[dmc]", "[hub]"} <= set(status)
    assert not (tmp_path / "runs").exists(), "nothing is written"


@pytest.mark.parametrize(
    "code, reason",
    [
        ("raise ImportError('libtorch.so: cannot open')", "import torch failed: ImportError: libtorch.so: cannot open"),
        ("raise OSError('wrong ELF class')", "import torch failed: OSError: wrong ELF class"),
        ("import os; os.abort()", "import torch failed: the process was ended by signal 6"),
        ("import sys; sys.exit(3)", "import torch failed: the process ended with exit code 3"),
    ],
)
def test_a_broken_import_is_found(shadow, capsys, code, reason):
    shadow("torch", code)
    status, text = doctor(capsys)
    assert status == 1
    text = " ".join(text.split())
    assert reason in text
    assert "-> pip install --force-reinstall torch" in text
    assert "exdm pretrain cannot run: see exdm pretrain." in text


def test_a_probe_that_hangs_is_ended(shadow, monkeypatch):
    monkeypatch.setattr(probes, "TIMEOUT", 0.5)
    shadow("torch", "import time; time.sleep(60)")
    assert "no answer within" in by_name(examine())["exdm pretrain"].found


@pytest.fixture
def no_probe(monkeypatch):
    """The checks that need no process of their own."""
    monkeypatch.setattr(probes, "start", lambda probe: None)
    monkeypatch.setattr(probes, "findings", lambda process: [{"gpus": [], "cuda_build": None, "threads": 1}, {"ready": True}])


@pytest.mark.usefixtures("no_probe")
class TestPackages:
    @pytest.fixture
    def versions(self, monkeypatch):
        """Change the versions of installed packages; None for one that is not installed."""
        changed, real = {}, metadata.version

        def version(name):
            if changed.get(name, "") is None:
                raise metadata.PackageNotFoundError(name)
            return changed.get(name) or real(name)

        monkeypatch.setattr(checks.metadata, "version", version)
        return changed

    def test_a_version_out_of_range(self, versions):
        versions["gymnasium"] = "0.29.1"
        check = by_name(examine())["gymnasium"]
        assert check.status == "broken" and check.found.startswith("0.29.1, but ")
        assert check.remedy == 'pip install "gymnasium<2.0,>=1.1"'

    def test_a_missing_package(self, versions):
        versions["tqdm"] = None
        check = by_name(examine())["tqdm"]
        assert (check.status, check.found, check.remedy) == ("broken", "not installed", 'pip install "tqdm>=4.60"')

    def test_a_missing_extra_is_no_obstacle(self, versions):
        versions["joblib"] = None
        found = examine()
        check = by_name(found)["[benchmark]"]
        assert check.status == "optional" and check.remedy == 'pip install "sb3-exdm[benchmark]"'
        assert check.found == "joblib not installed (for exdm report and exdm benchmark)"
        assert not any(check.status == "broken" for check in found)

    def test_the_extra_of_a_requirement(self, versions):
        versions["h5py"] = None
        assert by_name(examine())["[minari]"].found.startswith("minari h5py not installed")

    def test_the_library_itself(self, versions):
        versions["sb3-exdm"] = None
        check = by_name(examine())["sb3-exdm"]
        assert check.status == "broken" and "pip install -e ." in check.remedy

    def test_every_extra_for_users_is_described(self):
        known = set(metadata.metadata("sb3-exdm").get_all("Provides-Extra"))
        assert known - {"tests", "docs", "all"} <= set(checks.EXTRAS)


@pytest.mark.usefixtures("no_probe")
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    check = by_name(examine(tmp_path / "file" / "runs"))["run folders"]
    assert check.status == "broken" and "cannot be written" in check.found and "--out" in check.remedy


@pytest.mark.parametrize(
    "chosen, working, status, words",
    [
        ("", ["egl"], "ok", "MuJoCo renders with egl (MUJOCO_GL is not set)"),
        ("egl", ["egl", "osmesa"], "ok", "MuJoCo renders with egl or osmesa (MUJOCO_GL=egl)"),
        ("glfw", ["osmesa"], "optional", "export MUJOCO_GL=osmesa"),
        ("", [], "optional", "libegl1"),
    ],
)
def test_opengl(monkeypatch, chosen, working, status, words):
    pytest.importorskip("mujoco")
    monkeypatch.setenv("MUJOCO_GL", chosen)
    check = checks._opengl(working)
    assert check.status == status and words in f"{check.found} {check.remedy}"


def test_lines_fit_the_terminal():
    text = describe([Check("name", "ok", "word " * 40), Check("path", "optional", "missing", "pip install x")], 60)
    assert max(map(len, text.splitlines())) <= 60
    assert "-> pip install x" in text


def test_the_module_is_as_robust_as_the_command(tmp_path):
    """``python -m sb3_exdm`` imports nothing that may be broken either."""
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    said = subprocess.run([sys.executable, "-m", "sb3_exdm", "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.startswith("exdm "), said.stderr
