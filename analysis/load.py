"""A run directory as frames, with what is wrong in it beside them.

Here: reading. Not here: clocks (clocks.py) and what counts (windows.py, metrics.py). Every `_ns` is still the
CLOCK_MONOTONIC of the host that wrote it: what workers wrote on other hosts is apart, until clocks.align has moved it.
Measured integers stay exact (nullable), null is "not measured". A cut, foreign or missing file is a Damage (damage.py),
never an exception; only an unusable run.json is one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analysis import damage
from analysis.arrow import complete, only, read
from analysis.damage import Damage, Span
from loadgen import record, rundir
from loadgen.histogram import bucket
from remote_agents.agent import sample

_EXACT = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
_PANDAS = {"int64": "Int64", "int32": "Int32", "float64": "float64", "bool": "boolean", "string": "str"}
_PANDAS |= {"list<int32>": "object"}
_GAPS = "chunk_gaps_us"
# clocks.jsonl has probes of a worker's host under its name after this: an agent there has a clock of its own.
WORKER = "worker:"
_TRUTH = ("received_ns", "emissions", "late_tokens")
# No duration of 64 bits of ns is in a bucket above it.
_LAST_BUCKET = bucket(2**63 - 1)
_SAMPLE_KEYS = ("t0_mono_ns", "t1_mono_ns", "gpu_uuid", "gpu_index", "pid")
_OUTCOMES = pa.array([str(outcome) for outcome in record.Outcome])
# What a worker counts in a second, at the most and far above it.
_MOST = 2**40
# No sample of anything is larger.
_LARGEST = 1e18


class Kind(NamedTuple):
    """A kind of shard that workers write. A row without one of `keys`, the first of which is a stamp, says nothing."""

    folder: str
    suffix: str
    columns: tuple[record.Column, ...]
    keys: tuple[str, ...]


_REQUESTS = Kind(rundir.REQUESTS, ".arrow", record.REQUEST_COLUMNS, ("intended_ns", "outcome"))
_HEALTH = Kind(rundir.WORKERS, ".arrow", record.HEALTH_COLUMNS, ("t_ns",))
_HISTOGRAMS = Kind(rundir.WORKERS, ".histograms.arrow", record.HISTOGRAM_COLUMNS, ("t_ns", "name", "buckets", "counts"))


class Shard(NamedTuple):
    """A worker's file. `clock` is the host of the probes that tie its clock to the controller's, None if it is that."""

    kind: Kind
    file: str
    clock: str | None
    table: pa.Table


class Gaps(NamedTuple):
    """The chunk gaps of all requests, end to end: request i has `values[offsets[i]:offsets[i + 1]]`, in us."""

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Host:
    """Telemetry of one inference host: a frame a table of sample.TABLES; `clock` names the machine that stamped it.

    `realtime_ns` and `monotonic_ns` are its two clocks at one instant.
    """

    name: str
    clock: str
    boot_id: str
    simulated: bool
    realtime_ns: int | None
    monotonic_ns: int | None
    tables: dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Run:
    """`requests` has record.REQUEST_COLUMNS but for the gaps; `health` has record.HEALTH_COLUMNS and `worker`.

    `histograms` has t_ns, name, bucket and count: a row a bucket of a worker's second, none in a run without them.
    `foreign`: the shards of other clocks, whose rows are in none of these.
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
    foreign: list[Shard]


def load(run_dir: Path) -> Run:
    """Everything of a run that can be read.

    Raises RunDirError when run.json is missing, damaged, of an unknown schema or without plan or clock.
    """
    found: list[Damage] = []
    manifest = damage.read_manifest(run_dir, found)
    within = damage.span(manifest)
    boot = manifest["clock"].get("boot_id") or ""
    shards = [shard for kind in (_REQUESTS, _HEALTH, _HISTOGRAMS) for shard in _shards(run_dir, kind, boot, found)]
    steps = damage.read_steps(run_dir, within, found)
    empty = Run(
        path=run_dir,
        manifest=manifest,
        requests=_frame(None, [c for c in record.REQUEST_COLUMNS if c.name != _GAPS]),
        gaps=_flatten(None),
        health=_frame(None, record.HEALTH_COLUMNS).assign(worker=0),
        histograms=_buckets([], found),
        steps=steps,
        events=damage.read_events(run_dir, within, found),
        probes=damage.read_probes(run_dir, found),
        hosts=[
            host
            for folder in sorted((run_dir / rundir.TELEMETRY).glob("*/"))
            if (host := _host(run_dir, folder, found)) is not None
        ],
        truth=_truth(run_dir, found),
        examples=damage.read_examples(run_dir, found),
        damage=found,
        foreign=[shard for shard in shards if shard.clock is not None],
    )
    run = with_shards(empty, [shard for shard in shards if shard.clock is None])
    began = bool(steps) or any(shard.table.num_rows for shard in shards)
    found += damage.missing(run_dir, manifest, began, run.events)
    if not run.foreign:
        check_count(run)
    return run


