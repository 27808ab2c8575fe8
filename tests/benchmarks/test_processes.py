"""A client under measurement: CPU time of its whole family, its cores, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import Client

CORE = min(os.sched_getaffinity(0))
# Its child takes a second and a half of CPU time, says so, and stays.
FAMILY = """
import subprocess, sys, time
code = "import os, time\\nwhile time.process_time() < 1.5: pass\\nprint(os.getpid(), flush=True)\\ntime.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code, "child"])
time.sleep(60)  # and never asks what became of it
"""


def _said(output: Path) -> str:
    deadline = time.monotonic() + 30
    while not output.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return output.read_text()


def test_a_family_is_measured_and_then_gone(tmp_path: Path) -> None:
    begin = time.time_ns()
    with Client([sys.executable, "-c", FAMILY], CORE, tmp_path / "output") as client:
        child = int(_said(tmp_path / "output"))
        time.sleep(1.2)  # it is looked at twice a second
        now = time.time_ns()
        os.kill(child, signal.SIGKILL)
        time.sleep(1.2)  # a zombie now, without a command line
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    # What it took before it was first seen is not known: half a second's at most.
    taken = client.cpu_s(begin, now, lambda line: line.split()[-1:] == ["child"])
    assert 0.9 <= taken <= 1.7
    assert client.cpu_s(begin, now) >= taken
    assert client.cpu_s(now, now) == 0.0


def test_a_process_may_be_sent_to_another_core(tmp_path: Path) -> None:
    other = max(os.sched_getaffinity(0))
    command = [sys.executable, "-c", "import time; time.sleep(30)", "worker"]
    with Client(
        command, CORE, tmp_path / "output", elsewhere=lambda line: other if "worker" in line else None
    ) as client:
        time.sleep(1.2)
        assert os.sched_getaffinity(client.pid) == {other}


def test_a_client_that_fails_shows_its_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such option')"]
    with Client(command, CORE, tmp_path / "output") as client, pytest.raises(RuntimeError, match="no such option"):
        client.wait(30)


def test_a_client_that_does_not_end_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with Client(command, CORE, tmp_path / "output") as client, pytest.raises(RuntimeError, match="did not end within"):
        client.wait(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(client.pid, 0)
