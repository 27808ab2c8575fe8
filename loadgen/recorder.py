"""A worker's own shards: request records and the worker's state, appended at least every second.

On the hot path values are appended to columns and nothing else happens. A greenlet hands the columns of the last
second to a thread of gevent's pool, which makes Arrow of them and writes; the loop is not held meanwhile.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent

from loadgen import rundir, shards
from loadgen.record import HEALTH_COLUMNS, REQUEST_COLUMNS, SCHEMA, Column

_FLUSH_S = 0.5
_PROBE_S = 0.02
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Table:
    """Columns in memory, and the shard that they go to."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        metadata = {"schema": str(SCHEMA), **shards.clock_identity()}
        schema = shards.arrow_schema([(column.name, column.type) for column in columns], metadata)
        self._columns: list[list[Any]] = [[] for _ in columns]
        self._writer = shards.ShardWriter(path, schema)

    def append(self, values: Sequence[Any]) -> None:
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)

    def flush(self) -> None:
        """Write what has gathered, or keep it; called in a thread, by one caller at a time. Raises OSError."""
        if self._columns[0]:
            full, self._columns = self._columns, [[] for _ in self._columns]
            try:
                self._writer.append(full)
            except OSError:
                for kept, later in zip(full, self._columns, strict=True):
                    kept.extend(later)
                self._columns = full
                raise

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._writer.close()


class Recorder:
    """Opens the shards of worker `index`; `in_flight` and `users` are kept by their owners and recorded each second."""

    def __init__(self, run: Path, index: int) -> None:
        self.index = index
        self.in_flight = 0
        self.users = 0
        self.failure: BaseException | None = None
        name = f"worker-{index}.arrow"
        self._requests = _Table(run / rundir.REQUESTS / name, REQUEST_COLUMNS)
        self._health = _Table(run / rundir.WORKERS / name, HEALTH_COLUMNS)
        self._lags_us: list[int] = []
        self._sequence = 0
        self._greenlets = [gevent.spawn(self._write), gevent.spawn(self._probe), gevent.spawn(self._observe)]

    def next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def append(self, values: Sequence[Any]) -> None:
        """One request's record, in the order of REQUEST_COLUMNS."""
        self._requests.append(values)

    def _write(self) -> None:
        pool = gevent.get_hub().threadpool
        while True:
            gevent.sleep(_FLUSH_S)
            try:
                pool.apply(self._flush)
            except Exception as error:  # whatever it is: the run must end, and say why
                # Rows gather in memory until the end; the run is ended by whoever looks at `failure`.
                self.failure = error
                return

    def _flush(self) -> None:
        self._requests.flush()
        self._health.flush()

    def _probe(self) -> None:
        """How late a timer of the loop fires: what a read would be late by, where the kernel gives no stamps."""
        due = time.monotonic()
        while True:
            due += _PROBE_S
            gevent.sleep(max(due - time.monotonic(), 0))
            late = time.monotonic() - due
            self._lags_us.append(max(int(late * 1e6), 0))
            due += late

    def _observe(self) -> None:
        while True:
            gevent.sleep(1)
            lags, self._lags_us = sorted(self._lags_us), []
            usage = resource.getrusage(resource.RUSAGE_SELF)
            self._health.append(
                (
                    time.monotonic_ns(),
                    int((usage.ru_utime + usage.ru_stime) * 1e6),
                    int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE,
                    self.users,
                    self.in_flight,
                    lags[int(0.99 * (len(lags) - 1))] if lags else None,
                    lags[-1] if lags else None,
                )
            )

    def close(self) -> None:
        """Write what is left, once more also after a failure: there may be room again. Raises OSError."""
        gevent.killall(self._greenlets)
        self._requests.close()
        self._health.close()


def quiet_collector() -> None:
    """Keep the garbage collector from stopping the loop: freeze what exists, collect rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
