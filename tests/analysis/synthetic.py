"""Run directories with known answers, written through the real ShardWriter. t = 0 is ZERO_NS on the controller's clock.

A request is a dict of record columns; `request()` fills the usual ones. Values are chosen so that every percentile
and every mean is known by construction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from loadgen import record, rundir
from loadgen.histogram import bucket
from loadgen.plan import Arrival, closed_plan, open_plan
from loadgen.shards import ShardWriter, arrow_schema
from remote_agents.agent import sample

ZERO_NS = 9_007_199_254_740_993_001  # far above 2**53: a float would round it
BOOT = "boot-of-the-controller"
GIB = 2**30

Rows = Iterable[dict[str, Any]]


def at(seconds: float) -> int:
    return ZERO_NS + round(seconds * 1e9)


def manifest(levels: Sequence[float], **changes: Any) -> dict[str, Any]:
    return {
        "schema": rundir.SCHEMA,
        "run_id": "20260101T000000Z-chat",
        "status": "complete",
        "reason": None,
        "created": "2026-01-01T00:00:00Z",
        "label": None,
        "scenario": {"name": "chat", "path": "scenarios/chat.py"},
        "target": {"url": "http://127.0.0.1:8000", "model": "m", "simulated": False, "simulator": None},
        "plan": closed_plan(tuple(map(int, levels)), 20.0, None, 120.0, 0).to_dict(),
        "options": {},
        "workers": 1,
        "versions": {"locust": "2.47.0"},
        "source_revision": None,
        "host": {"cpus": 2, "kernel": "6.1"},
        "clock": {"host": "here", "boot_id": BOOT, "realtime_ns": 0, "monotonic_ns": ZERO_NS - 5_000_000_000},
        "comparable": {},
    } | changes


def open_model(rates: Sequence[float], arrival: str = "constant") -> dict[str, Any]:
    """The plan of a run of the open model, for a manifest."""
    return open_plan(tuple(rates), 20.0, None, 120.0, 0, arrival=Arrival(arrival)).to_dict()


def make(run: Path, levels: Sequence[float] = (10,), step_s: float = 20.0, unit: str = "users", **changes: Any) -> Path:
    """A run directory with complete steps of `step_s` seconds one after the other and empty shards of one worker.

    Each is asked for at its start and held from then on; with the usual warm-up the last 15 of 20 s are measured.
    """
    run.mkdir()
    for folder in (rundir.REQUESTS, rundir.WORKERS, rundir.TELEMETRY, rundir.LOGS):
        (run / folder).mkdir()
    rundir.write_manifest(run, manifest(levels, **changes))
    write_requests(run, [])
    write_health(run, [])
    (run / rundir.STEPS).touch()
    for number, level in enumerate(levels):
        for what, t in (("ramp", number * step_s), ("begin", number * step_s), ("end", (number + 1) * step_s)):
            step(run, number, level, what, t, unit)
    return run


def step(run: Path, number: int, level: float, what: str, t: float, unit: str = "users") -> None:
    line = {"step": number, "level": level, "unit": unit, "what": what, "t_ns": at(t), "users": 10}
    rundir.append_line(run / rundir.STEPS, line)


def event(run: Path, kind: str, text: str, t: float, **facts: Any) -> None:
    rundir.append_line(run / rundir.EVENTS, {"t_ns": at(t), "kind": kind, "text": text, **facts})


def request(
    intended_s: float,
    ttft_ms: float | None = 100.0,
    gaps_ms: Sequence[float] = (10.0,) * 9,
    outcome: str = "OK",
    end_s: float | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """An answer of one token an event that ends with its last token, unless `end_s` or a column says otherwise."""
    first = None if ttft_ms is None else at(intended_s) + round(ttft_ms * 1e6)
    last = None if first is None else first + round(sum(gaps_ms) * 1e6)
    tokens = None if first is None else len(gaps_ms) + 1
    return {
        "worker": 0,
        "seq": 0,
        "scenario": "chat",
        "intended_ns": at(intended_s),
        "sent_ns": at(intended_s),
        "first_byte_ns": first,
        "first_token_ns": first,
        "last_token_ns": last,
        "end_ns": last if end_s is None else at(end_s),
        "outcome": outcome,
        "status": 200 if first else None,
        "attempts": 1,
        "output_tokens": tokens,
        "token_source": "usage",
        "output_events": tokens,
        "chunk_gaps_us": [] if first is None else [round(gap * 1000) for gap in gaps_ms],
        "read_lag_us": 200,
        "coalesced_reads": 0,
        "stamp_source": "kernel",
    } | changes


def write_requests(run: Path, rows: Iterable[dict[str, Any]], worker: int = 0, batch: int = 50, **facts: str) -> Path:
    path = run / rundir.REQUESTS / f"worker-{worker}.arrow"
    _write(path, record.REQUEST_COLUMNS, list(rows), batch, {"schema": str(record.SCHEMA)} | facts)
    return path


def write_health(run: Path, rows: Iterable[dict[str, Any]], worker: int = 0, **facts: str) -> Path:
    path = run / rundir.WORKERS / f"worker-{worker}.arrow"
    _write(path, record.HEALTH_COLUMNS, list(rows), 50, {"schema": str(record.SCHEMA)} | facts)
    return path


def write_histograms(run: Path, rows: Iterable[dict[str, Any]], worker: int = 0, **facts: str) -> Path:
    path = run / rundir.WORKERS / f"worker-{worker}.histograms.arrow"
    _write(path, record.HISTOGRAM_COLUMNS, list(rows), 50, {"schema": str(record.SCHEMA)} | facts)
    return path


def histogram(t: float, name: str, counts: dict[float, int]) -> dict[str, Any]:
    """The second that ended at `t`; `counts` are by duration in ms."""
    buckets = [bucket(round(ms * 1e6)) for ms in counts]
    return {"t_ns": at(t), "name": name, "buckets": buckets, "counts": list(counts.values())}


def health(t: float, cpu_share: float = 0.3, users: int = 10, lag_us: int = 400) -> dict[str, Any]:
    return {
        "t_ns": at(t),
        "cpu_us": round(t * cpu_share * 1e6),
        "rss_b": 100 << 20,
        "users": users,
        "in_flight": users,
        "loop_lag_p99_us": lag_us,
        "loop_lag_max_us": 2 * lag_us,
        "gc_pause_us": 300,
        "gc_pause_max_us": 200,
    }


def write_table(run: Path, name: str, table: str, rows: Iterable[dict[str, Any]], **facts: str) -> Path:
    folder = run / rundir.TELEMETRY / name
    folder.mkdir(exist_ok=True)
    path = folder / f"{table}.arrow"
    _write(path, sample.TABLES[table], list(rows), 100, {"schema": str(sample.SCHEMA), "simulated": "false"} | facts)
    return path


def gpu(t: float, index: int = 0, **values: Any) -> dict[str, Any]:
    stamps = {"t0_mono_ns": at(t) - 1000, "t1_mono_ns": at(t) + 1000}
    usual = {"util_pct": 50.0, "mem_total_b": 80 * GIB, "mem_used_b": 60 * GIB, "mem_version": 2, "power_mw": 300_000}
    return stamps | {"gpu_uuid": f"GPU-{index}", "gpu_index": index} | usual | values


def slow(t: float, index: int = 0, **values: Any) -> dict[str, Any]:
    """A card that runs at its highest clock; its counters stand still."""
    stamps = {"t0_mono_ns": at(t) - 1000, "t1_mono_ns": at(t) + 1000}
    counters = dict.fromkeys(("thr_sw_power_ns", "thr_sw_therm_ns", "thr_hw_therm_ns", "thr_hw_brake_ns"), 0)
    usual = {"power_avg_mw": 280_000, "sm_mhz": 1980, "temp_c": 60}
    return stamps | {"gpu_uuid": f"GPU-{index}", "gpu_index": index} | counters | usual | values


def util(t: float, index: int = 0, length_s: float = 0.2, **values: Any) -> dict[str, Any]:
    """What the driver says of the time that ended at `t`."""
    stamps = {"t0_mono_ns": at(t - length_s), "t1_mono_ns": at(t)}
    return stamps | {"gpu_uuid": f"GPU-{index}", "gpu_index": index, "util_pct": 70.0} | values


def process(t: float, pid: int = 7, cpu_share: float = 1.5, **values: Any) -> dict[str, Any]:
    """A process of the server: a tenth of the time it waits for a CPU, and a twentieth its cgroup is held back."""
    usual = {
        "name": "python3",
        "starttime_ticks": 100 * pid,
        "utime_ticks": round(t * cpu_share * 80),
        "stime_ticks": round(t * cpu_share * 20),
        "rss_b": 3 * GIB,
        "run_delay_ns": round(t * 1e8),
        "cg_throttled_us": round(t * 50_000),
    }
    return {"t0_mono_ns": at(t) - 1000, "t1_mono_ns": at(t) + 1000, "pid": pid} | usual | values


class Far:
    """The host "far" of another boot, whose clock reads `offset_s` more; what is written is given in the run's time."""

    def __init__(self, run: Path, offset_s: float) -> None:
        self._run = run
        self._shift = round(offset_s * 1e9)
        self._facts = {"host": "far.example", "boot_id": "boot-of-far"}

    def probes(self, host: str = "far.example", rtt_ms: float = 0.2, times: Sequence[float] = (-1, 9, 20, 30)) -> None:
        for t in times:
            out = round(rtt_ms * 5e5)
            arrived = at(t) + out + self._shift
            stamps = {"t0_ns": at(t), "t1_ns": arrived, "t2_ns": arrived + 50_000, "t3_ns": at(t) + 2 * out + 50_000}
            rundir.append_line(self._run / rundir.CLOCKS, {"host": host, **stamps})

    def table(self, name: str, rows: Iterable[dict[str, Any]], **facts: str) -> None:
        write_table(self._run, "far", name, [self._moved(row) for row in rows], **self._facts, **facts)

    def worker(self, number: int, requests: Rows, healths: Rows = (), histograms: Rows = ()) -> None:
        for write, rows in ((write_requests, requests), (write_health, healths), (write_histograms, histograms)):
            write(self._run, [self._moved(row) for row in rows], number, **self._facts)

    def _moved(self, row: dict[str, Any]) -> dict[str, Any]:
        stamps = {name for name in row if name.endswith("_ns") and row[name] is not None}
        stamps -= {name for name in row if name.startswith(("thr_", "run_delay", "suspended"))}
        return row | {name: row[name] + self._shift for name in stamps}


