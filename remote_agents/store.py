"""What a run keeps of its agents: telemetry/, clocks.jsonl and events; and the latest values, for the live line.

Agents' threads add, the collector's main thread flushes once a second. What does not fit its table is in neither.
Samples keep the CLOCK_MONOTONIC stamps of their host.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen import rundir
from loadgen.shards import ShardWriter, arrow_schema
from remote_agents.agent.sample import SCHEMA, TABLES

_FRESH_NS = 5_000_000_000
_FRESH_SCRAPE_NS = 15_000_000_000


class Store:
    """Rows wait for the flush of the second; each table of each host has its shard. Nothing is taken after `close`."""

    def __init__(self, run: Path, live: Live) -> None:
        self._run = run
        self._live = live
        self._lock = threading.RLock()
        self._closed = False
        self._names: dict[str, str] = {}
        self._hellos: dict[str, dict[str, Any]] = {}
        self._rows: dict[tuple[str, str], list[list[Any]]] = {}
        self._shards: dict[tuple[str, str], ShardWriter] = {}

    def hello(self, facts: dict[str, Any]) -> None:
        """Keep and write what a host says of itself; a later one replaces an earlier one."""
        with self._lock:
            if self._closed:
                return
            self._hellos[facts["host"]] = facts
            path = self.folder(facts["host"]) / "hello.json"
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
            temporary.replace(path)

    def add(self, host: str, table: str, rows: list[list[Any]]) -> None:
        with self._lock:
            self._rows.setdefault((host, table), []).extend(rows)

    def probe(self, host: str, stamps: dict[str, int]) -> None:
        if not self._closed:
            rundir.append_line(self._run / rundir.CLOCKS, {"host": host, **stamps})

    def event(self, kind: str, text: str, **facts: Any) -> None:
        if not self._closed:
            rundir.log_event(self._run, kind, text, **facts)

    def flush(self) -> None:
        with self._lock:
            waiting, self._rows = self._rows, {}
        for (host, table), rows in waiting.items():
            problems = self._append(host, table, rows)
            if problems:
                text = f"{len(problems)} rows of {table} from {host} do not fit its columns: {problems[0]}"
                self.event("bad_rows", text, host=host)

    def file_name(self, name: str) -> str:
        """Of an agent or a host: no two of a run have the same."""
        with self._lock:
            if name not in self._names:
                stem, taken = rundir.file_name(name), set(self._names.values())
                names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
                self._names[name] = next(free for free in names if free not in taken)
            return self._names[name]

    def folder(self, host: str) -> Path:
        folder = self._run / rundir.TELEMETRY / self.file_name(host)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def close(self) -> None:
        self.flush()
        with self._lock:
            self._closed = True
        for shard in self._shards.values():
            shard.close()

    def _append(self, host: str, table: str, rows: list[list[Any]]) -> list[Exception]:
        """Write the rows at once, or else one by one; what was wrong with each that could not be written."""
        try:
            self._shard(host, table).append(list(zip(*rows, strict=True)))
        except (TypeError, ValueError, OverflowError, NotImplementedError) as error:  # pyarrow's are of these, too
            return [error] if len(rows) == 1 else [bad for row in rows for bad in self._append(host, table, [row])]
        self._live.add(host, table, rows)
        return []

    def _shard(self, host: str, table: str) -> ShardWriter:
        if (host, table) not in self._shards:
            hello = self._hellos[host]
            metadata = {
                "host": hello["agent_host"],  # whose clock the stamps are
                "boot_id": hello["boot_id"],
                "realtime_ns": str(hello["realtime_ns"]),
                "monotonic_ns": str(hello["monotonic_ns"]),
                "schema": str(SCHEMA),
                "table": table,
                "simulated": "true" if hello["simulated"] else "false",
            }
            schema = arrow_schema([(column.name, column.type) for column in TABLES[table]], metadata)
            self._shards[host, table] = ShardWriter(self.folder(host) / f"{table}.arrow", schema)
        return self._shards[host, table]


class Live:
    """The latest row of each GPU, engine and host."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, dict[tuple[str, str], tuple[int, dict[str, Any]]]] = {
            "gpu_fast": {},
            "gpu_slow": {},
            "server": {},
            "host": {},
        }

    def add(self, host: str, table: str, rows: list[list[Any]]) -> None:
        if table not in self._rows:
            return
        names = [column.name for column in TABLES[table]]
        with self._lock:
            for values in rows:
                row = dict(zip(names, values, strict=True))
                key = row.get("gpu_uuid") or row.get("engine") or ""
                self._rows[table][host, key] = (time.monotonic_ns(), row)

    def line(self, simulated: bool, agents: dict[str, str]) -> dict[str, Any]:
        now_ns = time.monotonic_ns()
        with self._lock:
            gpus, slow, hosts = (self._fresh(name, now_ns - _FRESH_NS) for name in ("gpu_fast", "gpu_slow", "host"))
            engines = list(self._fresh("server", now_ns - _FRESH_SCRAPE_NS).values())
        return {
            "t_ns": now_ns,
            "gpus": [
                {
                    "host": host,
                    "index": row["gpu_index"],
                    "uuid": uuid,
                    "util_pct": row["util_pct"],
                    "sm_pct": row["gpm_sm_pct"],
                    "vram_used_b": row["mem_used_b"],
                    "vram_total_b": row["mem_total_b"],
                    "power_w": None if row["power_mw"] is None else row["power_mw"] / 1000,
                    "temp_c": slow.get((host, uuid), {}).get("temp_c"),
                    "sm_mhz": slow.get((host, uuid), {}).get("sm_mhz"),
                }
                for (host, uuid), row in sorted(gpus.items())
            ],
            "hosts": [
                {
                    "host": host,
                    "cpu_max_busy_pct": row["cpu_max_busy_pct"],
                    "load1": row["load1"],
                    "mem_available_b": row["mem_available_b"],
                    "mem_total_b": row["mem_total_b"],
                }
                for (host, _), row in sorted(hosts.items())
            ],
            "server": {
                "running": _over(sum, engines, "running"),
                "waiting": _over(sum, engines, "waiting"),
                "kv_usage_ratio_max": _over(max, engines, "kv_usage_ratio"),
            },
            "simulated": simulated,
            "agents": agents,
        }

    def _fresh(self, table: str, since_ns: int) -> dict[tuple[str, str], dict[str, Any]]:
        return {key: row for key, (at_ns, row) in self._rows[table].items() if at_ns > since_ns}


def _over(combine: Callable[[list[float]], float], rows: list[dict[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return combine(values) if values else None
