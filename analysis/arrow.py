"""One Arrow file of a run, part by part: the rows and columns of it that can be used, whatever happened to it.

A file that is cut, damaged or of an unknown schema is a Damage (damage.py), never an exception. A part is as many
batches as make some hundred thousand rows, so that memory is bounded however long the file is. A long run has hundreds
of thousands of batches of few rows: some at a time are checked and joined while the cache has them. Speaks no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis import damage
from analysis.damage import Damage
from loadgen.shards import arrow_schema

PART_ROWS = 200_000
# A part has no more bytes of the file than this, but for one batch.
PART_BYTES = 32 << 20
# So many batches are checked and joined at a time: four times as many take half as long again.
_TOGETHER = 128
_READ_AHEAD = 1 << 20

_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)

# Which rows of a part are of use.
Good = Callable[[pa.Table], Any]


class Known(NamedTuple):
    """What a file says of itself: `facts` are its metadata, `filled` whether there are rows."""

    facts: dict[str, str]
    filled: bool


def known(path: Path, name: str, schema: int, found: list[Damage]) -> Known | None:
    """None when not even that can be read, or the schema is none that this version knows."""
    try:
        with pa.OSFile(str(path)) as file:
            stream = pa.ipc.open_stream(file)
            metadata = stream.schema.metadata or {}
            filled = _filled(stream)
    except _UNREADABLE as error:
        found.append(Damage(name, damage.sentence(f"it cannot be read ({error})")))
        return None
    facts = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in metadata.items()}
    if facts.get("schema") not in [str(known) for known in range(1, schema + 1)]:  # in older ones columns are missing
        text = f"it has schema {facts.get('schema')}, this version reads {schema}: it is left out"
        found.append(Damage(name, damage.sentence(text)))
        return None
    return Known(facts, filled)


def _filled(stream: pa.RecordBatchReader) -> bool:
    try:
        return any(batch.num_rows for batch in stream)
    except _UNREADABLE:
        return False


def parts(
    path: Path, name: str, columns: Sequence[Any], found: list[Damage], good: Good | None = None
) -> Iterator[pa.Table]:
    """The file's rows that are `good`, with exactly `columns` (null where it has none); in parts, each in one piece.

    What is wrong is added to `found` at the end.
    """
    read = _Read(name, columns)
    try:
        with pa.OSFile(str(path)) as file:
            schema = pa.ipc.open_stream(file).schema
            file.seek(0)
            fields = [index for column in columns for index in schema.get_all_field_indices(column.name)]
            options = pa.ipc.IpcReadOptions(included_fields=sorted(fields))
            stream = pa.ipc.open_stream(pa.BufferedInputStream(file, _READ_AHEAD), options=options)
            for pieces in _gathered(stream, file, read):
                table = read.usable(pa.concat_tables(pieces), good)
                if table.num_rows:
                    yield table
    except _UNREADABLE as error:
        read.problem = f"it cannot be read ({error})"
    found += read.damage()


def _gathered(stream: pa.RecordBatchReader, file: pa.NativeFile, read: _Read) -> Iterator[list[pa.Table]]:
    """Pieces that make a part, as far as the stream can be read."""
    pieces: list[pa.Table] = []
    batches: list[pa.RecordBatch] = []
    rows = begin = 0
    for batch in read.batches_of(stream):
        batches.append(batch)
        is_large = file.tell() >= begin + PART_BYTES
        if is_large or len(batches) == _TOGETHER:
            pieces.append(read.joined(batches, stream.schema))
            rows += pieces[-1].num_rows
            batches = []
        if is_large or rows >= PART_ROWS:
            yield pieces
            pieces, rows, begin = [], 0, file.tell()
    if batches:
        pieces.append(read.joined(batches, stream.schema))
    if pieces:
        yield pieces


class _Read:
    """What is found while a file is read."""

    def __init__(self, name: str, columns: Sequence[Any]) -> None:
        self.name = name
        self.columns = columns
        self.problem: str | None = None
        self.batches = self.batch_rows = 0
        self._damaged = self._rows = self._bad = 0
        self._texts: dict[str, None] = {}

    def batches_of(self, stream: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """As far as the stream can be read."""
        while True:
            try:
                batch = stream.read_next_batch()
            except StopIteration:
                return
            except _UNREADABLE as error:
                self.problem = f"cut after {self.batch_rows} rows ({error})"
                return
            self.batches += 1
            self.batch_rows += batch.num_rows
            yield batch

    def usable(self, table: pa.Table, good: Good | None) -> pa.Table:
        """The rows of a part that can be used, as one piece of memory."""
        table = pa.table({column.name: self._column(table, column) for column in self.columns}).combine_chunks()
        self._rows += table.num_rows
        if good is None or not table.num_rows:
            return table
        which = good(table)
        bad = table.num_rows - (pc.sum(which).as_py() or 0)
        self._bad += bad
        return table.filter(which) if bad else table

    def joined(self, batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
        """The batches whose offsets and texts are what they claim to be: others would crash whoever reads them."""
        table = pa.Table.from_batches(batches, schema)
        try:
            table.validate(full=True)
        except _UNREADABLE:
            whole = [batch for batch in batches if _is_whole(batch)]
            self._damaged += len(batches) - len(whole)
            table = pa.Table.from_batches(whole, schema)
        return table.combine_chunks()

    def _column(self, table: pa.Table, column: Any) -> Any:
        kind = arrow_type(column.type)
        match table.schema.get_all_field_indices(column.name):
            case [index] if table.schema.field(index).type == kind:
                return table.column(index)
            case [index]:
                try:
                    return table.column(index).cast(kind)
                except (pa.ArrowException, ValueError):
                    found = table.schema.field(index).type
                    problem = f"column {column.name} has type {found} instead of {column.type}"
            case []:  # written before there was such a column
                return pa.nulls(table.num_rows, kind)
            case _:
                problem = f"column {column.name} is there several times"
        self._texts[damage.sentence(f"{problem}: it is taken as not measured")] = None
        return pa.nulls(table.num_rows, kind)

    def damage(self) -> list[Damage]:
        texts = [damage.sentence(self.problem)] if self.problem else []
        if self._damaged:
            texts.append(f"{self._damaged} of {self.batches} batches of rows are damaged: they are left out")
        texts += self._texts
        if self._bad:
            texts.append(f"{self._bad} of {self._rows} rows are nonsense: they are left out")
        return [Damage(self.name, text) for text in texts]


def _is_whole(batch: pa.RecordBatch) -> bool:
    try:
        batch.validate(full=True)
    except _UNREADABLE:
        return False
    return True


def complete(table: pa.Table, keys: Iterable[str]) -> Any:
    """Which rows have all keys."""
    good = pa.array(np.ones(table.num_rows, bool))
    for key in keys:
        good = pc.and_(good, pc.is_valid(table[key]))
    return good


def arrow_type(kind: str) -> Any:
    return arrow_schema([(kind, kind)], {}).types[0]