def server(t: float, engine: str = "", **values: Any) -> dict[str, Any]:
    stamps = {"t0_mono_ns": at(t) - 1000, "t1_mono_ns": at(t) + 1000}
    usual = {"running": 8.0, "waiting": 2.0, "kv_usage_ratio": 0.25, "kv_pool_b": 40 * GIB}
    return stamps | {"engine": engine} | usual | values


def host(t: float, busy_share: float = 0.4, **values: Any) -> dict[str, Any]:
    """Two CPUs of 100 ticks a second: `busy_share` of them in user mode, 5 % in iowait, 1 % stolen, the rest idle."""
    ticks = round(t * 200)
    usual = {
        "cpu_user_ticks": round(ticks * (busy_share - 0.01)),
        **dict.fromkeys(("cpu_nice_ticks", "cpu_sys_ticks", "cpu_irq_ticks"), 0),
        "cpu_idle_ticks": round(ticks * (0.95 - busy_share)),
        "cpu_iowait_ticks": round(ticks * 0.05),
        "cpu_steal_ticks": round(ticks * 0.01),
        "cpu_max_busy_pct": 60.0,
        "psi_cpu_some_us": round(t * 250_000),
        "psi_io_some_us": round(t * 10_000),
        "psi_mem_some_us": 0,
        "mem_total_b": 32 * GIB,
        "mem_available_b": 24 * GIB,
    }
    return {"t0_mono_ns": at(t) - 1000, "t1_mono_ns": at(t) + 1000} | usual | values


