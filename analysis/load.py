"""A run directory as frames, with what is wrong in it beside them.

Here: reading. Not here: clocks (join.py) and what counts (windows.py, metrics.py). Every `_ns` is still the
CLOCK_MONOTONIC of the host that wrote it; measured integers stay exact (nullable), null is "not measured".
A cut, foreign or missing file is a Damage (damage.py), never an exception; only an unusable run.json is one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analysis import damage
from analysis.damage import Damage, Span
from loadgen import record, rundir
from loadgen.histogram import bucket
from loadgen.shards import arrow_schema, read_shard
from remote_agents.agent import sample

_EXACT = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
_PANDAS = {"int64": "Int64", "int32": "Int32", "float64": "float64", "bool": "boolean", "string": "str"}
_PANDAS |= {"list<int32>": "object"}
_GAPS = "chunk_gaps_us"
_TRUTH = ("received_ns", "emissions", "late_tokens")
# A row without one of these says nothing, and neither does one with a stamp outside the run.
_REQUEST_KEYS = ("intended_ns", "outcome")
_HEALTH_KEYS = ("t_ns",)
# Beside the worker's own rows.
_HISTOGRAMS = ".histograms.arrow"
_HISTOGRAM_KEYS = ("t_ns", "name", "buckets", "counts")
# No duration of 64 bits of ns is in a bucket above it.
_LAST_BUCKET = bucket(2**63 - 1)
_SAMPLE_KEYS = ("t0_mono_ns", "t1_mono_ns", "gpu_uuid", "gpu_index")
_OUTCOMES = pa.array([str(outcome) for outcome in record.Outcome])
# What a worker counts in a second, at the most and far above it.
_MOST = 2**40
# No sample of anything is larger.
_LARGEST = 1e18


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
    """`requests` has record.REQUEST_COLUMNS but for the gaps; `health` has record.HEALTH_COLUMNS and `worker`.

    `histograms` has t_ns, name, bucket and count: a row a bucket of a worker's second, none in a run without them.
    """

    path: Path
    manifest: dict[str, Any]
    requests: pd.DataFrame
    gaps: Gaps
    health: pd.DataFrame
    histograms: pd.DataFrame
    steps: list[dict[str, Any]]
    events: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    hosts: list[Host]
    truth: pd.DataFrame
    examples: list[dict[str, Any]]
    damage: list[Damage]


def load(run_dir: Path) -> Run:
    """Everything of a run that can be read.

    Raises RunDirError when run.json is missing, damaged, of an unknown schema or without plan or clock.
    """
    found: list[Damage] = []
    manifest = damage.read_manifest(run_dir, found)
    within = damage.span(manifest)
    boot = manifest["clock"].get("boot_id") or ""
    shards = _shards(run_dir, rundir.REQUESTS, record.REQUEST_COLUMNS, _REQUEST_KEYS, boot, within, found)
    requests = pa.concat_tables([table for _, table in shards]) if shards else None
    rows = _workers(_shards(run_dir, rundir.WORKERS, record.HEALTH_COLUMNS, _HEALTH_KEYS, boot, within, found))
    counted = _shards(
        run_dir, rundir.WORKERS, record.HISTOGRAM_COLUMNS, _HISTOGRAM_KEYS, boot, within, found, _HISTOGRAMS
    )
    steps = damage.read_steps(run_dir, within, found)
    run = Run(
        path=run_dir,
        manifest=manifest,
        requests=_frame(requests, [c for c in record.REQUEST_COLUMNS if c.name != _GAPS]),
        gaps=_flatten(requests),
        health=pd.concat(rows) if rows else _frame(None, record.HEALTH_COLUMNS).assign(worker=0),
        histograms=_buckets([(f"{rundir.WORKERS}/{stem}.arrow", table) for stem, table in counted], found),
        steps=steps,
        events=damage.read_events(run_dir, within, found),
        probes=damage.read_probes(run_dir, found),
        hosts=[
            host
            for folder in sorted((run_dir / rundir.TELEMETRY).glob("*/"))
            if (host := _host(run_dir, folder, within, found)) is not None
        ],
        truth=_truth(run_dir, found),
        examples=damage.read_examples(run_dir, found),
        damage=found,
    )
    found += damage.missing(run_dir, manifest, began=bool(steps) or len(run.requests) > 0)
    _count(run)
    return run


def _count(run: Run) -> None:
    """A shard that was cut between two batches looks whole: only the count tells."""
    recorded = (run.manifest["recorded"] or {}).get("requests")
    here = int((run.requests["outcome"] != record.Outcome.CANCELLED).sum())
    if damage.whole(recorded) and here != recorded:
        run.damage.append(Damage(rundir.REQUESTS, f"{here} requests are here, and {recorded} were recorded"))


def _workers(shards: list[tuple[str, pa.Table]]) -> list[pd.DataFrame]:
    """Health frames with the worker's number, which the shard's name ends in."""
    return [
        _frame(table, record.HEALTH_COLUMNS).assign(worker=int("".join(c for c in name if c.isdecimal()) or 0))
        for name, table in shards
    ]


def _shards(
    run_dir: Path,
    folder: str,
    columns: Sequence[record.Column],
    keys: Sequence[str],
    boot_id: str,
    within: Span,
    found: list[Damage],
    suffix: str = ".arrow",
) -> list[tuple[str, pa.Table]]:
    """(stem, table) of each readable shard of that kind that is on the controller's clock."""
    shards = []
    for path in sorted((run_dir / folder).glob("*.arrow")):
        if "".join(path.suffixes) != suffix:
            continue
        name = f"{folder}/{path.name}"
        table, facts = _read(path, name, columns, record.SCHEMA, found)
        if table is None:
            continue
        if facts.get("boot_id", "") != boot_id:
            text = f"it was written on another host's clock ({facts.get('host')}): it is left out"
            found.append(Damage(name, text))
            continue
        stamps = [column.name for column in columns if column.name.endswith("_ns")]
        shards.append((path.stem, _usable(table, name, keys, stamps, within, found)))
    return shards


