"""One Arrow file of a run: the rows and columns of it that can be used, whatever happened to it.

A file that is cut, damaged or of an unknown schema is a Damage (damage.py), never an exception. Speaks no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis import damage
from analysis.damage import Damage
from loadgen.shards import arrow_schema, read_shard


def read(
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
    if facts.get("schema") not in [str(known) for known in range(1, schema + 1)]:  # in older ones columns are missing
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


def complete(table: pa.Table, keys: Iterable[str]) -> Any:
    """Which rows have all keys."""
    good = pa.array(np.ones(table.num_rows, bool))
    for key in keys:
        good = pc.and_(good, pc.is_valid(table[key]))
    return good


def only(good: Any, table: pa.Table, name: str, found: list[Damage]) -> pa.Table:
    """The good rows of the table of that file."""
    bad = table.num_rows - (pc.sum(good).as_py() or 0)
    if not bad:
        return table
    found.append(Damage(name, f"{bad} of {table.num_rows} rows are nonsense: they are left out"))
    return table.filter(good)


def _arrow(kind: str) -> Any:
    return arrow_schema([(kind, kind)], {}).types[0]
