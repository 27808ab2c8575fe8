"""A worker's own shards: request records, histograms and the worker's state, appended at least every second.

On the hot path a request's integers are packed and a row is appended, and nothing else happens. Twice a second a
greenlet makes batches of the rows and shows each to an observer, giving way to the loop after every one; a thread of
gevent's pool writes them. The loop waits for no disk, and what waits for the disk is bounded.
"""

from __future__ import annotations

import gc
import itertools
import os
import resource
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import pyarrow as pa
from gevent.lock import RLock
from numpy.typing import NDArray

from loadgen import rundir, shards
from loadgen.batch import Batch, GapBudget, Row, batches, pack
from loadgen.record import HEALTH_COLUMNS, HISTOGRAM_COLUMNS, REQUEST_COLUMNS, SCHEMA, Column

_FLUSH_S = 0.5
_FLUSHES_A_SECOND = 2
# A timer, however short: the loop looks at its sockets before it fires.
_GIVE_WAY_S = 1e-6
_PROBE_S = 0.02
# Batches that wait for the disk, at most some 200 kB each: half a minute at 30,000 requests/s.
_MAX_WAITING = 2000
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Table:
    """A shard and the batches that wait for it: queued on the loop, written in a thread, one at a time."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        metadata = {"schema": str(SCHEMA), **shards.clock_identity()}
        self.schema = shards.arrow_schema([(column.name, column.type) for column in columns], metadata)
        self.writer = shards.ShardWriter(path, self.schema)
        self.waiting: deque[tuple[pa.RecordBatch, int, int]] = deque()
        self.written = 0
        self.written_failed = 0

    def queue(self, batch: pa.RecordBatch, requests: int = 0, failed: int = 0) -> None:
        """`requests` and `failed` are what the batch counts for once it is written. Raises OSError: it is not taken."""
        if len(self.waiting) >= _MAX_WAITING:
            raise OSError("the disk takes records more slowly than they come")
        self.waiting.append((batch, requests, failed))

    def write(self) -> None:
        """Raises OSError; what was not written waits on."""
        while self.waiting:
            batch, requests, failed = self.waiting[0]
            self.writer.append_batch(batch)
            self.waiting.popleft()
            self.written += requests
            self.written_failed += failed


class _Pauses:
    """Time in the garbage collector, which stops the whole process, since the last `take`; us."""

    def __init__(self) -> None:
        self._began_ns = self._total_ns = self._longest_ns = 0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began_ns = time.perf_counter_ns()
        elif self._began_ns:
            pause = time.perf_counter_ns() - self._began_ns
            self._total_ns += pause
            self._longest_ns = max(self._longest_ns, pause)

    def take(self) -> tuple[int, int]:
        """Their sum and the longest of them."""
        total, longest = self._total_ns // 1000, self._longest_ns // 1000
        self._total_ns = self._longest_ns = 0
        return total, longest

    def close(self) -> None:
        gc.callbacks.remove(self._note)


class Recorder:
    """Opens the shards of worker `index`; `in_flight` and `users` are kept by their owners and recorded each second.

    `on_flush` sees every batch once, on the loop. `written` and `written_failed` count the requests in the shard,
    without those that were cancelled. `failure` says why nothing more is written: batches then wait for `close`, and
    the run is ended by whoever looks.
    """

    def __init__(self, run: Path, index: int, on_flush: Callable[[Batch], None] | None = None) -> None:
        self.index = index
        self.in_flight = 0
        self.users = 0
        self.failure: BaseException | None = None
        self._on_flush = on_flush
        self._requests = _Table(run / rundir.REQUESTS / f"worker-{index}.arrow", REQUEST_COLUMNS)
        self._health = _Table(run / rundir.WORKERS / f"worker-{index}.arrow", HEALTH_COLUMNS)
        self._histograms = _Table(run / rundir.WORKERS / f"worker-{index}.histograms.arrow", HISTOGRAM_COLUMNS)
        self._tables = (self._requests, self._health, self._histograms)
        self._rows: deque[Row] = deque()
        self._budget = GapBudget()
        self._durations: dict[str, Counter[int]] = {}
        self._timer_lags_us: list[int] = []
        self._pauses = _Pauses()
        self._sequence = 0
        self._lost: BaseException | None = None  # a failure that no room mends
        self._flushing = RLock()
        self._writing: Any = None
        self._greenlets = [gevent.spawn(self._flush), gevent.spawn(self._probe), gevent.spawn(self._observe)]

    @property
    def written(self) -> int:
        return self._requests.written

    @property
    def written_failed(self) -> int:
        return self._requests.written_failed

    def next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def append(
        self,
        integers: Sequence[int],
        texts: Sequence[str | None],
        gaps_us: NDArray[np.int32] | None = None,
        lags_us: NDArray[np.int32] | None = None,
        server_times_us: Sequence[int | None] | None = None,
    ) -> None:
        """One request's record; the arrays are kept, and must not change any more.

        `integers` are in the order of record.INTEGERS, -1 where nothing was measured; `texts` in that of record.TEXTS.
        `gaps_us` are the gaps between output events, None where there are no tokens. `lags_us` are the lags of all its
        reads; None when read_lag_us is that of its only one.
        """
        self._rows.append((pack(*integers), texts, gaps_us, lags_us, server_times_us))

    def _flush(self) -> None:
        for flush in itertools.count(1):
            gevent.sleep(_FLUSH_S)
            with self._flushing:
                taken_ns = time.monotonic_ns()
                self._convert()
                if flush % _FLUSHES_A_SECOND == 0:
                    self._queue_histograms(taken_ns)
                self._start_writing()

    def _convert(self) -> None:
        """Make batches of the rows that there are; many are written meanwhile."""
        try:
            for batch in batches(self._rows, self._budget):
                self._queue(self._requests, batch.arrow, int(batch.counted.sum()), batch.failed)
                for name, counts in batch.durations.items():
                    self._durations.setdefault(name, Counter()).update(counts)
                if len(self._requests.waiting) > _MAX_WAITING // 2:
                    self._start_writing()
                if self._on_flush is not None:
                    self._on_flush(batch)
                gevent.sleep(_GIVE_WAY_S)
        except Exception as error:  # whatever it is: the run must end, and say why
            self.failure = self.failure or error

    def _queue(self, table: _Table, batch: pa.RecordBatch, requests: int = 0, failed: int = 0) -> None:
        try:
            table.queue(batch, requests, failed)
        except OSError as error:
            self._lost = self.failure = self.failure or error

    def _queue_histograms(self, t_ns: int) -> None:
        """Those of the requests that were recorded since the last ones, up to `t_ns`."""
        rows = [
            (t_ns, name, sorted(counts), [counts[bucket] for bucket in sorted(counts)])
            for name, counts in self._durations.items()
            if counts
        ]
        self._durations.clear()
        if rows:
            self._queue(self._histograms, shards.record_batch(list(zip(*rows, strict=True)), self._histograms.schema))

    def _start_writing(self) -> None:
        """Unless there is nothing to write, a write is under way, or writing has failed."""
        if self._writing is not None and self._writing.ready():
            self._settle()
        if self._writing is None and self.failure is None and any(table.waiting for table in self._tables):
            self._writing = gevent.get_hub().threadpool.spawn(self._write)

    def _finish_writing(self) -> None:
        """Write all that waits, also when writing has failed before."""
        self._settle()
        self._writing = gevent.get_hub().threadpool.spawn(self._write)
        self._settle()

    def _write(self) -> None:
        for table in self._tables:
            table.write()

    def _settle(self) -> None:
        """Wait for the write that is under way."""
        if self._writing is not None:
            try:
                self._writing.get()
            except Exception as error:  # a full disk, or what Arrow finds: the run must end, and say why
                self.failure = self.failure or error
            self._writing = None

    def _probe(self) -> None:
        """How late a timer of the loop fires: what a read would be late by, where the kernel gives no stamps."""
        due = time.monotonic()
        while True:
            due += _PROBE_S
            gevent.sleep(max(due - time.monotonic(), 0))
            late = time.monotonic() - due
            self._timer_lags_us.append(max(int(late * 1e6), 0))
            due += late

    def _observe(self) -> None:
        while True:
            gevent.sleep(1)
            lags, self._timer_lags_us = sorted(self._timer_lags_us), []
            usage = resource.getrusage(resource.RUSAGE_SELF)
            row = (
                time.monotonic_ns(),
                int((usage.ru_utime + usage.ru_stime) * 1e6),
                int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE,
                self.users,
                self.in_flight,
                lags[int(0.99 * (len(lags) - 1))] if lags else None,
                lags[-1] if lags else None,
                *self._pauses.take(),
            )
            self._queue(self._health, shards.record_batch([[value] for value in row], self._health.schema))

    def close(self) -> None:
        """Write what is left, once more also after a failure: there may be room again. `failure` says how it went."""
        with self._flushing:  # no batch is being made any more
            gevent.killall(self._greenlets)
            self._pauses.close()
            self._settle()
            self.failure = self._lost
            self._finish_writing()  # first, to have room for what comes
            self._convert()
            self._queue_histograms(time.monotonic_ns())
            self._finish_writing()
            for table in self._tables:
                try:
                    table.writer.close()
                except OSError as error:
                    self.failure = self.failure or error


def load_arrow() -> None:
    """Arrow imports pandas at the first array, which takes some 200 ms: not while requests are under way."""
    pa.array([])


def quiet_collector() -> None:
    """Keep the garbage collector from stopping the loop: it leaves alone what exists, and looks at little at a time.

    It still runs, so that what refers to itself does not gather. Users that come later are to be frozen too.
    """
    gc.collect()
    gc.freeze()
    # 20,000 objects take the youngest generation some 0.5 ms. The oldest takes 200 ms with thousands of answers under
    # way: it is next to never looked at.
    gc.set_threshold(20_000, 50, 1000)