def agent(t: float, cpu_share: float = 0.01, **values: Any) -> dict[str, Any]:
    """Ten ticks a second, none skipped."""
    usual = {
        "cpu_us": round(t * cpu_share * 1e6),
        "rss_b": 20 << 20,
        "ticks": round(t * 10),
        "overruns": 0,
        "dropped": 0,
    }
    return {"t0_mono_ns": at(t) - 1000, "t1_mono_ns": at(t) + 1000} | usual | values


def hello(run: Path, name: str, gpus: int = 0, simulated: bool = False) -> None:
    folder = run / rundir.TELEMETRY / name
    folder.mkdir(exist_ok=True)
    facts = {"host": name, "simulated": simulated, "gpus": [{"index": k} for k in range(gpus)]}
    (folder / "hello.json").write_text(json.dumps(facts))


def whole(run: Path) -> Path:
    """A run of the simulator with every file that one has: two workers, two steps, one agent, some failures."""
    target = {"url": "http://127.0.0.1:8000", "model": "m", "simulated": True, "simulator": {"gpu": "L4"}}
    counts = {"requests": 160, "failures": 8}
    ended = {"ended_ns": at(21.0), "locust": counts, "recorded": counts}
    make(run, (10, 20), 10.0, target=target, workers=2, options={"agents": "local"}, **ended)
    for worker in (0, 1):
        rows = [request(k / 4, seq=k, worker=worker, request_id=f"{worker}-{k}") for k in range(80)]
        for k in range(4):
            rows[20 * k] |= {"outcome": "HTTP_ERROR", "status": 503, "error": "HTTP 503: overloaded"}
        write_requests(run, rows, worker, batch=20)
        example(run, worker, "HTTP_ERROR", "HTTP 503: overloaded", '{"error": "overloaded <b>"}')
        write_health(run, [health(float(t)) for t in range(21)], worker)
        write_histograms(run, [histogram(float(t), "read_lag", {0.1: 990, 1.0: 10}) for t in range(1, 21)], worker)
    write_table(run, "here", "host", [host(float(t)) for t in range(21)])
    write_table(run, "here", "agent", [agent(float(t)) for t in range(21)])
    write_table(run, "here", "server", [server(float(t)) for t in range(21)])
    hello(run, "here")
    stamps = {"t0_mono_ns": at(1.0), "t1_mono_ns": at(1.0)}
    for table, rows in (
        ("gpu_fast", [gpu(k / 5, index) for k in range(105) for index in (0, 1)]),
        ("gpu_slow", [stamps | {"gpu_uuid": "GPU-0", "gpu_index": 0}]),
        ("host", [host(float(t)) for t in range(21)]),
    ):
        write_table(run, "sim-0", table, rows, simulated="true")
    hello(run, "sim-0", gpus=2, simulated=True)
    truth(run, [(k / 8, 10, 0) for k in range(160)])
    event(run, "agent_started", "agent local samples here", -1.0)
    for t in (-1.0, 20.0):
        probe = {"t0_ns": at(t), "t1_ns": at(t) + 1000, "t2_ns": at(t) + 2000, "t3_ns": at(t) + 3000}
        rundir.append_line(run / rundir.CLOCKS, {"host": "here", **probe})
    return run


