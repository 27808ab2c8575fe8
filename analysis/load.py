"""A run directory, opened: its small files as they are, its large ones as what can be read of them, part by part.

Here: what there is, with what is wrong in it beside. Not here: clocks (clocks.py), the rows of workers (shards.py) and
what counts (windows.py, step.py). Every `_ns` is still the CLOCK_MONOTONIC of the host that wrote it. A cut, foreign or
missing file is a Damage (damage.py), never an exception; only an unusable run.json is one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis import arrow, damage
from analysis.damage import Damage
from analysis.shards import HEALTH, HISTOGRAMS, REQUESTS, Shard, shards
from analysis.stats import Floats
from loadgen import rundir
from remote_agents.agent import sample

_TRUTH = ("received_ns", "emissions", "late_tokens")
_SAMPLE_KEYS = ("t0_mono_ns", "t1_mono_ns", "gpu_uuid", "gpu_index", "pid")
# A stamp that was not measured.
NO_STAMP = -(2**63)
# No sample of anything is larger.
_LARGEST = 1e18


@dataclass(frozen=True)
class Host:
    """An inference host: a file a table of sample.TABLES; `clock` names the machine that stamped them.

    `realtime_ns` and `monotonic_ns` are its two clocks at one instant.
    """

    name: str
    clock: str
    boot_id: str
    simulated: bool
    realtime_ns: int | None
    monotonic_ns: int | None
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Run:
    """`shards` are those of workers, whose rows shards.py reads; hosts' samples are read by `samples`."""

    path: Path
    manifest: dict[str, Any]
    shards: Sequence[Shard]
    steps: list[dict[str, Any]]
    events: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    hosts: list[Host]
    truth: pd.DataFrame
    examples: list[dict[str, Any]]
    damage: list[Damage]


def load(run_dir: Path) -> Run:
    """What there is of a run.

    Raises RunDirError when run.json is missing, damaged, of an unknown schema or without plan or clock.
    """
    found: list[Damage] = []
    manifest = damage.read_manifest(run_dir, found)
    within = damage.span(manifest)
    boot = manifest["clock"].get("boot_id") or ""
    there = [shard for kind in (REQUESTS, HEALTH, HISTOGRAMS) for shard in shards(run_dir, kind, boot, found)]
    steps = damage.read_steps(run_dir, within, found)
    run = Run(
        path=run_dir,
        manifest=manifest,
        shards=there,
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
    )
    began = bool(steps) or any(shard.filled for shard in there)
    found += damage.missing(run_dir, manifest, began, run.events)
    return run


def _host(run_dir: Path, folder: Path, found: list[Damage]) -> Host | None:
    files: dict[str, Path] = {}
    facts: dict[str, str] = {}
    for table in sample.TABLES:
        path = folder / f"{table}.arrow"
        if path.exists():
            known = arrow.known(path, str(path.relative_to(run_dir)), sample.SCHEMA, found)
            if known is not None:
                files[table], facts = path, known.facts
    if not files:
        return None
    return Host(
        name=folder.name,
        clock=facts.get("host", folder.name),
        boot_id=facts.get("boot_id", ""),
        simulated=facts.get("simulated") == "true",
        realtime_ns=_integer(facts.get("realtime_ns", "")),
        monotonic_ns=_integer(facts.get("monotonic_ns", "")),
        files=files,
    )


def _integer(text: str) -> int | None:
    return int(text) if text.isdecimal() and damage.whole(int(text)) else None


def samples(run: Run, host: Host, table: str, names: Sequence[str], found: list[Damage]) -> Iterator[dict[str, Any]]:
    """These columns of a host's table, and its keys, in parts: stamps as int64 or NO_STAMP, numbers as floats or NaN.

    Texts stay Arrow's. Rows without all keys are left out, and so are values that no sensor gives.
    """
    known = {column.name: column for column in sample.TABLES[table]}
    keys = [key for key in _SAMPLE_KEYS if key in known]
    wanted = [column for column in known.values() if column.name in (*names, *keys)]
    file = str(host.files[table].relative_to(run.path))
    nonsense = 0
    for part in arrow.parts(host.files[table], file, wanted, found, lambda rows: arrow.complete(rows, keys)):
        columns: dict[str, Any] = {}
        for column in wanted:
            values = part[column.name]
            if column.name.endswith("_mono_ns"):
                columns[column.name] = pc.fill_null(values, NO_STAMP).to_numpy()
            elif column.type == "string":
                columns[column.name] = pc.fill_null(values, "")
            else:
                columns[column.name], bad = _bounded(values, column.type)
                nonsense += bad
        yield columns
    if nonsense:
        found.append(Damage(file, f"{nonsense} values are nonsense: they are taken as not measured"))


def _bounded(values: Any, kind: str) -> tuple[Floats, int]:
    """Floats that no sensor gives are taken as not measured, and counted."""
    numbers = numbers_of(values)
    nonsense = np.abs(numbers) > _LARGEST if kind == "float64" else np.zeros(0, bool)
    count = int(nonsense.sum())
    return (np.where(nonsense, np.nan, numbers) if count else numbers), count


def numbers_of(column: pa.ChunkedArray) -> Floats:
    """As floats, NaN for null."""
    return np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def categories(parts: Sequence[pa.ChunkedArray]) -> pd.Categorical:
    """Texts, end to end; the categories are in order."""
    texts = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())
    encoded = texts.dictionary_encode().unify_dictionaries().combine_chunks()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    told = pd.Index(encoded.dictionary.to_pylist(), dtype="str")
    return pd.Categorical.from_codes(encoded.indices.to_numpy(), told).reorder_categories(sorted(told))


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
