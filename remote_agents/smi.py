"""For a host without Python: the stream of `nvidia-smi -lms`, turned into the frames of an agent.

A row's values were read some time in the second before it came, which is what its stamps say; they are CLOCK_MONOTONIC
ns of this host, and so is the clock that its files name. No host counters, no clock probes, nothing is kept for a link
that breaks.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import Any

import paramiko

from remote_agents.agent.kernel_clock import boot_id
from remote_agents.agent.protocol import HELLO, MAGIC, SAMPLE, WELCOME, encode
from remote_agents.agent.sample import SCHEMA, TABLES
from remote_agents.ssh import Connection
from remote_agents.ssh_transport import BROKEN

PERIOD_NS = 1_000_000_000
# nvidia-smi's name, table, column, factor
FIELDS = (
    ("utilization.gpu", "gpu_fast", "util_pct", 1),
    ("memory.total", "gpu_fast", "mem_total_b", 1 << 20),
    ("memory.used", "gpu_fast", "mem_used_b", 1 << 20),
    ("memory.free", "gpu_fast", "mem_free_b", 1 << 20),
    ("memory.reserved", "gpu_fast", "mem_reserved_b", 1 << 20),
    ("power.draw", "gpu_fast", "power_mw", 1000),
    ("enforced.power.limit", "gpu_slow", "power_limit_mw", 1000),
    ("clocks.sm", "gpu_slow", "sm_mhz", 1),
    ("clocks.mem", "gpu_slow", "mem_mhz", 1),
    ("temperature.gpu", "gpu_slow", "temp_c", 1),
)
SMI_COMMAND = (
    f"nvidia-smi --query-gpu=index,uuid,name,driver_version,{','.join(name for name, *_ in FIELDS)} "
    f"--format=csv,noheader,nounits -lms {PERIOD_NS // 1_000_000}"
)
_MAX_LINE_B = 4096
_REASON = "nvidia-smi does not tell"
_WHAT = "read through nvidia-smi, once a second: there is no Python 3.8 or later on this host"


class SmiWire:
    """The connection is the wire's own."""

    is_local = False

    def __init__(self, connection: Connection, channel: paramiko.Channel, name: str) -> None:
        self.peer = connection.peer
        self._connection = connection
        self._channel = channel
        self._rows = SmiRows(name)
        self._ready = b""

    def await_row(self, wait_s: float) -> bool:
        """Whether nvidia-smi gives a row within that time."""
        end = time.monotonic() + wait_s
        while not self._ready and time.monotonic() < end:
            data = self.read(end - time.monotonic())
            if data == b"":
                return False
            self._ready = data or b""
        return bool(self._ready)

    def read(self, wait_s: float) -> bytes | None:
        if self._ready:
            ready, self._ready = self._ready, b""
            return ready
        self._channel.settimeout(wait_s)
        try:
            data = self._channel.recv(1 << 16)
        except TimeoutError:
            return None
        return self._rows.feed(data, time.monotonic_ns()) or None if data else b""

    def write(self, data: bytes) -> None:
        """nvidia-smi takes nothing."""

    def close(self) -> str:
        with contextlib.suppress(*BROKEN):
            self._channel.close()  # nvidia-smi ends when its next row finds no reader
        self._connection.close()
        return "nvidia-smi has ended"


class SmiRows:
    """CSV text in, frames out. Pure, but for this host's boot id."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""
        self._id = f"nvidia-smi {secrets.token_hex(4)}"  # a new link has numbers of its own
        self._number = 0
        self._gpus: dict[str, dict[str, Any]] = {}

    def feed(self, data: bytes, now_ns: int) -> bytes:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_MAX_LINE_B:]
        rows = [row for line in lines if (row := _values(line.decode(errors="replace"), now_ns)) is not None]
        if not rows:
            return b""
        frames = b"" if self._gpus else MAGIC + encode(WELCOME, {"agent": self._id})
        known = len(self._gpus)
        for row in rows:
            self._gpus.setdefault(
                row["gpu_uuid"],
                {key: row[key] for key in ("name", "mem_total_b")}
                | {"index": row["gpu_index"], "uuid": row["gpu_uuid"], "driver": row["driver"]},
            )
        if len(self._gpus) > known:
            frames += self._numbered(HELLO, self._hello(now_ns))
        for table in ("gpu_fast", "gpu_slow"):
            cells = [[row.get(column.name) for column in TABLES[table]] for row in rows]
            frames += self._numbered(SAMPLE, [table, self._name, cells])
        return frames

    def _numbered(self, kind: int, body: Any) -> bytes:
        self._number += 1
        return encode(kind, body, self._number)

    def _hello(self, now_ns: int) -> dict[str, Any]:
        told = {"gpu_uuid", "gpu_index", "t0_mono_ns", "t1_mono_ns", "mem_version"} | {field[2] for field in FIELDS}
        absent = {
            column.name: _REASON
            for table in ("gpu_fast", "gpu_slow")
            for column in TABLES[table]
            if column.name not in told
        }
        gpus = [gpu | {"absent": absent, "fallbacks": ["nvidia-smi"]} for gpu in self._gpus.values()]
        return {
            "schema": SCHEMA,
            "tables": {name: [column.name for column in columns] for name, columns in TABLES.items()},
            "host": self._name,
            "agent_host": self._name,
            "boot_id": boot_id(),
            "realtime_ns": time.time_ns(),
            "monotonic_ns": now_ns,
            "simulated": False,
            "gpus": gpus,
            "nvml": {"state": "nvidia-smi", "reason": _WHAT, "driver": gpus[0]["driver"]},
            "warnings": [_WHAT],
        }


def _values(line: str, now_ns: int) -> dict[str, Any] | None:
    """Column -> value of a line of nvidia-smi; None when it is no such line."""
    words = [word.strip() for word in line.split(",")]
    if len(words) != 4 + len(FIELDS) or not words[0].isdigit():
        return None
    row: dict[str, Any] = {"gpu_index": int(words[0]), "gpu_uuid": words[1], "name": words[2], "driver": words[3]}
    row |= {"t0_mono_ns": now_ns - PERIOD_NS, "t1_mono_ns": now_ns, "mem_version": 2}
    for (_, _, column, factor), word in zip(FIELDS, words[4:], strict=True):
        try:
            row[column] = round(float(word) * factor)
        except ValueError:  # [N/A], [Not Supported]
            row[column] = None
    return row