def _read(
    path: Path, name: str, columns: Iterable[Any], schema: int, found: list[Damage]
) -> tuple[pa.Table | None, dict[str, str]]:
    """One shard with exactly `columns` (null where it has none) and its metadata; None when it cannot be used."""
    try:
        table, problem = read_shard(path)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        table, problem = None, f"it cannot be read ({error})"
    if problem:
        found.append(Damage(name, damage.sentence(problem.removeprefix(f"{path.name}: "))))
    if table is None:
        return None, {}
    metadata = table.schema.metadata or {}
    facts = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in metadata.items()}
    if facts.get("schema") != str(schema):
        text = f"it has schema {facts.get('schema')}, this version reads {schema}: it is left out"
        found.append(Damage(name, damage.sentence(text)))
        return None, facts
    table = _intact(table, name, found)
    return pa.table({c.name: _column(table, c, name, found) for c in columns}), facts


def _intact(table: pa.Table, name: str, found: list[Damage]) -> pa.Table:
    """The batches whose offsets and texts are what they claim to be: others would crash whoever reads them."""
    whole = []
    batches = table.to_batches()
    for batch in batches:
        try:
            batch.validate(full=True)
        except pa.ArrowException:
            continue
        whole.append(batch)
    if len(whole) < len(batches):
        text = f"{len(batches) - len(whole)} of {len(batches)} batches of rows are damaged: they are left out"
        found.append(Damage(name, text))
    return pa.Table.from_batches(whole, schema=table.schema)


def _column(table: pa.Table, column: Any, name: str, found: list[Damage]) -> Any:
    kind = _arrow(column.type)
    problem = None
    match table.schema.get_all_field_indices(column.name):
        case [index] if table.schema.field(index).type == kind:
            return table.column(index)
        case [index]:
            try:
                return table.column(index).cast(kind)
            except (pa.ArrowException, ValueError):
                problem = f"column {column.name} has type {table.schema.field(index).type} instead of {column.type}"
        case []:  # written before there was such a column
            return pa.nulls(table.num_rows, kind)
        case _:
            problem = f"column {column.name} is there several times"
    found.append(Damage(name, damage.sentence(f"{problem}: it is taken as not measured")))
    return pa.nulls(table.num_rows, kind)


def _usable(
    table: pa.Table, name: str, keys: Sequence[str], stamps: Sequence[str], within: Span, found: list[Damage]
) -> pa.Table:
    """The rows that have all keys, an outcome that there is, and no stamp outside the run."""
    good = pa.array(np.ones(table.num_rows, bool))
    for key in keys:
        good = pc.and_(good, pc.is_valid(table[key]))
    if "outcome" in keys:
        good = pc.and_(good, pc.is_in(table["outcome"], value_set=_OUTCOMES))
    for stamp in stamps:
        inside = pc.and_(pc.greater_equal(table[stamp], within.first_ns), pc.less_equal(table[stamp], within.last_ns))
        good = pc.and_(good, pc.fill_null(inside, True))
    bad = table.num_rows - (pc.sum(good).as_py() or 0)
    if not bad:
        return table
    found.append(Damage(name, f"{bad} of {table.num_rows} rows are nonsense: they are left out"))
    return table.filter(good)