def example(run: Path, worker: int, outcome: str, error: str, raw: str, t: float = 1.0) -> None:
    line = {"t_ns": at(t), "outcome": outcome, "error": error, "raw": raw, "request_id": "r", "status": 503, "more": 1}
    with (run / rundir.REQUESTS / f"worker-{worker}.errors.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def truth(run: Path, rows: Iterable[tuple[float, int, int]]) -> Path:
    """`rows` are (received at second, output tokens, late tokens)."""
    path = run / rundir.TRUTH
    path.parent.mkdir(exist_ok=True)
    names = "request_id,replica,received_ns,admitted_ns,first_token_ns,last_token_ns,prompt_tokens,output_tokens"
    lines = [f"{names},outcome,status,late_tokens,late_max_us"]
    lines += [f"id,0,{at(t)},,,,32,{tokens},OK,200,{late},0" for t, tokens, late in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def _write(path: Path, columns: Sequence[Any], rows: list[dict[str, Any]], batch: int, facts: dict[str, str]) -> None:
    metadata = {"host": "here", "boot_id": BOOT, "realtime_ns": "0", "monotonic_ns": "0"} | facts
    path.unlink(missing_ok=True)
    writer = ShardWriter(path, arrow_schema([(column.name, column.type) for column in columns], metadata))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        writer.append([[row.get(column.name) for row in part] for column in columns])
    writer.close()


def summary_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / rundir.REPORT / "summary.json").read_text()))
