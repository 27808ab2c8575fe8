"""Locust's own statistics, filled from what was recorded: a batch at once, not request by request.

Nothing of ours is computed from them: they are for Locust's screen and files, and their counts are reconciled with the
records. Their seconds are CLOCK_REALTIME, as Locust's are.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from locust import exception, stats
from locust.env import Environment
from locust.event import EventHook
from locust.stats import StatsEntry, StatsError
from numpy.typing import NDArray

from loadgen.batch import Batch
from loadgen.record import Outcome

# What a listener may raise to steer its user: here it is only told of a request that ended, maybe a second ago.
_STEERING = (
    exception.StopUser,
    exception.StopTest,
    exception.RescheduleTask,
    exception.RescheduleTaskImmediately,
    exception.InterruptTaskSet,
)
_NO_NAME = "(not sent)"


class Bookkeeping:
    """Adds batches to the environment's statistics; `methods` has the HTTP method of each request's name."""

    def __init__(self, environment: Environment, methods: Mapping[str, str]) -> None:
        self._environment = environment
        self._methods = methods

    def add(self, batch: Batch) -> None:
        """Requests that were recorded, but for those that were cancelled; what was dropped has no response time."""
        requests = _Requests(batch)
        codes, names = batch.encoded("scenario")
        for code, name in enumerate(names):
            rows = np.flatnonzero(batch.counted & (codes == code))
            if len(rows):
                key = name or _NO_NAME, self._method(name)
                entry = requests.entry(self._environment.stats, *key, rows)
                self._environment.stats.get(*key).extend(entry)
                self._environment.stats.total.extend(entry)
        if batch.failed:
            self._add_errors(batch, requests)
        self._tell(batch, requests)

    def _method(self, name: str | None) -> str:
        return self._methods.get(name or "", "")

    def _add_errors(self, batch: Batch, requests: _Requests) -> None:
        errors, now = self._environment.stats.errors, time.time()
        rows = np.flatnonzero(requests.failed).tolist()
        kinds = Counter((batch.texts["scenario"][row], requests.error(row)) for row in rows)
        for (name, text), count in kinds.items():
            method = self._method(name)
            key = StatsError.create_key(method, name or _NO_NAME, text)
            error = errors.setdefault(key, StatsError(method, name or _NO_NAME, text, first_seen=now))
            error.occurrences += count
            error.last_seen = now

    def _tell(self, batch: Batch, requests: _Requests) -> None:
        """A scenario's own listeners get an event a request, as if each had just ended."""
        hook = EventHook()
        for listener in self._environment.events.request._handlers:
            if getattr(listener, "__module__", None) != "locust.runners":
                hook.add_listener(listener)
        if not hook._handlers:
            return
        for row in np.flatnonzero(batch.counted).tolist():
            name = batch.texts["scenario"][row]
            with contextlib.suppress(*_STEERING):
                hook.fire(
                    request_type=self._method(name),
                    name=name or _NO_NAME,
                    response_time=float(requests.ms[row]) if requests.timed[row] else None,
                    response_length=int(requests.lengths[row]),
                    exception=RuntimeError(requests.error(row)) if requests.failed[row] else None,
                    context={},
                )


class _Requests:
    """A batch as Locust sees it: one array for each of its figures."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        end_ns = batch.integers["end_ns"]
        self.ms = (end_ns - batch.integers["intended_ns"]) / 1e6
        self.timed = ~batch.having(Outcome.DROPPED)
        self.failed = batch.counted & ~batch.having(Outcome.OK)
        self.lengths = np.maximum(batch.integers["bytes_in"], 0)
        self._ended_s = (end_ns + (time.time_ns() - time.monotonic_ns())) / 1e9

    def error(self, row: int) -> str:
        """How it failed: few different texts, since those of the records are normalised."""
        outcome, error = self._batch.texts["outcome"][row], self._batch.texts["error"][row]
        return f"{outcome}: {error}" if error else str(outcome)

    def entry(self, owner: stats.RequestStats, name: str, method: str, rows: NDArray[np.int64]) -> StatsEntry:
        """What Locust would have, had it seen only these, one by one."""
        entry = StatsEntry(owner, name, method)
        ms, ended_s, failed = self.ms[rows[self.timed[rows]]], self._ended_s[rows], self.failed[rows]
        entry.num_requests = len(rows)
        entry.num_none_requests = len(rows) - len(ms)
        entry.num_failures = int(failed.sum())
        if len(ms):
            entry.total_response_time = float(ms.sum())
            entry.min_response_time = float(ms.min())
            entry.max_response_time = float(ms.max())
        for whole_ms, count in _counts(np.rint(ms)).items():
            entry.response_times[stats.bucket_response_time(whole_ms)] += count
        entry.total_content_length = int(self.lengths[rows].sum())
        entry.num_reqs_per_sec = _counts(ended_s)
        entry.num_fail_per_sec = _counts(ended_s[failed])
        entry.last_request_timestamp = float(ended_s.max())
        return entry


def _counts(values: NDArray[Any]) -> dict[int, int]:
    """How often each occurs, as whole numbers rounded down."""
    different, counts = np.unique(values.astype(np.int64), return_counts=True)
    return defaultdict(int, zip(different.tolist(), counts.tolist(), strict=True))