def _arrow(kind: str) -> Any:
    return arrow_schema([(kind, kind)], {}).types[0]


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


def _buckets(shards: list[tuple[str, pa.Table]], found: list[Damage]) -> pd.DataFrame:
    """The histograms of all shards, a row a bucket; a row that is no histogram is left out."""
    frames = [pd.DataFrame({"t_ns": [], "name": [], "bucket": [], "count": []}, dtype="int64").astype({"name": "str"})]
    for name, table in shards:
        lengths = [pc.list_value_length(table[column]) for column in ("buckets", "counts")]
        even = table.filter(pc.equal(*lengths)).combine_chunks()
        flat = even.select(["t_ns", "name"]).take(pc.list_parent_indices(even["buckets"])).to_pandas()
        flat["bucket"], flat["count"] = (pc.list_flatten(even[column]).to_numpy() for column in ("buckets", "counts"))
        good = flat["bucket"].between(0, _LAST_BUCKET) & flat["count"].between(1, _MOST)
        if bad := table.num_rows - len(even) + int((~good).sum()):
            found.append(Damage(name, f"{bad} buckets are nonsense: they are left out"))
        frames.append(flat[good].astype({"bucket": "int64", "count": "int64"}))
    return pd.concat(frames, ignore_index=True)


def _host(run_dir: Path, folder: Path, within: Span, found: list[Damage]) -> Host | None:
    tables: dict[str, pd.DataFrame] = {}
    facts: dict[str, str] = {}
    for name, columns in sample.TABLES.items():
        path = folder / f"{name}.arrow"
        if path.exists():
            file = str(path.relative_to(run_dir))
            table, metadata = _read(path, file, columns, sample.SCHEMA, found)
            if table is not None:
                keys = [key for key in _SAMPLE_KEYS if key in table.column_names]
                frame = _frame(_usable(table, file, keys, (), within, found), columns)
                tables[name], facts = _bounded(frame, file, found), metadata
    if not tables:
        return None
    return Host(
        name=folder.name,
        clock=facts.get("host", folder.name),
        boot_id=facts.get("boot_id", ""),
        simulated=facts.get("simulated") == "true",
        tables=tables,
    )


def _bounded(frame: pd.DataFrame, name: str, found: list[Damage]) -> pd.DataFrame:
    """The frame with floats that no sensor gives taken as not measured."""
    floats = frame.select_dtypes("float64")
    nonsense = floats.abs() > _LARGEST
    if count := int(nonsense.to_numpy().sum()):
        found.append(Damage(name, f"{count} values are nonsense: they are taken as not measured"))
        return frame.assign(**{str(column): floats[column].mask(nonsense[column]) for column in floats})
    return frame


def _truth(run_dir: Path, found: list[Damage]) -> pd.DataFrame:
    """What the simulator says it did, a row a request; without the last line when it was cut."""
    empty = pd.DataFrame({name: pd.Series(dtype="Int64") for name in _TRUTH})
    try:
        data = (run_dir / rundir.TRUTH).read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            found.append(Damage(rundir.TRUTH, "its last line is cut: it is left out"))
        frame = pd.read_csv(io.BytesIO(data[:end]), on_bad_lines="skip", encoding_errors="replace", low_memory=False)
    except FileNotFoundError:
        return empty
    except (OSError, ValueError) as error:
        found.append(Damage(rundir.TRUTH, damage.sentence(f"it cannot be read ({error})")))
        return empty
    if "emissions" not in frame and "output_tokens" in frame:  # a token was a write before there was this column
        frame = frame.rename(columns={"output_tokens": "emissions"})
    if lacking := [name for name in _TRUTH if name not in frame]:
        found.append(Damage(rundir.TRUTH, f"it has no {', '.join(lacking)}: it is left out"))
        return empty
    numbers = frame[list(_TRUTH)].apply(pd.to_numeric, errors="coerce")
    good = (numbers.notna() & (numbers.abs() < 2**63)).all(axis="columns")
    if bad := int((~good).sum()):
        found.append(Damage(rundir.TRUTH, f"{bad} of {len(frame)} lines are nonsense: they are left out"))
    kept: pd.DataFrame = numbers[good].round().astype("Int64")
    return kept
