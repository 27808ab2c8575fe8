"""A worker's own shards: request records and the worker's state, appended at least every second.

On the hot path a row is appended to a list and nothing else happens. A greenlet hands the rows of the last half second
to a thread of gevent's pool, which makes Arrow of them and writes; the loop is not held meanwhile.
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
from gevent.lock import RLock

from loadgen import rundir, shards
from loadgen.record import HEALTH_COLUMNS, REQUEST_COLUMNS, SCHEMA, Column, Outcome

_FLUSH_S = 0.5
_PROBE_S = 0.02
_OUTCOME = [column.name for column in REQUEST_COLUMNS].index("outcome")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Table:
    """Rows in memory, and the shard that they go to. Rows are taken on the loop and written in a thread."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        metadata = {"schema": str(SCHEMA), **shards.clock_identity()}
        schema = shards.arrow_schema([(column.name, column.type) for column in columns], metadata)
        self.rows: list[Sequence[Any]] = []
        self.writer = shards.ShardWriter(path, schema)

    def flush(self, pool: Any) -> list[Sequence[Any]]:
        """Write the rows that there are, and return them; when that fails they are kept, and the error is raised."""
        rows, self.rows = self.rows, []
        try:
            if rows:
                pool.apply(self._write, (rows,))
        except BaseException:
            self.rows[:0] = rows
            raise
        return rows

    def _write(self, rows: list[Sequence[Any]]) -> None:
        self.writer.append(list(zip(*rows, strict=True)))


class Recorder:
    """Opens the shards of worker `index`; `in_flight` and `users` are kept by their owners and recorded each second.

    `written` and `written_failed` count the requests in the shard, without those that were cancelled. `failure` says
    why nothing more is written: rows then gather until `close`, and the run is ended by whoever looks.
    """

    def __init__(self, run: Path, index: int) -> None:
        self.index = index
        self.in_flight = 0
        self.users = 0
        self.written = 0
        self.written_failed = 0
        self.failure: BaseException | None = None
        name = f"worker-{index}.arrow"
        self._requests = _Table(run / rundir.REQUESTS / name, REQUEST_COLUMNS)
        self._health = _Table(run / rundir.WORKERS / name, HEALTH_COLUMNS)
        self._lags_us: list[int] = []
        self._sequence = 0
        self._writing = RLock()
        self._greenlets = [gevent.spawn(self._write), gevent.spawn(self._probe), gevent.spawn(self._observe)]

    def next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def append(self, values: Sequence[Any]) -> None:
        """One request's record, in the order of REQUEST_COLUMNS."""
        self._requests.rows.append(values)

    def _write(self) -> None:
        while self.failure is None:
            gevent.sleep(_FLUSH_S)
            with self._writing:
                self._flush()

    def _flush(self) -> None:
        pool = gevent.get_hub().threadpool
        try:
            for row in self._requests.flush(pool):
                if row[_OUTCOME] != Outcome.CANCELLED:
                    self.written += 1
                    self.written_failed += row[_OUTCOME] != Outcome.OK
            self._health.flush(pool)
        except Exception as error:  # whatever it is: the run must end, and say why
            self.failure = error

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
            self._health.rows.append(
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
        """Write what is left, once more also after a failure: there may be room again. `failure` says how it went."""
        with self._writing:  # no write is under way any more
            gevent.killall(self._greenlets)
            self.failure = None
            self._flush()
            for table in (self._requests, self._health):
                try:
                    table.writer.close()
                except OSError as error:
                    self.failure = self.failure or error


def quiet_collector() -> None:
    """Keep the garbage collector from stopping the loop: freeze what exists, collect rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
