"""Host counters from /proc: each file is opened once and read again in place, once a second.

Counters stay raw but for two, whose parts are not sent: `cpu_max_busy_pct` is of the busiest CPU between two samples,
and `disk_busy_ms` adds up how long the busiest disk was busy between them. A disk is what /sys/block names and a device
stands behind: no partition, and no loop, ram, zram, device-mapper or RAID device, whose work is that of disks below it.
A file or line that this kernel does not have gives None. CLOCK_MONOTONIC ns of this host.
"""

import os
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

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
    "diskstats",
)
SECTOR_B = 512  # of /proc/diskstats, whatever the disk's own is

Cpus = Dict[str, Tuple[int, int]]  # name -> (busy ticks, all ticks)


class Disk(NamedTuple):
    read_b: int
    written_b: int
    busy_ms: int


class HostSampler:
    """Keeps the /proc files open, and the CPUs' ticks and the disks' times of the last sample."""

    def __init__(self, root: str = "/proc", block_root: str = "/sys/block") -> None:
        self._open = {name: keep_open(f"{root}/{name}") for name in FILES}
        self._block_root = block_root
        self._is_disk: Dict[str, bool] = {}
        self._cpus: Cpus = {}
        self._disks: Dict[str, Disk] = {}
        self._busy_ms = 0

    def row(self) -> List[Any]:
        t0_ns = time.monotonic_ns()
        texts = {name: read_kept(descriptor) for name, descriptor in self._open.items()}
        t1_ns = time.monotonic_ns()
        values, cpus, devices = parse(texts)
        values["cpu_max_busy_pct"] = busiest(self._cpus, cpus)
        self._cpus = cpus
        disks = {name: device for name, device in devices.items() if self._whole(name)}
        if disks:
            spent_ms = [now.busy_ms - self._disks.get(name, now).busy_ms for name, now in disks.items()]
            self._busy_ms += max(0, *spent_ms)  # a counter that wraps or begins again counts for nothing once
            values["disk_r_b"] = sum(disk.read_b for disk in disks.values())
            values["disk_w_b"] = sum(disk.written_b for disk in disks.values())
            values["disk_busy_ms"] = self._busy_ms
        self._disks = disks
        return [t0_ns, t1_ns] + [values.get(column.name) for column in TABLES["host"][2:]]

    def close(self) -> None:
        for descriptor in self._open.values():
            if descriptor is not None:
                os.close(descriptor)

    def _whole(self, name: str) -> bool:
        known = self._is_disk.get(name)
        if known is None:
            known = self._is_disk[name] = Path(self._block_root, name, "device").exists()
        return known


def parse(texts: Dict[str, str]) -> Tuple[Dict[str, Any], Cpus, Dict[str, Disk]]:
    """Column -> value of the texts of FILES (an empty text is a missing file), each CPU's ticks, each block device."""
    values, cpus = _cpu(texts["stat"])
    if texts["loadavg"]:
        values["load1"] = float(texts["loadavg"].split()[0])
    for name, short in (("cpu", "cpu"), ("io", "io"), ("memory", "mem")):
        for line in texts["pressure/" + name].splitlines():
            share, _, rest = line.partition(" ")
            values[f"psi_{short}_{share}_us"] = int(rest.rpartition("total=")[2])
    for column, key in (("mem_total_b", "MemTotal"), ("mem_available_b", "MemAvailable"), ("swap_free_b", "SwapFree")):
        kib = number_after(texts["meminfo"], key + ":")
        values[column] = None if kib is None else kib * 1024
    values["pgmajfault"] = number_after(texts["vmstat"], "pgmajfault ")
    values.update(_network(texts))
    devices = {}
    for line in texts["diskstats"].splitlines():
        words = line.split(None, 13)
        devices[words[2]] = Disk(int(words[5]) * SECTOR_B, int(words[9]) * SECTOR_B, int(words[12]))
    return values, cpus, devices


def _cpu(stat: str) -> Tuple[Dict[str, Any], Cpus]:
    values: Dict[str, Any] = {}
    cpus: Cpus = {}
    for line in stat.splitlines():
        if line.startswith("cpu"):
            key, *words = line.split(None, 9)[:9]
            ticks = [int(word) for word in words]
            if key == "cpu":
                user, nice, system, idle, iowait, irq, softirq, steal = (ticks + [0] * 8)[:8]
                values.update(cpu_user_ticks=user, cpu_nice_ticks=nice, cpu_sys_ticks=system, cpu_idle_ticks=idle)
                values.update(cpu_iowait_ticks=iowait, cpu_irq_ticks=irq + softirq, cpu_steal_ticks=steal)
            else:
                total = sum(ticks)
                cpus[key] = (total - sum(ticks[3:5]), total)  # idle and iowait are 3 and 4
        elif line.startswith(("ctxt ", "procs_")):
            key, number = line.split()
            values[key] = int(number)
    return values, cpus


def _network(texts: Dict[str, str]) -> Dict[str, Any]:
    values: Dict[str, Any] = {}
    for line in texts["net/dev"].splitlines():
        name, colon, rest = line.partition(":")
        if colon and name.strip() != "lo":
            counters = rest.split()
            for column, places in (("net_rx_b", (0,)), ("net_tx_b", (8,)), ("net_drop", (3, 11))):
                values[column] = values.get(column, 0) + sum(int(counters[place]) for place in places)
    tcp = _paired(texts["net/snmp"], "Tcp: ")
    extended = _paired(texts["net/netstat"], "TcpExt: ")
    values.update(tcp_retrans=tcp.get("RetransSegs"), tcp_outsegs=tcp.get("OutSegs"))
    values.update(tcp_listen_overflows=extended.get("ListenOverflows"), tcp_listen_drops=extended.get("ListenDrops"))
    return values


def busiest(before: Cpus, now: Cpus) -> Optional[float]:
    """Busy share in % of the busiest CPU between two samples; None without a common CPU that ticked."""
    shares = [
        100.0 * (now[name][0] - before[name][0]) / (now[name][1] - before[name][1])
        for name in now
        if name in before and now[name][1] > before[name][1]
    ]
    return min(100.0, max(0.0, *shares)) if shares else None


def number_after(text: str, key: str) -> Optional[int]:
    """The number that follows `key` at the beginning of a line; None without such a line."""
    place = ("\n" + text).find("\n" + key)
    return None if place < 0 else int(text[place + len(key) :].split(None, 1)[0])


def keep_open(path: str) -> Optional[int]:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def read_kept(descriptor: Optional[int]) -> str:
    """All of a file that is kept open; empty where there is none, or where it cannot be read (any more)."""
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


def _paired(text: str, prefix: str) -> Dict[str, int]:
    """Name -> number of a file that has the names in one line and the numbers in the next."""
    lines = [line.split() for line in text.splitlines() if line.startswith(prefix)]
    return {name: int(lines[1][number]) for number, name in enumerate(lines[0]) if number} if len(lines) == 2 else {}
