"""Append-only Arrow IPC streams: the file format of everything that is measured.

A shard is one process's own file. Batches are appended and flushed; a cut tail costs the last batch only.
Its schema metadata hold `schema`, `host`, `boot_id` and one (realtime, monotonic) pair in ns, so that its
clock can be named later. Speaks no clock of its own.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from remote_agents.agent.kernel_clock import boot_id

_TYPES = {
    "int64": pa.int64(),
    "int32": pa.int32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "list<int32>": pa.list_(pa.int32()),
    "list<int64>": pa.list_(pa.int64()),
}

_UNREADABLE = (pa.ArrowException, OSError, MemoryError)
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def clock_identity() -> dict[str, str]:
    """Host, boot id and a (realtime, monotonic) pair in ns: what names the clock of a file."""
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "realtime_ns": str(time.time_ns()),
        "monotonic_ns": str(time.monotonic_ns()),
    }


def arrow_schema(columns: Iterable[tuple[str, str]], metadata: Mapping[str, str]) -> pa.Schema:
    """Arrow schema of (name, type) pairs; the type names are those of `record.Column`."""
    return pa.schema([pa.field(name, _TYPES[kind]) for name, kind in columns], metadata=dict(metadata))


def record_batch(columns: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Python values as one batch; `columns` are in schema order and of equal length."""
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


class ShardWriter:
    """Appends batches of columns to one Arrow IPC stream; each append reaches the kernel before it returns.

    An append that fails, on a full disk say, leaves the file as it was before, and may be tried again.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Raises OSError; FileExistsError when there is such a file."""
        self.schema = schema
        self._file = path.open("xb", buffering=0)
        self._size = 0
        self._write(schema.serialize())

    def append(self, columns: Sequence[Sequence[Any]]) -> None:
        """Write one batch; `columns` are in schema order and of equal length. Raises OSError."""
        self.append_batch(record_batch(columns, self.schema))

    def append_batch(self, batch: pa.RecordBatch) -> None:
        """Write a batch of this schema. Raises OSError."""
        self._write(batch.serialize())

    def _write(self, message: pa.Buffer) -> None:
        rest = memoryview(message)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise
        self._size += message.size

    def close(self) -> None:
        """Raises OSError, with the file closed."""
        try:
            self._write(pa.py_buffer(_END_OF_STREAM))
        finally:
            self._file.close()


def read_shard(path: Path) -> tuple[pa.Table | None, str | None]:
    """The whole batches of a shard, and one sentence on what is wrong with its tail (None when whole).

    The table is None when not even the schema can be read.
    """
    try:
        # In memory at once: a length that is garbage then cannot ask for more than there is.
        stream = pa.ipc.open_stream(pa.py_buffer(path.read_bytes()))
    except _UNREADABLE as error:
        return None, f"{path.name}: cannot be read ({error})"
    batches: list[pa.RecordBatch] = []
    problem = None
    try:
        for batch in stream:
            batches.append(batch)
    except _UNREADABLE as error:
        problem = f"{path.name}: cut after {sum(b.num_rows for b in batches)} rows ({error})"
    return pa.Table.from_batches(batches, schema=stream.schema), problem
