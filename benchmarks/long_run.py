"""A long run as workers and agents would have left it: real shards, made column by column, quickly.

Latencies are log-normal about a daily wave, 2 in 1000 requests fail, gaps are kept as the recorder's budget has it;
batches are as short as a flush of half a second makes them. Eight GPUs and the model server are on a host of another
clock, which probes tie to the controller's. Stamps are CLOCK_MONOTONIC ns, of the host that would have written them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadgen import record, rundir
from loadgen.batch import MAX_ROWS, GapBudget
from loadgen.plan import closed_plan
from loadgen.shards import ShardWriter, arrow_schema
from remote_agents.agent import sample

ZERO_NS = 4_000_000_000_000_000
AGENT_AHEAD_NS = 777_000_000_123
BOOT, FAR_BOOT = "boot-of-the-controller", "boot-of-the-gpu-host"
FLUSH_S = 0.5
GPUS = 8
GIB = 2**30
_CHUNK = 100_000
_BUDGETED = 2000
_PROBES = 8

Array = NDArray[Any]
Ints = NDArray[np.int64]


class Size(NamedTuple):
    requests: int
    hours: float
    workers: int = 2
    steps: int = 1
    tokens: int = 100

    @property
    def seconds(self) -> float:
        return 3600 * self.hours


def make(run: Path, size: Size) -> None:
    """Write the run directory. Raises FileExistsError when there is one."""
    run.mkdir()
    for folder in (rundir.REQUESTS, rundir.WORKERS, rundir.TELEMETRY, rundir.LOGS):
        (run / folder).mkdir()
    failed = sum([_requests(run, size, worker) for worker in range(size.workers)])
    for worker in range(size.workers):
        _state(run, size, worker)
    _telemetry(run, size)
    counts = {"requests": size.requests, "failures": failed}
    levels = tuple(100 * (step + 1) for step in range(size.steps))
    rundir.write_manifest(run, _manifest(size, levels, counts))
    length_s = size.seconds / size.steps
    for number, level in enumerate(levels):
        for what, t in (("ramp", number), ("begin", number), ("end", number + 1)):
            line = {"step": number, "level": level, "unit": "users", "what": what, "t_ns": _at(t * length_s)}
            rundir.append_line(run / rundir.STEPS, line)
    rundir.append_line(run / rundir.EVENTS, {"t_ns": _at(0), "kind": "agent_started", "text": "far samples"})


def _at(seconds: float) -> int:
    return ZERO_NS + round(seconds * 1e9)


def _manifest(size: Size, levels: tuple[int, ...], counts: dict[str, int]) -> dict[str, Any]:
    return {
        "schema": rundir.SCHEMA,
        "run_id": "20260101T000000Z-long",
        "status": rundir.COMPLETE,
        "created": "2026-01-01T00:00:00Z",
        "scenario": {"name": "chat", "path": "scenarios/chat.py"},
        "target": {"url": "http://127.0.0.1:8000", "model": "m", "simulated": False, "simulator": None},
        "plan": closed_plan(levels, size.seconds / size.steps, None, 120.0, 0).to_dict(),
        "options": {"agents": "far", "slo": "ttft_p99<1s,tpot_p99<100ms"},
        "workers": size.workers,
        "versions": {},
        "host": {},
        "clock": {"host": "here", "boot_id": BOOT, "realtime_ns": 0, "monotonic_ns": ZERO_NS},
        "ended_ns": _at(size.seconds + 60),
        "locust": counts,
        "recorded": counts,
    }


def _writer(path: Path, columns: Any, schema: int, host: str, boot: str, **facts: str) -> ShardWriter:
    metadata = {"schema": str(schema), "host": host, "boot_id": boot, "realtime_ns": "0", "monotonic_ns": "0"}
    return ShardWriter(path, arrow_schema([(column.name, column.type) for column in columns], metadata | facts))


def _append(writer: ShardWriter, columns: Mapping[str, Any], rows: int) -> None:
    """The columns in batches of so many rows; those that are not given are null."""
    length = len(next(iter(columns.values())))
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(length, field.type)
        for field in writer.schema
    ]
    for batch in pa.table(arrays, schema=writer.schema).to_batches(max_chunksize=rows):
        writer.append_batch(batch)


def _requests(run: Path, size: Size, worker: int) -> int:
    """The shard of a worker; how many of its requests failed."""
    rng = np.random.default_rng(worker)
    path = run / rundir.REQUESTS / f"worker-{worker}.arrow"
    writer = _writer(path, record.REQUEST_COLUMNS, record.SCHEMA, "here", BOOT)
    budget = GapBudget()
    count = size.requests // size.workers + (worker < size.requests % size.workers)
    rate = count / size.seconds
    rows = int(np.clip(rate * FLUSH_S, 1, MAX_ROWS))
    failed = 0
    for first in range(0, count, _CHUNK):
        seq = np.arange(first, min(first + _CHUNK, count))
        columns, failures = _chunk(size, worker, seq, (seq + rng.random(seq.size)) / rate, rng, budget)
        _append(writer, columns, rows)
        failed += failures
    writer.close()
    return failed


def _chunk(
    size: Size, worker: int, seq: Ints, due_s: Array, rng: np.random.Generator, budget: GapBudget
) -> tuple[dict[str, Any], int]:
    n = seq.size
    wave = 1 + 0.3 * np.sin(due_s / 7200) + 0.2 * np.floor(due_s / size.seconds * size.steps)
    ttft_us = (200_000 * wave * rng.lognormal(0, 0.4, n)).astype(np.int64)
    tokens = rng.integers(2, 2 * size.tokens - 1, n)
    mean_us = 20_000 * wave * rng.lognormal(0, 0.1, n)
    lengths = tokens - 1
    gaps = (np.repeat(mean_us, lengths) * rng.standard_exponential(int(lengths.sum()), np.float32)).astype(np.int32)
    totals = np.add.reduceat(gaps, np.cumsum(lengths) - lengths, dtype=np.int64)
    intended = ZERO_NS + np.sort((due_s * 1e9).astype(np.int64))
    sent = intended + rng.integers(50_000, 400_000, n)
    first = sent + 1000 * ttft_us
    last = first + 1000 * totals
    end = last + 100_000
    bad = rng.random(n) < 0.002
    lists = _lists(seq, np.where(bad, 0, lengths), np.repeat(~bad, lengths), gaps, budget)

    def unless_bad(values: Array) -> pa.Array:
        return pa.array(values, mask=bad)

    columns = {
        "worker": np.full(n, worker, np.int32),
        "seq": seq,
        "request_id": pc.utf8_lpad(pa.array(seq).cast(pa.string()), 32, str(worker % 10)),
        "scenario": _text(np.full(n, True), "chat"),
        "intended_ns": intended,
        "sent_ns": sent,
        "first_byte_ns": first - 50_000,
        "first_token_ns": unless_bad(first),
        "last_token_ns": unless_bad(last),
        "end_ns": end,
        "outcome": pc.if_else(pa.array(bad), "HTTP_ERROR", "OK"),
        "status": np.where(bad, 503, 200).astype(np.int32),
        "finish_reason": _text(~bad, "stop"),
        "error": _text(bad, "HTTP 503: overloaded"),
        "attempts": np.ones(n, np.int32),
        "prompt_tokens": unless_bad(rng.integers(50, 4000, n).astype(np.int32)),
        "output_tokens": unless_bad(tokens.astype(np.int32)),
        "token_source": _text(~bad, "usage"),
        "output_events": np.where(bad, 0, tokens).astype(np.int32),
        "chunk_gaps_us": lists,
        **{
            f"gap_{name}_us": unless_bad((mean_us * factor).astype(np.int32))
            for name, factor in (("p50", 0.7), ("p99", 4.6), ("max", 6.0))
        },
        "bytes_out": np.full(n, 900),
        "bytes_in": 200 * tokens,
        "read_lag_us": rng.integers(50, 3000, n, np.int32),
        "coalesced_reads": (rng.random(n) < 0.01).astype(np.int32),
        "stamp_source": _text(np.full(n, True), "kernel"),
    }
    order = np.argsort(end)
    table = pa.table(columns).take(order)
    return {name: table[name].combine_chunks() for name in table.column_names}, int(bad.sum())


def _text(where: Array, text: str) -> pa.Array:
    return pc.if_else(pa.array(where), text, None)


def _lists(seq: Ints, lengths: Ints, used: Array, gaps: Array, budget: GapBudget) -> pa.Array:
    """The gaps of the requests that keep theirs."""
    parts = [slice(start, start + _BUDGETED) for start in range(0, seq.size, _BUDGETED)]
    kept = np.concatenate([budget.keep(seq[part], lengths[part]) for part in parts])
    values = gaps[used][np.repeat(kept, lengths)]
    offsets = np.concatenate(([0], np.cumsum(np.where(kept, lengths, 0)))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=pa.array(~kept))


def _state(run: Path, size: Size, worker: int) -> None:
    """A worker's own state, and the histograms of what it read."""
    seconds = np.arange(1, int(size.seconds) + 1)
    shard = run / rundir.WORKERS / f"worker-{worker}.arrow"
    writer = _writer(shard, record.HEALTH_COLUMNS, record.SCHEMA, "here", BOOT)
    health = {column.name: np.full(seconds.size, 400) for column in record.HEALTH_COLUMNS}
    _append(writer, health | {"t_ns": ZERO_NS + seconds * 10**9, "cpu_us": seconds * 300_000}, 1)
    writer.close()
    shard = shard.with_suffix(".histograms.arrow")
    writer = _writer(shard, record.HISTOGRAM_COLUMNS, record.SCHEMA, "here", BOOT)
    for some in np.array_split(seconds, max(1, seconds.size // 10_000)):
        lists = {"chunk_gap": np.arange(750, 870), "read_lag": np.arange(560, 640), "send_lag": np.arange(600, 620)}
        buckets = pa.array([each for _ in some for each in lists.values()], pa.list_(pa.int32()))
        counts = pa.ListArray.from_arrays(buckets.offsets, pa.array(np.full(len(buckets.values), 7)))
        t_ns = np.repeat(ZERO_NS + some * 10**9, len(lists))
        _append(writer, {"t_ns": t_ns, "name": list(lists) * some.size, "buckets": buckets, "counts": counts}, 3)
    writer.close()


# Table -> samples a second, and how many rows each has.
_RATES = {"gpu_fast": (10, GPUS), "gpu_util": (6, GPUS), "gpu_slow": (1, GPUS), "host": (1, 1), "process": (1, 4)}
_RATES |= {"server": (1, GPUS), "agent": (1, 1)}


def _telemetry(run: Path, size: Size) -> None:
    folder = run / rundir.TELEMETRY / "far"
    folder.mkdir()
    hello = {"host": "far", "simulated": False, "gpus": [{"index": k} for k in range(GPUS)]}
    (folder / "hello.json").write_text(json.dumps(hello))
    with (run / rundir.CLOCKS).open("w") as file:
        for line in _probes(size):
            file.write(json.dumps(line) + "\n")
    for table, (per_s, wide) in _RATES.items():
        columns = sample.TABLES[table]
        writer = _writer(folder / f"{table}.arrow", columns, sample.SCHEMA, "far", FAR_BOOT, simulated="false")
        ticks = np.arange(int(size.seconds * per_s))
        for some in np.array_split(ticks, max(1, ticks.size // 20_000)):
            t_s, device = np.repeat(some / per_s, wide), np.tile(np.arange(wide), some.size)
            rows = {column.name: _samples(column, t_s, device, 1 / per_s) for column in columns}
            _append(writer, rows, per_s * wide)
        writer.close()


def _probes(size: Size) -> Iterator[dict[str, Any]]:
    for t in np.arange(0, size.seconds, 10.0):
        for probe in range(_PROBES):
            t0 = _at(t) + probe * 1_000_000
            yield {
                "host": "far",
                "t0_ns": t0,
                "t1_ns": t0 + 100_000 + AGENT_AHEAD_NS,
                "t2_ns": t0 + 120_000 + AGENT_AHEAD_NS,
                "t3_ns": t0 + 220_000,
            }


def _samples(column: Any, t_s: Array, device: Ints, period_s: float) -> Any:
    """A column of a table: devices differ, levels wave, counters grow; GPUs are whole."""
    name, n = column.name, t_s.size
    level = 0.6 + 0.3 * np.sin(t_s / 900 + device)
    stamp = ZERO_NS + AGENT_AHEAD_NS + (t_s * 1e9).astype(np.int64)
    before = stamp - round(period_s * 1e9)
    known: dict[str, Callable[[], Any]] = {
        "t0_mono_ns": lambda: before if column.source.startswith("the driver's") else stamp,
        "t1_mono_ns": lambda: stamp if column.source.startswith("the driver's") else stamp + 300_000,
        "win_start_mono_ns": lambda: before,
        "gpu_uuid": lambda: pa.DictionaryArray.from_arrays(device, [f"GPU-{k:032d}" for k in range(GPUS)]).cast(
            "string"
        ),
        "gpu_index": lambda: device,
        "gi_id": lambda: pa.nulls(n),
        "engine": lambda: pc.cast(pa.array(device), pa.string()),
        "name": lambda: pc.if_else(pa.array(device == 0), "python3", "worker"),
        "pid": lambda: 100 + device,
        "starttime_ticks": lambda: 5 * device,
        "mem_total_b": lambda: np.full(n, 80 * GIB),
        "mem_used_b": lambda: (72 * GIB + level * GIB).astype(np.int64) >> 16 << 16,
        "mem_version": lambda: np.full(n, 2),
        "power_mw": lambda: (700_000 * level).astype(np.int64),
        "power_avg_mw": lambda: (700_000 * level).astype(np.int64),
        "energy_mj": lambda: (420_000 * t_s).astype(np.int64),
        "kv_usage_ratio": lambda: level,
        "kv_pool_b": lambda: np.full(n, 40 * GIB),
        "clock_unsync": lambda: np.zeros(n, np.int64),
        "util_pct": lambda: np.rint(100 * level),
        "running": lambda: np.rint(64 * level),
    }
    if name in known:
        return known[name]()
    if column.type == "float64":
        return 90 * level
    grows = any(part in name for part in ("ticks", "_us", "_ns", "_tx", "_rx", "ctxt", "ctx", "ecc"))
    return (t_s * 100).astype(np.int64) if grows else np.full(n, 1000)
