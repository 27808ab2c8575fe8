"""What an agent costs its host with eight GPUs at 10 Hz, beside the obvious loop of pynvml's getters and psutil.

    python -m benchmarks.agent_cost --seconds 30

The GPUs are those of the tests' C library, so the driver costs next to nothing: what is left is the agent's own. CPU
and memory are the kernel's count of its process, bytes are those of its link, lateness is what it says itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.engine import machine
from benchmarks.figures import table
from remote_agents.agent.protocol import ACK, BYE, HELLO, MAGIC, SAMPLE, START, STOP, Decoder, encode
from remote_agents.agent.sample import TABLES
from remote_agents.deploy import bootstrapped
from tests.remote_agents.stub import nvml_stub

GPUS = 8
WARM_S = 3.0
PEER = Path(__file__).parent / "peers" / "getters.py"
COLUMNS = (
    ("client", "what"),
    ("cpu_pct", "CPU, % of a core"),
    ("rss_mb", "memory, MB"),
    ("kb_per_s", "KB/s sent"),
    ("late_ms", "tick lateness p99, ms"),
    ("ticks", "ticks/s"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="how long each is measured (30)")
    seconds = parser.parse_args().seconds
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        environment = os.environ | {"LD_LIBRARY_PATH": str(nvml_stub(Path(folder))), "STUB_GPUS": str(GPUS)}
        rows = [agent(environment, seconds), getters(environment, seconds)]
    print(f"{machine('python -m benchmarks.agent_cost', load_average)}\n\n{table(COLUMNS, rows)}")


def agent(environment: dict[str, str], seconds: float) -> dict[str, Any]:
    """Deployed as over SSH, by way of a shell and from memory."""
    command, before = bootstrapped()
    start = dict.fromkeys(("name", "token", "gpus", "metrics_url", "metrics_token", "dcgm_url", "telemetry_url"))
    start |= {"server_port": None, "metrics_map": [], "received": 0, "lease_s": 0, "max_lifetime_s": seconds + 30}
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", command], stdin=pipe, stdout=pipe, env=environment, bufsize=0) as process:
        assert process.stdin and process.stdout
        process.stdin.write(before + MAGIC + encode(START, start))
        decoder, names = Decoder(), [column.name for column in TABLES["agent"]]
        costs: list[dict[str, Any]] = []
        size = size_then = pid = 0
        asked = 0.0
        cpu_s = began = 0.0
        stopping = False
        while data := os.read(process.stdout.fileno(), 1 << 16):
            now = time.monotonic()
            size += len(data)
            for frame in decoder.feed(data):
                if frame.kind == HELLO:
                    pid = frame.body["pid"]
                if frame.kind == SAMPLE and frame.body[0] == "agent":
                    costs.append(dict(zip(names, frame.body[2][0], strict=True)))
                stopping |= frame.kind == BYE
            if now - asked > 1:
                asked = now
                process.stdin.write(encode(ACK, {"received": decoder.received}))
            if not began and len(costs) > WARM_S:
                began, size_then, cpu_s = now, size, cpu_of(pid)
                costs.clear()
            if began and not stopping and now - began > seconds:
                stopping = True
                used_s, took_s = cpu_of(pid) - cpu_s, now - began
                sent_b, rss_b = size - size_then, rss_of(pid)
                process.stdin.write(encode(STOP, {}))
    ticks = (costs[-1]["ticks"] - costs[0]["ticks"]) / ((costs[-1]["t0_mono_ns"] - costs[0]["t0_mono_ns"]) / 1e9)
    return {
        "client": "the agent: GPUs and host",
        "cpu_pct": 100 * used_s / took_s,
        "rss_mb": rss_b / 1e6,
        "kb_per_s": sent_b / took_s / 1e3,
        "late_ms": sorted(row["tick_late_us_p99"] for row in costs)[len(costs) // 2] / 1e3,
        "ticks": ticks,
    }


def getters(environment: dict[str, str], seconds: float) -> dict[str, Any]:
    with subprocess.Popen(
        [sys.executable, str(PEER), str(WARM_S + seconds + 5)], stdout=subprocess.PIPE, env=environment, bufsize=0
    ) as process:
        assert process.stdout
        size, began, ends = 0, 0.0, time.monotonic() + WARM_S
        ticks = cpu_s = 0.0
        while data := os.read(process.stdout.fileno(), 1 << 16):
            now = time.monotonic()
            if not began and now > ends:
                began, cpu_s = now, cpu_of(process.pid)
            elif began:
                size += len(data)
                ticks += data.count(b"\n")
                if now - began > seconds:
                    break
        used_s, took_s, rss_b = cpu_of(process.pid) - cpu_s, time.monotonic() - began, rss_of(process.pid)
        process.terminate()
    return {
        "client": "pynvml's getters and psutil",
        "cpu_pct": 100 * used_s / took_s,
        "rss_mb": rss_b / 1e6,
        "kb_per_s": size / took_s / 1e3,
        "ticks": ticks / took_s,
    }


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def rss_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
