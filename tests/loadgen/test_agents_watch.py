"""`loadgen agents watch`: real agents, on a terminal and elsewhere; and how its lines look."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from loadgen.agents.screen import gpu_rows, host_rows, plain, server_cells

HOSTS = {"local": "node-17", "gpu2": "gpu2"}
LINE: dict[str, Any] = {
    "agents": {"local": "ok", "gpu2": "not reached: no"},
    "hosts": [
        {
            "host": "node-17",
            "cpu_max_busy_pct": 62.4,
            "load1": 3.517,
            "mem_available_b": 22e9,
            "mem_total_b": 25.3e9,
        }
    ],
    "gpus": [
        {
            "host": "node-17",
            "index": 1,
            "uuid": "GPU-1",
            "util_pct": 93.0,
            "sm_pct": None,
            "vram_used_b": 40.25e9,
            "vram_total_b": 80e9,
            "power_w": 331.2,
            "temp_c": 61,
            "sm_mhz": 1980,
        }
    ],
    "server": {"running": 3.0, "waiting": 0.0, "kv_usage_ratio_max": 0.124},
    "simulated": False,
}


def test_figures_have_their_units_and_what_was_not_measured_is_a_dash() -> None:
    assert host_rows(LINE, HOSTS) == [
        ("local", "ok", "62 %", "3.52", "3.3/25.3 GB"),
        ("gpu2", "not reached: no", "-", "-", "-"),
    ]
    assert gpu_rows(LINE) == [("node-17", "1", "93 %", "-", "40.2/80.0 GB", "331 W", "61 °C", "1980 MHz")]
    assert server_cells(LINE) == ("3", "0", "12 %")
    assert server_cells(LINE | {"server": dict.fromkeys(LINE["server"])}) is None


def test_elsewhere_a_host_is_a_line() -> None:
    assert plain(LINE, HOSTS) == [
        "local  ok  busiest CPU 62 %  load 3.52  memory 3.3/25.3 GB  "
        "GPU 1 util 93 % SM - VRAM 40.2/80.0 GB power 331 W temp 61 °C clock 1980 MHz",
        "gpu2  not reached: no",
        "server  running 3  waiting 0  KV cache 12 %",
    ]


def marked(mark: str) -> list[int]:
    """Processes that inherited a variable of the environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_line_a_host_and_second_until_the_time_is_over(loadgen: str, tmp_path: Path) -> None:
    mark = f"WATCH_TEST_MARK={tmp_path}"
    env = {
        **os.environ,
        "LOADGEN_AGENTS": "local,127.0.0.1:1",
        "WATCH_TEST_MARK": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    command = [loadgen, "agents", "watch", "--duration", "1500ms"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["local", "127.0.0.1:1"] * 2
    assert all("  ok  busiest CPU " in line and line.endswith(" GB") for line in lines[::2])
    assert all("connection refused" in line for line in lines[1::2])
    assert list(tmp_path.iterdir()) == []
    assert marked(mark) == []


def test_when_no_host_can_be_watched_it_says_why_and_ends(loadgen: str) -> None:
    command = [loadgen, "agents", "watch", "127.0.0.1:1", "no-such-host.invalid"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (6, "")
    closed, unnamed = ended.stderr.splitlines()
    assert closed.startswith("error: 127.0.0.1:1: ") and "connection refused" in closed
    assert unnamed.startswith("error: no-such-host.invalid: ") and "cannot be resolved" in unnamed


def test_on_a_terminal_it_is_a_table_until_ctrl_c(loadgen: str, tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"COLUMNS": "120", "WATCH_TEST_MARK": str(tmp_path), "TERM": "xterm"}
        os.execv(loadgen, ["loadgen", "agents", "watch", "local"])
    shown, pressed, end = b"", False, time.monotonic() + 20
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # the other side is closed
                break
        if not pressed and b"GB" in shown:
            pressed = True
            os.write(terminal, b"\x03")
    else:
        os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert b"busiest CPU" in shown
    assert b"Traceback" not in shown
    assert marked(f"WATCH_TEST_MARK={tmp_path}") == []
