"""Progress of a run on a terminal of any width, and in a pipe."""

import os
import re
import select
import struct
import subprocess
import sys

import pytest

from sb3_exdm.common.progress import Progress

pty = pytest.importorskip("pty")
fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")

CODE = """
import sys, time
sys.argv[0] = "exdm"  # imports as little as the command
from sb3_exdm.common.progress import Progress
progress = Progress(1000)
for i in range(100):
    if i % 20 == 0:
        progress.describe("coverage", i / 100)
    progress.update(10)
    time.sleep(0.003)
progress.close()
"""


def test_lines_in_a_pipe(capsys):
    progress = Progress(1000)
    for i in range(125):
        if i == 50:
            progress.describe("coverage", 0.31234)
        progress.update(8)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert re.fullmatch(r"104 of 1,000 steps, 00:00 left", lines[0])
    assert re.fullmatch(r"1,000 of 1,000 steps, coverage 0\.312, 00:00 left", lines[-1])


def test_time_left_of_a_resumed_run(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr("sb3_exdm.common.progress.time.perf_counter", lambda: now)
    progress = Progress(1000)
    progress.update(800)  # steps of the run before it was stopped
    now = 30.0
    progress.update(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["800 of 1,000 steps, ? left", "900 of 1,000 steps, 00:30 left"]


def test_bar_of_a_resumed_run_measures_its_own_speed(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress = Progress(1000)
    progress.update(800)
    progress.update(100)
    assert (progress._bar.initial, progress._bar.n) == (800, 900)
    progress.close()


def test_nothing_if_not_wanted(capsys):
    progress = Progress(10, enabled=False)
    progress.update(10)
    progress.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [30, 80, 200])
def test_a_bar_fits_its_terminal(width):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", CODE], stderr=slave, stdout=subprocess.DEVNULL)
    os.close(slave)
    written = b""
    while select.select([master], [], [], 60.0)[0]:
        try:
            written += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    os.close(master)
    assert process.wait() == 0
    frames = [frame for frame in re.split(r"[\r\n]+", re.sub(r"\x1b\[\w", "", written.decode())) if frame.strip()]
    assert frames and max(map(len, frames)) <= width
    last = frames[-1]
    assert last.startswith("100% ") and "coverage 0.8" in last
    assert ("left" in last and "step/s" in last) or width == 30
