"""Host counters from /proc: each file is opened once and read again in place, once a second.

Counters stay raw; only the busiest CPU is a difference, since its parts are not sent. A file or line that this kernel
does not have gives None. CLOCK_MONOTONIC ns of this host.
"""

import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from remote_agents.agent.sample import TABLES

FILES = (
    "stat",
    "loadavg",
    "pressure/cpu",
    "pressure/io",
    "pressure/memory",
    "meminfo",
    "vmstat",
    "net/dev",
    "net/snmp",
    "net/netstat",
)

Cpus = Dict[str, Tuple[int, int]]  # name -> (busy ticks, all ticks)


class HostSampler:
    """Keeps the /proc files open, and the CPU ticks of the last sample."""

    def __init__(self, root: str = "/proc") -> None:
        self._open = {name: _open(Path(root, name)) for name in FILES}
        self._cpus: Cpus = {}

    def row(self) -> List[Any]:
        t0_ns = time.monotonic_ns()
        texts = {name: _read(descriptor) for name, descriptor in self._open.items()}
        t1_ns = time.monotonic_ns()
        values, cpus = parse(texts)
        values["cpu_max_busy_pct"] = busiest(self._cpus, cpus)
        self._cpus = cpus
        return [t0_ns, t1_ns] + [values.get(column.name) for column in TABLES["host"][2:]]

    def close(self) -> None:
        for descriptor in self._open.values():
            if descriptor is not None:
                os.close(descriptor)


def parse(texts: Dict[str, str]) -> Tuple[Dict[str, Any], Cpus]:
    """Column -> value of the texts of FILES (an empty text is a missing file), and each CPU's ticks."""
    values: Dict[str, Any] = {}
    cpus: Cpus = {}
    for line in texts["stat"].splitlines():
        key, _, rest = line.partition(" ")
        if key.startswith("cpu"):
            user, nice, system, idle, iowait, irq, softirq, steal = ([int(word) for word in rest.split()] + [0] * 8)[:8]
            if key == "cpu":
                values.update(cpu_user_ticks=user, cpu_nice_ticks=nice, cpu_sys_ticks=system, cpu_idle_ticks=idle)
                values.update(cpu_iowait_ticks=iowait, cpu_irq_ticks=irq + softirq, cpu_steal_ticks=steal)
            else:
                busy = user + nice + system + irq + softirq + steal
                cpus[key] = (busy, busy + idle + iowait)
        elif key in ("ctxt", "procs_running", "procs_blocked"):
            values[key] = int(rest)
    if texts["loadavg"]:
        values["load1"] = float(texts["loadavg"].split()[0])
    for name, short in (("cpu", "cpu"), ("io", "io"), ("memory", "mem")):
        for line in texts["pressure/" + name].splitlines():
            share, _, rest = line.partition(" ")
            values[f"psi_{short}_{share}_us"] = int(rest.rpartition("total=")[2])
    memory = dict(line.split(":", 1) for line in texts["meminfo"].splitlines() if ":" in line)
    for column, key in (("mem_total_b", "MemTotal"), ("mem_available_b", "MemAvailable"), ("swap_free_b", "SwapFree")):
        if key in memory:
            values[column] = int(memory[key].split()[0]) * 1024
    for line in texts["vmstat"].splitlines():
        if line.startswith("pgmajfault "):
            values["pgmajfault"] = int(line.split()[1])
    for line in texts["net/dev"].splitlines():
        name, colon, rest = line.partition(":")
        if colon and name.strip() != "lo":
            counters = rest.split()
            values["net_rx_b"] = values.get("net_rx_b", 0) + int(counters[0])
            values["net_tx_b"] = values.get("net_tx_b", 0) + int(counters[8])
    tcp = _paired(texts["net/snmp"], "Tcp:")
    extended = _paired(texts["net/netstat"], "TcpExt:")
    values.update(tcp_retrans=tcp.get("RetransSegs"), tcp_outsegs=tcp.get("OutSegs"))
    values.update(tcp_listen_overflows=extended.get("ListenOverflows"), tcp_listen_drops=extended.get("ListenDrops"))
    return values, cpus


def busiest(before: Cpus, now: Cpus) -> Optional[float]:
    """Busy share in % of the busiest CPU between two samples; None without a common CPU that ticked."""
    shares = [
        100.0 * (now[name][0] - before[name][0]) / (now[name][1] - before[name][1])
        for name in now
        if name in before and now[name][1] > before[name][1]
    ]
    return min(100.0, max(0.0, *shares)) if shares else None


def _paired(text: str, prefix: str) -> Dict[str, int]:
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith(prefix)]
    return {name: int(lines[1][number]) for number, name in enumerate(lines[0])} if len(lines) == 2 else {}


def _open(path: Path) -> Optional[int]:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _read(descriptor: Optional[int]) -> str:
    if descriptor is None:
        return ""
    parts: List[bytes] = []
    offset = 0
    try:
        while True:  # /proc/net files come a page at a time
            part = os.pread(descriptor, 1 << 17, offset)
            if not part:
                return b"".join(parts).decode(errors="replace")
            parts.append(part)
            offset += len(part)
    except OSError:  # pressure files exist but cannot be read where the kernel has them switched off
        return ""
