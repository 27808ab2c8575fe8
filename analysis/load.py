"""A run directory as frames, with what is wrong in it beside them.

Here: reading. Not here: clocks (join.py) and what counts (windows.py, metrics.py). Every `_ns` is still the
CLOCK_MONOTONIC of the host that wrote it; measured integers stay exact (nullable), null is "not measured".
A cut, foreign or missing file is a problem in words, never an exception; only an unusable run.json is one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from loadgen import record, rundir
from loadgen.errors import RunDirError
from loadgen.shards import read_shard
from remote_agents.agent import sample

_EXACT = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
_PANDAS = {"int64": "Int64", "int32": "Int32", "float64": "float64", "bool": "boolean", "string": "str"}
_GAPS = "chunk_gaps_us"
_TRUTH = ("received_ns", "output_tokens", "late_tokens")


class Gaps(NamedTuple):
    """The chunk gaps of all requests, end to end: request i has `values[offsets[i]:offsets[i + 1]]`, in us."""

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Host:
    """Telemetry of one inference host: a frame a table of sample.TABLES; `clock` names the machine that stamped it."""

    name: str
    clock: str
    boot_id: str
    simulated: bool
    tables: dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Run:
    """`requests` has record.REQUEST_COLUMNS but for the gaps; `health` has record.HEALTH_COLUMNS and `worker`."""

    path: Path
    manifest: dict[str, Any]
    requests: pd.DataFrame
    gaps: Gaps
    health: pd.DataFrame
    steps: list[dict[str, Any]]
    events: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    hosts: list[Host]
    truth: pd.DataFrame
    problems: list[str]


def load(run_dir: Path) -> Run:
    """Everything of a run that can be read.

    Raises RunDirError when run.json is missing, damaged, of an unknown schema or without plan or clock.
    """
    manifest = rundir.read_manifest(run_dir)
    missing = [key for key in ("run_id", "status", "target", "plan", "clock") if not manifest.get(key)]
    if missing:
        raise RunDirError(f"{run_dir / rundir.MANIFEST} lacks {', '.join(missing)}: it cannot be analysed")
    problems: list[str] = []
    boot = manifest["clock"].get("boot_id", "")
    tables = _shards(run_dir / rundir.REQUESTS, record.REQUEST_COLUMNS, boot, problems)
    requests = pa.concat_tables([table for _, table in tables]) if tables else None
    rows = _workers(_shards(run_dir / rundir.WORKERS, record.HEALTH_COLUMNS, boot, problems))
    return Run(
        path=run_dir,
        manifest=manifest,
        requests=_frame(requests, [c for c in record.REQUEST_COLUMNS if c.name != _GAPS]),
        gaps=_flatten(requests),
        health=pd.concat(rows) if rows else _frame(None, record.HEALTH_COLUMNS).assign(worker=0),
        steps=rundir.read_lines(run_dir / rundir.STEPS),
        events=rundir.read_lines(run_dir / rundir.EVENTS),
        probes=rundir.read_lines(run_dir / rundir.CLOCKS),
        hosts=[
            host
            for folder in sorted((run_dir / rundir.TELEMETRY).glob("*/"))
            if (host := _host(folder, problems)) is not None
        ],
        truth=_truth(run_dir / rundir.TRUTH),
        problems=problems,
    )


def _workers(shards: list[tuple[str, pa.Table]]) -> list[pd.DataFrame]:
    """Health frames with the worker's number, which the shard's name ends in."""
    return [
        _frame(table, record.HEALTH_COLUMNS).assign(worker=int("".join(c for c in name if c.isdigit()) or 0))
        for name, table in shards
    ]


def _shards(
    folder: Path, columns: Iterable[record.Column], boot_id: str, problems: list[str]
) -> list[tuple[str, pa.Table]]:
    """(stem, table) of each readable shard that is on the controller's clock."""
    shards = []
    for path in sorted(folder.glob("*.arrow")):
        table, facts = _read(path, columns, record.SCHEMA, problems)
        if table is None:
            continue
        if facts.get("boot_id", "") != boot_id:
            problems.append(f"{path.name}: left out, it was written on another host's clock ({facts.get('host')})")
            continue
        shards.append((path.stem, table))
    return shards


def _read(
    path: Path, columns: Iterable[Any], schema: int, problems: list[str]
) -> tuple[pa.Table | None, dict[str, str]]:
    """One shard with exactly `columns` (null where it has none) and its metadata; None when it cannot be used."""
    table, problem = read_shard(path)
    if problem:
        problems.append(problem)
    if table is None:
        return None, {}
    facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if facts.get("schema") != str(schema):
        problems.append(f"{path.name}: left out, it has schema {facts.get('schema')} and this version reads {schema}")
        return None, facts
    arrays = {
        c.name: table[c.name] if c.name in table.column_names else pa.nulls(table.num_rows, _arrow(c.type))
        for c in columns
    }
    return pa.table(arrays), facts


def _arrow(kind: str) -> Any:
    return pa.list_(pa.int32()) if kind == "list<int32>" else pa.type_for_alias(kind)


def _frame(table: pa.Table | None, columns: Iterable[Any]) -> pd.DataFrame:
    """Frame of the table's columns, or an empty one with the same types."""
    if table is None:
        return pd.DataFrame({c.name: pd.Series(dtype=_PANDAS[c.type]) for c in columns})
    frame: pd.DataFrame = table.select([c.name for c in columns]).to_pandas(types_mapper=_EXACT.get)
    return frame


def _flatten(table: pa.Table | None) -> Gaps:
    if table is None or not table.num_rows:
        return Gaps(np.zeros(0, np.int64), np.zeros(1, np.int64))
    lists = table[_GAPS].cast(pa.large_list(pa.int32())).combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return Gaps(values, np.concatenate(([0], np.cumsum(lengths))))


def _host(folder: Path, problems: list[str]) -> Host | None:
    tables: dict[str, pd.DataFrame] = {}
    facts: dict[str, str] = {}
    for name, columns in sample.TABLES.items():
        path = folder / f"{name}.arrow"
        if path.exists():
            table, metadata = _read(path, columns, sample.SCHEMA, problems)
            if table is not None:
                tables[name], facts = _frame(table, columns), metadata
    if not tables:
        return None
    return Host(
        name=folder.name,
        clock=facts.get("host", folder.name),
        boot_id=facts.get("boot_id", ""),
        simulated=facts.get("simulated") == "true",
        tables=tables,
    )


def _truth(path: Path) -> pd.DataFrame:
    """What the simulator says it did, a row a request; without the last line when it was cut."""
    empty = pd.Series(dtype=float)
    try:
        data = path.read_bytes()
        frame = pd.read_csv(io.BytesIO(data[: data.rfind(b"\n") + 1]), on_bad_lines="skip")
    except (OSError, pd.errors.EmptyDataError):
        frame = pd.DataFrame()
    return pd.DataFrame({name: pd.to_numeric(frame.get(name, empty), errors="coerce").round() for name in _TRUTH})