def with_shards(run: Run, shards: Sequence[Shard]) -> Run:
    """The run with the rows of these shards, too; their stamps are the controller's. What is wrong is its damage."""
    within = damage.span(run.manifest)
    usable = [shard._replace(table=_usable(shard, within, run.damage)) for shard in shards]
    tables = [shard.table for shard in usable if shard.kind is _REQUESTS]
    requests = pa.concat_tables(tables) if tables else None
    gaps = _flatten(requests)
    health = [
        _frame(shard.table, record.HEALTH_COLUMNS).assign(worker=_worker(shard.file))
        for shard in usable
        if shard.kind is _HEALTH
    ]
    return replace(
        run,
        requests=_joined(run.requests, _frame(requests, [c for c in record.REQUEST_COLUMNS if c.name != _GAPS])),
        gaps=Gaps(
            np.concatenate((run.gaps.values, gaps.values)) if run.gaps.values.size else gaps.values,
            np.concatenate((run.gaps.offsets, run.gaps.offsets[-1] + gaps.offsets[1:])),
        ),
        health=_joined(run.health, *health),
        histograms=_joined(run.histograms, _buckets([s for s in usable if s.kind is _HISTOGRAMS], run.damage)),
    )


def _joined(*frames: pd.DataFrame) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if len(filled) > 1 else [*filled, frames[0]][0]


def check_count(run: Run) -> None:
    """A shard that was cut between two batches looks whole: only the count tells."""
    recorded = (run.manifest["recorded"] or {}).get("requests")
    here = int((run.requests["outcome"] != record.Outcome.CANCELLED).sum())
    if damage.whole(recorded) and here != recorded:
        run.damage.append(Damage(rundir.REQUESTS, f"{here} requests are here, and {recorded} were recorded"))


def _worker(file: str) -> int:
    """The worker's number, which the shard's name ends in."""
    return int("".join(c for c in Path(file).name if c.isdecimal()) or 0)


def _shards(run_dir: Path, kind: Kind, boot_id: str, found: list[Damage]) -> list[Shard]:
    """Each readable shard of that kind."""
    shards = []
    for path in sorted((run_dir / kind.folder).glob("*.arrow")):
        if "".join(path.suffixes) != kind.suffix:
            continue
        file = f"{kind.folder}/{path.name}"
        table, facts = read(path, file, kind.columns, record.SCHEMA, found)
        if table is not None:
            clock = None if facts.get("boot_id", "") == boot_id else f"{WORKER}{facts.get('host')}"
            shards.append(Shard(kind, file, clock, table))
    return shards


def _usable(shard: Shard, within: Span, found: list[Damage]) -> pa.Table:
    """The rows that have all keys, an outcome that there is, and no stamp outside the run."""
    stamps = [column.name for column in shard.kind.columns if column.name.endswith("_ns")]
    good = complete(shard.table, shard.kind.keys)
    if "outcome" in shard.kind.keys:
        good = pc.and_(good, pc.is_in(shard.table["outcome"], value_set=_OUTCOMES))
    for stamp in stamps:
        inside = pc.and_(
            pc.greater_equal(shard.table[stamp], within.first_ns), pc.less_equal(shard.table[stamp], within.last_ns)
        )
        good = pc.and_(good, pc.fill_null(inside, True))
    return only(good, shard.table, shard.file, found)


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


def _buckets(shards: Iterable[Shard], found: list[Damage]) -> pd.DataFrame:
    """The histograms of all shards, a row a bucket; a row that is no histogram is left out."""
    frames = [pd.DataFrame({"t_ns": [], "name": [], "bucket": [], "count": []}, dtype="int64").astype({"name": "str"})]
    for shard in shards:
        table = shard.table
        lengths = [pc.list_value_length(table[column]) for column in ("buckets", "counts")]
        even = table.filter(pc.equal(*lengths)).combine_chunks()
        flat = even.select(["t_ns", "name"]).take(pc.list_parent_indices(even["buckets"])).to_pandas()
        flat["bucket"], flat["count"] = (pc.list_flatten(even[column]).to_numpy() for column in ("buckets", "counts"))
        good = flat["bucket"].between(0, _LAST_BUCKET) & flat["count"].between(1, _MOST)
        if bad := table.num_rows - len(even) + int((~good).sum()):
            found.append(Damage(shard.file, f"{bad} buckets are nonsense: they are left out"))
        frames.append(flat[good].astype({"bucket": "int64", "count": "int64"}))
    return pd.concat(frames, ignore_index=True)


def _host(run_dir: Path, folder: Path, found: list[Damage]) -> Host | None:
    tables: dict[str, pd.DataFrame] = {}
    facts: dict[str, str] = {}
    for name, columns in sample.TABLES.items():
        path = folder / f"{name}.arrow"
        if path.exists():
            file = str(path.relative_to(run_dir))
            table, metadata = read(path, file, columns, sample.SCHEMA, found)
            if table is not None:
                keys = [key for key in _SAMPLE_KEYS if key in table.column_names]
                frame = _frame(only(complete(table, keys), table, file, found), columns)
                tables[name], facts = _bounded(frame, file, found), metadata
    if not tables:
        return None
    return Host(
        name=folder.name,
        clock=facts.get("host", folder.name),
        boot_id=facts.get("boot_id", ""),
        simulated=facts.get("simulated") == "true",
        realtime_ns=_integer(facts.get("realtime_ns", "")),
        monotonic_ns=_integer(facts.get("monotonic_ns", "")),
        tables=tables,
    )


def _integer(text: str) -> int | None:
    return int(text) if text.isdecimal() and damage.whole(int(text)) else None


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
